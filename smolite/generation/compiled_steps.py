"""What an engine runs: a step over the key/value cache and a loop of greedy steps, compiled for the backend in use.

Shapes use the legend at the top of `layers.py`. One seam per backend compiles; nothing else knows the backend.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from smolite.models import MASKED_SCORE, CausalLM, caches_written_by, rows_in_parts, rows_joined

MOST_AHEAD = 32  # tokens picked in one call of the loop: enough to hide the call, few enough to be interrupted
_ROW_PARTS = 4  # on two cores, 2 and 4 make steps equally fast, 8 slower ones


def _forward(model: CausalLM, tokens, cache, starts, place):
    """The logits (B, V) at one column of the new tokens (B, T), and the new cache.

    `starts` (B,) is the first slot of each row, `place` the first slot to write and the column wanted.
    """
    slot, length = place[0], tokens.shape[1]
    # Slots are counted from the left of the cache for all rows alike, so that one write serves them; rows of shorter prompts
    # start later, which `starts` hides.
    written = slot + ops.arange(length, dtype="int32")
    slots = ops.arange(cache[0][0].shape[2], dtype="int32")
    visible = ops.logical_and(slots <= written[:, None], slots >= starts[:, None, None])  # (B, T, S)
    mask = ops.where(visible, 0.0, MASKED_SCORE)[:, None]
    # The padding before a row has positions below 0. It is masked, but a table of learned positions would be read outside.
    positions = ops.maximum(written - starts[:, None], 0)
    hidden, cache = model.cached_body(model.embed(tokens), cache, slot=slot, mask=mask, positions=positions)
    # The head is by far the widest product, and of a prompt only the last logits are asked for.
    if length > 1:
        hidden = ops.take(hidden, place[1:], axis=1)
    return model.head(hidden)[:, 0], cache


def _greedy(model: CausalLM, ids, cache, starts, place, stop_ids):
    """Picks (32, B) of which the first so many count, whether all logits were numbers, and the new cache.

    `place` has the first slot to write and the most picks.
    """

    def stopped(ids):
        return ops.any(ids[:, None] == stop_ids, axis=-1)

    def unfinished(done, ids, *_):
        return ops.logical_and(done < place[1], ops.logical_not(ops.all(stopped(ids))))

    def advance(done, ids, picks, are_numbers, cache):
        with rows_joined():
            logits, cache = _forward(model, ids[:, None], cache, starts, ops.stack([place[0] + done, done * 0]))
        ids = ops.where(stopped(ids), ids, ops.cast(ops.argmax(logits, axis=-1), "int32"))
        # argmax of NaN is an id like any other. So the loop says besides whether all logits were numbers.
        are_numbers = ops.logical_and(are_numbers, ops.logical_not(ops.any(ops.isnan(logits))))
        return done + 1, ids, ops.slice_update(picks, (done, done * 0), ids[None]), are_numbers, cache

    picks = ops.zeros((MOST_AHEAD, ids.shape[0]), "int32")
    state = place[0] * 0, ids, picks, ops.convert_to_tensor(True), cache
    done, _, picks, are_numbers, cache = ops.while_loop(unfinished, advance, state)
    return picks, done, are_numbers, cache


def compiled(model: Any, function: Callable, *, is_step: bool) -> Callable:
    """`function(model, …)` of tensors, compiled for the backend in use; it sees later changes of the weights.

    Args:
        model: the model.
        function: takes the model, a tensor, and more tensors, or lists and tuples of them.
        is_step: whether it is called often with the same shapes, and may take the memory of its second tensor, a cache.
    """
    return _BACKENDS[keras.backend.backend()](model, function, is_step)


def _by_tensorflow(model: Any, function: Callable, is_step: bool) -> Callable:
    """A graph that reads the variables; XLA for steps only, which it makes twice as fast."""
    import tensorflow as tf

    if is_step and not tf.config.list_physical_devices("GPU"):
        function = _with_rows_in_parts(function)

    @functools.cache
    def recorded(shape):
        # No Python branch or loop in it depends on a tensor: autograph would have nothing to rewrite.
        return tf.function(functools.partial(function, model), jit_compile=is_step or None, autograph=False)

    # One for each shape: TensorFlow warns of a function that it records for many.
    return lambda first, *rest: recorded(tuple(first.shape))(first, *rest)


def _by_jax(model: Any, function: Callable, is_step: bool) -> Callable:
    """One program for all shapes alike; weights are arguments, the old cache's memory becomes the new one."""
    import jax

    if is_step and jax.default_backend() == "cpu":
        function = _with_rows_in_parts(function)
    stateless, weights = _stateless(model, function)
    # Argument 2 is the cache, after weights and tokens. Given away, its memory is written in place; kept, every step would
    # copy it whole.
    program = jax.jit(stateless, donate_argnums=2 if is_step else ())
    # Weights are arguments, because a program that closes over them holds them as constants: it would not see a later `fit`.
    return lambda *inputs: program(weights(), *inputs)


def _by_torch(model: Any, function: Callable, is_step: bool) -> Callable:
    """A step is recorded once as a graph of torch operations, free of Keras' work per layer call; it writes to its cache."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    stateless, weights = _stateless(model, function)
    recorded: list[Callable] = []

    @torch.no_grad()
    def run(*inputs):
        if not is_step:
            return function(model, *inputs)
        if not recorded:
            with caches_written_by(_written_in_place):
                # make_fx, not torch.compile: recording takes one forward and needs no C++ compiler on the user's machine.
                recorded.append(make_fx(stateless)(weights(), *inputs))
        return recorded[0](weights(), *inputs)

    return run


def _written_in_place(part: Any, starts: tuple, new: Any) -> Any:
    """`ops.slice_update` of one slot of a torch tensor in its own memory; of the `starts` only the slot is a tensor."""
    ((axis, slot),) = ((axis, start) for axis, start in enumerate(starts) if not isinstance(start, int))
    return part.index_copy_(axis, slot.reshape(1).long(), new)


def compiled_decoder(model: CausalLM) -> tuple[Callable, Callable | None]:
    """`_forward` and, but on torch, `_greedy` of a model; on JAX prefill may take the memory of the cache, too."""
    backend = keras.backend.backend()
    prefill = compiled(model, _forward, is_step=backend == "jax")
    decode = prefill if backend == "jax" else compiled(model, _forward, is_step=True)
    # torch has no loop on the device: its `while_loop` would be one of Python.
    greedy = None if backend == "torch" else compiled(model, _greedy, is_step=True)
    return lambda tokens, *rest: (prefill if tokens.shape[1] > 1 else decode)(tokens, *rest), greedy


def _with_rows_in_parts(function: Callable) -> Callable:
    """`function`, for XLA on a processor, see `projections.py`."""

    def inside(*inputs):
        with rows_in_parts(_ROW_PARTS):
            return function(*inputs)

    return inside


def _stateless(model: Any, function: Callable) -> tuple[Callable, Callable]:
    """`function` of the model as one of the weights too, and a function that returns today's weights."""
    variables = model.variables

    def stateless(weights, *inputs):
        with keras.StatelessScope(list(zip(variables, weights, strict=True))):
            return function(model, *inputs)

    return stateless, lambda: [variable.value for variable in variables]


_BACKENDS = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
