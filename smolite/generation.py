"""Generation: samplers as plain functions on logits, and the loops that drive any `Engine`.

Shapes: B rows, V vocabulary. The functions that change logits compose; `next_logits` applies them in the
order of `transformers`: repetition penalty, temperature, top-k, top-p, min-p. -inf rules an id out.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from smolite.engines import Engine, check_numbers, check_prompts


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(good: bool, name: str, expected: str, received: object) -> None:
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
        seed: of the random numbers; prompt number i of `generate` has a stream of its own, seeded `seed + i`.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.temperature >= 0, "temperature", "0 or above", self.temperature)
        _check(_is_count(self.top_k), "top_k", "a whole number, 0 or above", self.top_k)
        _check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(0 <= self.min_p <= 1, "min_p", "from 0 to 1", self.min_p)
        _check(self.repetition_penalty > 0, "repetition_penalty", "above 0", self.repetition_penalty)
        _check(_is_count(self.seed), "seed", "a whole number, 0 or above", self.seed)


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
    targets = np.minimum(np.asarray(uniforms) * totals, np.nextafter(totals, 0))
    rows = zip(cumulative, targets, strict=True)
    return np.array([np.searchsorted(row, target, side="right") for row, target in rows])


def next_logits(logits: np.ndarray, generated: Sequence[Sequence[int]], *, sampling: Sampling) -> np.ndarray:
    """The logits (B, V) after every filter of `sampling`; at temperature 0 only the repetition penalty."""
    logits = repetition_penalty(logits, generated, penalty=sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    logits = temperature(logits.astype("float64"), sampling.temperature)
    return min_p(top_p(top_k(logits, sampling.top_k), sampling.top_p), sampling.min_p)


def generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
) -> list[list[int]]:
    """Goes on from each prompt. Prompt i gets the same ids in any batch as alone with the seed `seed + i`.

    The rule for a full context: the newest half of the row, prompt and new ids alike, is kept and read again
    from position 0, and generation goes on.

    Example: where the model says 9 after `[5]` and 3 after `[5, 9]`, `generate(engine, [[5]], stop_ids=[3])`
    gives `[[9]]`.

    Args:
        engine: any `Engine`; prompts are taken `batch_size` at a time.
        prompts: token ids, each with at least one and at most `context_length`.
        max_new_tokens: the most ids generated per prompt.
        sampling: how tokens are picked. Default: greedy.
        stop_ids: ids that end an answer.

    Returns:
        For each prompt the new ids, without the stop id.

    Raises:
        ValueError: no prompt, one that the engine cannot read, or a number of tokens below 1.
        FloatingPointError: the logits are not numbers.
    """
    _check_request(engine, prompts, max_new_tokens)
    replies: list[list[int]] = []
    for first in range(0, len(prompts), engine.batch_size):
        group = prompts[first : first + engine.batch_size]
        if hasattr(engine, "greedy") and (sampling.temperature, sampling.repetition_penalty) == (0, 1):
            picks = _greedy_picks(engine, group, most=max_new_tokens, stop_ids=stop_ids)
        else:
            picks = _picks(engine, group, sampling=sampling, seed=sampling.seed + first)
        replies += _until_stopped(islice(picks, max_new_tokens), len(group), stop_ids=stop_ids)
    return replies


def stream(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yields what `generate` gives for one prompt, id by id as picked; arguments and errors as there."""
    _check_request(engine, [prompt], max_new_tokens)
    picks = islice(_picks(engine, [prompt], sampling=sampling, seed=sampling.seed), max_new_tokens)
    return _before_stop(picks, stop_ids)


def slide(row: Sequence[int], context_length: int) -> list[int]:
    """All of a row that fits, else its newest half context: `[1, 2, 3, 4, 5]` in 4 slots → `[4, 5]`."""
    return list(row) if len(row) <= context_length else list(row[-max(1, context_length // 2) :])


def _before_stop(picks: Iterator[list[int]], stop_ids: Collection[int]) -> Iterator[int]:
    for ids in picks:
        if ids[0] in stop_ids:
            return
        yield ids[0]


def _until_stopped(picks: Iterator[list[int]], count: int, *, stop_ids: Collection[int]) -> list[list[int]]:
    replies: list[list[int]] = [[] for _ in range(count)]
    running = set(range(count))
    for ids in picks:
        running = {row for row in running if ids[row] not in stop_ids}
        for row in running:
            replies[row].append(ids[row])
        if not running:
            break
    return replies


def _picks(engine: Engine, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seed: int) -> Iterator[list[int]]:
    """The ids picked at each step, one per row of the engine."""
    rows = _filled(prompts, engine.batch_size)
    generated: list[list[int]] = [[] for _ in rows]
    streams = [np.random.default_rng(seed + row) for row in range(len(rows))]
    logits, used = engine.start(rows), max(map(len, rows))
    while True:
        ids = _pick(logits, generated, sampling=sampling, streams=streams)
        yield ids
        for row, new, index in zip(rows, generated, ids, strict=True):
            row.append(index)
            new.append(index)
        if used < engine.context_length:
            logits, used = engine.step(ids), used + 1
        else:
            rows = [slide(row, engine.context_length) for row in rows]
            logits, used = engine.start(rows), max(map(len, rows))


def _greedy_picks(
    engine: Any, prompts: Sequence[Sequence[int]], *, most: int, stop_ids: Collection[int]
) -> Iterator[list[int]]:
    """What `_picks` gives at temperature 0, by engines that pick many ids in one call; finished rows may differ."""
    rows, used = _filled(prompts, engine.batch_size), engine.context_length
    while True:
        if used == engine.context_length:  # at first, and when the cache is full
            rows = [slide(row, engine.context_length) for row in rows]
            picks = np.array([_pick(engine.start(rows), [], sampling=GREEDY, streams=())])
            used = max(map(len, rows))
        else:
            picks = engine.greedy(picks[-1].tolist(), most, stop_ids=tuple(stop_ids))
            used += len(picks)
        yield from picks.tolist()
        most -= len(picks)
        for row, new in zip(rows, picks.T.tolist(), strict=True):
            row += new


def _filled(prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Rows that can be written to; those to spare repeat the last prompt. `[[5]]` for 2 → `[[5], [5]]`."""
    return [list(prompts[min(row, len(prompts) - 1)]) for row in range(count)]


def _pick(
    logits: np.ndarray,
    generated: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    streams: Sequence[np.random.Generator],
) -> list[int]:
    check_numbers(not np.isnan(logits).any())
    logits = next_logits(logits, generated, sampling=sampling)
    if sampling.temperature == 0:
        return greedy(logits).tolist()
    return draw(logits, [stream.random() for stream in streams]).tolist()


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _check_request(engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    _check(len(prompts) > 0, "prompts", "at least one list of token ids", "none")
    good_length = _is_count(max_new_tokens) and max_new_tokens > 0
    _check(good_length, "max_new_tokens", "a positive whole number", max_new_tokens)
    check_prompts(prompts, engine)
