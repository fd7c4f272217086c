"""Engines: token ids in, logits out, with a key/value cache in between; here the one that runs a Keras model.

Shapes use the legend at the top of `layers.py`. One seam per backend compiles the step; nothing else here
knows the backend.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from smolite.layers import MASKED_SCORE
from smolite.models import CausalLM

_SHORTEST_PREFILL = 16


class Engine(Protocol):
    """What generation needs of a model in any runtime.

    Attributes:
        batch_size: B, the rows that run side by side.
        context_length: S, the cache slots; prompt and generated tokens of a row fit in them together.
        vocab_size: V.
    """

    batch_size: int
    context_length: int
    vocab_size: int

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before, reads B prompts of 1 to S ids and returns float32 logits (B, V)."""
        ...

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id per row and returns float32 logits (B, V)."""
        ...


class KerasEngine:
    """An `Engine` on a Keras model, compiled for the backend in use; it sees later changes of the weights.

    Prompts of different lengths end at the same cache slot: a shorter one starts later, its positions count
    from 0, and the slots before it are masked, so a row gets the same logits in a batch as alone. Prefill
    lengths are rounded up to powers of two, so few are compiled; the slots written past the prompts are
    masked until decoding overwrites them.

    Args:
        model: the model; its layers must not change while the engine lives.
        batch_size: B.
        context_length: S. Default, and the most: the model's context length. Fewer slots make faster steps.

    Raises:
        ValueError: a size is out of range.

    Example:
    >>> engine = KerasEngine(model)
    >>> engine.start([[5, 6, 7]]).shape
    (1, 8192)
    >>> engine.step([9]).shape
    (1, 8192)
    """

    def __init__(self, model: CausalLM, *, batch_size: int = 1, context_length: int | None = None) -> None:
        longest = model.config.context_length
        self.batch_size = _checked_size(batch_size, name="batch_size")
        self.context_length = _checked_size(
            longest if context_length is None else context_length, name="context_length", most=longest
        )
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._forward = _SEAMS.get(keras.backend.backend(), _plain)(model)
        self._used = self.context_length
        self._cache: Any = None
        self._starts: Any = None

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before, reads B prompts and returns the logits after each, float32 (B, V).

        Raises:
            ValueError: not B prompts, an empty one, one longer than S, or an id outside the vocabulary.
        """
        check_prompts(prompts, self)
        if len(prompts) != self.batch_size:
            raise ValueError(
                f"The engine takes {self.batch_size} prompts at a time, its `batch_size`. Received: "
                f"{len(prompts)}. Use `generate`, which takes any number, or make an engine of another size."
            )
        self._used = max(map(len, prompts))
        tokens, starts = _right_aligned(prompts, _prefill_length(self._used, self.context_length))
        self._starts = ops.convert_to_tensor(starts)
        self._cache = self._model.empty_cache(self.batch_size, self.context_length)
        return self._run(tokens, slot=0, last=self._used - 1)

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Reads one more id per row and returns the logits after it, float32 (B, V).

        Raises:
            ValueError: not B ids, an id outside the vocabulary, or no slot is free.
        """
        if self._used >= self.context_length:
            raise ValueError(
                f"`step` needs a free cache slot. Received: all {self.context_length} in use, or `start` "
                "not called yet. Call `start` with the ids to keep; `generate` does this by itself."
            )
        check_prompts([[index] for index in ids], self)
        if len(ids) != self.batch_size:
            raise ValueError(f"`step` takes {self.batch_size} ids, one per row. Received: {len(ids)}.")
        self._used += 1
        return self._run(np.array(ids, "int32")[:, None], slot=self._used - 1, last=0)

    def _run(self, tokens: np.ndarray, *, slot: int, last: int) -> np.ndarray:
        place = ops.convert_to_tensor(np.array([slot, last], "int32"))
        logits, self._cache = self._forward(ops.convert_to_tensor(tokens), self._cache, self._starts, place)
        return ops.convert_to_numpy(logits)


def check_prompts(prompts: Sequence[Sequence[int]], engine: Engine) -> None:
    """Refuses prompts that the engine cannot read.

    Example: an engine of 8 slots and 100 ids reads `[[5, 99], [7]]`, but not `[[]]`, `[[100]]` or nine ids.

    Raises:
        ValueError: a prompt is empty or longer than the context, or an id is outside the vocabulary.
    """
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= engine.context_length:
            raise ValueError(
                f"A prompt must have 1 to {engine.context_length} tokens, the engine's `context_length`. "
                f"Received: {len(prompt)} in prompt {row}. Shorten it, or take an engine of a longer context."
            )
        outside = [index for index in prompt if not 0 <= index < engine.vocab_size]
        if outside:
            raise ValueError(
                f"Token ids must be from 0 to {engine.vocab_size - 1}. Received: {outside[0]} in prompt "
                f"{row}. Use the tokenizer that the model was trained with."
            )


def _checked_size(value: int, *, name: str, most: int | None = None) -> int:
    if not isinstance(value, int) or value < 1 or (most is not None and value > most):
        expected = "a positive whole number" if most is None else f"from 1 to {most}, the model's context length"
        raise ValueError(f"`{name}` must be {expected}. Received: {value!r}.")
    return value


def _prefill_length(length: int, slots: int) -> int:
    """The next power of two, at least 16, at most the number of slots."""
    return min(max(_SHORTEST_PREFILL, 1 << (length - 1).bit_length()), slots)


def _right_aligned(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B, width) whose rows end in the same column, and the column where each row starts.

    Example: `[[5, 6, 7], [9]]` in width 4 → `[[5, 6, 7, 0], [0, 0, 9, 0]]` and `[0, 2]`.
    """
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), width), "int32")
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) : longest] = prompt
    return tokens, np.array([longest - len(prompt) for prompt in prompts], "int32")


def _forward(model: CausalLM, tokens, cache, starts, place):
    """The logits (B, V) at one column of the new tokens (B, T), and the new cache.

    `starts` (B,) is the first slot of each row, `place` the first slot to write and the column wanted.
    """
    slot, length = place[0], tokens.shape[1]
    written = slot + ops.arange(length, dtype="int32")
    slots = ops.arange(cache[0][0].shape[2], dtype="int32")
    visible = ops.logical_and(slots <= written[:, None], slots >= starts[:, None, None])  # (B, T, S)
    mask = ops.where(visible, 0.0, MASKED_SCORE)[:, None]
    positions = ops.maximum(written - starts[:, None], 0)
    hidden, cache = model.cached_body(model.embed(tokens), cache, slot=slot, mask=mask, positions=positions)
    if length > 1:
        hidden = ops.take(hidden, place[1:], axis=1)
    return model.head(hidden)[:, 0], cache


def _plain(model: CausalLM) -> Callable:
    return lambda *inputs: _forward(model, *inputs)


def _compiled_by_tensorflow(model: CausalLM) -> Callable:
    """Graphs that read the variables; XLA for decoding only, which it makes twice as fast."""
    import tensorflow as tf

    prefill = tf.function(_plain(model))
    decode = tf.function(_plain(model), jit_compile=True)
    return lambda tokens, *rest: (prefill if tokens.shape[1] > 1 else decode)(tokens, *rest)


def _compiled_by_jax(model: CausalLM) -> Callable:
    """One program per length of tokens; weights are arguments, the old cache's memory becomes the new one."""
    import jax

    stateless, weights = _stateless(model)
    compiled = jax.jit(stateless, donate_argnums=2)
    return lambda *inputs: compiled(weights(), *inputs)


def _compiled_by_torch(model: CausalLM) -> Callable:
    """The decode step recorded once as a graph of torch operations, free of Keras' work per layer call."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    stateless, weights = _stateless(model)
    recorded: list[Callable] = []

    @torch.no_grad()
    def run(tokens, *rest):
        if tokens.shape[1] > 1:
            return _forward(model, tokens, *rest)
        if not recorded:
            recorded.append(make_fx(stateless)(weights(), tokens, *rest))
        return recorded[0](weights(), tokens, *rest)

    return run


def _stateless(model: CausalLM) -> tuple[Callable, Callable]:
    """`_forward` as a function of the weights too, and a function that returns today's weights."""
    variables = model.variables

    def stateless(weights, *inputs):
        with keras.StatelessScope(list(zip(variables, weights, strict=True))):
            return _forward(model, *inputs)

    return stateless, lambda: [variable.value for variable in variables]


_SEAMS = {"tensorflow": _compiled_by_tensorflow, "jax": _compiled_by_jax, "torch": _compiled_by_torch}
