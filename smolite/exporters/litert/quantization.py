"""Smaller .tflite files, by ai-edge-quantizer: the weights of the matrices in fewer bits, everything else in float32.

A whole number and its scale stand for a weight. The scale is shared by a row, or by a block of a row. What a matrix reads is
rounded to 8 bits as it comes, row by row, which the runtime does by itself; where the weights are float16, nothing is. The
embedding table is the output projection too, and stays one table in every way.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from smolite.exporters.litert.flatbuffer import open_flatbuffer, operator_name, read_flatbuffer, write_edited
from smolite.exporters.litert.ways import WAYS, Way, check_way
from smolite.files import write_file


def quantize_tflite(float_path: str | Path, path: str | Path, way: str = "int8") -> None:
    """Writes a quantized copy of a float32 .tflite file.

    Args:
        float_path: the file to read.
        path: the file to write.
        way: a key of `WAYS`.

    Raises:
        ValueError: there is no such way.
    """
    check_way(way)
    from ai_edge_quantizer import quantizer

    job = quantizer.Quantizer(str(float_path), _recipe(WAYS[way], float_path))
    # A progress bar that no argument switches off; and rows of zeros, which OCTAV divides by their size.
    with contextlib.redirect_stderr(io.StringIO()), np.errstate(invalid="ignore"):
        result = job.quantize(enable_progress_bar=False, enable_progress_report=False)
    write_file(path, tidy_scales(bytes(result.quantized_model)))


def _recipe(way: Way, float_path: str | Path) -> Any:
    """The rows of ai-edge-quantizer's recipe, of which a later one wins: for all matrices, then for the uses of the table."""
    from ai_edge_quantizer import qtyping, recipe_manager

    connected, lookup = qtyping.TFLOperationName.FULLY_CONNECTED, qtyping.TFLOperationName.EMBEDDING_LOOKUP
    granularity = qtyping.QuantGranularity[f"BLOCKWISE_{way.block}" if way.block else "CHANNELWISE"]
    algorithms, rows = recipe_manager.AlgorithmName, recipe_manager.RecipeManager()
    # The lookup and the projection are two operators over one table: given different bits, the quantizer would write it
    # twice.
    uses = [(".*", lookup), *((f"^{re.escape(name)};$", connected) for name in _heads(float_path))]
    for regex, kind, bits in [(".*", connected, way.bits), *((*use, way.table_bits) for use in uses)]:
        if bits == 16:
            # float16 is a cast of the weights; the runtime computes in float32.
            rows.add_weight_only_config(regex, kind, bits, algorithm_key=algorithms.FLOAT_CASTING)
        elif bits == 8:
            rows.add_dynamic_config(regex, kind, bits)
        else:
            rows.add_dynamic_config(regex, kind, bits, granularity, algorithms[way.algorithm])
    return rows.get_quantization_recipe()


def _heads(float_path: str | Path) -> list[str]:
    """Names of what the output projections write: the fully connected operators that read an embedding table."""
    model = open_flatbuffer(float_path)
    names = [operator_name(code) for code in model.operatorCodes]
    found: dict[str, list[tuple[int, str]]] = {"EMBEDDING_LOOKUP": [], "FULLY_CONNECTED": []}
    for graph in model.subgraphs:
        for operator in graph.operators:
            if (name := names[operator.opcodeIndex]) in found:
                weight, output = graph.tensors[operator.inputs[1]], graph.tensors[operator.outputs[0]]
                found[name].append((weight.buffer, output.name.decode()))
    # By buffer and not by name: after conversion only the shared memory tells that a matrix is the table.
    tables = {buffer for buffer, _ in found["EMBEDDING_LOOKUP"]}
    return [name for buffer, name in found["FULLY_CONNECTED"] if buffer in tables]


def tidy_scales(data: bytes) -> bytes:
    """The same model with scales that XNNPACK takes, and each table of them written once.

    The quantizer gives a row or block of zeros the scale 0, with which XNNPACK does not run a file; it becomes 1. And the
    scales and zero points of a weight, 12 bytes a row, stand in every signature that uses it; with a vocabulary of 8,192 that
    is 7 % of a file of 5 M parameters. Equal tables may stand at one place in a flatbuffer.
    """
    changed = bytearray(data)
    model = read_flatbuffer(changed)
    shared: dict[Any, _Shared] = {}
    for graph in model.subgraphs:
        for tensor in (tensor for tensor in graph.tensors if tensor.quantization is not None):
            table = tensor.quantization
            if (place := getattr(table.details, "scales", None)) is not None:
                _make_positive(model.buffers[graph.tensors[place].buffer], changed)
            if table.scale is not None:
                # A scale of 0 belongs to a row of zeros, so that any other gives the same weights.
                table.scale = np.where(table.scale > 0, table.scale, np.float32(1))
                key = (table.scale.tobytes(), table.zeroPoint.tobytes(), table.quantizedDimension)
                tensor.quantization = shared.setdefault(key, _Shared(table))
    return write_edited(model, bytes(changed))


def _make_positive(buffer: Any, file: bytearray) -> None:
    """Puts 1 in place of 0 among the scales of blocks, float16, in a buffer of the file."""
    # An offset of 0 or 1 says that the data stand in the buffer itself; above, somewhere behind the tables.
    if buffer.offset > 1:
        scales = np.frombuffer(file, "float16", buffer.size // 2, buffer.offset)
    else:
        buffer.data = np.array(buffer.data)
        scales = buffer.data.view("float16")
    scales[~(scales > 0)] = 1


class _Shared:
    """A quantization table that is packed once, however many tensors refer to it."""

    def __init__(self, table: Any):
        self._table = table
        self._packed: tuple[Any, int] = (None, 0)  # by whom, and where

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the name that the generated schema calls
        if self._packed[0] is not builder:
            self._packed = (builder, self._table.Pack(builder))
        return self._packed[1]
