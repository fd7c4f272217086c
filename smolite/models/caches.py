"""Key/value caches: what a layer remembers of earlier tokens, in two layouts, and attention over it.

Shapes use the legend at the top of `layers.py`. A cache is a pair of keys and values, in one of two layouts:

* edge: keys (B, K, S, H) and values (B, K, H, S), which edge runtimes take. Exported files and `empty_cache` by itself have it.
* flat: keys (B·K, H, S) and values (B·K, S, H), the right factors of plain batched products. XLA writes to such a cache in
  place, and copies one of the edge layout several times a step, because it merges B and K, and transposes, before a product.
  Engines that run a Keras model have it.

The number of axes tells them apart. S is axis 2 of the keys in both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from keras import ops

_write: ContextVar[Callable] = ContextVar("write", default=ops.slice_update)


@contextmanager
def caches_written_by(write: Callable) -> Iterator[None]:
    """Inside, `write(part, starts, new)` takes the place of `ops.slice_update` where keys or values are written to a cache."""
    token = _write.set(write)
    try:
        yield
    finally:
        _write.reset(token)


def cache_shapes(batch_size: int, num_key_value_heads: int, length: int, head_dim: int, *, flat: bool = False):
    """The shapes of keys and values. With B 1, K 3, S 8, H 4: `(1, 3, 8, 4), (1, 3, 4, 8)`; flat `(3, 4, 8), (3, 8, 4)`."""
    if flat:
        rows = batch_size * num_key_value_heads
        return (rows, head_dim, length), (rows, length, head_dim)
    heads = (batch_size, num_key_value_heads)
    return (*heads, length, head_dim), (*heads, head_dim, length)


def flattened(cache):
    """A cache of the edge layout in the flat one; B and K must be known."""
    return tuple(ops.reshape(ops.swapaxes(part, -1, -2), (-1, part.shape[3], part.shape[2])) for part in cache)


def update_cache(cache, new_keys, new_values, slot):
    """Writes (B, K, T, H) keys and (B, K, H, T) values at `slot` of a cache; without one they are the cache."""
    if cache is None:
        return new_keys, new_values
    keys, values = cache
    # Slots are the third axis of keys and the last of values, so that both products read memory in its order.
    key_start, value_start = (0, 0, slot, 0), (0, 0, 0, slot)
    if len(keys.shape) == 3:
        new_keys, new_values = flattened((new_keys, new_values))
        key_start, value_start = (0, 0, slot), (0, slot, 0)
    keys = _write.get()(keys, key_start, ops.cast(new_keys, keys.dtype))
    values = _write.get()(values, value_start, ops.cast(new_values, values.dtype))
    return keys, values


def leading_axes(tensor, repeats: int = 1):
    """(B, T, …) → B and `repeats`·T as a reshape takes them: what is not known is -1, once, or measured.

    A reshape whose shape is constant stays one in an exported graph. (1, 5, 8) → `(-1, 5)`; (1, None, 8) → `(1, -1)`.
    """
    batch, length = tensor.shape[:2]
    if length is None and batch is not None:
        return batch, -1
    return -1, repeats * ops.shape(tensor)[1]


def attend(query, keys, values, mask, drop=lambda weights: weights):
    """Scaled (B, T, Q, H) queries over keys and values of either layout → (B, T, Q·H).

    Args:
        query: (B, T, Q, H); with a flat cache, B must be known.
        keys, values: a cache.
        mask: additive, (B or 1, 1, G·T or 1, S); over fewer slots than the cache has, the first ones are looked at only.
        drop: applied to the attention weights.
    """
    (batch, _, num_query_heads, width), window = query.shape, mask.shape[-1]
    kv = keys.shape[0] // batch if len(keys.shape) == 3 else keys.shape[1]
    # A mask over fewer slots is a window: what lies behind it is not read at all, as attention costs what it looks at.
    if window and keys.shape[2] and window < keys.shape[2]:
        keys, values = _first_slots(keys, values, window)
    groups = num_query_heads // kv
    (rows, length), (_, stacked) = leading_axes(query), leading_axes(query, groups)
    query = ops.reshape(query, (rows, length, kv, groups, width))
    # The queries of a key head become rows of one matrix. Repeating keys and values for them would read the cache G times.
    query = ops.reshape(ops.transpose(query, (0, 2, 3, 1, 4)), (rows, kv, stacked, width))
    scores = _product(query, keys)  # (B, K, G·T, S)
    # In float32 under mixed precision, too: in half precision the many small weights of a long row are lost in their sum.
    weights = drop(ops.softmax(ops.cast(scores, "float32") + ops.cast(mask, "float32")))
    mixed = _product(ops.cast(weights, values.dtype), values)
    mixed = ops.reshape(mixed, (rows, kv, groups, length, width))
    mixed = ops.transpose(mixed, (0, 3, 1, 2, 4))
    return ops.reshape(mixed, (rows, length, num_query_heads * width))


def _first_slots(keys, values, window: int):
    if len(keys.shape) == 3:
        return keys[..., :window], values[:, :window]
    return keys[:, :, :window], values[..., :window]


def _product(left, part):
    """(B, K, …, N) by keys or values of either layout, along their axis of N features or slots."""
    if len(part.shape) == 4:
        return ops.matmul(left, ops.swapaxes(part, -1, -2))
    product = ops.matmul(ops.reshape(left, (-1, *left.shape[2:])), part)
    return ops.reshape(product, (-1, left.shape[1], *product.shape[1:]))
