"""The engine of an encoder-decoder: a source is read once, and its answer grows from `<start>` on.

Shapes use the legend at the top of `layers.py`; N stands for the slots of the source.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from keras import ops

from smolite.generation.compiled_steps import compiled
from smolite.generation.engine import Engine, check_prompts, check_rows, check_step, checked_size, prefill_length
from smolite.generation.keras_engine import KerasEngine
from smolite.models import MASKED_SCORE, LanguageModel, Seq2SeqLM, flattened
from smolite.text import Tokenizer


class Seq2SeqEngine(Engine):
    """An `Engine` on a `Seq2SeqLM`, compiled for the backend in use; it sees later changes of the weights.

    A prompt is a source. It is encoded once, and the answer begins with `start_id` in a cache of its own, so prompt and answer
    don't share room. An answer ends after `target_length` ids: nothing is forgotten to make room for more.

    Args:
        model: the model; its layers must not change while the engine lives.
        start_id: the id that begins every target, `tokenizer.start_id`.
        batch_size: B.
        context_length: N, the most ids of a source. Default, and the most: the model's context length.
        target_length: S, the most ids of an answer. Default, and the most: the model's context length.

    Raises:
        ValueError: a size is out of range, or `start_id` outside the vocabulary.
    """

    start_id: int
    target_length: int

    def __init__(
        self,
        model: Seq2SeqLM,
        *,
        start_id: int,
        batch_size: int = 1,
        context_length: int | None = None,
        target_length: int | None = None,
    ) -> None:
        longest = model.config.context_length
        sizes = {"context_length": context_length, "target_length": target_length}
        slots = {name: checked_size(longest if size is None else size, name=name, most=longest) for name, size in sizes.items()}
        self.batch_size = checked_size(batch_size, name="batch_size")
        self.context_length, self.target_length = slots["context_length"], slots["target_length"]
        self.vocab_size = model.config.vocab_size
        self.start_id = start_id
        check_prompts([[start_id]], self)
        self._model = model
        self._encode = compiled(model, partial(_encode, slots=self.context_length), is_step=False)
        self._step = compiled(model, _step, is_step=True)
        self._used = self.target_length
        self._state: Any = None
        self._cache: Any = None

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before, reads B sources and returns the logits of each answer's first id, float32 (B, V).

        Raises:
            ValueError: not B sources, an empty one, one longer than N, or an id outside the vocabulary.
        """
        check_prompts(prompts, self)
        check_rows(len(prompts), self, what="sources")
        width = prefill_length(max(map(len, prompts)), self.context_length)
        source = np.zeros((self.batch_size, width), "int32")
        for row, prompt in enumerate(prompts):
            source[row, : len(prompt)] = prompt
        lengths = ops.convert_to_tensor(np.array([len(prompt) for prompt in prompts], "int32"))
        self._state = self._encode(ops.convert_to_tensor(source), lengths), lengths
        self._cache, self._used = self._model.empty_cache(self.batch_size, self.target_length, flat=True), 0
        return self.step([self.start_id] * self.batch_size)

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id per answer and returns the logits after it, float32 (B, V).

        Raises:
            ValueError: not B ids, an id outside the vocabulary, or the answers are as long as they may be.
        """
        check_step(ids, self._used, self)
        place = ops.convert_to_tensor(np.array([self._used], "int32"))
        tokens = ops.convert_to_tensor(np.array(ids, "int32")[:, None])
        logits, self._cache = self._step(tokens, self._cache, *self._state, place)
        self._used += 1
        return ops.convert_to_numpy(logits)


def engine_for_model(model: LanguageModel, tokenizer: Tokenizer) -> Engine:
    """The engine that runs a Keras model of either kind, one row at a time."""
    if model.config.has_encoder:
        return Seq2SeqEngine(model, start_id=tokenizer.start_id)
    return KerasEngine(model)


def _source_mask(lengths, slots: int):
    """(B,) lengths → additive (B, 1, 1, slots) mask of the places after them."""
    return ops.where(ops.arange(slots) < lengths[:, None], 0.0, MASKED_SCORE)[:, None, None]


def _encode(model: Seq2SeqLM, source, lengths, *, slots: int):
    """Keys and values of (B, N') sources in N slots, so that every step has the same shapes; in the flat layout."""
    width = source.shape[1]
    memory = model.encode(model.embed(source), mask=_source_mask(lengths, width))
    room = (0, slots - width)
    none = (0, 0)
    padded = [(ops.pad(keys, (none, none, room, none)), ops.pad(values, (none, none, none, room))) for keys, values in memory]
    return [flattened(pair) for pair in padded]


def _step(model: Seq2SeqLM, tokens, cache, memory, lengths, place):
    """Logits (B, V) after (B, 1) tokens in the slot `place[0]`, and the new cache."""
    slots = ops.arange(cache[0][0].shape[2], dtype="int32")
    mask = ops.where(slots <= place[0], 0.0, MASKED_SCORE)[None, None, None]
    source_mask = _source_mask(lengths, memory[0][0].shape[2])
    places = {"slot": place[0], "mask": mask, "source_mask": source_mask}
    logits, cache = model.cached_forward(tokens, cache, memory, **places)
    return logits[:, 0], cache
