"""How well a model predicts held-out responses: bits per character, perplexity and accuracy.

Bits per character are the negative log-likelihood of the response tokens with their `<end>`, in bits, over the characters of
the responses plus one per response. They are defined on text, so models with different tokenizers can be compared. Characters
are those of the composed text (NFC), whichever way the file spells it.
"""

from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from smolite.backends import backend
from smolite.data import (
    ChatDataset,
    ChatTemplate,
    Conversation,
    Example,
    PackedRows,
    Pair,
    fit_context,
    fit_pairs,
    pack,
    row_lengths,
)
from smolite.evaluation.traces import Evaluation, Trace, score
from smolite.generation import prefill_length
from smolite.models import CausalLM, LanguageModel, token_nll
from smolite.text import Tokenizer, composed_length


@keras.saving.register_keras_serializable("smolite")
class TokenScore(keras.layers.Layer):
    """Negative log-likelihood of the target, and whether it was the likeliest token."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the global policy is

    def call(self, logits, targets):
        """(B, L, V) logits and (B, L) targets → (B, L, 2) float32."""
        nll = token_nll(targets, logits)
        hit = ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == ops.cast(targets, "int32"), "float32")
        return ops.stack([nll, hit], axis=-1)

    def compute_output_shape(self, logits_shape, targets_shape):
        return (*targets_shape, 2)


def evaluate(
    model: CausalLM,
    conversations: Iterable[Conversation],
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    batch_size: int = 16,
) -> Evaluation:
    """Scores every response of `conversations`.

    Args:
        model: the model; it is not changed.
        conversations: held-out dialogues; what exceeds the context length is cut as in training.
        tokenizer: the model's.
        template: the chat template the model was trained with.
        batch_size: rows of the context length scored at once.
    """
    fitted = fit_context(conversations, tokenizer, context_length=model.config.context_length, template=template)
    return evaluate_examples(model, fitted.examples, fitted.num_characters, batch_size=batch_size)


def evaluate_pairs(model: LanguageModel, pairs: Iterable[Pair], *, tokenizer: Tokenizer, batch_size: int = 16) -> Evaluation:
    """Scores every target of `pairs`, of which what exceeds the context length is cut or dropped as in training.

    Args:
        model: an encoder-decoder; it is not changed.
        pairs: held-out pairs.
        tokenizer, batch_size: as in `evaluate`.
    """
    longest = model.config.context_length
    fitted = fit_pairs(pairs, tokenizer, source_length=longest, target_length=longest)
    return evaluate_examples(model, fitted.examples, fitted.num_characters, batch_size=batch_size)


def evaluate_examples(
    model: LanguageModel, examples: Sequence[Example], num_characters: int, *, batch_size: int = 16
) -> Evaluation:
    """Scores the trained tokens of examples, with or without sources; see `evaluate`."""
    longest = max(max(len(each.ids), len(each.source)) for each in examples)
    source_length, length = row_lengths(examples, min(model.config.context_length, max(longest, 128)))
    rows = pack(examples, length, source_length=source_length)
    return evaluate_rows(model, rows, num_characters, batch_size=batch_size)


def evaluate_rows(model: LanguageModel, rows: PackedRows, num_characters: int, *, batch_size: int = 16) -> Evaluation:
    """Scores the trained tokens of packed rows; see `evaluate`."""
    nll, correct = scores_of_rows(scorer_of(model), rows, batch_size=min(batch_size, len(rows))).sum(axis=0)
    return Evaluation(float(nll), round(correct), int(rows.num_trained), num_characters)


def scores_of_rows(scorer: keras.Model, rows: PackedRows, *, batch_size: int) -> np.ndarray:
    """Nats and right guesses over the trained tokens of each row, float64 (rows, 2); of a `scorer_of` a model."""
    dataset = ChatDataset(rows, batch_size, shuffle=False)
    everywhere = np.broadcast_to(np.arange(rows.length, dtype="int32"), (batch_size, rows.length))
    sums = []
    for inputs, targets, weights in (dataset[index] for index in range(len(dataset))):
        # Where every place is trained, the batch names none; the scorer was built to be told.
        scores = scorer.predict_on_batch({"loss_at": everywhere, **inputs, "targets": targets})
        sums.append(np.sum(scores * weights[..., None], axis=1, dtype="float64"))
    return np.concatenate(sums)[: len(rows)]


def scorer_of(model: LanguageModel) -> keras.Model:
    """A functional model from rows and targets to token scores, so that logits never leave the device."""
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in (*model.input_names, "targets")}
    logits = model({name: inputs[name] for name in model.input_names})
    scorer = keras.Model(inputs, TokenScore()(logits, inputs["targets"]))
    scorer.compile(jit_compile=backend().jit_compile())
    return scorer


def count_text_characters(texts: Iterable[str], tokenizer: Tokenizer) -> int:
    """Characters of what `text_rows` learns of texts: all but their first tokens, plus one per text for its `<end>`."""
    rows = ((text, ids) for text in texts if (ids := tokenizer.encode(text)))
    return sum(composed_length(text) - len(tokenizer.decode(ids[:1])) + 1 for text, ids in rows)


def trace_at_once(
    model: CausalLM,
    conversations: Iterable[Conversation],
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    context_length: int,
) -> Trace:
    """What `trace` gives of the model, by its plain forward: a conversation is read at once, padded to a power of two.

    Args:
        model: the model.
        conversations, tokenizer, template: as in `evaluate`.
        context_length: of the engine that it is compared with.
    """
    fitted = fit_context(conversations, tokenizer, context_length=context_length, template=template)
    rows = []
    for ids, mask, _ in fitted.examples:
        tokens = np.zeros((1, prefill_length(len(ids) - 1, context_length)), "int32")
        tokens[0, : len(ids) - 1] = ids[:-1]  # nothing follows the last one
        columns = np.flatnonzero(mask)
        logits = ops.convert_to_numpy(model({"tokens": tokens}))[0, columns - 1]
        rows.append(score(logits, np.asarray(ids)[columns]))
    nll, predicted, targets = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Trace(nll, predicted, targets, fitted.num_characters)
