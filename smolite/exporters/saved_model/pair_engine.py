"""An engine on TensorFlow for the SavedModel of an encoder-decoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smolite.exporters.delivery.native_log import native_log_dropped
from smolite.exporters.edge.names import DECODE, FORWARD
from smolite.exporters.edge.pair_engine import CachedPairEngine


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

    def forward_logits(self, prompt: Sequence[int], reply: Sequence[int]) -> np.ndarray:
        return self.forward(np.array([prompt]), np.array([[self.start_id, *reply[:-1]]]))[0]

    def _run(self, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        import tensorflow as tf

        inputs = inputs | (self._caches if name == DECODE else {})
        outputs = dict(self._signatures[name](**{key: tf.constant(value) for key, value in inputs.items()}))
        logits = outputs.pop("logits", np.empty((1, 0, self.vocab_size), "float32"))
        self._caches |= outputs
        return np.asarray(logits)[0]
