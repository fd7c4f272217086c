"""What a saved model says of Keras' `quantize`: which of its layers are quantized, and how."""

from typing import Any

import keras


def quantized_layers(model: keras.Model) -> dict[str, dict[str, Any]]:
    """For the path of each quantized layer how to quantize it again, ready for JSON; empty where there is none."""
    layers = [layer for layer in _leaves(model) if layer.quantization_mode is not None]
    return {
        layer.path: {
            "mode": layer.quantization_mode,
            "config": keras.saving.serialize_keras_object(layer.quantization_config),
        }
        for layer in layers
    }


def quantize_again(model: keras.Model, layers: dict[str, dict[str, Any]]) -> None:
    """Quantizes the layers of a new model as `quantized_layers` said, whose weights are then read from a file."""
    for layer in _leaves(model):
        if (way := layers.get(layer.path)) is not None:
            layer.quantize(way["mode"], config=keras.saving.deserialize_keras_object(way["config"]))
    if layers:
        # The removed variables would be counted among the weights on torch.
        model._post_quantize(None)


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    kinds = keras.layers.Dense | keras.layers.Embedding
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]
