"""The weights of a model under Hugging Face's Llama names and layout: a projection is (outputs, inputs)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from safetensors import SafetensorError

from smolite.checkpoint.layer_weights import SAVE_WITH_KERAS, check_complete, check_readable, first_in_parts, place_weight
from smolite.checkpoint.places import Place, places_of, variables_of, weight_shapes
from smolite.checkpoint.tensors import Header, StoredTensors
from smolite.models import LanguageModel, ModelConfig, new_language_model

_EMBEDDING = "model.embed_tokens.weight"
_TIED_HEAD = "lm_head.weight"
_INERT_SUFFIX = ".rotary_emb.inv_freq"  # old versions of transformers saved what follows from `rope_theta`
_FLOATS = ("float32", "float16", "bfloat16")
_NAMES_SHOWN = 3


def model_weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights as numpy arrays under Hugging Face's Llama names; the tied output projection has none.

    LoRA is merged, and layers that Keras quantized to int8 or int4 give the floats that their whole numbers stand for.

    Raises:
        ValueError: the weights are not those that the config describes, which `load` would ask for; or a layer has something
            that has no place among them.
    """
    places = places_of(model)
    check_readable(places)
    check_complete(places, model.weights)
    weights = {name: np.ascontiguousarray(_oriented(place_weight(place), place)) for name, place in places.items()}
    _check_headers(
        model.config,
        _headers(weights),
        subject="The weights of the model must be those that its config describes",
        advice=SAVE_WITH_KERAS,
    )
    return weights


def assign_weights(model: LanguageModel, tensors: Mapping[str, np.ndarray]) -> None:
    """Gives a model weights that are named and laid out as in `model_weights`; all are checked first.

    Args:
        model: the model, changed in place.
        tensors: float32, float16 or bfloat16. An `lm_head.weight` equal to the embedding is accepted.

    Raises:
        ValueError: a tensor is missing, unexpected, or has another shape or dtype; each is named. Or a layer of the model
            carries LoRA or is quantized.
    """
    for name, place in _checked_places(model, tensors).items():
        _variable(place).assign(_oriented(tensors[name].astype("float32"), place))


def stored_model(config: ModelConfig, tensors: StoredTensors, *, dtype: Any = None) -> LanguageModel:
    """Makes a model of stored weights, with memory for little more than the weights.

    The variables begin with their tensors: nothing random is drawn first, and one tensor is read at a time.

    Args:
        config: the shape of the model.
        tensors: as in `assign_weights`; checked by their headers before any is read.
        dtype: Keras dtype or policy of the model.

    Raises:
        ValueError: as in `assign_weights`.
    """
    with keras.StatelessScope():  # variables made in it are initialized at its end, one after the other
        model = new_language_model(config, dtype=dtype)
        places = _checked_places(model, tensors)
        unread = set(places)
        for name, place in places.items():
            _variable(place)._initializer = partial(_initial_value, tensors, name, place=place, unread=unread)
    for name in sorted(unread):
        _variable(places[name]).assign(_oriented(tensors[name].astype("float32"), places[name]))
    return model


def _initial_value(
    tensors: StoredTensors, name: str, shape: Sequence[int], *, place: Place, unread: set[str], dtype: Any = None
) -> Any:
    """The initializer of a variable. It never raises, since Keras must come to the end of its list; `unread` is read later."""
    try:
        value = _oriented(tensors[name].astype("float32", copy=False), place)
    except (OSError, SafetensorError):
        return ops.zeros(shape, dtype)
    unread.discard(name)
    return ops.convert_to_tensor(value, dtype)


def _variable(place: Place) -> Any:
    layer, name = place
    return variables_of(layer)[name]


def _oriented(tensor: np.ndarray, place: Place) -> np.ndarray:
    """A tensor of Hugging Face's layout in the one of its place, or the other way round."""
    return tensor.T if place[1] == "kernel" else tensor


def _checked_places(model: LanguageModel, tensors: Mapping[str, np.ndarray]) -> dict[str, Place]:
    """The places of a model, for each of which there is a tensor that fits."""
    headers, places = _headers(tensors), places_of(model)
    check_complete(places, model.weights)
    if name := first_in_parts(model):
        raise ValueError(
            f"Weights are given to a model of floats without LoRA. Received: LoRA or a quantized layer at {name}. Make a new "
            "model, give it the weights, and then call `enable_lora` or `quantize`."
        )
    if _TIED_HEAD in headers:
        _check_head(tensors)
    needed = {name: each for name, each in headers.items() if name != _TIED_HEAD and not name.endswith(_INERT_SUFFIX)}
    _check_headers(
        model.config,
        needed,
        subject="The weights must be those that config.json describes",
        advice="Use the config.json that belongs to these weights.",
    )
    return places


def _headers(tensors: Mapping[str, np.ndarray]) -> dict[str, Header]:
    if isinstance(tensors, StoredTensors):
        return tensors.headers
    return {name: (tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()}


def _check_head(tensors: Mapping[str, np.ndarray]) -> None:
    if isinstance(tensors, StoredTensors):
        tied = tensors.equal(_TIED_HEAD, _EMBEDDING)
    else:
        tied = np.array_equal(tensors[_TIED_HEAD], tensors.get(_EMBEDDING, np.empty(0)))
    if not tied:
        raise ValueError(
            f"`{_TIED_HEAD}` must equal `{_EMBEDDING}`, for only tied embeddings are implemented. Received: "
            "another tensor. Use a model trained with `tie_word_embeddings`."
        )


def _check_headers(config: ModelConfig, headers: Mapping[str, Header], *, subject: str, advice: str) -> None:
    """Refuses weights that are not exactly those of a config. An error begins with `subject` and ends with `advice`."""
    shapes = weight_shapes(config)
    missing, unexpected = sorted(set(shapes) - set(headers)), sorted(set(headers) - set(shapes))
    if missing or unexpected:
        raise ValueError(f"{subject}. Missing: {_listed(missing)}. Unexpected: {_listed(unexpected)}. {advice}")
    problems = [
        f"{name} of shape {shape} for {shapes[name]}, {dtype}"
        for name, (shape, dtype) in headers.items()
        if shape != shapes[name] or dtype not in _FLOATS
    ]
    if problems:
        raise ValueError(f"{subject}, in {', '.join(_FLOATS)}. Received: {_listed(problems)}. {advice}")


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") if names else "none"
