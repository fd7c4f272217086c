"""What an engine says of held-out dialogues and plain text, and how far two engines agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smolite.checkpoint import Run
from smolite.data import Example, fit_context, read_conversations, read_documents
from smolite.evaluation import Trace, count_text_characters, trace_examples
from smolite.generation import Engine, generate

MOST_PROMPTS, MOST_TOKENS = 20, 64  # greedy answers, and ids in each


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What engines are compared on.

    Args:
        dialogues: ids of dialogues and the places of the answers; none for a model without a chat template.
        dialogue_characters: characters of the answers, plus one per answer.
        texts: ids of plain texts, all scored but the first.
        text_characters: characters of the texts after their first tokens, plus one per text.
        prompts: ids that a greedy answer begins after.
        stop_id: the id that ends one.
    """

    dialogues: Sequence[Example]
    dialogue_characters: int
    texts: Sequence[Example]
    text_characters: int
    prompts: Sequence[Sequence[int]]
    stop_id: int


def read_sample(run: Run, *, dialogues: str | Path, text: str | Path, count: int, slots: int) -> Sample:
    """Reads what fits into a cache. A text is its ids and `<end>`, as in pretraining.

    Args:
        run: the run whose tokenizer and template are used.
        dialogues: a file of dialogues. Not read for a run without a chat template.
        text: a file of text, or of dialogues for what is said in them.
        count: the most dialogues, and the most texts.
        slots: of the cache.

    Raises:
        ValueError: nothing fits.
    """
    pieces, template = run.tokenizer, run.template
    rendered = [(line, [*pieces.encode(line), pieces.end_id]) for line in read_documents(text)]
    texts = [(line, ids) for line, ids in rendered if 1 < len(ids) <= slots][:count]
    if not texts:
        raise ValueError(f"A text of 1 to {slots - 1} tokens was expected. Received: none in {text}. Choose another `text`.")
    fitted, prompts = None, [ids[: len(ids) // 2] for _, ids in texts]
    if template:
        spoken = read_conversations(dialogues).conversations[:count]
        fitted = fit_context(spoken, pieces, context_length=slots, template=template)
        prompts = [list(ids[: list(mask).index(1)]) for ids, mask, _ in fitted.examples]
    return Sample(
        dialogues=fitted.examples if fitted else (),
        dialogue_characters=fitted.num_characters if fitted else 0,
        texts=[Example(ids, [0, *[1] * (len(ids) - 1)]) for _, ids in texts],
        text_characters=count_text_characters([line for line, _ in texts], pieces),
        prompts=prompts[:MOST_PROMPTS],
        stop_id=pieces.markers[template.stop] if template else pieces.end_id,
    )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an engine says of a sample.

    Args:
        dialogues: token by token; `None` where the sample has none.
        texts: the same for plain text.
        replies: the greedy ids after each prompt, the stop id included.
    """

    dialogues: Trace | None
    texts: Trace
    replies: Sequence[Sequence[int]]


def measure(engine: Engine, sample: Sample) -> Findings:
    """Feeds a sample to an engine of batch size 1, and lets it answer the prompts."""
    replies = generate(engine, sample.prompts, max_new_tokens=MOST_TOKENS, stop_ids=[sample.stop_id])
    return Findings(
        dialogues=trace_examples(engine, sample.dialogues, sample.dialogue_characters) if sample.dialogues else None,
        texts=trace_examples(engine, sample.texts, sample.text_characters),
        replies=[[*reply, sample.stop_id][:MOST_TOKENS] for reply in replies],
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Bits per character of one engine, and how they differ from another's.

    Args:
        bits: per character.
        change: share of more bits.
        agreement: share of the scored places at which the likeliest token is the same.
    """

    bits: float
    change: float
    agreement: float


def compare_traces(found: Trace, reference: Trace) -> Comparison:
    """The figures of a trace beside those of another of the same text."""
    bits, expected = (each.evaluation.bits_per_character for each in (found, reference))
    same = np.mean(found.predicted == reference.predicted)
    return Comparison(bits=bits, change=bits / expected - 1, agreement=float(same))


def same_at_the_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids stand before the first difference: `same_at_the_start([5, 6, 7], [5, 6, 9])` is 2."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
