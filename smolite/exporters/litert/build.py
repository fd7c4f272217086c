"""The TFLite target: one float32 file with the signatures of a SavedModel that share their weights."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolite.checkpoint import Run
from smolite.exporters.edge.names import DECODE, GROWING_PREFILL
from smolite.exporters.litert.flatbuffer import add_signature
from smolite.exporters.litert.quantization import quantize_tflite
from smolite.exporters.request import ExportRequest
from smolite.exporters.saved_model.build import build_saved_model
from smolite.models import LanguageModel


def build_tflite(saved_model: str | Path, path: str | Path, names: Sequence[str]) -> None:
    """Converts the edge signatures of a SavedModel to a .tflite file, with built-in operators only.

    Args:
        saved_model: folder written by `build_saved_model`.
        path: the file to write.
        names: the signatures, as returned there.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=list(names))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    Path(path).write_bytes(converter.convert())


def write(run: Run, request: ExportRequest) -> None:
    """Writes the .tflite file of a request, see `build`."""
    build(
        run.model,
        request.path,
        quantize=request.quantize,
        prefill_lengths=request.prefill_lengths,
        cache_length=request.slots,
        windows=request.windows,
        drafts=request.drafts,
    )


def build(
    model: LanguageModel,
    path: Path,
    *,
    quantize: str | None,
    prefill_lengths: Sequence[int],
    cache_length: int,
    windows: Sequence[int] = (),
    drafts: int = 0,
) -> None:
    """Writes a .tflite file, quantized if `quantize` names a recipe, and says on standard output how far it is.

    Without `prefill_lengths` its caches grow, see `signatures`; only a .litertlm file can hold such a model.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".steps-") as steps:
        saved_model, float_path = Path(steps, "saved_model"), Path(steps, path.name) if quantize else path
        print(f"{path.name}: tracing prefill {', '.join(map(str, prefill_lengths)) or 'of any length'} and decode", flush=True)
        lengths: dict[str, Any] = {"prefill_lengths": prefill_lengths, "cache_length": cache_length, "windows": windows}
        names = build_saved_model(model, saved_model, **lengths, drafts=drafts, to_convert=True)
        print(f"{path.name}: converting", flush=True)
        build_tflite(saved_model, float_path, names)
        if not prefill_lengths:
            add_signature(float_path, GROWING_PREFILL, like=DECODE)
        if quantize:
            print(f"{path.name}: quantizing to {quantize}", flush=True)
            quantize_tflite(float_path, path, quantize)
