"""What an engine predicts about given responses, token by token, and the figures of an evaluation; no Keras."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from smolite.data import ChatTemplate, Conversation, Example, fit_context
from smolite.generation import Engine
from smolite.text import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """Sums over all trained tokens of a set, and the figures made of them.

    Args:
        nll: negative log-likelihood in nats, summed.
        num_correct: tokens for which the likeliest token was the right one.
        num_tokens: response tokens, `<end>` included.
        num_characters: characters of the responses, plus one per response.
    """

    nll: float
    num_correct: int
    num_tokens: int
    num_characters: int

    @property
    def bits_per_character(self) -> float:
        """Negative log-likelihood in bits per character of the responses."""
        return self.nll / math.log(2) / self.num_characters

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood per token."""
        return math.exp(self.nll / self.num_tokens)

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right."""
        return self.num_correct / self.num_tokens

    def summary(self) -> str:
        """One line with all figures."""
        return (
            f"{self.bits_per_character:.4f} bits per character, perplexity {self.perplexity:.2f}, accuracy "
            f"{self.accuracy:.1%} ({self.num_tokens:,} tokens, {self.num_characters:,} characters)"
        )


@dataclass(frozen=True)
class Trace:
    """What an engine predicts about given responses, token by token: for comparing two engines on the same text.

    Args:
        nll: negative log-likelihood of each trained token in nats, float64.
        predicted: the likeliest token at each of these columns.
        targets: the tokens that stand there.
        num_characters: characters of the responses, plus one per response.
    """

    nll: np.ndarray
    predicted: np.ndarray
    targets: np.ndarray
    num_characters: int

    @property
    def evaluation(self) -> Evaluation:
        """The sums as an `Evaluation`."""
        correct = int(np.sum(self.predicted == self.targets))
        return Evaluation(float(self.nll.sum()), correct, len(self.nll), self.num_characters)


def trace(
    engine: Engine,
    conversations: Iterable[Conversation],
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
) -> Trace:
    """Feeds every conversation through an engine's prefill and decode, one token at a time, and scores the responses.

    Args:
        engine: an engine of batch size 1.
        conversations, tokenizer, template: as in `evaluate`.
    """
    fitted = fit_context(conversations, tokenizer, context_length=engine.context_length, template=template)
    return trace_examples(engine, fitted.examples, fitted.num_characters)


def trace_examples(engine: Engine, examples: Sequence[Example], num_characters: int) -> Trace:
    """Feeds rendered examples through an engine, one token at a time, and scores the trained tokens; see `trace`."""
    rows = [_trace_example(engine, each.ids, each.mask) for each in examples]
    nll, predicted, targets = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Trace(nll, predicted, targets, num_characters)


def _trace_example(engine: Engine, ids: Sequence[int], mask: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = list(mask).index(1)
    logits = engine.start([ids[:first]])
    predictions, targets = [], []
    for column in range(first, len(ids)):
        if mask[column]:
            # A copy: a runtime may write the next step's logits into the same memory.
            predictions.append(np.array(logits[0]))
            targets.append(ids[column])
        if column + 1 < len(ids):
            logits = engine.step([ids[column]])
    return score(np.stack(predictions), np.asarray(targets))


def score(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P, V) logits and (P,) targets → negative log-likelihoods in float64, the likeliest tokens, and the targets."""
    logits = logits.astype("float64")
    peaks = logits.max(-1)
    sums = np.exp(logits - peaks[:, None]).sum(-1)
    return peaks + np.log(sums) - logits[np.arange(len(targets)), targets], logits.argmax(-1), targets
