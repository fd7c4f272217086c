"""An engine on TensorFlow: runs a SavedModel."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smolite.exporters.delivery.native_log import native_log_dropped
from smolite.exporters.edge.engine import CachedEngine
from smolite.exporters.edge.names import DECODE, FORWARD, prefill_lengths_of


class SavedModelEngine(CachedEngine):
    """Runs a SavedModel in TensorFlow, one sequence at a time.

    Args:
        path: folder written by `build_saved_model`.
    """

    def __init__(self, path: str | Path):
        with native_log_dropped():
            import tensorflow as tf

            self._module = tf.saved_model.load(str(path))
        self._signatures = dict(self._module.signatures)
        specs = self._signatures[DECODE].structured_input_signature[1]
        self._caches = {n: np.zeros(spec.shape, "float32") for n, spec in specs.items() if n.startswith("kv_cache")}
        super().__init__(
            prefill_lengths=prefill_lengths_of(list(self._signatures)),
            context_length=specs["mask"].shape[-1],
            vocab_size=self._signatures[DECODE].structured_outputs["logits"].shape[-1],
        )

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        """(B, T) token ids → (B, T, V) logits, without the cache."""
        import tensorflow as tf

        return self._signatures[FORWARD](tokens=tf.constant(tokens, tf.int32))["logits"].numpy()

    def forward_logits(self, prompt: Sequence[int], reply: Sequence[int]) -> np.ndarray:
        return self.forward(np.array([[*prompt, *reply[:-1]]]))[0, len(prompt) - 1 :]

    def read_caches(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(cache) for name, cache in self._caches.items()}

    def _run(self, name: str, tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        inputs = {"tokens": tokens, "input_pos": positions, "mask": mask, **self._caches}
        self._caches = dict(self._signatures[name](**{key: tf.constant(value) for key, value in inputs.items()}))
        return np.asarray(self._caches.pop("logits", np.empty((1, 0, self.vocab_size), "float32")))[0]
