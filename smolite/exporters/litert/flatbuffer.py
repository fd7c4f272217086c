"""What is inside a .tflite file: signatures, operators, and how often a weight is stored."""

import copy
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from smolite.exporters.edge.names import DECODE, prefill_lengths_of
from smolite.exporters.edge.pair_signatures import ENCODE
from smolite.files import write_file
from smolite.models import ModelConfig

_ALIGNMENT = 64
_LARGE = 1024  # bytes of a buffer; smaller ones may be what readers look for in the tables, such as a version


def read_flatbuffer(data: bytes | bytearray | np.ndarray) -> Any:
    """The file's contents as the `ModelT` object of TFLite's schema. Large buffers may stay outside it, by offset."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(data, 0)


def open_flatbuffer(path: str | Path) -> Any:
    """The contents of a .tflite file that is whole; LiteRT would crash on one that was cut off.

    Raises:
        ValueError: it is not a .tflite file, or its end is missing.
    """
    with _refused_by_name(path):
        data = np.memmap(path, mode="r")
        _find_end(data)
        return read_flatbuffer(data)


def check_whole(path: str | Path) -> None:
    """Refuses what `open_flatbuffer` refuses, in milliseconds where the weights stand behind the tables, as in quantized files.

    Raises:
        ValueError: as there.
    """
    with _refused_by_name(path):
        # Mapped and not read: of a file of a gigabyte only the tables are looked at.
        data = np.memmap(path, mode="r")
        if not _find_end(data):
            read_flatbuffer(data)


@contextmanager
def _refused_by_name(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, struct.error) as error:
        raise ValueError(f"A whole .tflite file was expected. Received: {path}. Export it again. Reason: {error}.") from error


def _find_end(data: np.ndarray) -> int:
    """Where the buffers behind the tables end, which must be in the file; 0 where all stand inside the tables."""
    from ai_edge_litert import schema_py_generated as schema

    if bytes(data[4:8]) != b"TFL3":
        raise ValueError(f"the bytes 4 to 7 are {bytes(data[4:8])!r}")
    model = schema.Model.GetRootAs(data, 0)
    buffers = map(model.Buffers, range(model.BuffersLength()))
    end = max((buffer.Offset() + buffer.Size() for buffer in buffers), default=0)
    if end > len(data):
        raise ValueError(f"it has {len(data)} bytes of {end}")
    return end


def write_edited(model: Any, data: bytes) -> bytes:
    """The file that an edited `ModelT` stands for, with all large buffers behind the tables.

    Inside them, Python's flatbuffers aligns to 4 bytes what the schema wants aligned to 16.

    Args:
        model: what `read_flatbuffer` made of `data`, edited; its buffers are moved.
        data: where its large buffers are, if they stand behind the tables.
    """
    # Offsets count from the start of the file, and the tables before them may change their length: all are moved by as much.
    outside = [buffer for buffer in model.buffers if buffer.offset > 1]
    begin = min((buffer.offset for buffer in outside), default=len(data))
    parts: list[Any] = [memoryview(data)[begin:]]
    length = len(data) - begin
    for buffer in model.buffers:
        if buffer.offset <= 1 and buffer.data is not None and len(buffer.data) >= _LARGE:
            gap = -length % _ALIGNMENT
            parts += [bytes(gap), memoryview(buffer.data)]
            buffer.offset, buffer.size, buffer.data = begin + length + gap, len(buffer.data), None
            length = buffer.offset + buffer.size - begin
            outside.append(buffer)
    head = len(_pack(model))
    # The tables are packed twice: first to learn their length, then with the offsets that follow from it. Offsets have fixed
    # width, so that the length stays.
    shift = head + -head % _ALIGNMENT - begin
    for buffer in outside:
        buffer.offset += shift
    return b"".join([_pack(model), bytes(-head % _ALIGNMENT), *parts])


def _pack(model: Any) -> bytes:
    import flatbuffers

    # A megabyte to begin with: the builder doubles and copies what it has whenever it is full.
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def add_signature(path: str | Path, name: str, *, like: str) -> None:
    """Gives a signature of a .tflite file a second name; both run the same graph, whose weights a runtime prepares once."""
    data = Path(path).read_bytes()
    model = read_flatbuffer(data)
    (found,) = (signature for signature in model.signatureDefs if signature.signatureKey.decode() == like)
    second = copy.copy(found)
    second.signatureKey = name.encode()
    model.signatureDefs = [second, *model.signatureDefs]
    write_file(path, write_edited(model, data))


def operator_counts(path: str | Path) -> dict[str, Counter[str]]:
    """How many operators of each kind every signature has; a custom operator (flex ones too) goes by its own name."""
    return _count_operators(open_flatbuffer(path))


def _count_operators(model: Any) -> dict[str, Counter[str]]:
    names = [operator_name(code) for code in model.operatorCodes]
    return {
        signature.signatureKey.decode(): Counter(
            names[operator.opcodeIndex] for operator in model.subgraphs[signature.subgraphIndex].operators
        )
        for signature in model.signatureDefs
    }


def structure_problems(path: str | Path, config: ModelConfig) -> list[str]:
    """What in a file breaks the edge contract, in words; nothing if it is whole.

    Checked: the signatures are there, every shape is static, all operators are built in, and there is one embedding table.
    """
    model = open_flatbuffer(path)
    counts = _count_operators(model)
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    table = [config.vocab_size, config.hidden_dim]
    tables = {tensor.buffer for tensor in tensors if _shape(tensor) == table and is_stored(model.buffers[tensor.buffer])}
    # Custom and flex operators need a runtime with TensorFlow inside, which phones don't have.
    custom = sorted({name for names in counts.values() for name in names if name.startswith("custom ")})
    problems = [f"operator {name}" for name in custom]
    reads = ENCODE in counts if config.has_encoder else prefill_lengths_of(list(counts))
    if DECODE not in counts or not reads:
        problems.append(f"signatures {', '.join(counts) or 'none'}")
    if any(size < 0 for tensor in tensors for size in _signature_shape(tensor)):
        problems.append("dynamic shapes")
    if len(tables) != 1:
        problems.append(f"{len(tables)} embedding tables")
    return problems


def operator_name(code: Any) -> str:
    """What the schema calls an operator; `custom NAME` of one that is not built in."""
    from ai_edge_litert import schema_py_generated as schema

    if code.customCode:
        return f"custom {code.customCode.decode()}"
    # The schema has no function for this way round.
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    # Operators up to 127 may stand in the old field of one byte alone; the greater of both is meant.
    return names[max(code.builtinCode, code.deprecatedBuiltinCode)]


def is_stored(buffer: Any) -> bool:
    """Whether a buffer holds a constant; what is worked out, such as a float16 table in float32, has an empty one."""
    return bool(buffer.size) or (buffer.data is not None and len(buffer.data) > 0)


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]


def _signature_shape(tensor: Any) -> list[int]:
    dynamic = tensor.shapeSignature
    return _shape(tensor) if dynamic is None else [int(size) for size in dynamic]
