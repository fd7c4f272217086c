"""The edge contract: a causal language model as TensorFlow functions with named signatures, static unless caches grow.

* `prefill_<T>` for a few lengths T, and `decode`, where T is 1. The batch is 1; S is the length of the cache.
* Inputs: `tokens` int32 (1, T); `input_pos` int32 (T,); `mask` float32 (1, 1, T, S), added to the attention scores;
  `kv_cache_k_<i>` float32 (1, K, S, H) and `kv_cache_v_<i>` float32 (1, K, H, S) for every layer i.
* Outputs: the caches under the same names; `decode` also `logits` float32 (1, 1, V).
* `decode_in_<W>` and `prefill_<T>_in_<W>`: the same over the same caches, but they look at the first W slots only, as far as
  their `mask` (1, 1, T, W) goes. Attention costs as many slots as it looks at, written or not, so a short chat is quicker
  there. LiteRT-LM does not know them; only a .tflite file has them.
* `verify_<T>`: as `prefill_<T>`, with `logits` float32 (1, T, V) of every token, so that an engine can check in one call what
  it guesses; also `verify_<T>_in_<W>`. Only where a .tflite file was asked for drafts.
* `prefill` and `decode` over caches that grow: T and S are those of the tensors that come, and the runtime lengthens the caches
  as a chat needs it. Both are one graph, which gives the logits of the last token, so a runtime prepares its weights once. Its
  `mask` is bool (1, 1, T or more, S), True where a token looks; the rows after T are left out, because the runtime sets both
  open axes of `decode`'s to S. LiteRT-LM calls such a model dynamic and runs it on the CPU alone. Only a .litertlm file has
  them, where it was asked for that.
* `forward`: `tokens` int32 (B, T) → `logits` float32 (B, T, V), without a cache. Only in a SavedModel.

The new keys and values go to the slots `input_pos[0]`, `input_pos[0]` + 1, …; all T of them must lie inside the cache, because
the runtime would move a write that crosses its end. This is what LiteRT-LM asks of a model. Shapes use the legend at the top of
`layers.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolite.exporters.edge.names import (
    DECODE,
    cache_name,
    cache_shapes,
    is_prefill,
    signature_shapes,
)
from smolite.models import ModelConfig

if TYPE_CHECKING:
    from smolite.models import CausalLM


def edge_signatures(
    model: "CausalLM", *, prefill_lengths: Sequence[int], cache_length: int, windows: Sequence[int] = (), drafts: int = 0
) -> dict[str, Any]:
    """The concrete functions `prefill_<T>`, `decode` and so on by name, for a model on the TensorFlow backend.

    Without `prefill_lengths` it is one over caches that grow, `decode`, which is to have the name `prefill`, too.
    """
    if not prefill_lengths:
        shapes = {DECODE: decode_specs(model.config, None, None)}
    else:
        looks = signature_shapes(prefill_lengths=prefill_lengths, cache_length=cache_length, windows=windows, drafts=drafts)
        shapes = {
            name: decode_specs(model.config, length, cache_length, window=window) for name, (length, window) in looks.items()
        }
    return {name: _cached_function(model, name).get_concrete_function(**specs) for name, specs in shapes.items()}


def forward_signature(model: "CausalLM") -> Any:
    """The concrete function `forward`, for any batch and length."""
    import tensorflow as tf

    def forward(tokens):
        return {"logits": model({"tokens": tokens}, training=False)}

    return tf.function(forward, autograph=False).get_concrete_function(tokens=tf.TensorSpec((None, None), tf.int32, "tokens"))


def decode_specs(config: ModelConfig, length: int | None, slots: int | None, *, window: int | None = None) -> dict[str, Any]:
    """The inputs of a signature of `length` tokens over `slots` slots, of which it looks at the first `window`; None is any."""
    import tensorflow as tf

    mask = tf.float32 if slots else tf.bool
    specs = {
        "tokens": tf.TensorSpec((1, length), tf.int32, "tokens"),
        "input_pos": tf.TensorSpec((length,), tf.int32, "input_pos"),
        "mask": tf.TensorSpec((1, 1, length, window or slots), mask, "mask"),
    }
    caches = {name: tf.TensorSpec(shape, tf.float32, name) for name, shape in cache_shapes(config, slots).items()}
    return specs | caches


def _cached_function(model: "CausalLM", name: str) -> Any:
    import tensorflow as tf

    layers = range(model.config.num_layers)

    def run(tokens, input_pos, mask, **caches):
        cache = [(caches[cache_name("k", i)], caches[cache_name("v", i)]) for i in layers]
        # Not `model.embed`: the converter must see the lookup under a name that it makes one operator of.
        hidden = look_up(model.token_embedding.embeddings.value, tokens)
        positions = tf.expand_dims(input_pos, 0)
        grows = mask.dtype == tf.bool
        mask = _added(mask, input_pos) if grows else mask
        hidden, cache = model.cached_body(hidden, cache, slot=input_pos[0], mask=mask, positions=positions)
        outputs = {cache_name(kind, i): cache[i]["kv".index(kind)] for i in layers for kind in "kv"}
        if is_prefill(name):
            return outputs
        return {**outputs, "logits": exact_head(model, hidden[:, -1:] if grows else hidden)}

    run.__name__ = name
    return tf.function(run, autograph=False)


def _added(mask, input_pos):
    """A bool mask (1, 1, T or more, S) and T positions → what is added to the scores, float32 (1, 1, T, S)."""
    import tensorflow as tf

    # The runtime hands over more rows than tokens in `decode`; the positions say which of them are meant.
    rows = tf.gather(mask, input_pos - input_pos[0], axis=2)  # to measure T would cost XNNPACK's quick operators
    return (tf.cast(rows, tf.float32) - 1.0) * 1e9


def look_up(table, tokens):
    """(V, D) table and (1, T) ids → (1, T, D), as one EMBEDDING_LOOKUP; the quantizer may leave a GATHER in float."""
    import tensorflow as tf

    @tf.function(experimental_implements="embedding_matmul", autograph=False)
    def embedding_matmul(table, ids):
        return tf.gather(table, ids)

    return tf.expand_dims(embedding_matmul(table, tf.reshape(tokens, [-1])), 0)


def exact_head(model: "CausalLM", hidden):
    """(1, T, D) → (1, T, V): `model.head` in another order.

    The norm multiplies by its scale first. In the usual order the converter would fold the scale into the projection, and
    write a second, scaled copy of the embedding table.
    """
    import tensorflow as tf

    norm = model.final_norm
    if norm is None:
        return model.head(hidden)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(hidden), axis=-1, keepdims=True) + norm.epsilon)
    normed = (hidden * norm.scale.value) * inverse
    table = model.token_embedding.embeddings.value
    return tf.expand_dims(tf.matmul(tf.squeeze(normed, 0), table, transpose_b=True), 0)
