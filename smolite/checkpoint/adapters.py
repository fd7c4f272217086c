"""LoRA apart from its model: a folder in the form of the package PEFT, `adapter_config.json` and `adapter_model.safetensors`.

Source: huggingface.co/docs/peft, "PEFT checkpoint format". Keras' Dense computes x · (W + alpha / rank · A · B), PEFT's linear
layer the same of transposed matrices: `lora_A` is (rank, inputs), `lora_B` (outputs, rank).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from smolite.checkpoint.places import Place, places_of, variables_of
from smolite.checkpoint.tensors import StoredTensors, write_tensors
from smolite.files import new_directory, write_file
from smolite.models import LanguageModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SIDES = (".lora_A.weight", ".lora_B.weight")
# Settings of PEFT that make the same matrices mean something else, beside those that begin with `use_`.
_OTHER_MEANINGS = ("alora_invocation_tokens", "bias", "fan_in_fan_out", "layer_replication", "lora_bias", "modules_to_save")


@dataclass(frozen=True)
class LowRank:
    """What LoRA adds to a projection of (outputs, inputs): alpha / rank · B · A.

    Args:
        down: A, (rank, inputs), float32.
        up: B, (outputs, rank), float32.
        alpha: how strongly it counts.
    """

    down: np.ndarray
    up: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return len(self.down)


def save_adapter(path: str | Path, model: LanguageModel, *, base: str | Path | None = None, overwrite: bool = False) -> Path:
    """Writes the LoRA matrices of a model, which belong to the model that they were trained on.

    Args:
        path: the directory to make.
        model: a model whose projections carry LoRA, and whose other weights are frozen, as by `model.enable_lora(rank)`.
        base: the run or the name on the hub of the model below, noted for PEFT as `base_model_name_or_path`.
        overwrite: whether the adapter in `path` may be replaced.

    Returns:
        `path`.

    Raises:
        FileExistsError: `path` is a directory that is not empty, and `overwrite` is false.
        ValueError: no layer carries LoRA, the embedding does, or other weights are trainable and would be lost.
        OSError: the disk is full, or the folder cannot be written; what was there before is whole.
    """
    found = {name.removesuffix(".weight"): _low_rank(place) for name, place in _adapted(model).items()}
    tensors = {}
    for name, each in found.items():
        for side, matrix in zip(_SIDES, (each.down, each.up), strict=True):
            tensors[_PREFIX + name + side] = np.ascontiguousarray(matrix)
    settings = {"base_model_name_or_path": None if base is None else str(base), **_settings(found, places_of(model))}
    with new_directory(path, overwrite=overwrite) as folder:
        write_file(folder / CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode())
        write_tensors(folder / WEIGHTS_FILE, tensors)
    return Path(path)


def load_adapter(model: LanguageModel, path: str | Path) -> None:
    """Puts LoRA matrices from a folder, written by `save_adapter` or PEFT, onto the model that they were trained on.

    The model changes in place: its projections carry LoRA, and all its other weights are frozen. Compile it anew to train it.
    PEFT's dropout before the matrices is left out.

    Args:
        model: the model; it may be quantized by Keras.
        path: the folder.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is broken, the adapter is of another kind or for another model, or the model carries LoRA already.
    """
    settings, places = _read_settings(Path(path)), places_of(model)
    adapters = _read_adapters(StoredTensors([Path(path) / WEIGHTS_FILE]), settings)
    _check_fit(adapters, places)
    model.trainable = True  # also the layers that were frozen as a whole, whose LoRA would be frozen with them
    for weight in model.weights:
        weight.trainable = False
    for name, each in adapters.items():
        layer, _ = places[f"{name}.weight"]
        layer.enable_lora(each.rank, lora_alpha=each.alpha)
        layer.lora_kernel_a.assign(each.down.T)
        layer.lora_kernel_b.assign(each.up.T)


def _adapted(model: LanguageModel) -> dict[str, Place]:
    """The projections with LoRA, after what an adapter would lose is refused."""
    places = places_of(model)
    adapted = {name: place for name, place in places.items() if _lora_variables(place)}
    if not adapted:
        raise ValueError("An adapter is made of LoRA matrices. Received: a model without. Call `model.enable_lora(rank)`.")
    if tables := [name for name, (_, own) in adapted.items() if own != "kernel"]:
        raise ValueError(
            f"PEFT has no adapter for an embedding that is the output projection, too. Received: LoRA at {tables[0]}. Write "
            "the merged model with `smolite.save`."
        )
    kept = {id(variable) for place in adapted.values() for variable in _lora_variables(place)}
    if lost := sorted(weight.path for weight in model.trainable_weights if id(weight) not in kept):
        raise ValueError(
            "An adapter holds LoRA matrices alone, so all other weights must be frozen. Received trainable ones: "
            f"{', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}. Call `model.enable_lora(rank)`, which freezes them, before "
            "training, or write the merged model with `smolite.save`."
        )
    return adapted


def _lora_variables(place: Place) -> list[Any]:
    layer, name = place
    variables = variables_of(layer)
    return [variables[each] for each in (f"lora_{name}_a", f"lora_{name}_b") if each in variables]


def _low_rank(place: Place) -> LowRank:
    down, up = (ops.convert_to_numpy(variable).T for variable in _lora_variables(place))
    return LowRank(down, up, place[0].lora_alpha)


def _settings(adapters: Mapping[str, LowRank], places: Mapping[str, Place]) -> dict[str, Any]:
    """What `adapter_config.json` says. Rank and alpha of most layers, and of each other one by its name."""
    (rank, _), (alpha, _) = (
        Counter(each).most_common(1)[0] for each in zip(*((each.rank, each.alpha) for each in adapters.values()), strict=True)
    )
    short = {name.rsplit(".", 1)[-1] for name in adapters}
    # PEFT takes `q_proj` for those of all layers, so a part of them is listed one by one.
    meant = {name.removesuffix(".weight") for name in places if name.removesuffix(".weight").rsplit(".", 1)[-1] in short}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: each.rank for name, each in adapters.items() if each.rank != rank},
        "alpha_pattern": {name: each.alpha for name, each in adapters.items() if each.alpha != alpha},
        "target_modules": sorted(short if meant == set(adapters) else adapters),
        "bias": "none",
        "lora_dropout": 0.0,
    }


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} must hold {CONFIG_FILE}. It is missing. Give a folder of `save_adapter` or PEFT.")
    try:
        settings: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON. Received: {error}. Copy or save it again.") from error
    others = [
        f"{key}={value!r}"
        for key, value in settings.items()
        if (key in _OTHER_MEANINGS or key.startswith("use_")) and value not in (None, False, "none", [])
    ]
    if settings.get("peft_type") != "LORA" or others:
        received = ", ".join([f"peft_type={settings.get('peft_type')!r}", *others])
        raise ValueError(f"{path} must describe plain LoRA. Received: {received}. Merge it with PEFT, and load the model.")
    return settings


def _read_adapters(tensors: StoredTensors, settings: Mapping[str, Any]) -> dict[str, LowRank]:
    """The matrices of each module, by Hugging Face's name for it."""
    names = {name.removeprefix(_PREFIX).removesuffix(side) for name in tensors for side in _SIDES if name.endswith(side)}
    expected = {_PREFIX + name + side for name in names for side in _SIDES}
    if odd := sorted(expected ^ set(tensors)):
        raise ValueError(
            f"An adapter must hold pairs of {' and '.join(_SIDES)}. Received otherwise: {odd[0]}. Merge it with PEFT, and load "
            "the model."
        )
    adapters = {}
    for name in sorted(names):
        down, up = (tensors[_PREFIX + name + side].astype("float32") for side in _SIDES)
        adapters[name] = LowRank(down, up, _alpha_of(name, settings))
    return adapters


def _alpha_of(name: str, settings: Mapping[str, Any]) -> float:
    """PEFT takes the keys of `alpha_pattern` as regular expressions for the end of a name."""
    patterns = settings.get("alpha_pattern") or {}
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return float(next(matching, settings.get("lora_alpha", 8)))  # PEFT's default


def _check_fit(adapters: Mapping[str, LowRank], places: Mapping[str, Place]) -> None:
    for name, each in adapters.items():
        layer, own = places.get(f"{name}.weight", (None, ""))
        if own != "kernel":
            raise ValueError(
                f"The adapter must belong to the model, which has no projection {name}. Use the model it was made for."
            )
        if _lora_variables((layer, own)):
            raise ValueError(f"The model must be without LoRA. Received: a model with LoRA at {name}. Load the model anew.")
        shape = each.up.shape[0], each.down.shape[1]
        if shape != (layer.units, layer.input_spec.axes[-1]) or each.up.shape[1] != each.rank:
            raise ValueError(
                f"The adapter must belong to the model, whose {name} is {(layer.units, layer.input_spec.axes[-1])}. Received: "
                f"matrices for {shape}. Use the model it was made for."
            )
