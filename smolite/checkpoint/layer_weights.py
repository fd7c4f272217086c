"""The weight of a layer as one float array, also where Keras keeps it in parts: under LoRA, and after `quantize`."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from smolite.checkpoint.places import Place, places_of, variables_of
from smolite.models import LanguageModel

_READABLE = (None, "int8", "int4")  # ways of Keras' `quantize` that leave what the floats can be had from
_PARTS = ("", "_scale", "_zero")  # of a quantized weight, after its name
_NAMES_SHOWN = 3
SAVE_WITH_KERAS = 'Save the model with `model.save("model.keras")`, or build it as its config says.'


def place_weight(place: Place) -> np.ndarray:
    """The float array that a layer computes with, in its own layout.

    LoRA is merged, W + alpha / rank · A · B, and whole numbers are multiplied by their scales, both in float32. The result has
    the dtype of the layer's float variables. Keras quantizes the inputs of some quantized layers too, which is no weight: a
    model that computes with this array in floats is a little more exact.
    """
    layer, name = place
    variables = {each: ops.convert_to_numpy(variable) for each, variable in variables_of(layer).items()}
    stored = variables[name]
    weight = _dequantized(layer, name, variables) if stored.dtype == np.int8 else stored
    dtype = variables[f"{name}_scale"].dtype if stored.dtype == np.int8 else stored.dtype
    if f"lora_{name}_a" in variables:
        change = np.matmul(variables[f"lora_{name}_a"], variables[f"lora_{name}_b"], dtype="float32")
        weight = weight.astype("float32") + layer.lora_alpha / layer.lora_rank * change
    return weight.astype(dtype, copy=False)


def _dequantized(layer: Any, name: str, variables: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whole numbers times their scales, float32. Keras calls scale what the floats were multiplied by, but not in blocks."""
    numbers = variables[name].astype("float32")
    if layer.quantization_mode == "int4":
        width = layer.units if name == "kernel" else layer.output_dim
        unpacked = keras.quantizers.unpack_int4(ops.convert_to_tensor(variables[name]), width, axis=-1)
        numbers = ops.convert_to_numpy(unpacked).astype("float32")
    scales, inputs = variables[f"{name}_scale"].astype("float32"), 0 if name == "kernel" else 1
    if f"{name}_zero" not in variables:
        return numbers / np.expand_dims(scales, inputs)
    blocks = variables["g_idx"].astype("int32")  # of each input
    zeros = variables[f"{name}_zero"].astype("float32")
    return (numbers - np.take(zeros, blocks, axis=inputs)) * np.take(scales, blocks, axis=inputs)


def check_readable(places: Mapping[str, Place]) -> None:
    """Refuses layers that `place_weight` cannot give as floats.

    Raises:
        ValueError: layers are quantized in another way than int8 and int4, or an embedding is quantized and carries LoRA.
    """
    for name, (layer, _) in places.items():
        if layer.quantization_mode not in _READABLE:
            raise ValueError(
                f"Layers quantized by Keras must be int8 or int4 to be written as floats. Received: {layer.quantization_mode} "
                f"at {name}. Save the model before `quantize`; `save(…, bits=8)` writes fewer bits."
            )
        if layer.quantization_mode and "lora_embeddings_a" in variables_of(layer):
            # Keras adds it to what goes in and not to the output projection, so there would be two tables.
            raise ValueError(
                f"A quantized embedding with LoRA has another table for its output than for its input. Received: one at "
                f"{name}. Save the model with LoRA before `quantize`."
            )


def check_complete(places: Mapping[str, Place], weights: Iterable[Any]) -> None:
    """Refuses a model with a weight that is not read from any place.

    Args:
        places: from `places_of`.
        weights: the weights of the model.

    Raises:
        ValueError: a weight belongs to no place.
    """
    read = {id(variable) for place in places.values() for variable in _variables_read(place)}
    if left := sorted(weight.path for weight in weights if id(weight) not in read):
        more = f" and {len(left) - _NAMES_SHOWN} more" if len(left) > _NAMES_SHOWN else ""
        raise ValueError(
            "Every weight of the model must have a name in Hugging Face's layout. Received without one: "
            f"{', '.join(left[:_NAMES_SHOWN])}{more}. {SAVE_WITH_KERAS}"
        )


def _variables_read(place: Place) -> list[Any]:
    layer, name = place
    names = {*(name + part for part in _PARTS), "g_idx", f"lora_{name}_a", f"lora_{name}_b"}
    return [variable for each, variable in variables_of(layer).items() if each in names]


def first_in_parts(model: LanguageModel) -> str | None:
    """The name of the first weight that its layer keeps in parts, because of LoRA or `quantize`; None where all are whole."""
    for name, (layer, own) in places_of(model).items():
        if layer.quantization_mode or f"lora_{own}_a" in variables_of(layer):
            return name
    return None
