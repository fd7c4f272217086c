"""What an engine runs: a step over the key/value cache and a loop of greedy steps, compiled for the backend in use.

Shapes use the legend at the top of `layers.py`. One seam per backend compiles; nothing else knows the backend.
"""

from collections.abc import Callable
from functools import partial

import keras
from keras import ops

from smolite.layers import MASKED_SCORE
from smolite.models import CausalLM

MOST_AHEAD = 32  # tokens picked in one call of the loop: enough to hide the call, few enough to be interrupted


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


def _greedy(model: CausalLM, ids, cache, starts, place, stop_ids):
    """Picks (32, B) of which the first so many count, whether all logits were numbers, and the new cache.

    `place` has the first slot to write and the most picks.
    """

    def stopped(ids):
        return ops.any(ids[:, None] == stop_ids, axis=-1)

    def unfinished(done, ids, *_):
        return ops.logical_and(done < place[1], ops.logical_not(ops.all(stopped(ids))))

    def advance(done, ids, picks, are_numbers, cache):
        logits, cache = _forward(model, ids[:, None], cache, starts, ops.stack([place[0] + done, done * 0]))
        ids = ops.where(stopped(ids), ids, ops.cast(ops.argmax(logits, axis=-1), "int32"))
        are_numbers = ops.logical_and(are_numbers, ops.logical_not(ops.any(ops.isnan(logits))))
        return done + 1, ids, ops.slice_update(picks, (done, done * 0), ids[None]), are_numbers, cache

    picks = ops.zeros((MOST_AHEAD, ids.shape[0]), "int32")
    state = place[0] * 0, ids, picks, ops.convert_to_tensor(True), cache
    done, _, picks, are_numbers, cache = ops.while_loop(unfinished, advance, state)
    return picks, done, are_numbers, cache


def _compiled_by_tensorflow(model: CausalLM) -> tuple[Callable, Callable]:
    """Graphs that read the variables; XLA for decoding only, which it makes twice as fast."""
    import tensorflow as tf

    forward = partial(_forward, model)
    prefill, decode = tf.function(forward), tf.function(forward, jit_compile=True)
    greedy = tf.function(partial(_greedy, model), jit_compile=True)
    return lambda tokens, *rest: (prefill if tokens.shape[1] > 1 else decode)(tokens, *rest), greedy


def _compiled_by_jax(model: CausalLM) -> tuple[Callable, Callable]:
    """One program per length of tokens; weights are arguments, the old cache's memory becomes the new one."""
    import jax

    def compiled(function):
        stateless, weights = _stateless(model, function)
        program = jax.jit(stateless, donate_argnums=2)
        return lambda *inputs: program(weights(), *inputs)

    return compiled(_forward), compiled(_greedy)


def _compiled_by_torch(model: CausalLM) -> tuple[Callable, None]:
    """The decode step recorded once as a graph of torch operations, free of Keras' work per layer call."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    stateless, weights = _stateless(model, _forward)
    recorded: list[Callable] = []

    @torch.no_grad()
    def run(tokens, *rest):
        if tokens.shape[1] > 1:
            return _forward(model, tokens, *rest)
        if not recorded:
            recorded.append(make_fx(stateless)(weights(), tokens, *rest))
        return recorded[0](weights(), tokens, *rest)

    return run, None


def _stateless(model: CausalLM, function: Callable) -> tuple[Callable, Callable]:
    """`function` of the model as one of the weights too, and a function that returns today's weights."""
    variables = model.variables

    def stateless(weights, *inputs):
        with keras.StatelessScope(list(zip(variables, weights, strict=True))):
            return function(model, *inputs)

    return stateless, lambda: [variable.value for variable in variables]


COMPILERS = {"tensorflow": _compiled_by_tensorflow, "jax": _compiled_by_jax, "torch": _compiled_by_torch}
