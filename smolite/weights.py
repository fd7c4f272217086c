"""The weights of a model under Hugging Face's Llama names and layout: a projection is (outputs, inputs)."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from safetensors import SafetensorError
from safetensors.numpy import load_file

from smolite.models import CausalLM

_EMBEDDING = "model.embed_tokens.weight"
_TIED_HEAD = "lm_head.weight"
_INERT_SUFFIX = ".rotary_emb.inv_freq"  # old versions of transformers saved what follows from `rope_theta`
_FLOATS = ("float32", "float16", "bfloat16")
_NAMES_SHOWN = 3


def model_weights(model: CausalLM) -> dict[str, np.ndarray]:
    """The weights as numpy arrays under Hugging Face's Llama names; the tied output projection has none."""
    weights = {}
    for name, (layer, attribute) in _places(model).items():
        array = ops.convert_to_numpy(getattr(layer, attribute))
        weights[name] = np.ascontiguousarray(array.T if attribute == "kernel" else array)
    return weights


def assign_weights(model: CausalLM, tensors: Mapping[str, np.ndarray]) -> None:
    """Gives a model weights that are named and laid out as in `model_weights`; all are checked first.

    Args:
        model: the model, changed in place.
        tensors: float32, float16 or bfloat16. An `lm_head.weight` equal to the embedding is accepted.

    Raises:
        ValueError: a tensor is missing, unexpected, or has another shape or dtype; each is named.
    """
    tensors = _without_redundant(tensors)
    places = _places(model)
    _check_names(places, tensors)
    _check_tensors(places, tensors)
    for name, (layer, attribute) in places.items():
        value = tensors[name].astype("float32")
        getattr(layer, attribute).assign(value.T if attribute == "kernel" else value)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors in `model.safetensors` of a folder, or in the shards that its index file lists.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or not of this format.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file() and not (folder / names[0]).exists():
        names = _shards(index)
    return {name: tensor for file in names for name, tensor in _read_file(folder / file).items()}


def _shards(index: Path) -> list[str]:
    try:
        return sorted({Path(name).name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError) as error:
        raise ValueError(f"{index} must be JSON with a `weight_map`: {error}. Copy it again.") from error


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} must hold {path.name}. It is missing. Copy the whole folder.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a whole safetensors file: {error}. Copy it again.") from error


def _places(model: CausalLM) -> dict[str, tuple[Any, str]]:
    """For each Hugging Face name the layer and the attribute that hold the weight."""
    places = {
        _EMBEDDING: (model.token_embedding, "embeddings"),
        "model.norm.weight": (model.final_norm, "scale"),
    }
    for number, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        layers = {
            "input_layernorm": (block.attention_norm, "scale"),
            "self_attn.q_proj": (attention.query, "kernel"),
            "self_attn.k_proj": (attention.key, "kernel"),
            "self_attn.v_proj": (attention.value, "kernel"),
            "self_attn.o_proj": (attention.output_projection, "kernel"),
            "post_attention_layernorm": (block.mlp_norm, "scale"),
            "mlp.gate_proj": (mlp.gate, "kernel"),
            "mlp.up_proj": (mlp.up, "kernel"),
            "mlp.down_proj": (mlp.down, "kernel"),
        }
        places |= {f"model.layers.{number}.{name}.weight": place for name, place in layers.items()}
    return places


def _without_redundant(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_INERT_SUFFIX)}
    head = kept.pop(_TIED_HEAD, None)
    if head is not None and not np.array_equal(head, kept.get(_EMBEDDING, ())):
        raise ValueError(
            f"`{_TIED_HEAD}` must equal `{_EMBEDDING}`, for only tied embeddings are implemented. Received: "
            "another tensor. Use a model trained with `tie_word_embeddings`."
        )
    return kept


def _check_names(places: Iterable[str], tensors: Iterable[str]) -> None:
    missing, unexpected = sorted(set(places) - set(tensors)), sorted(set(tensors) - set(places))
    if missing or unexpected:
        raise ValueError(
            f"The weights must be those that config.json describes. Missing: {_listed(missing)}. Unexpected: "
            f"{_listed(unexpected)}. Use the config.json that belongs to these weights."
        )


def _check_tensors(places: Mapping[str, tuple[Any, str]], tensors: Mapping[str, np.ndarray]) -> None:
    problems = []
    for name, (layer, attribute) in places.items():
        shape = tuple(getattr(layer, attribute).shape)
        expected, tensor = shape[::-1] if attribute == "kernel" else shape, tensors[name]
        if tensor.shape != expected or str(tensor.dtype) not in _FLOATS:
            problems.append(f"{name} of shape {tensor.shape} for {expected}, {tensor.dtype}")
    if problems:
        raise ValueError(
            f"Tensors must have the shapes that config.json says, in {', '.join(_FLOATS)}. Received: "
            f"{_listed(problems)}. Use the config.json that belongs to these weights."
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") if names else "none"
