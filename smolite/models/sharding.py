"""Which axis of each matrix goes over which axis of a mesh of devices, for `keras.distribution.ModelParallel`."""

import keras


def layout_map(
    device_mesh: keras.distribution.DeviceMesh, model_dim: str = "model", data_dim: str = "batch"
) -> keras.distribution.LayoutMap:
    """The layouts of all matrices of a model; norms and biases are whole on every device.

    Args:
        device_mesh: a mesh with both axes.
        model_dim: the axis that matrices are parted over: heads and inner features, so that a block needs two exchanges.
        data_dim: the axis that batches are parted over; the other axis of each matrix goes over it, to be gathered when used.

    Raises:
        ValueError: it is no mesh, or one without these axes.
    """
    _check_mesh(device_mesh, (model_dim, data_dim))
    layouts = keras.distribution.LayoutMap(device_mesh)
    # The paths and shapes of a model's matrices, with the letters of `layers.py`; an encoder-decoder has those in brackets too:
    #   token_embedding/embeddings                                   (V, D)
    #   position_embedding/embeddings                                (S, D)
    #   block_0/attention/{query,key,value}/kernel                   (D, Q·H) or (D, K·H)
    #   block_0/attention/output/kernel                              (Q·H, D)
    #   block_0/adapter/kernel                                       (D, D / 2), of the first Smolite
    #   block_0/mlp/{gate,up}/kernel                                 (D, F)
    #   block_0/mlp/down/kernel                                      (F, D)
    #   [encoder_0/… like block_0/…]
    #   [memory_0/{key,value}/kernel                                 (D, K·H)]
    #   [block_0/cross_attention/query/kernel                        (D, Q·H)]
    #   [block_0/cross_attention/output/kernel                       (Q·H, D)]
    layouts["token_embedding/embeddings"] = (model_dim, data_dim)
    layouts["position_embedding/embeddings"] = (None, data_dim)
    layouts[r".*(query|key|value|gate|up|adapter)/kernel"] = (data_dim, model_dim)
    layouts[r".*(output|down)/kernel"] = (model_dim, data_dim)
    return layouts


def _check_mesh(device_mesh: keras.distribution.DeviceMesh, axes: tuple[str, str]) -> None:
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise ValueError(
            f"`device_mesh` must be a keras.distribution.DeviceMesh. Received: {device_mesh!r:.60}. Make one, for example of "
            "shape (1, 8) with the axes ('batch', 'model')."
        )
    if missing := [axis for axis in axes if axis not in device_mesh.axis_names]:
        raise ValueError(
            f"The mesh must have the axes {axes[0]!r} and {axes[1]!r}. Received: {list(device_mesh.axis_names)}, without "
            f"{', '.join(missing)}. Name its axes so, or say their names."
        )
