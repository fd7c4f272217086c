"""How well targets fit a source: the likelihood that an encoder-decoder gives them, and what can be chosen by it."""

import re
from collections.abc import Sequence

import numpy as np

from smolite.data import Example, Pair, fit_pairs, unpacked_rows
from smolite.evaluation.likelihood import scorer_of, scores_of_rows
from smolite.models import Seq2SeqLM
from smolite.text import Tokenizer

_STEP = 16  # lengths are rounded up to multiples of this, so that few are compiled
_SENTENCE_END = re.compile(r"(?<=[.!?。！？…])\s+|\n+")


class PairScorer:
    """Scores targets by a model, which is compiled once.

    Args:
        model: the model; later changes of its weights are seen.
        tokenizer: the model's.
        batch_size: targets scored at once.
    """

    def __init__(self, model: Seq2SeqLM, tokenizer: Tokenizer, *, batch_size: int = 16):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self._scorer = scorer_of(model)

    def score(self, source: str, targets: Sequence[str]) -> np.ndarray:
        """The negative log-likelihood of each target with its `<end>`, in nats, after the source.

        A source that exceeds the context is cut at its end, as in training.

        Raises:
            ValueError: a text is empty, or a target exceeds the context.
        """
        longest = self.model.config.context_length
        lengths = {"source_length": longest, "target_length": longest}
        fitted = fit_pairs([Pair(source, target) for target in targets], self.tokenizer, **lengths)
        if len(fitted.kept) < len(targets):
            raise ValueError(
                f"Every target must have less than {longest} tokens, the context length. Received: "
                f"{len(targets) - len(fitted.kept)} that are longer. Split them."
            )
        return self._score(fitted.examples)

    def _score(self, examples: Sequence[Example]) -> np.ndarray:
        most = self.model.config.context_length
        widths = max(len(each.source) for each in examples), max(len(each.ids) - 1 for each in examples)
        source_length, length = (min(-(-width // _STEP) * _STEP, most) for width in widths)
        rows = unpacked_rows(examples, length, source_length=source_length)
        return scores_of_rows(self._scorer, rows, batch_size=self.batch_size)[:, 0]


def best_targets(scorer: PairScorer, source: str, candidates: Sequence[str], *, count: int = 1) -> list[str]:
    """The `count` candidates that fit the source best, by nats per character and one for the end, in their own order.

    Sentences of the source as candidates give an extractive summary; `spans` of a text after a question, an extractive answer.

    Raises:
        ValueError: fewer than one candidate or `count` below 1; and as `PairScorer.score`.
    """
    if not candidates or count < 1:
        raise ValueError(f"One candidate or more must be chosen from. Received: {len(candidates)}, and `count` {count}.")
    nll = scorer.score(source, candidates) / np.array([len(text) + 1 for text in candidates])
    return [candidates[number] for number in sorted(np.argsort(nll, kind="stable")[:count])]


def sentences(text: str) -> list[str]:
    """The sentences of a text, cut after marks that end one and at line ends: `"응. 가자! 왜?"` → `["응.", "가자!", "왜?"]`."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def spans(text: str, *, most_words: int) -> list[str]:
    """All runs of up to `most_words` words inside a sentence, each once, without marks at their ends.

    Example: `"그는 왔다. 나도."` with 2 → `["그는", "그는 왔다", "왔다", "나도"]`.
    """
    spans: dict[str, None] = {}
    for words in map(str.split, sentences(text)):
        for first in range(len(words)):
            for last in range(first + 1, min(first + most_words, len(words)) + 1):
                spans[" ".join(words[first:last]).strip(".,!?。！？…\"'“”‘’()")] = None
    return [span for span in spans if span]
