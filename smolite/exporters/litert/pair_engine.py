"""An engine on LiteRT's compiled model for an encoder-decoder, with the caches updated in place."""

import weakref
from pathlib import Path

import numpy as np

from smolite.exporters.delivery.native_log import native_log_dropped
from smolite.exporters.edge.names import DECODE
from smolite.exporters.edge.pair_engine import CachedPairEngine
from smolite.exporters.edge.pair_signatures import ENCODE
from smolite.exporters.litert.engine import bind_buffers, compile_file, release


class TFLitePairEngine(CachedPairEngine):
    """Runs `encode` and `decode` of a .tflite file in LiteRT, with the caches updated in place.

    Args:
        path: the file.
        start_id: the id that begins every target.
        num_threads: threads of the CPU to use.

    Raises:
        ImportError: ai-edge-litert is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is not whole, or not a model with these signatures.
    """

    def __init__(self, path: str | Path, *, start_id: int, num_threads: int = 1):
        model = compile_file(Path(path), num_threads)
        signatures = model.get_signature_list()
        if set(signatures) != {ENCODE, DECODE}:
            raise ValueError(
                f"A .tflite file with the signatures {ENCODE} and {DECODE} was expected. Received: {path} with "
                f"{', '.join(signatures) or 'none'}. Make one of an encoder-decoder with `smolite export`."
            )
        shapes = {name: tensor["shape"] for name, tensor in model.get_input_tensor_details(DECODE).items()}
        vocab_size = model.get_output_tensor_details(DECODE)["logits"]["shape"][-1]
        super().__init__(start_id=start_id, shapes=shapes, vocab_size=vocab_size)
        with native_log_dropped():
            self._native = {"model": model, **bind_buffers(model, signatures, self.cache_shapes)}
        self._release = weakref.finalize(self, release, self._native)

    def close(self) -> None:
        self._release()

    def _run(self, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        buffers, outputs = self._native[name]
        for key, value in inputs.items():
            buffers[key].write(value)
        self._native["model"].run_by_name(name, buffers, outputs)
        if "logits" not in outputs:
            return np.empty((0, self.vocab_size), "float32")
        return outputs["logits"].read(self.vocab_size, np.float32).reshape(1, self.vocab_size)
