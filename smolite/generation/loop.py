"""Generation: the loops that drive any `Engine`."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from smolite.generation.engine import Engine, check_numbers, check_prompts
from smolite.generation.sampling import GREEDY, Sampling, check, draw, greedy, is_count, next_logits


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
    from position 0, and generation goes on. An engine of an encoder-decoder never does so: the answer ends where
    its `target_length` does.

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
    max_new_tokens = _checked_request(engine, prompts, max_new_tokens)
    replies: list[list[int]] = []
    for first in range(0, len(prompts), engine.batch_size):
        group = prompts[first : first + engine.batch_size]
        # The seed plays no part where nothing is drawn. Any filter, ban or penalty needs the logits, which the device's loop
        # keeps.
        if replace(sampling, seed=0) == GREEDY:
            picks = _greedy_picks(engine, group, most=max_new_tokens, stop_ids=stop_ids)
        else:
            picks = _picks(engine, group, sampling=replace(sampling, seed=sampling.seed + first), stop_ids=stop_ids)
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
    max_new_tokens = _checked_request(engine, [prompt], max_new_tokens)
    picks = _picks(engine, [prompt], sampling=sampling, stop_ids=stop_ids)
    return _before_stop(islice(picks, max_new_tokens), stop_ids)


def slide(row: Sequence[int], context_length: int) -> list[int]:
    """All of a row that fits, else its newest half context: `[1, 2, 3, 4, 5]` in 4 slots → `[4, 5]`."""
    return list(row) if len(row) <= context_length else list(row[-max(1, context_length // 2) :])


def check_new_tokens(count: object) -> None:
    """Refuses a `max_new_tokens` that is no whole number above 0.

    Raises:
        ValueError: it is none.
    """
    check(is_count(count) and count != 0, "max_new_tokens", "a positive whole number", count)


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


def _picks(
    engine: Engine, prompts: Sequence[Sequence[int]], *, sampling: Sampling, stop_ids: Collection[int]
) -> Iterator[list[int]]:
    """The ids picked at each step, one per row of the engine."""
    rows = _filled(prompts, engine.batch_size)
    generated: list[list[int]] = [[] for _ in rows]
    # A stream for each row, so that a prompt draws the same numbers whatever stands beside it.
    streams = [np.random.default_rng(sampling.seed + row) for row in range(len(rows))]
    logits, used = engine.start(rows), max(map(len, rows))
    while True:
        ids = _pick(logits, generated, sampling=sampling, stop_ids=stop_ids, streams=streams)
        yield ids
        for row, new, index in zip(rows, generated, ids, strict=True):
            row.append(index)
            new.append(index)
        if used < engine.context_length or engine.target_length is not None:
            logits, used = engine.step(ids), used + 1
        else:
            # A full cache cannot be shifted: every key was turned by its position. So the newest half is read anew.
            rows = [slide(row, engine.context_length) for row in rows]
            logits, used = engine.start(rows), max(map(len, rows))


def _greedy_picks(
    engine: Engine, prompts: Sequence[Sequence[int]], *, most: int, stop_ids: Collection[int]
) -> Iterator[list[int]]:
    """What `_picks` gives at temperature 0, with many ids picked in one call of the engine; finished rows may differ."""
    rows = _filled(prompts, engine.batch_size)
    while True:
        rows = [slide(row, engine.context_length) for row in rows]
        picks, used = np.array([_pick(engine.start(rows), [], sampling=GREEDY)]), max(map(len, rows))
        # An answer apart from its prompt has room of its own, which `most` never exceeds.
        room = engine.context_length - used if engine.target_length is None else most
        while True:
            yield from picks.tolist()
            most -= len(picks)
            for row, new in zip(rows, picks.T.tolist(), strict=True):
                row += new
            if not room:
                break
            picks = engine.greedy(picks[-1].tolist(), min(most, room), stop_ids=tuple(stop_ids))
            room -= len(picks)


def _filled(prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Rows that can be written to; those to spare repeat the last prompt. `[[5]]` for 2 → `[[5], [5]]`."""
    return [list(prompts[min(row, len(prompts) - 1)]) for row in range(count)]


def _pick(
    logits: np.ndarray,
    generated: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    stop_ids: Collection[int] = (),
    streams: Sequence[np.random.Generator] = (),
) -> list[int]:
    check_numbers(not np.isnan(logits).any())
    logits = next_logits(logits, generated, sampling=sampling, stop_ids=stop_ids)
    if sampling.temperature == 0:
        return greedy(logits).tolist()
    return draw(logits, [stream.random() for stream in streams]).tolist()


def _checked_request(engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """How many ids to pick at most."""
    check(len(prompts) > 0, "prompts", "at least one list of token ids", "none")
    check_new_tokens(max_new_tokens)
    check_prompts(prompts, engine)
    return max_new_tokens if engine.target_length is None else min(max_new_tokens, engine.target_length)
