"""An engine on LiteRT's compiled model: runs a .tflite file on the CPU, with the caches updated in place."""

import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from smolite.exporters.delivery.native_log import drop_native_log_at_exit, native_log_dropped
from smolite.exporters.edge.engine import CachedEngine
from smolite.exporters.edge.names import DECODE, drafts_of, prefill_lengths_of, windows_of
from smolite.exporters.edge.pair_signatures import ENCODE
from smolite.exporters.litert.flatbuffer import check_whole

# XNNPACK packs the weights of every signature for itself, unless it has a weight cache. This name means one in memory, which
# needs Linux; it also saves packing them more than once.
_SHARED_WEIGHTS = ":memory" if sys.platform == "linux" else ""


class TFLiteEngine(CachedEngine):
    """Runs the signatures of a .tflite file, one sequence at a time; those of the least window that holds its tokens.

    The buffers of the caches are made once and bound as input and output of every signature, so
    a step copies nothing but its token, mask and logits.

    Args:
        path: the file.
        num_threads: threads of the CPU to use. One is best for small models.

    Raises:
        ImportError: ai-edge-litert is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is not whole, or not a model with these signatures.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 1):
        model = compile_file(Path(path), num_threads)
        signatures = model.get_signature_list()
        if DECODE not in signatures or ENCODE in signatures:
            raise ValueError(
                f"A .tflite file with the signature `{DECODE}` of a model without an encoder was expected. Received: {path} "
                f"with {', '.join(signatures) or 'no signatures'}. Make one with `smolite export`."
            )
        inputs = model.get_input_tensor_details(DECODE)
        self._cache_shapes = {name: tensor["shape"] for name, tensor in inputs.items() if name.startswith("kv_cache")}
        super().__init__(
            prefill_lengths=prefill_lengths_of(list(signatures)),
            context_length=inputs["mask"]["shape"][-1],
            vocab_size=model.get_output_tensor_details(DECODE)["logits"]["shape"][-1],
            windows=windows_of(list(signatures)),
            drafts=drafts_of(list(signatures)),
        )
        with native_log_dropped():
            self._native = {"model": model, **bind_buffers(model, signatures, self._cache_shapes)}
        # The library writes notes when its memory is freed, also where Python does so by itself: so it is freed here,
        # quietly.
        self._release = weakref.finalize(self, release, self._native)

    def close(self) -> None:
        self._release()

    def read_caches(self) -> dict[str, np.ndarray]:
        buffers = self._native[DECODE][0]
        shapes = self._cache_shapes.items()
        return {name: buffers[name].read(int(np.prod(shape)), np.float32).reshape(shape) for name, shape in shapes}

    def _run(self, name: str, tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs, outputs = self._native[name]
        inputs["tokens"].write(tokens)
        inputs["input_pos"].write(positions)
        inputs["mask"].write(mask)
        self._native["model"].run_by_name(name, inputs, outputs)
        # Prefill has no logits: the last token of a prompt is read by `decode`, which has them anyway.
        if "logits" not in outputs:
            return np.empty((0, self.vocab_size), "float32")
        return outputs["logits"].read(len(positions) * self.vocab_size, np.float32).reshape(-1, self.vocab_size)


def compile_file(path: Path, num_threads: int) -> Any:
    """LiteRT's model of a .tflite file; arguments and errors as in `TFLiteEngine`."""
    try:
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options
    except ImportError as error:
        raise ImportError('A .tflite file runs on ai-edge-litert. Run: pip install "smolite[export]"') from error
    if not path.is_file():
        raise FileNotFoundError(f"A .tflite file was expected. Received: {path}. Make one with `smolite export`.")
    # LiteRT crashes on a file that was cut off, and a crash is no exception.
    check_whole(path)
    cpu = CpuOptions(num_threads=num_threads, xnnpack_weight_cache_path=_SHARED_WEIGHTS)
    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
    drop_native_log_at_exit()
    with native_log_dropped():
        return CompiledModel.from_file(str(path), options=options)


def bind_buffers(model: Any, signatures: dict[str, Any], cache_shapes: dict[str, Any]) -> dict[str, tuple[dict, dict]]:
    """Input and output buffers of every signature, with one set of cache buffers for all."""
    # Bound as input and output of all signatures: a step that returned new caches would copy them.
    caches = {name: model.create_input_buffer_by_name(DECODE, name) for name in cache_shapes}
    for name, buffer in caches.items():
        buffer.write(np.zeros(cache_shapes[name], "float32"))
    return {
        key: (
            {n: caches.get(n) or model.create_input_buffer_by_name(key, n) for n in signature["inputs"]},
            {n: caches.get(n) or model.create_output_buffer_by_name(key, n) for n in signature["outputs"]},
        )
        for key, signature in signatures.items()
    }


def release(native: dict[str, Any]) -> None:
    """Frees a model and its buffers quietly."""
    with native_log_dropped():
        native.clear()
