"""Engines on exported encoder-decoders: `encode` once for a source, `decode` for each token of its target."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smolite.exporters.delivery.native_log import native_log_dropped
from smolite.exporters.edge.pair_signatures import ENCODE, is_cache
from smolite.exporters.edge.signatures import DECODE, FORWARD
from smolite.exporters.litert.engine import bind_buffers, compile_file, release
from smolite.generation import check_one_prompt
from smolite.models import MASKED_SCORE


class CachedPairEngine(ABC):
    """One source and its target over `encode` and `decode`. Follows the `Engine` protocol; runtimes derive from it.

    Args:
        start_id: the id that begins every target.
        shapes: name → shape of the inputs of `decode`.
        vocab_size: width of the logits.
    """

    batch_size = 1

    def __init__(self, *, start_id: int, shapes: Mapping[str, Sequence[int]], vocab_size: int):
        self.start_id, self.vocab_size = start_id, vocab_size
        self.context_length = int(shapes["source_mask"][-1])
        self.target_length = int(shapes["mask"][-1])
        self.cache_shapes = {name: tuple(shape) for name, shape in shapes.items() if is_cache(name)}
        self.length = self.target_length  # slots in use; all of them before `start`
        self._source_mask = np.zeros((1, 1, 1, self.context_length), "float32")

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before, reads a source and returns the logits of the answer's first id, float32 (1, V).

        Raises:
            ValueError: not exactly one source, one that is empty or too long, or an id outside the vocabulary.
        """
        check_one_prompt(prompts, self)
        count = len(prompts[0])
        tokens = np.zeros((1, self.context_length), "int32")
        tokens[0, :count] = prompts[0]
        self._source_mask[...] = np.where(np.arange(self.context_length) < count, 0.0, MASKED_SCORE)
        self._run(ENCODE, {"tokens": tokens, "source_mask": self._source_mask})
        self.length = 0
        return self.step([self.start_id])

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id of the answer and returns the logits after it, float32 (1, V).

        Raises:
            ValueError: the answer is as long as it may be.
        """
        if self.length >= self.target_length:
            raise ValueError(
                f"An answer has at most {self.target_length} ids, the slots of the file. Received: a step after them, or "
                "before `start`. Call `start` with another source, or export with a longer `cache_length`."
            )
        place = np.array([self.length], "int32")
        mask = np.where(np.arange(self.target_length) <= self.length, 0.0, MASKED_SCORE).astype("float32")[None, None, None]
        inputs = {"tokens": np.array([ids], "int32"), "input_pos": place, "mask": mask, "source_mask": self._source_mask}
        self.length += 1
        return self._run(DECODE, inputs)

    @abstractmethod
    def _run(self, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Runs a signature on the caches, which it replaces. Returns logits, (1, V) of `decode`, (0, V) of `encode`."""


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
        self.close = weakref.finalize(self, release, self._native)

    def _run(self, name, inputs):
        buffers, outputs = self._native[name]
        for key, value in inputs.items():
            buffers[key].write(value)
        self._native["model"].run_by_name(name, buffers, outputs)
        if "logits" not in outputs:
            return np.empty((0, self.vocab_size), "float32")
        return outputs["logits"].read(self.vocab_size, np.float32).reshape(1, self.vocab_size)


class SavedModelPairEngine(CachedPairEngine):
    """Runs `encode` and `decode` of a SavedModel in TensorFlow.

    Args:
        path: folder written by `build_saved_model`.
        start_id: the id that begins every target.
    """

    def __init__(self, path: str | Path, *, start_id: int):
        with native_log_dropped():
            import tensorflow as tf

            self._module = tf.saved_model.load(str(path))
        self._signatures = dict(self._module.signatures)
        decode = self._signatures[DECODE]
        shapes = {name: tuple(spec.shape) for name, spec in decode.structured_input_signature[1].items()}
        super().__init__(start_id=start_id, shapes=shapes, vocab_size=decode.structured_outputs["logits"].shape[-1])
        self._caches: dict[str, Any] = {name: np.zeros(shape, "float32") for name, shape in self.cache_shapes.items()}

    def forward(self, source: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(B, N) source and (B, T) target ids → (B, T, V) logits, without the cache."""
        import tensorflow as tf

        inputs = {"source": tf.constant(source, tf.int32), "tokens": tf.constant(tokens, tf.int32)}
        return self._signatures[FORWARD](**inputs)["logits"].numpy()

    def _run(self, name, inputs):
        import tensorflow as tf

        inputs = inputs | (self._caches if name == DECODE else {})
        outputs = dict(self._signatures[name](**{key: tf.constant(value) for key, value in inputs.items()}))
        logits = outputs.pop("logits", np.empty((1, 0, self.vocab_size), "float32"))
        self._caches |= outputs
        return np.asarray(logits)[0]
