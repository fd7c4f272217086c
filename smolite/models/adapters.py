"""LoRA on a whole model: everything stays as it is but a few small matrices beside the projections (Hu et al. 2021)."""

from collections.abc import Iterable

import keras


def enable_lora(model: keras.Model, rank: int, target_layer_names: Iterable[str] | None = None) -> None:
    """Freezes a model, and gives projections a trainable product of two matrices, `rank` wide, that begins at zero.

    Args:
        model: changed in place; compile it anew to train it.
        rank: of the adapters.
        target_layer_names: names of the layers that get one, such as `"query"` and `"value"`. Default: all projections.

    Raises:
        ValueError: `rank` is below 1, no projection has such a name, or there is LoRA already.
    """
    projections = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    names = {layer.name for layer in projections}
    wanted = names if target_layer_names is None else set(target_layer_names)
    _check(rank, wanted, names, [layer.name for layer in projections if layer.lora_enabled])
    model.trainable = True
    for layer in model._flatten_layers(include_self=False):
        layer.trainable = False
    for layer in projections:
        if layer.name in wanted:
            layer.trainable = True
            layer.enable_lora(rank)


def _check(rank: int, wanted: set[str], names: set[str], enabled: list[str]) -> None:
    if rank < 1:
        raise ValueError(f"`rank` must be 1 or more. Received: {rank}. Choose 4, 8 or 16.")
    if unknown := sorted(wanted - names):
        raise ValueError(
            f"`target_layer_names` must be names of projections: {', '.join(sorted(names))}. Received: {', '.join(unknown)}. "
            "Leave it out for all of them."
        )
    if enabled:
        raise ValueError(
            f"A model gets LoRA once. Received: one whose {', '.join(sorted(set(enabled)))} have it. Train it, or save it, "
            "which merges its adapters, and load it again."
        )
