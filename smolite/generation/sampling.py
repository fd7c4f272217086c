"""Samplers as plain functions on logits: each changes which token is picked, and they compose.

Shapes: B rows, V vocabulary. `next_logits` applies them in the order of `transformers`: what is ruled out, repetition
penalty, temperature, top-k, top-p, min-p. -inf rules an id out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


def is_count(value: object) -> bool:
    """Whether it is a whole number, 0 or above."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check(good: bool, name: str, expected: str, received: object) -> None:
    """Refuses an argument.

    Raises:
        ValueError: `good` is False.
    """
    if not good:
        raise ValueError(f"`{name}` must be {expected}. Received: {received}.")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is picked.

    Args:
        temperature: divides the logits; 0 takes the most likely token, whatever the other filters say.
        top_k: how many of the most likely tokens stay; 0 for all.
        top_p: share of probability that the most likely tokens kept must reach; 1 for all (Holtzman et al.
            2020).
        min_p: least probability of a token kept, as a share of the most likely token's; 0 for all (Nguyen et
            al. 2024).
        repetition_penalty: above 1 makes tokens that were generated before less likely; 1 for none (Keskar et
            al. 2019).
        min_new_tokens: how many tokens an answer has before it may stop.
        banned_ids: ids that are never picked, such as the padding's.
        seed: of the random numbers; prompt number i of `generate` has a stream of its own, seeded `seed + i`.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    banned_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.temperature >= 0, "temperature", "0 or above", self.temperature)
        check(is_count(self.top_k), "top_k", "a whole number, 0 or above", self.top_k)
        check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        check(0 <= self.min_p <= 1, "min_p", "from 0 to 1", self.min_p)
        check(self.repetition_penalty > 0, "repetition_penalty", "above 0", self.repetition_penalty)
        check(is_count(self.min_new_tokens), "min_new_tokens", "a whole number, 0 or above", self.min_new_tokens)
        check(all(map(is_count, self.banned_ids)), "banned_ids", "token ids, 0 or above", self.banned_ids)
        check(is_count(self.seed), "seed", "a whole number, 0 or above", self.seed)


GREEDY = Sampling(temperature=0.0)


def greedy(logits: np.ndarray) -> np.ndarray:
    """The most likely id of each row, (B, V) → (B,); the first of equals. `[[0.1, 2.0, 0.3]]` → `[1]`."""
    return np.argmax(logits, axis=-1)


def temperature(logits: np.ndarray, value: float) -> np.ndarray:
    """Logits divided by `value`: below 1 sharper, above 1 flatter. `[[2.0, 1.0]]` at 0.5 → `[[4.0, 2.0]]`."""
    return logits / value


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Rules out all but the `k` most likely ids of a row, and keeps those equal to the last of them.

    Example: `[[1.0, 4.0, 3.0, 2.0]]` with k = 2 → `[[-inf, 4.0, 3.0, -inf]]`.
    """
    if not 0 < k < logits.shape[-1]:
        return logits
    # The k-th greatest without sorting the vocabulary.
    last_kept = np.partition(logits, -k, axis=-1)[:, -k, None]
    return np.where(logits < last_kept, -np.inf, logits)


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keeps the fewest most likely ids of a row whose probabilities reach `p`, and equals of the last.

    Example: probabilities `[[0.5, 0.3, 0.2]]` with p = 0.6 → the first two stay.
    """
    if p >= 1:
        return logits
    probabilities = _softmax(logits)
    falling = -np.sort(-probabilities, axis=-1)
    before = np.cumsum(falling, axis=-1) - falling
    last_kept = np.min(falling, axis=-1, where=before < p, initial=1.0, keepdims=True)
    return np.where(probabilities < last_kept, -np.inf, logits)


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Rules out the ids of a row that are less likely than `p` times its most likely id.

    Example: probabilities `[[0.6, 0.3, 0.1]]` with p = 0.4 → the first two stay.
    """
    if p <= 0:
        return logits
    least = logits.max(axis=-1, keepdims=True) + np.log(p)
    return np.where(logits < least, -np.inf, logits)


def rule_out(logits: np.ndarray, ids: Collection[int], *, rows: Sequence[int] | None = None) -> np.ndarray:
    """Rules ids out, in all rows or in some. `[[1.0, 2.0]]` with ids `[1]` → `[[1.0, -inf]]`."""
    if not ids or rows == []:
        return logits
    logits, rows = logits.copy(), range(len(logits)) if rows is None else rows
    logits[np.ix_(rows, list(ids))] = -np.inf
    return logits


def repetition_penalty(logits: np.ndarray, generated: Sequence[Sequence[int]], *, penalty: float) -> np.ndarray:
    """Lowers the logits of ids that a row has generated: positive ones are divided, negative ones multiplied.

    A penalised logit is never raised, and an id in the prompt alone is not penalised.

    Example: `[[2.0, -2.0, 1.0]]` with generated `[[0, 1, 1]]` and penalty 2 → `[[1.0, -4.0, 1.0]]`.

    Args:
        logits: (B, V).
        generated: for each row the ids generated so far, without the prompt.
        penalty: 1 for none; below 1 it rewards instead.
    """
    if penalty == 1:
        return logits
    logits = logits.copy()
    for row, ids in enumerate(generated):
        seen = logits[row, list(ids)]
        logits[row, list(ids)] = np.where(seen > 0, seen / penalty, seen * penalty)
    return logits


def draw(logits: np.ndarray, uniforms: Sequence[float]) -> np.ndarray:
    """Draws an id per row, as likely as its logit says, from one uniform number in [0, 1) per row.

    Example: probabilities `[[0.25, 0.5, 0.25]]` with `[0.7]` → `[1]`, since 0.25 ≤ 0.7 < 0.75.
    """
    cumulative = np.cumsum(_softmax(logits), axis=-1)
    totals = cumulative[:, -1]
    # The total of rounded probabilities is not exactly 1; a number just below 1 must still fall on the last token that has
    # any.
    targets = np.minimum(np.asarray(uniforms) * totals, np.nextafter(totals, 0))
    rows = zip(cumulative, targets, strict=True)
    return np.array([np.searchsorted(row, target, side="right") for row, target in rows])


def next_logits(
    logits: np.ndarray, generated: Sequence[Sequence[int]], *, sampling: Sampling, stop_ids: Collection[int] = ()
) -> np.ndarray:
    """The logits (B, V) after every filter of `sampling`; at temperature 0 none that only sharpens the distribution."""
    too_short = [row for row, ids in enumerate(generated) if len(ids) < sampling.min_new_tokens]
    logits = rule_out(rule_out(logits, sampling.banned_ids), stop_ids, rows=too_short)
    logits = repetition_penalty(logits, generated, penalty=sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    # float64: top-p adds up the whole vocabulary, and a draw is looked for in that sum.
    logits = temperature(logits.astype("float64"), sampling.temperature)
    return min_p(top_p(top_k(logits, sampling.top_k), sampling.top_p), sampling.min_p)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
