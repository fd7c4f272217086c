"""What an engine runs: a step over the key/value cache and a loop of greedy steps, compiled for the backend in use.

Shapes use the legend at the top of `layers.py`. How a backend compiles is in `smolite/backends`.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from smolite.backends import backend
from smolite.models import MASKED_SCORE, CausalLM, caches_written_by, rows_in_parts, rows_joined

MOST_AHEAD = 32  # tokens picked in one call of the loop: enough to hide the call, few enough to be interrupted


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
    return backend().compiled(model, _as_step(function) if is_step else function, is_step=is_step)


def _as_step(function: Callable) -> Callable:
    """`function`, recorded with the backend's way of writing to caches and of multiplying a single row."""
    parts, write = backend().row_parts(), backend().write_slice

    def inside(*inputs):
        with rows_in_parts(parts), caches_written_by(write):
            return function(*inputs)

    return inside


def compiled_decoder(model: CausalLM) -> tuple[Callable, Callable | None]:
    """`_forward` of a model, and `_greedy`, or None where the backend compiles no loops."""
    decode = compiled(model, _forward, is_step=True)
    # A program of all lengths may take the memory of the cache at a prompt, too; else a prompt is no step.
    prefill = decode if backend().is_one_program else compiled(model, _forward, is_step=False)
    greedy = compiled(model, _greedy, is_step=True) if backend().has_loops else None
    return lambda tokens, *rest: (prefill if tokens.shape[1] > 1 else decode)(tokens, *rest), greedy
