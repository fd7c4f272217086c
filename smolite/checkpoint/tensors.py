"""Tensors in safetensors files, written together and read one by one: no Keras, so that a file can be looked at in a moment."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_ROWS = 1024  # of two tables that are compared at a time
Header = tuple[tuple[int, ...], str]  # shape and dtype


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


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}. Make room and save again.") from error


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
