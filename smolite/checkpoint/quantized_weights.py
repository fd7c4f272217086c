"""Weights in 8 or 4 bits on the disk: the same names as in float, fewer bytes, read back as floats.

A matrix of (outputs, inputs) becomes whole numbers and their scales: `name` and `name.scale`, float16.

* int8: a number from -127 to 127 a weight and a scale a row.
* int4: a number from -8 to 7 a weight, two in a byte (the first in the low half, 8 added), and a scale for every 32 weights
  of a row, 16 or fewer where 32 does not divide the row. The table of the tokens, which is also the output projection, stays
  int8, as does a matrix of odd rows.

Norm scales and biases stay float32. Whoever reads the file needs no more than the types in it: `I8`, `U8`, `F32`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smolite.checkpoint.tensors import StoredTensors

BITS = (8, 4)
METHOD = "smolite"  # of `quantization_config`
_TABLE = "model.embed_tokens.weight"
_SCALE = ".scale"
_BLOCK = 32


def weights_file(bits: int) -> str:
    """The name of the file in a run directory; another than that of float weights, so that nobody takes it for them."""
    return f"model_int{bits}.safetensors"


def quantize_tensors(tensors: Mapping[str, np.ndarray], bits: int) -> dict[str, np.ndarray]:
    """Whole numbers and scales for the matrices among some tensors.

    Example: the row `[127.0, -63.5]` becomes `[127, -64]` with the scale 1.0 at 8 bits.

    Args:
        tensors: floats, under Hugging Face's names.
        bits: 8 or 4.

    Raises:
        ValueError: `bits` is another number.
    """
    if bits not in BITS:
        raise ValueError(f"`bits` must be 8 or 4. Received: {bits!r}. Choose one of them.")
    made: dict[str, np.ndarray] = {}
    for name, stored in tensors.items():
        tensor = stored.astype("float32", copy=False)
        if tensor.ndim != 2:
            made[name] = tensor
        elif bits == 8 or name == _TABLE or tensor.shape[1] % 2:
            made[name], made[name + _SCALE] = _to_int8(tensor)
        else:
            made[name], made[name + _SCALE] = _to_int4(tensor)
    return made


def _to_int8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(O, I) → int8 (O, I) and float16 (O,)."""
    scales = (np.abs(weights).max(axis=1) / 127).astype("float16")
    return np.clip(_ratio(weights, scales[:, None]), -127, 127).astype("int8"), scales


def _to_int4(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(O, I) → uint8 (O, I / 2) and float16 (O, blocks). The weight furthest from 0 in a block becomes -8 exactly."""
    width = weights.shape[1]
    # The largest that divides the row: a last, shorter block would need a shape of its own.
    block = next(size for size in (_BLOCK, 16, 8, 4, 2) if width % size == 0)
    blocks = weights.reshape(len(weights), -1, block)
    # With its sign: 4 bits have -8 but not 8, so the weight furthest from 0 is mapped to -8 whatever its sign, and no step is
    # lost.
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    scales = (furthest / -8).astype("float16")
    # 8 is added, so that two numbers of 0 to 15 fit into a byte without signs.
    numbers = (np.clip(_ratio(blocks, scales), -8, 7) + 8).astype("uint8").reshape(len(weights), -1)
    return numbers[:, ::2] | numbers[:, 1::2] << 4, scales[..., 0]


def _ratio(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Weights in units of their scales, rounded; 0 where the scale is."""
    scales = scales.astype("float32")
    return np.rint(np.divide(weights, scales, out=np.zeros_like(weights, "float32"), where=scales != 0))


def _from_int8(numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return numbers * scales.astype("float32")[:, None]


def _from_int4(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).astype("float32") - 8
    blocks = numbers.reshape(*scales.shape, -1) * scales.astype("float32")[..., None]
    return blocks.reshape(len(packed), -1)


class QuantizedTensors(StoredTensors):
    """The tensors of a quantized file, each as float32 when it is asked for.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is truncated, not of this format, or a tensor in it has no scales.
    """

    def __init__(self, path: Path) -> None:
        super().__init__([path])
        self._stored = self.headers
        whole = {name: header for name, header in self._stored.items() if header[1] in ("I8", "U8")}
        if missing := sorted(name for name in whole if name + _SCALE not in self._stored):
            raise ValueError(f"{path} must hold the scales of its tensors. Missing: {missing[0]}{_SCALE}. Quantize again.")
        scales = {name + _SCALE for name in whole}
        self.headers = {name: _decoded(*header) for name, header in self._stored.items() if name not in scales}

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor called `name`, as float32."""
        tensor = super().__getitem__(name)
        read = {"I8": _from_int8, "U8": _from_int4}.get(self._stored[name][1])
        return read(tensor, super().__getitem__(name + _SCALE)) if read else tensor


def _decoded(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    """The header of a tensor as it is read."""
    if dtype == "U8":
        return (shape[0], 2 * shape[1]), "float32"
    return shape, "float32" if dtype == "I8" else dtype


def quantization_config(bits: int) -> dict[str, Any]:
    """What `config.json` says of the weights."""
    return {"quant_method": METHOD, "bits": bits}


def bits_of(hf: Mapping[str, Any]) -> int:
    """The bits of a folder's weights by its `config.json`; 0 for floats, or where another program has quantized them."""
    settings = hf.get("quantization_config") or {}
    return settings.get("bits", 0) if settings.get("quant_method") == METHOD else 0
