"""Rows for training: next-token fields, and several examples packed into each row."""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from smolite.text import Tokenizer, composed_length

_OPEN_ROWS = 64  # that an example with a source may still be put into; the others are full, or nearly


class Example(NamedTuple):
    """Token ids, which of them are trained, and what an encoder reads beside them.

    Args:
        ids: n token ids.
        mask: n times 0 or 1; 1 where the token is trained.
        source: ids for the encoder; none for a decoder alone.
    """

    ids: Sequence[int]
    mask: Sequence[int]
    source: Sequence[int] = ()


@dataclass(frozen=True)
class Fitted:
    """What fits into a context of dialogues or pairs, as `fit_context` and `fit_pairs` leave it.

    Args:
        kept: the conversations or pairs.
        examples: the ids of each.
        counts: how often each case came up (`whole`, `shortened` or `cut`, `dropped`).
    """

    kept: Sequence[Any]
    examples: Sequence[Example]
    counts: dict[str, int]

    @property
    def num_characters(self) -> int:
        """Characters of all answers as composed text, plus one per answer for its `<end>`."""
        return sum(composed_length(answer) + 1 for each in self.kept for answer in each.answers)

    def summary(self) -> str:
        """The cases that came up, such as `12 whole, 1 dropped`."""
        return ", ".join(f"{count:,} {case}" for case, count in self.counts.items() if count)


def next_token_fields(ids: Sequence[int], mask: Sequence[int]) -> tuple[Sequence, Sequence, Sequence]:
    """Shift ids and their mask into what the model reads, what it is to say, and which of that is trained.

    Position i reads `ids[i]` and is to say `ids[i + 1]`, so it is trained where `mask[i + 1]` is 1:
    `next_token_fields([2, 7, 4, 9, 3], [0, 0, 0, 1, 1])` is `([2, 7, 4, 9], [7, 4, 9, 3], [0, 0, 1, 1])`.

    Args:
        ids: n token ids.
        mask: n times 0 or 1; 1 where the token is trained.

    Returns:
        `(tokens, targets, weights)`, each of length n - 1.

    Raises:
        ValueError: lengths that differ, or fewer than two ids.
    """
    if len(ids) != len(mask):
        raise ValueError(
            f"`ids` and `mask` must have the same length. Received: {len(ids)} and {len(mask)}. Make both "
            f"with `ChatTemplate.render`."
        )
    if len(ids) < 2:
        raise ValueError(
            f"`ids` must hold at least 2 tokens, one to read and one to say. Received: {len(ids)}. Leave out this example."
        )
    return ids[:-1], ids[1:], mask[1:]


@dataclass(frozen=True)
class PackedRows:
    """Rows of tokens ready for training, arrays of shape (rows, length).

    Args:
        tokens: what the model reads, int32; 0 in padding.
        targets: the next token of each, int32; 0 in padding.
        weights: 1 where the target is trained, 0 elsewhere, float32.
        positions: 0, 1, 2, … from the first token of each example on, int32.
        segments: 1, 2, 3, … by example within a row, 0 in padding, int32. Attention stays inside a segment.
        source: of an encoder-decoder, what its encoder reads, int32 (rows, source length); 0 in padding.
        source_positions: 0, 1, 2, … from the first token of each source on.
        source_segments: the number of the target's segment, 0 in padding.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    source: np.ndarray | None = None
    source_positions: np.ndarray | None = None
    source_segments: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.tokens.shape[1]

    @property
    def checksum(self) -> int:
        """Tells these tokens from others."""
        return zlib.crc32(self.tokens.tobytes() + (b"" if self.source is None else self.source.tobytes()))

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """What a model reads, by the names of its inputs."""
        names = ("tokens", "positions", "segments", "source", "source_positions", "source_segments")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    @property
    def source_length(self) -> int | None:
        """Tokens in a row of sources; None without."""
        return None if self.source is None else self.source.shape[1]

    @property
    def num_trained(self) -> int:
        """Trained tokens in all rows."""
        return int(np.count_nonzero(self.weights))

    @property
    def fill(self) -> float:
        """Share of the columns that aren't padding, over all rows."""
        return float(np.count_nonzero(self.segments) / self.segments.size)


def pack(examples: Sequence[Example], length: int, *, source_length: int | None = None) -> PackedRows:
    """Put several whole examples into each row, so that few columns are padding; attention stays inside each.

    An example of n ids takes n - 1 columns. The longest come first, each into the fullest row that it fits into
    (best-fit decreasing), always the same way for the same examples. With sources, each goes into the first row that it fits
    into on both sides.

    `pack([([2, 7, 3], [0, 1, 1]), ([2, 9, 8, 3], [0, 0, 1, 1])], 6)` is one row: tokens `[2, 9, 8, 2, 7, 0]`,
    targets `[9, 8, 3, 7, 3, 0]`, weights `[0, 1, 1, 1, 1, 0]`, positions `[0, 1, 2, 0, 1, 0]`, segments
    `[1, 1, 1, 2, 2, 0]`.

    `pack([([2, 9, 3], [0, 1, 1], [7, 8]), ([2, 6, 6, 3], [0, 1, 1, 1], [5])], 6, source_length=4)` is one row, too: tokens
    `[2, 9, 2, 6, 6, 0]`, segments `[1, 1, 2, 2, 2, 0]`, and its source `[7, 8, 5, 0]` with segments `[1, 1, 2, 0]`.

    Args:
        examples: `Example`s, or tuples like them, as `fit_context` and `fit_pairs` give them.
        length: columns of a row, the model's context length or less.
        source_length: columns of a row of sources; None where examples have none.

    Returns:
        `PackedRows`.

    Raises:
        ValueError: no examples, `length` below 1, or an example with fewer than two ids, with more than
            `length + 1` ids, without a trained token, or with a source that is longer than `source_length`, empty or not
            expected.
    """
    fields = _checked_fields(examples, length, source_length)
    sizes = [len(each.tokens) for each in fields]
    if source_length is None:
        return _laid_out(fields, _best_fit(sizes, length), length, source_length)
    both = [(len(each.source), size) for each, size in zip(fields, sizes, strict=True)]
    return _laid_out(fields, _first_fit(both, (source_length, length)), length, source_length)


def unpacked_rows(examples: Sequence[Example], length: int, *, source_length: int | None = None) -> PackedRows:
    """Put each example into a row of its own, in the given order; arguments and errors as in `pack`."""
    rows = [[number] for number in range(len(examples))]
    return _laid_out(_checked_fields(examples, length, source_length), rows, length, source_length)


def row_lengths(examples: Sequence[Example], longest: int) -> tuple[int | None, int]:
    """Lengths of rows for sources and for targets: `longest` for the side that has more tokens, less for the other.

    The other gets its share of the tokens and a tenth more, a multiple of 8, and at least what its longest text takes: with
    sources of 30 tokens and targets of 9 columns, and `longest` 128, `(128, 48)`. Without sources it is `(None, 128)`.
    """
    sizes = np.array([(len(each.source), len(each.ids) - 1) for each in examples])
    if not sizes[:, 0].any():
        return None, longest
    shares = sizes.sum(axis=0) / sizes.sum(axis=0).max()
    wanted = np.maximum(longest * np.minimum(1.1 * shares, 1.0), sizes.max(axis=0))
    source_length, length = (min(math.ceil(width / 8) * 8, longest) for width in wanted)
    return source_length, length


def text_rows(texts: Iterable[str], tokenizer: Tokenizer, *, length: int) -> PackedRows:
    """Pack plain text for pretraining: each document is its ids and `<end>`; all but the first are learnt.

    A document with more than `length + 1` ids is split into parts that share one id, so that each token stays
    a target exactly once. With `length` 2 the ids `[7, 8, 9, 5, 3]` become the parts `[7, 8, 9]` and
    `[9, 5, 3]`. Every part is a segment of its own.

    Args:
        texts: documents, as `read_texts` gives them. Those without a token are left out.
        tokenizer: encodes them.
        length: columns of a row.

    Returns:
        `PackedRows` with weight 1 everywhere but in padding.

    Raises:
        ValueError: no text, or `length` below 1.
    """
    documents = ([*ids, tokenizer.end_id] for text in texts if (ids := tokenizer.encode(text)))
    return pack([Example(part, [1] * len(part)) for ids in documents for part in _parts(ids, length)], length)


def _parts(ids: list[int], length: int) -> list[list[int]]:
    return [ids[start : start + length + 1] for start in range(0, len(ids) - 1, max(length, 1))]


class _Fields(NamedTuple):
    tokens: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[int]
    source: Sequence[int]


def _checked_fields(examples: Sequence[Example], length: int, source_length: int | None) -> list[_Fields]:
    """The `next_token_fields` of each example, and its source.

    Raises:
        ValueError: as `pack`.
    """
    if length < 1:
        raise ValueError(f"`length` must be at least 1. Received: {length}. Use the model's context length.")
    if not examples:
        raise ValueError("`examples` must hold at least one example. Received: none. Check the data file.")
    for number, example in enumerate(examples):
        _check_source(Example(*example).source, source_length, number)
    return [_checked(Example(*example), length=length, number=number) for number, example in enumerate(examples)]


def _check_source(source: Sequence[int], source_length: int | None, number: int) -> None:
    least, most = (0, 0) if source_length is None else (1, source_length)
    if not least <= len(source) <= most:
        expected = f"{least} to {most} ids, the `source_length`" if most else "no ids where no `source_length` is given"
        raise ValueError(
            f"A source must have {expected}. Received: {len(source)} in example {number}. Make the examples with `fit_pairs`, "
            "and the lengths with `row_lengths`."
        )


def _checked(example: Example, *, length: int, number: int) -> _Fields:
    ids = example.ids
    if len(ids) - 1 > length:
        raise ValueError(
            f"Example {number} must have at most {length + 1} ids to fit rows of {length}. Received: "
            f"{len(ids)}. Shorten the dialogues with `fit_context`, or raise the length."
        )
    fields = _Fields(*next_token_fields(ids, example.mask), example.source)
    if not any(fields.weights):
        raise ValueError(
            f"Example {number} must have a trained token after its first. Received: a mask without one, so "
            f"there is nothing to learn. Leave out this example, or give it an answer."
        )
    return fields


def _best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """The numbers of the examples in each row."""
    rows: list[list[int]] = []
    # Row numbers by what is free: rows_with[r] are those with exactly r columns left. So an example costs the same however many
    # rows there are; to look through them all, the time would grow with the square of the examples.
    rows_with: list[list[int]] = [[] for _ in range(length + 1)]
    # Bit r is set while rows_with[r] isn't empty, so that one shift and one AND replace a search over all lengths.
    any_with = 0
    # The longest first: short ones fill the gaps that long ones leave, and not the other way round. Python's sort is stable,
    # so that equal sizes keep their order and the same examples give the same rows, which a resumed run relies on.
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        wide_enough = any_with >> sizes[number]
        if wide_enough:
            # x & -x leaves the lowest bit of x: the smallest gap that still takes the example.
            free = sizes[number] + (wide_enough & -wide_enough).bit_length() - 1
            row = rows_with[free].pop()
            any_with ^= 0 if rows_with[free] else 1 << free
        else:
            free, row = length, len(rows)
            rows.append([])
        rows[row].append(number)
        rows_with[free - sizes[number]].append(row)
        any_with |= 1 << (free - sizes[number])
    return rows


def _first_fit(sizes: Sequence[tuple[int, int]], lengths: tuple[int, int]) -> list[list[int]]:
    """The numbers of the examples in each row, of which each takes columns on both sides."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int, int]] = []  # of the rows that are open: number, and what is left on both sides
    # Two sides have no one size to sort and look up by, as in `_best_fit`; the fuller side of an example decides its turn.
    for number in sorted(range(len(sizes)), key=lambda number: -max(sizes[number][side] / lengths[side] for side in (0, 1))):
        source, target = sizes[number]
        fitting = (at for at, (_, left, right) in enumerate(rooms) if source <= left and target <= right)
        at = next(fitting, len(rooms))
        if at == len(rooms):
            rooms.append((len(rows), *lengths))
            rows.append([])
        row, left, right = rooms[at]
        rows[row].append(number)
        rooms[at] = row, left - source, right - target
        if len(rooms) > _OPEN_ROWS:
            rooms.remove(min(rooms, key=lambda room: min(room[1:])))
    return rows


def _laid_out(fields: Sequence[_Fields], rows: list[list[int]], length: int, source_length: int | None) -> PackedRows:
    tokens, targets, weights = (
        _filled([[fields[number][part] for number in row] for row in rows], length) for part in range(3)
    )
    source: tuple[Any, Any, Any] = (None, None, None)
    if source_length is not None:
        source = _filled([[fields[number].source for number in row] for row in rows], source_length)
    return PackedRows(tokens[0], targets[0], weights[0].astype("float32"), *tokens[1:], *source)


def _filled(rows: Sequence[Sequence[Sequence[int]]], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts of rows, one behind the other, filled up with zeros: their ids, positions and segments.

    With length 4, `[[[7, 8], [5]]]` gives `[[7, 8, 5, 0]]`, `[[0, 1, 0, 0]]` and `[[1, 1, 2, 0]]`.
    """
    ids, positions, segments = (np.zeros((len(rows), length), "int32") for _ in range(3))
    for row, parts in enumerate(rows):
        start = 0
        # From 1 on, as 0 is padding: one comparison of segments then hides other examples and padding alike.
        for segment, part in enumerate(parts, start=1):
            columns = row, slice(start, start + len(part))
            # Each example counts from 0, as it will when it is asked alone: learned positions depend on it.
            ids[columns], positions[columns], segments[columns] = part, np.arange(len(part)), segment
            start += len(part)
    return ids, positions, segments
