"""The weights of a model under Hugging Face's Llama names and layout: a projection is (outputs, inputs)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from safetensors import SafetensorError

from smolite.checkpoint.tensors import Header, StoredTensors
from smolite.models import CrossBlock, LanguageModel, ModelConfig, new_language_model

_EMBEDDING = "model.embed_tokens.weight"
_TIED_HEAD = "lm_head.weight"
_INERT_SUFFIX = ".rotary_emb.inv_freq"  # old versions of transformers saved what follows from `rope_theta`
_FLOATS = ("float32", "float16", "bfloat16")
# Where layers keep their variables, and what Hugging Face calls those.
_ATTRIBUTES = {
    "embeddings": "weight",
    "kernel": "weight",
    "scale": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
}
_NAMES_SHOWN = 3
Place = tuple[Any, str]  # a layer, and the attribute that holds the weight


def model_weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights as numpy arrays under Hugging Face's Llama names; the tied output projection has none."""
    weights = {}
    for name, place in _places(model).items():
        weights[name] = np.ascontiguousarray(_oriented(ops.convert_to_numpy(_variable(place)), place))
    return weights


def assign_weights(model: LanguageModel, tensors: Mapping[str, np.ndarray]) -> None:
    """Gives a model weights that are named and laid out as in `model_weights`; all are checked first.

    Args:
        model: the model, changed in place.
        tensors: float32, float16 or bfloat16. An `lm_head.weight` equal to the embedding is accepted.

    Raises:
        ValueError: a tensor is missing, unexpected, or has another shape or dtype; each is named.
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
    layer, attribute = place
    return getattr(layer, attribute)


def _oriented(tensor: np.ndarray, place: Place) -> np.ndarray:
    """A tensor of Hugging Face's layout in the one of its place, or the other way round."""
    return tensor.T if place[1] == "kernel" else tensor


def _checked_places(model: LanguageModel, tensors: Mapping[str, np.ndarray]) -> dict[str, Place]:
    """The places of a model, for each of which there is a tensor that fits."""
    headers, places = _headers(tensors), _places(model)
    if _TIED_HEAD in headers:
        _check_head(tensors)
    _check_names(places, [name for name in headers if name != _TIED_HEAD and not name.endswith(_INERT_SUFFIX)])
    _check_headers(places, headers)
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


def _places(model: LanguageModel) -> dict[str, Place]:
    """For each Hugging Face name the layer and the attribute that hold the weight."""
    layers = {
        "embed_tokens": model.token_embedding,
        "embed_positions": model.position_embedding,
        "embed_norm": model.embedding_norm,
    }
    # A decoder alone has Llama's names; beside an encoder each side has its own, as in transformers' other models.
    side = "decoder." if model.config.has_encoder else ""
    if model.config.has_encoder:
        layers |= _stack("encoder.", model.encoder_blocks, model.encoder_norm)
    layers |= _stack(side, model.blocks, model.final_norm)
    for number, memory in enumerate(model.memories):
        cross = f"{side}layers.{number}.cross_attn"
        layers |= {f"{cross}.k_proj": memory.key, f"{cross}.v_proj": memory.value}
    return {
        f"model.{name}.{suffix}": (layer, attribute)
        for name, layer in layers.items()
        for attribute, suffix in _ATTRIBUTES.items()
        if isinstance(getattr(layer, attribute, None), keras.Variable)
    }


def _stack(prefix: str, blocks: Sequence[Any], norm: Any) -> dict[str, Any]:
    """The layers of some blocks and the norm after them."""
    named = enumerate(map(_layers_of, blocks))
    return {f"{prefix}layers.{number}.{name}": layer for number, layers in named for name, layer in layers.items()} | {
        f"{prefix}norm": norm
    }


def _layers_of(block: Any) -> dict[str, Any]:
    """The layers of a block under Hugging Face's names; what Llama has no name for keeps ours."""
    attention, mlp = block.attention, block.mlp
    norms = {"input_layernorm": block.attention_norm, "post_attention_layernorm": block.mlp_norm}
    own = {name: getattr(block, name) for name in ("input_norm", "adapter", "output_norm") if hasattr(block, name)}
    layers = {
        "self_attn.q_proj": attention.query,
        "self_attn.k_proj": attention.key,
        "self_attn.v_proj": attention.value,
        "self_attn.o_proj": attention.output_projection,
        "mlp.gate_proj": mlp.gate,
        "mlp.up_proj": mlp.up,
        "mlp.down_proj": mlp.down,
    }
    if isinstance(block, CrossBlock):
        cross = block.cross_attention
        own |= {"cross_attn_layernorm": block.cross_norm, "cross_attn.q_proj": cross.query}
        own["cross_attn.o_proj"] = cross.output_projection
    return norms | own | layers


def _check_names(places: Iterable[str], tensors: Iterable[str]) -> None:
    missing, unexpected = sorted(set(places) - set(tensors)), sorted(set(tensors) - set(places))
    if missing or unexpected:
        raise ValueError(
            f"The weights must be those that config.json describes. Missing: {_listed(missing)}. Unexpected: "
            f"{_listed(unexpected)}. Use the config.json that belongs to these weights."
        )


def _check_headers(places: Mapping[str, Place], headers: Mapping[str, Header]) -> None:
    problems = []
    for name, place in places.items():
        own, (shape, dtype) = tuple(_variable(place).shape), headers[name]
        expected = own[::-1] if place[1] == "kernel" else own
        if shape != expected or dtype not in _FLOATS:
            problems.append(f"{name} of shape {shape} for {expected}, {dtype}")
    if problems:
        raise ValueError(
            f"Tensors must have the shapes that config.json says, in {', '.join(_FLOATS)}. Received: "
            f"{_listed(problems)}. Use the config.json that belongs to these weights."
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") if names else "none"
