"""What a recipe learns from: texts, dialogues or pairs, each read, encoded and packed in its way."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolite.checkpoint import Run
from smolite.data import (
    ChatTemplate,
    Conversation,
    Fitted,
    PackedRows,
    Pair,
    fit_context,
    fit_pairs,
    pack,
    read_conversations,
    read_documents,
    read_pairs,
    resolve_dataset,
    row_lengths,
    text_rows,
)
from smolite.evaluation import count_text_characters
from smolite.generation import Seq2SeqEngine
from smolite.text import Tokenizer
from smolite.training.options import TrainingOptions
from smolite.training.samples import SAMPLES, sample_engine, sample_replies, sample_targets, sample_texts


@dataclass(frozen=True)
class Split:
    """Rows to train on and to validate on, and what their trained tokens stand for.

    Args:
        rows: training rows.
        validation: validation rows, or None.
        validation_characters: characters of the validation's trained text.
        shown: the first few texts, dialogues or pairs, of the validation where there is one, that samples are shown for.
    """

    rows: PackedRows
    validation: PackedRows | None = None
    validation_characters: int = 0
    shown: Sequence[Any] = ()


@dataclass(frozen=True)
class Form:
    """How items become ids: the tokenizer, the template of dialogues, and the longest row."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    length: int


class Material(ABC):
    """What is learnt from: texts, dialogues or pairs. Everything else is the same for all recipes, see `train`.

    Attributes:
        verb: of the recipe.
        has_encoder: whether its model has one.
    """

    verb: str
    has_encoder: bool

    @abstractmethod
    def read(self, dataset: Any) -> Sequence[Any]:
        """The items of a file or, where the recipe takes them, of several."""

    @abstractmethod
    def texts(self, items: Sequence[Any]) -> list[str]:
        """The texts in items, for a new tokenizer."""

    def template(self, known: ChatTemplate | None) -> ChatTemplate | None:
        """The template that the run is saved with, given that of a new run, or that of the run to start from."""
        return known

    @abstractmethod
    def split(self, items: Sequence[Any], held_out: Sequence[Any], form: Form) -> Split:
        """Encodes and packs the items; what does not fit is cut, dropped and counted."""

    @abstractmethod
    def sampler(self, run: Run, split: Split, options: TrainingOptions) -> Callable[[], str]:
        """Shows what the model of a run writes at the time of the call."""


class Texts(Material):
    """Plain texts as a `Material`."""

    verb = "pretrain"
    has_encoder = False

    def read(self, dataset: Any) -> list[str]:
        """The documents of a file, or of several behind one another."""
        names = dataset if isinstance(dataset, list) else [dataset]
        return [text for name in names for text in read_documents(resolve_dataset(name))]

    def texts(self, items: Sequence[str]) -> list[str]:
        """The documents themselves."""
        return list(items)

    def split(self, items: Sequence[str], held_out: Sequence[str], form: Form) -> Split:
        """Rows of whole documents, or of parts of long ones."""
        rows = text_rows(items, form.tokenizer, length=form.length)
        if not held_out:
            return Split(rows, shown=items[:SAMPLES])
        validation = text_rows(held_out, form.tokenizer, length=form.length)
        return Split(rows, validation, count_text_characters(held_out, form.tokenizer), held_out[:SAMPLES])

    def sampler(self, run: Run, split: Split, options: TrainingOptions) -> Callable[[], str]:
        """How the model goes on with the first texts."""
        engine = sample_engine(run.model, sequence_length=options.sequence_length)
        return lambda: sample_texts(engine, run, split.shown)


class Dialogues(Material):
    """Dialogues as a `Material`."""

    verb = "finetune"
    has_encoder = False

    def read(self, dataset: str | Path) -> list[Conversation]:
        """The conversations of a file, after a line of what was found in it."""
        result = read_conversations(resolve_dataset(dataset))
        print(result.summary())
        return result.conversations

    def texts(self, items: Sequence[Conversation]) -> list[str]:
        """All turns."""
        return [message.content for conversation in items for message in conversation.messages]

    def template(self, known: ChatTemplate | None) -> ChatTemplate:
        """The known one; a hub's base model has none of its own."""
        return known or ChatTemplate()

    def split(self, items: Sequence[Conversation], held_out: Sequence[Conversation], form: Form) -> Split:
        """Rows of rendered dialogues, which are shortened as in `fit_context`."""

        def fitted(conversations: Sequence[Conversation]) -> Fitted:
            return fit_context(conversations, form.tokenizer, context_length=form.length, template=form.template)

        return split_of(fitted(items), fitted(held_out) if held_out else None, longest=form.length, what="dialogues")

    def sampler(self, run: Run, split: Split, options: TrainingOptions) -> Callable[[], str]:
        """What the model answers to the first user turns, with the system turn before them."""
        engine = sample_engine(run.model, sequence_length=options.sequence_length)
        messages = [conversation.messages for conversation in split.shown]
        questions = [turns[: 1 + [turn.role for turn in turns].index("user")] for turns in messages]
        return lambda: sample_replies(engine, run, questions)


class Pairs(Material):
    """Pairs as a `Material`."""

    verb = "pairs"
    has_encoder = True

    def read(self, dataset: str | Path) -> list[Pair]:
        """The pairs of a file."""
        return read_pairs(resolve_dataset(dataset))

    def texts(self, items: Sequence[Pair]) -> list[str]:
        """Sources and targets, which share a tokenizer."""
        return [text for pair in items for text in (pair.source, pair.target)]

    def template(self, known: ChatTemplate | None) -> None:
        """None: what an encoder reads is no part of what its decoder writes."""

    def split(self, items: Sequence[Pair], held_out: Sequence[Pair], form: Form) -> Split:
        """Rows of sources and targets; what does not fit goes as in `fit_pairs`."""
        lengths = {"source_length": form.length, "target_length": form.length}
        validation = fit_pairs(held_out, form.tokenizer, **lengths) if held_out else None
        return split_of(fit_pairs(items, form.tokenizer, **lengths), validation, longest=form.length, what="pairs")

    def sampler(self, run: Run, split: Split, options: TrainingOptions) -> Callable[[], str]:
        """What the model writes for the first sources."""
        room: dict[str, Any] = {"context_length": split.rows.source_length, "target_length": split.rows.length}
        engine = Seq2SeqEngine(run.model, start_id=run.tokenizer.start_id, **room)
        return lambda: sample_targets(engine, run, [pair.source for pair in split.shown])


def split_of(fitted: Fitted, held_out: Fitted | None, *, longest: int, what: str) -> Split:
    """Packs examples, with sources or without, into rows of at most `longest` tokens on either side, and says how full."""
    examples = [*fitted.examples, *(held_out.examples if held_out else ())]
    source_length, length = row_lengths(examples, longest)
    rows = pack(fitted.examples, length, source_length=source_length)
    width = f"{source_length} and {length}" if source_length else f"{length}"
    shape = f"{len(rows):,} rows of {width}, {rows.fill:.0%} full, {rows.num_trained:,} trained tokens"
    print(f"{fitted.summary()} {what} → {shape}")
    if held_out is None:
        return Split(rows, shown=fitted.kept[:SAMPLES])
    validation = pack(held_out.examples, length, source_length=source_length)
    return Split(rows, validation, held_out.num_characters, held_out.kept[:SAMPLES])
