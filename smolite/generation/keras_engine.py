"""The engine that runs a Keras model, with a key/value cache.

Shapes use the legend at the top of `layers.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from smolite.generation.compiled_steps import MOST_AHEAD, compiled_decoder
from smolite.generation.engine import Engine, check_numbers, check_prompts, check_rows, check_step, checked_size, prefill_length
from smolite.models import CausalLM


class KerasEngine(Engine):
    """An `Engine` on a Keras model, compiled for the backend in use; it sees later changes of the weights.

    Prompts of different lengths end at the same cache slot: a shorter one starts later, its positions count
    from 0, and the slots before it are masked, so a row gets the same logits in a batch as alone. Prefill
    lengths are rounded up to powers of two, so few are compiled; the slots written past the prompts are
    masked until decoding overwrites them.

    Args:
        model: the model; its layers must not change while the engine lives.
        batch_size: B.
        context_length: S. Default, and the most: the model's context length. Fewer slots make faster steps.

    Raises:
        ValueError: a size is out of range.

    Example:
    >>> engine = KerasEngine(model)
    >>> engine.start([[5, 6, 7]]).shape
    (1, 8192)
    >>> engine.step([9]).shape
    (1, 8192)
    """

    def __init__(self, model: CausalLM, *, batch_size: int = 1, context_length: int | None = None) -> None:
        longest = model.config.context_length
        self.batch_size = checked_size(batch_size, name="batch_size")
        self.context_length = checked_size(
            longest if context_length is None else context_length, name="context_length", most=longest
        )
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._forward, self._greedy = compiled_decoder(model)
        self._used = self.context_length
        self._cache: Any = None
        self._starts: Any = None

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before, reads B prompts and returns the logits after each, float32 (B, V).

        Raises:
            ValueError: not B prompts, an empty one, one longer than S, or an id outside the vocabulary.
        """
        check_prompts(prompts, self)
        check_rows(len(prompts), self, what="prompts")
        self._used = max(map(len, prompts))
        tokens, starts = _right_aligned(prompts, prefill_length(self._used, self.context_length))
        self._starts = ops.convert_to_tensor(starts)
        # A new one each time: a compiled step may have taken the memory of the last.
        self._cache = self._model.empty_cache(self.batch_size, self.context_length, flat=True)
        return self._run(tokens, slot=0, last=self._used - 1)

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id per row and returns the logits after it, float32 (B, V).

        Raises:
            ValueError: not B ids, an id outside the vocabulary, or no slot is free.
        """
        check_step(ids, self._used, self)
        self._used += 1
        return self._run(np.array(ids, "int32")[:, None], slot=self._used - 1, last=0)

    def greedy(self, ids: Sequence[int], count: int, *, stop_ids: Sequence[int] = ()) -> np.ndarray:
        """As `Engine.greedy`, in one call on the device; torch steps one by one. Never more than 32 ids, nor past the cache."""
        check_step(ids, self._used, self)
        count = min(count, MOST_AHEAD, self.context_length - self._used)
        if self._greedy is None:
            return super().greedy(ids, count, stop_ids=stop_ids)
        place = ops.convert_to_tensor(np.array([self._used, count], "int32"))
        state = ops.convert_to_tensor(np.array(ids, "int32")), self._cache, self._starts, place
        # -1 is no id: an array of length 0 would be one more shape to compile.
        stops = ops.convert_to_tensor(np.array([*stop_ids] or [-1], "int32"))
        picks, done, are_numbers, self._cache = self._greedy(*state, stops)
        # The loop always gives 32 rows, for its shapes are fixed; those after `done` are zeros.
        picks = ops.convert_to_numpy(picks)[: int(done)]
        check_numbers(bool(are_numbers))
        self._used += len(picks)
        return picks

    def _run(self, tokens: np.ndarray, *, slot: int, last: int) -> np.ndarray:
        # As a tensor: a Python number would be compiled in, one program for each slot.
        place = ops.convert_to_tensor(np.array([slot, last], "int32"))
        logits, self._cache = self._forward(ops.convert_to_tensor(tokens), self._cache, self._starts, place)
        return ops.convert_to_numpy(logits)


def _right_aligned(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B, width) whose rows end in the same column, and the column where each row starts.

    Example: `[[5, 6, 7], [9]]` in width 4 → `[[5, 6, 7, 0], [0, 0, 9, 0]]` and `[0, 2]`.
    """
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), width), "int32")
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) : longest] = prompt
    return tokens, np.array([longest - len(prompt) for prompt in prompts], "int32")
