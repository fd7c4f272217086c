"""Pairs of a source and the target to be written for it: read from JSONL, made of dialogues, laid out in rows for training."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolite.data.dialogues import Conversation
from smolite.data.packing import PackedRows, PackedSources, checked_fields, filled_rows
from smolite.data.sources import checked_text, read_objects
from smolite.text import Tokenizer, composed_length

PairExample = tuple[Sequence[int], Sequence[int]]
_OPEN_ROWS = 64  # that a pair may still be put into; the others are full, or nearly


@dataclass(frozen=True)
class Pair:
    """A text to read and the text to write for it.

    Args:
        source: what is read.
        target: what is written.
        place: where it was read, as `"file:line"`.

    Raises:
        ValueError: a text is empty.
    """

    source: str
    target: str
    place: str = ""

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            if not getattr(self, name).strip():
                where = f"{self.place}: " if self.place else ""
                raise ValueError(f"{where}`{name}` must have text. Received: an empty one. Write it, or delete this pair.")


@dataclass(frozen=True)
class FittedPairs:
    """Pairs and their ids, as `fit_pairs` leaves them, and how often each case came up (`whole`, `cut`, `dropped`)."""

    pairs: list[Pair]
    examples: list[PairExample]
    counts: dict[str, int]

    @property
    def num_characters(self) -> int:
        """Characters of all targets, plus one per target for its `<end>`."""
        return sum(composed_length(pair.target) + 1 for pair in self.pairs)


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a file of pairs.

    Each line (or each item, when the file is one JSON array) is an object `{"source": text, "target": text}`. Other keys are
    left alone. A text's outer whitespace is stripped and its line ends become newlines.

    Args:
        path: the file, UTF-8.

    Returns:
        The pairs in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line: broken JSON, not an object, a text that is missing, empty or no string, not UTF-8;
            without: an empty file.
    """
    return read_objects(path, _pair_of)


def _pair_of(record: dict[str, Any], where: str) -> Pair:
    if not {"source", "target"} <= set(record):
        raise ValueError(
            f"{where}: must have a text `source` and a text `target`. Received the keys: "
            f"{', '.join(map(str, record)) or 'none'}. Write both."
        )
    return Pair(
        checked_text(record["source"], f"{where}: `source`"), checked_text(record["target"], f"{where}: `target`"), where
    )


def dialogue_pairs(conversations: Iterable[Conversation]) -> list[Pair]:
    """Pairs of everything said before and the answer to it, a line a turn, for every answer that is not empty.

    Example: user "안녕", assistant "응", user "뭐 해?", assistant "놀아" → `안녕` → `응`, and the three lines `안녕`, `응`,
    `뭐 해?` → `놀아`.
    """
    pairs = []
    for conversation in conversations:
        texts = [message.content for message in conversation.messages]
        for place, message in enumerate(conversation.messages):
            if message.role == "assistant" and message.content:
                pairs.append(Pair("\n".join(texts[:place]), message.content, conversation.source))
    return pairs


def fit_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer, *, source_length: int, target_length: int) -> FittedPairs:
    """Encode pairs: the source's ids, and `<start>` target `<end>`.

    A source of more than `source_length` ids is cut at its end. A target of n ids takes n + 1 places; a pair whose target takes
    more than `target_length` is dropped. A pair without any id in its source is dropped, too. Every case is counted.

    Args:
        pairs: as `read_pairs` gives them.
        tokenizer: encodes the texts.
        source_length: most ids of a source.
        target_length: most places of a target.

    Raises:
        ValueError: no pair is left.
    """
    kept: list[Pair] = []
    examples: list[PairExample] = []
    counts = {"whole": 0, "cut": 0, "dropped": 0}
    for pair in pairs:
        source, target = tokenizer.encode(pair.source), tokenizer.encode(pair.target)
        fits = bool(source) and len(target) < target_length
        counts["dropped" if not fits else "whole" if len(source) <= source_length else "cut"] += 1
        if fits:
            kept.append(pair)
            examples.append((source[:source_length], [tokenizer.start_id, *target, tokenizer.end_id]))
    if not kept:
        raise ValueError(
            f"At least one pair must have a target of less than {target_length} tokens. Received: {counts['dropped']:,} pairs, "
            "all longer or empty. Choose longer rows, or shorten the targets."
        )
    return FittedPairs(kept, examples, counts)


def row_lengths(examples: Sequence[PairExample], longest: int) -> tuple[int, int]:
    """Lengths of rows for sources and for targets: `longest` for the side that has more tokens, less for the other.

    The other gets its share of the tokens and a tenth more, a multiple of 8, and at least what its longest text takes: with
    sources of 30 tokens and targets of 9 places, and `longest` 128, `(128, 48)`.
    """
    sizes = np.array([(len(source), len(target) - 1) for source, target in examples])
    shares = sizes.sum(axis=0) / sizes.sum(axis=0).max()
    wanted = np.maximum(longest * np.minimum(1.1 * shares, 1.0), sizes.max(axis=0))
    source_length, length = (min(math.ceil(width / 8) * 8, longest) for width in wanted)
    return source_length, length


def pack_pairs(examples: Sequence[PairExample], length: int, *, source_length: int) -> PackedRows:
    """Put several whole pairs into each row, sources beside their targets; attention stays inside each pair.

    `pack_pairs([([7, 8], [2, 9, 3]), ([5], [2, 6, 6, 3])], 6, source_length=4)` is one row: tokens `[2, 9, 2, 6, 6, 0]`,
    targets `[9, 3, 6, 6, 3, 0]`, segments `[1, 1, 2, 2, 2, 0]`, and its source `[7, 8, 5, 0]` with segments `[1, 1, 2, 0]`.

    The largest pairs are placed first, each into the first row that has room on both sides.

    Args:
        examples: ids of sources, and of targets from `<start>` to `<end>`, as `fit_pairs` gives them.
        length: places in a row of targets; a target of n ids, markers included, takes n - 1.
        source_length: places in a row of sources.

    Returns:
        `PackedRows` with `sources`.

    Raises:
        ValueError: no examples, a length below 1, an empty source, or a pair that doesn't fit into a row.
    """
    _check_sources(examples, source_length)
    sizes = [(len(source), len(target) - 1) for source, target in examples]
    return _laid_out(examples, _first_fit(sizes, (source_length, length)), length, source_length)


def unpacked_pairs(examples: Sequence[PairExample], length: int, *, source_length: int) -> PackedRows:
    """Put each pair into a row of its own, in the given order; arguments and errors as in `pack_pairs`."""
    _check_sources(examples, source_length)
    return _laid_out(examples, [[place] for place in range(len(examples))], length, source_length)


def _laid_out(examples: Sequence[PairExample], rows: list[list[int]], length: int, source_length: int) -> PackedRows:
    fields = checked_fields([(target, [0, *[1] * (len(target) - 1)]) for _, target in examples], length)
    targets = filled_rows([[fields[place] for place in row] for row in rows], length)
    plain = [[(examples[place][0],) * 3 for place in row] for row in rows]
    sources = filled_rows(plain, source_length)
    return dataclasses.replace(targets, sources=PackedSources(sources.tokens, sources.positions, sources.segments))


def _first_fit(sizes: Sequence[tuple[int, int]], lengths: tuple[int, int]) -> list[list[int]]:
    """Rows of places, of which each takes room on both sides."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int, int]] = []  # of the rows that are open: number, and what is left on both sides
    for place in sorted(range(len(sizes)), key=lambda place: -max(sizes[place][side] / lengths[side] for side in (0, 1))):
        source, target = sizes[place]
        fitting = (at for at, (_, left, right) in enumerate(rooms) if source <= left and target <= right)
        at = next(fitting, len(rooms))
        if at == len(rooms):
            rooms.append((len(rows), *lengths))
            rows.append([])
        number, left, right = rooms[at]
        rows[number].append(place)
        rooms[at] = number, left - source, right - target
        if len(rooms) > _OPEN_ROWS:
            rooms.remove(min(rooms, key=lambda room: min(room[1:])))
    return rows


def _check_sources(examples: Sequence[PairExample], source_length: int) -> None:
    for number, (source, _) in enumerate(examples):
        if not 1 <= len(source) <= source_length:
            raise ValueError(
                f"A source must have 1 to {source_length} ids, the `source_length`. Received: {len(source)} in example "
                f"{number}. Make the examples with `fit_pairs`."
            )
