"""Rows for training: next-token fields, and several examples packed into each row."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from smolite.text import Tokenizer

Example = tuple[Sequence[int], Sequence[int]]


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
class PackedSources:
    """What the encoder reads beside rows of targets, all arrays int32 of shape (rows, source length).

    Args:
        tokens: 0 in padding.
        positions: 0, 1, 2, … from the first token of each source on.
        segments: the number of the target's segment, 0 in padding.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


@dataclass(frozen=True)
class PackedRows:
    """Rows of tokens ready for training, all arrays of shape (rows, length).

    Args:
        tokens: what the model reads, int32; 0 in padding.
        targets: the next token of each, int32; 0 in padding.
        weights: 1 where the target is trained, 0 elsewhere, float32.
        positions: 0, 1, 2, … from the first token of each example on, int32.
        segments: 1, 2, 3, … by example within a row, 0 in padding, int32. Attention stays inside a segment.
        sources: of an encoder-decoder, what its encoder reads; see `pairs.pack_pairs`.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    sources: PackedSources | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.tokens.shape[1]

    @property
    def checksum(self) -> int:
        """Tells these tokens from others."""
        sources = b"" if self.sources is None else self.sources.tokens.tobytes()
        return zlib.crc32(self.tokens.tobytes() + sources)

    @property
    def num_trained(self) -> int:
        """Trained tokens in all rows."""
        return int(np.count_nonzero(self.weights))

    @property
    def fill(self) -> float:
        """Share of the columns that aren't padding, over all rows."""
        return float(np.count_nonzero(self.segments) / self.segments.size)


def pack(examples: Sequence[Example], length: int) -> PackedRows:
    """Put several whole examples into each row, so that few columns are padding.

    An example of n ids takes n - 1 columns. The longest come first, each into the fullest row that it fits into
    (best-fit decreasing), always the same way for the same examples.

    `pack([([2, 7, 3], [0, 1, 1]), ([2, 9, 8, 3], [0, 0, 1, 1])], 6)` is one row: tokens `[2, 9, 8, 2, 7, 0]`,
    targets `[9, 8, 3, 7, 3, 0]`, weights `[0, 1, 1, 1, 1, 0]`, positions `[0, 1, 2, 0, 1, 0]`, segments
    `[1, 1, 1, 2, 2, 0]`.

    Args:
        examples: `(ids, mask)` pairs as `ChatTemplate.render` gives them.
        length: columns of a row, the model's context length or less.

    Returns:
        `PackedRows`.

    Raises:
        ValueError: no examples, `length` below 1, or an example with fewer than two ids, with more than
            `length + 1` ids, or without a trained token.
    """
    fields = checked_fields(examples, length)
    sizes = [len(tokens) for tokens, _, _ in fields]
    return filled_rows([[fields[number] for number in row] for row in _best_fit(sizes, length)], length)


def unpacked_rows(examples: Sequence[Example], length: int) -> PackedRows:
    """Put each example into a row of its own, in the given order; arguments and errors as in `pack`."""
    return filled_rows([[fields] for fields in checked_fields(examples, length)], length)


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
    return pack([(part, [1] * len(part)) for ids in documents for part in _parts(ids, length)], length)


def _parts(ids: list[int], length: int) -> list[list[int]]:
    return [ids[start : start + length + 1] for start in range(0, len(ids) - 1, max(length, 1))]


def checked_fields(examples: Sequence[Example], length: int) -> list[tuple[Sequence, Sequence, Sequence]]:
    """The `next_token_fields` of each example.

    Raises:
        ValueError: as `pack`.
    """
    if length < 1:
        raise ValueError(f"`length` must be at least 1. Received: {length}. Use the model's context length.")
    if not examples:
        raise ValueError("`examples` must hold at least one example. Received: none. Check the data file.")
    return [_checked(*example, length=length, number=number) for number, example in enumerate(examples)]


def _checked(ids: Sequence[int], mask: Sequence[int], *, length: int, number: int) -> tuple:
    if len(ids) - 1 > length:
        raise ValueError(
            f"Example {number} must have at most {length + 1} ids to fit rows of {length}. Received: "
            f"{len(ids)}. Shorten the dialogues with `fit_context`, or raise the length."
        )
    fields = next_token_fields(ids, mask)
    if not any(fields[2]):
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


def filled_rows(rows: Sequence[Sequence[tuple]], length: int) -> PackedRows:
    """Rows of `next_token_fields`, one behind the other, filled up with zeros."""
    shape = len(rows), length
    tokens, targets, positions, segments = (np.zeros(shape, "int32") for _ in range(4))
    weights = np.zeros(shape, "float32")
    for row, examples in enumerate(rows):
        start = 0
        # From 1 on, as 0 is padding: one comparison of segments then hides other examples and padding alike.
        for segment, example in enumerate(examples, start=1):
            columns = row, slice(start, start + len(example[0]))
            tokens[columns], targets[columns], weights[columns] = example
            # Each example counts from 0, as it will when it is asked alone: learned positions depend on it.
            positions[columns], segments[columns] = np.arange(len(example[0])), segment
            start += len(example[0])
    return PackedRows(tokens, targets, weights, positions, segments)
