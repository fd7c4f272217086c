"""What every runtime of an exported encoder-decoder does alike: `encode` a source once, `decode` each token of its target."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from smolite.exporters.edge.names import DECODE
from smolite.exporters.edge.pair_signatures import ENCODE, is_cache
from smolite.generation import Engine, check_free_slot, check_one_prompt
from smolite.models import MASKED_SCORE


class CachedPairEngine(Engine):
    """One source and its target over `encode` and `decode`. Runtimes derive from it.

    Args:
        start_id: the id that begins every target.
        shapes: name → shape of the inputs of `decode`.
        vocab_size: width of the logits.
    """

    start_id: int
    target_length: int

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
        check_free_slot(self.length, self)
        place = np.array([self.length], "int32")
        mask = np.where(np.arange(self.target_length) <= self.length, 0.0, MASKED_SCORE).astype("float32")[None, None, None]
        inputs = {"tokens": np.array([ids], "int32"), "input_pos": place, "mask": mask, "source_mask": self._source_mask}
        self.length += 1
        return self._run(DECODE, inputs)

    @abstractmethod
    def _run(self, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Runs a signature on the caches, which it replaces. Returns logits, (1, V) of `decode`, (0, V) of `encode`."""
