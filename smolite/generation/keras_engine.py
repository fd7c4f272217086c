"""Engines: token ids in, logits out, with a key/value cache in between; here the one that runs a Keras model.

Shapes use the legend at the top of `layers.py`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from keras import ops

from smolite.generation.compiled_steps import MOST_AHEAD, compiled_decoder
from smolite.models import CausalLM

_SHORTEST_PREFILL = 16


class Engine(Protocol):
    """What generation needs of a model in any runtime.

    Attributes:
        batch_size: B, the rows that run side by side.
        context_length: S, the cache slots; prompt and generated tokens of a row fit in them together.
        vocab_size: V.

    An engine may have `greedy` as well, see `KerasEngine.greedy`; `generate` then lets it pick many ids in one call. One that
    writes answers apart from prompts, see `Seq2SeqEngine`, has `target_length`: the most ids of an answer, which ends there.
    """

    batch_size: int
    context_length: int
    vocab_size: int

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before, reads B prompts of 1 to S ids and returns float32 logits (B, V)."""
        ...

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id per row and returns float32 logits (B, V)."""
        ...


class KerasEngine:
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
        if len(prompts) != self.batch_size:
            raise ValueError(
                f"The engine takes {self.batch_size} prompts at a time, its `batch_size`. Received: "
                f"{len(prompts)}. Use `generate`, which takes any number, or make an engine of another size."
            )
        self._used = max(map(len, prompts))
        tokens, starts = _right_aligned(prompts, prefill_length(self._used, self.context_length))
        self._starts = ops.convert_to_tensor(starts)
        self._cache = self._model.empty_cache(self.batch_size, self.context_length, flat=True)
        return self._run(tokens, slot=0, last=self._used - 1)

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id per row and returns the logits after it, float32 (B, V).

        Raises:
            ValueError: not B ids, an id outside the vocabulary, or no slot is free.
        """
        self._check_step(ids)
        self._used += 1
        return self._run(np.array(ids, "int32")[:, None], slot=self._used - 1, last=0)

    def greedy(self, ids: Sequence[int], count: int, *, stop_ids: Sequence[int] = ()) -> np.ndarray:
        """Steps and takes the likeliest id, up to `count` times, in one call on the device (torch: one by one).

        Example: where the model says 9 after 5, and 3 after 9, `greedy([5], 2)` gives `[[9], [3]]`, and 3 is
        not read yet.

        Args:
            ids: as for `step`.
            count: the most ids to pick.
            stop_ids: a row that has picked one of them repeats it; when all rows have, this ends.

        Returns:
            int32 (picks, B). There are fewer than `count` at the end of the cache, too, and never more than 32.

        Raises:
            ValueError: as for `step`.
            FloatingPointError: the logits are not numbers.
        """
        self._check_step(ids)
        count = min(count, MOST_AHEAD, self.context_length - self._used)
        if self._greedy is None:
            picks = self._greedy_by_steps(np.array(ids, "int32"), count, stop_ids)
        else:
            place = ops.convert_to_tensor(np.array([self._used, count], "int32"))
            state = ops.convert_to_tensor(np.array(ids, "int32")), self._cache, self._starts, place
            stops = ops.convert_to_tensor(np.array([*stop_ids] or [-1], "int32"))
            picks, done, are_numbers, self._cache = self._greedy(*state, stops)
            picks = ops.convert_to_numpy(picks)[: int(done)]
            check_numbers(bool(are_numbers))
        self._used += len(picks)
        return picks

    def _greedy_by_steps(self, ids: np.ndarray, count: int, stop_ids: Sequence[int]) -> np.ndarray:
        picks: list[np.ndarray] = []
        while len(picks) < count and not np.isin(ids, stop_ids).all():
            logits = self._run(ids[:, None], slot=self._used + len(picks), last=0)
            check_numbers(not np.isnan(logits).any())
            ids = np.where(np.isin(ids, stop_ids), ids, logits.argmax(axis=-1)).astype("int32")
            picks.append(ids)
        return np.array(picks, "int32").reshape(-1, self.batch_size)

    def _check_step(self, ids: Sequence[int]) -> None:
        if self._used >= self.context_length:
            raise ValueError(
                f"`step` needs a free cache slot. Received: all {self.context_length} in use, or `start` "
                "not called yet. Call `start` with the ids to keep; `generate` does this by itself."
            )
        check_prompts([[index] for index in ids], self)
        if len(ids) != self.batch_size:
            raise ValueError(f"`step` takes {self.batch_size} ids, one per row. Received: {len(ids)}.")

    def _run(self, tokens: np.ndarray, *, slot: int, last: int) -> np.ndarray:
        place = ops.convert_to_tensor(np.array([slot, last], "int32"))
        logits, self._cache = self._forward(ops.convert_to_tensor(tokens), self._cache, self._starts, place)
        return ops.convert_to_numpy(logits)


def check_prompts(prompts: Sequence[Sequence[int]], engine: Engine) -> None:
    """Refuses prompts that the engine cannot read.

    Example: an engine of 8 slots and 100 ids reads `[[5, 99], [7]]`, but not `[[]]`, `[[100]]` or nine ids.

    Raises:
        ValueError: a prompt is empty or longer than the context, or an id is outside the vocabulary.
    """
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= engine.context_length:
            raise ValueError(
                f"A prompt must have 1 to {engine.context_length} tokens, the engine's `context_length`. "
                f"Received: {len(prompt)} in prompt {row}. Shorten it, or take an engine of a longer context."
            )
        outside = [index for index in prompt if not 0 <= index < engine.vocab_size]
        if outside:
            raise ValueError(
                f"Token ids must be from 0 to {engine.vocab_size - 1}. Received: {outside[0]} in prompt "
                f"{row}. Use the tokenizer that the model was trained with."
            )


def check_one_prompt(prompts: Sequence[Sequence[int]], engine: Engine) -> None:
    """Refuses what an engine of one row cannot read. `[[5, 9]]` is read; `[[5], [9]]` is not.

    Raises:
        ValueError: not exactly one prompt, or one that `check_prompts` refuses.
    """
    check_prompts(prompts, engine)
    if len(prompts) != 1:
        raise ValueError(f"This engine takes one prompt at a time. Received: {len(prompts)}. Give them one by one.")


def check_free_slot(used: int, engine: Engine) -> None:
    """Refuses a step when the cache is full.

    Raises:
        ValueError: `used` slots are all that the engine has.
    """
    if used >= engine.context_length:
        raise ValueError(
            f"The cache must have a free slot. Received: a step after {used} tokens in {engine.context_length} slots. Call "
            "`start` with a shorter text, as `generate` does, or take an engine or a file with a longer cache."
        )


def check_numbers(good: bool) -> None:
    """Refuses logits that are not numbers.

    Raises:
        FloatingPointError: `good` is False.
    """
    if not good:
        raise FloatingPointError(
            "Logits must be numbers. Received: NaN, so the weights are broken. Train with a smaller learning "
            "rate or with clipping, or load another run."
        )


def checked_size(value: int, *, name: str, most: int | None = None) -> int:
    """A size in range: `value`.

    Raises:
        ValueError: it is no whole number, below 1 or above `most`.
    """
    if not isinstance(value, int) or value < 1 or (most is not None and value > most):
        expected = "a positive whole number" if most is None else f"from 1 to {most}, the model's context length"
        raise ValueError(f"`{name}` must be {expected}. Received: {value!r}.")
    return value


def prefill_length(length: int, slots: int) -> int:
    """The next power of two, at least 16, at most the number of slots."""
    return min(max(_SHORTEST_PREFILL, 1 << (length - 1).bit_length()), slots)


def _right_aligned(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B, width) whose rows end in the same column, and the column where each row starts.

    Example: `[[5, 6, 7], [9]]` in width 4 → `[[5, 6, 7, 0], [0, 0, 9, 0]]` and `[0, 2]`.
    """
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), width), "int32")
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) : longest] = prompt
    return tokens, np.array([longest - len(prompt) for prompt in prompts], "int32")
