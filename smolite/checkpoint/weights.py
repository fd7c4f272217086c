"""The weights of a model under Hugging Face's Llama names and layout: a projection is (outputs, inputs)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from safetensors import SafetensorError, safe_open

from smolite.models import CrossBlock, LanguageModel, ModelConfig, Seq2SeqLM, new_language_model

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
_ROWS = 1024  # of two tables that are compared at a time
Header = tuple[tuple[int, ...], str]  # shape and dtype
Place = tuple[Any, str]  # a layer, and the attribute that holds the weight


def model_weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights as numpy arrays under Hugging Face's Llama names; the tied output projection has none."""
    weights = {}
    for name, place in _places(model).items():
        weights[name] = np.ascontiguousarray(_oriented(ops.convert_to_numpy(_variable(place)), place))
    return weights


class StoredTensors(Mapping[str, np.ndarray]):
    """Tensors in safetensors files. Only the headers are read at first; a tensor is read when it is asked for, and not kept.

    A file is opened anew for each tensor, because the pages of an open one count as memory of the process.

    Args:
        files: the files, each whole.

    Attributes:
        headers: shape and dtype of each tensor, by name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or not of this format.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.headers: dict[str, Header] = {}
        self._files: dict[str, Path] = {}
        for path in files:
            headers = _read_headers(path)
            self.headers |= headers
            self._files |= dict.fromkeys(headers, path)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor called `name`, in the dtype of the file."""
        with safe_open(self._files[name], framework="numpy") as file:
            tensor: np.ndarray = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors are the same, some rows at a time."""
        if first not in self or second not in self or self.headers[first] != self.headers[second]:
            return False
        with safe_open(self._files[first], framework="numpy") as one, safe_open(self._files[second], framework="numpy") as two:
            left, right, rows = one.get_slice(first), two.get_slice(second), self.headers[first][0][0]
            places = [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]
            return all(np.array_equal(left[place], right[place]) for place in places)


def read_tensors(folder: Path) -> StoredTensors:
    """The tensors in `model.safetensors` of a folder, or in the shards that its index file lists, to be read one by one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or not of this format.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file() and not (folder / names[0]).exists():
        names = _shards(index)
    return StoredTensors(folder / name for name in names)


def _shards(index: Path) -> list[str]:
    try:
        return sorted({Path(name).name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError) as error:
        raise ValueError(f"{index} must be JSON with a `weight_map`: {error}. Copy it again.") from error


def _read_headers(path: Path) -> dict[str, Header]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} must hold {path.name}. It is missing. Copy the whole folder.")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
            return {name: (tuple(each.get_shape()), _dtype_name(each.get_dtype())) for name, each in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} must be a whole safetensors file: {error}. Copy it again.") from error


def _dtype_name(stored: str) -> str:
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(stored, stored)


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
    if isinstance(model, Seq2SeqLM):
        layers |= _stack("encoder.", model.encoder_blocks, model.encoder_norm)
        layers |= _stack("decoder.", model.blocks, model.final_norm)
        for number, memory in enumerate(model.memories):
            cross = f"decoder.layers.{number}.cross_attn"
            layers |= {f"{cross}.k_proj": memory.key, f"{cross}.v_proj": memory.value}
    else:
        layers |= _stack("", model.blocks, model.final_norm)
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
