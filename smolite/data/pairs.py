"""Pairs of a source and the target to be written for it: read from JSONL, made of dialogues, encoded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolite.data.dialogues import Conversation
from smolite.data.packing import Example, Fitted
from smolite.data.sources import checked_text, read_objects
from smolite.text import Tokenizer


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

    @property
    def answers(self) -> list[str]:
        """The text that is learnt."""
        return [self.target]


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
        for number, message in enumerate(conversation.messages):
            if message.role == "assistant" and message.content:
                pairs.append(Pair("\n".join(texts[:number]), message.content, conversation.source))
    return pairs


def fit_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer, *, source_length: int, target_length: int) -> Fitted:
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
    examples: list[Example] = []
    counts = {"whole": 0, "cut": 0, "dropped": 0}
    for pair in pairs:
        source, target = tokenizer.encode(pair.source), tokenizer.encode(pair.target)
        fits = bool(source) and len(target) < target_length
        counts["dropped" if not fits else "whole" if len(source) <= source_length else "cut"] += 1
        if fits:
            kept.append(pair)
            ids = [tokenizer.start_id, *target, tokenizer.end_id]
            examples.append(Example(ids, [0, *[1] * (len(target) + 1)], source[:source_length]))
    if not kept:
        raise ValueError(
            f"At least one pair must have a target of less than {target_length} tokens. Received: {counts['dropped']:,} pairs, "
            "all longer or empty. Choose longer rows, or shorten the targets."
        )
    return Fitted(kept, examples, counts)
