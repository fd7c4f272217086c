"""The contract between generation and a runtime: token ids in, logits out, with a key/value cache in between. numpy alone.

Everything that a caller may ask of an engine is declared here, with a default, so nobody needs to know which engine it has. One
for another runtime derives from `Engine`, says its sizes, and has `start` and `step`.

Shapes: B rows that run side by side, S slots of the cache, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

_SHORTEST_PREFILL = 16


class Engine(ABC):
    """What generation, evaluation, serving and verification need of a model in any runtime.

    Attributes:
        batch_size: B, the rows that run side by side.
        context_length: S, the cache slots; prompt and generated tokens of a row fit in them together. Where answers are apart
            from prompts: the most ids of a prompt.
        vocab_size: V.
        target_length: the most ids of an answer, which ends there, where answers are apart from prompts, as those of an
            encoder-decoder; `None` where they share the cache.
        start_id: the id that begins an answer apart from its prompt; `None` where there is none.
        read_lengths: lengths of a text at which the runtime begins to read it in another way, such as those of its prefill
            signatures; a proof tries each.
        drafts: the most tokens that the runtime guesses and checks in one call. May be set to less; to 0, nothing is guessed.

    Examples:
        >>> class Counting(Engine):
        ...     context_length, vocab_size = 8, 10
        ...     def start(self, prompts):
        ...         return self.step([prompts[0][-1]])
        ...     def step(self, ids):
        ...         return np.eye(10, dtype="float32")[[ids[0] + 1]]
        >>> engine = Counting()
        >>> _ = engine.start([[3, 4]])
        >>> engine.greedy([5], 3).tolist()
        [[6], [7], [8]]
    """

    batch_size: int = 1
    context_length: int
    vocab_size: int
    target_length: int | None = None
    start_id: int | None = None
    read_lengths: Sequence[int] = ()
    drafts: int = 0

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before, reads B prompts of 1 to S ids and returns float32 logits (B, V)."""

    @abstractmethod
    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id per row and returns float32 logits (B, V)."""

    def greedy(self, ids: Sequence[int], count: int, *, stop_ids: Sequence[int] = ()) -> np.ndarray:
        """Steps and takes the likeliest id, up to `count` times; here step by step, in one call where a runtime can.

        Example: where the model says 9 after 5, and 3 after 9, `greedy([5], 2)` gives `[[9], [3]]`, and 3 is not read yet.

        Args:
            ids: as for `step`.
            count: the most ids to pick; the cache must have room for as many.
            stop_ids: a row that has picked one of them repeats it; when all rows have, this ends.

        Returns:
            int32 (picks, B), at most `count` of them; an engine may give fewer, and go on at the next call.

        Raises:
            ValueError: as for `step`.
            FloatingPointError: the logits are not numbers.
        """
        picks: list[list[int]] = []
        while len(picks) < count and not np.isin(ids, stop_ids).all():
            logits = self.step(ids)
            check_numbers(not np.isnan(logits).any())
            ids = np.where(np.isin(ids, stop_ids), ids, logits.argmax(axis=-1)).tolist()
            picks.append(list(ids))
        return np.array(picks, "int32").reshape(-1, self.batch_size)

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Adds tokens of one row in one call: as many of them as the runtime reads at once with logits, but at least one.

        Args:
            ids: the tokens.

        Returns:
            Logits after each that was read, float32 (1 to `drafts` + 1, V).
        """
        return self.step(ids[:1])

    def forward_logits(self, prompt: Sequence[int], reply: Sequence[int]) -> np.ndarray | None:
        """What a forward without a cache says before each id of a reply, float32 (len(reply), V); `None` without one."""
        return None

    def read_caches(self) -> Mapping[str, np.ndarray]:
        """Copies of the key and value caches by name, as the last call left them; none where the runtime hides them."""
        return {}

    def close(self) -> None:  # noqa: B027 - most runtimes hold nothing that Python would not free
        """Frees what the runtime holds; the engine is not used after that."""


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


def check_step(ids: Sequence[int], used: int, engine: Engine) -> None:
    """Refuses a step that the engine cannot take, after `used` tokens.

    Raises:
        ValueError: the cache is full, or there is not one id of the vocabulary for each row.
    """
    check_free_slot(used, engine)
    check_prompts([[index] for index in ids], engine)
    check_rows(len(ids), engine, what="ids")


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
        ValueError: `used` slots are all that the engine has, which is also said before `start`.
    """
    slots = engine.context_length if engine.target_length is None else engine.target_length
    if used >= slots:
        raise ValueError(
            f"The cache must have a free slot. Received: a step after {used} tokens in {slots} slots, or before `start`. Call "
            "`start` with another text, as `generate` does, or take an engine or a file with a longer cache."
        )


def check_rows(count: int, engine: Engine, *, what: str) -> None:
    """Refuses more or fewer rows than the engine runs side by side.

    Raises:
        ValueError: `count` is not its batch size.
    """
    if count != engine.batch_size:
        raise ValueError(
            f"The engine takes {engine.batch_size} {what} at a time, its `batch_size`. Received: {count}. Use `generate`, "
            "which takes any number, or make an engine of another size."
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
