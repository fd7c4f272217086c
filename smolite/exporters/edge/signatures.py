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

from smolite.models import ModelConfig

if TYPE_CHECKING:
    from smolite.models import CausalLM

DECODE = "decode"
FORWARD = "forward"
GROWING_PREFILL = "prefill"
_PREFILL = "prefill_"
_VERIFY = "verify_"
_WINDOW = "_in_"
_MOST_DRAFTS = 31
_LEAST_WINDOW = 128  # below, attention is a small part of a step


def prefill_name(length: int) -> str:
    """The signature that takes `length` tokens at once: 16 → `"prefill_16"`."""
    return f"{_PREFILL}{length}"


def prefill_lengths_of(names: Sequence[str]) -> tuple[int, ...]:
    """The lengths among signature names, ascending: `["decode", "prefill_128", "prefill_16"]` → `(16, 128)`."""
    whole = [name for name in names if _WINDOW not in name]
    return tuple(sorted(int(name.removeprefix(_PREFILL)) for name in whole if name.startswith(_PREFILL)))


def verify_name(length: int) -> str:
    """The signature that takes `length` tokens and gives the logits after each: 5 → `"verify_5"`."""
    return f"{_VERIFY}{length}"


def drafts_of(names: Sequence[str]) -> int:
    """The most drafts that signatures can check besides the token they follow: `["decode", "verify_5"]` → 4; or none, 0."""
    lengths = [int(name.removeprefix(_VERIFY)) for name in names if name.startswith(_VERIFY) and _WINDOW not in name]
    return max(lengths, default=1) - 1


def windowed_name(name: str, window: int) -> str:
    """The signature that looks at the first slots only: `("prefill_16", 128)` → `"prefill_16_in_128"`."""
    return f"{name}{_WINDOW}{window}"


def windows_of(names: Sequence[str]) -> tuple[int, ...]:
    """The windows among signature names, ascending: `["decode", "decode_in_256", "decode_in_128"]` → `(128, 256)`."""
    prefix = f"{DECODE}{_WINDOW}"
    return tuple(sorted(int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)))


def cache_name(kind: str, layer: int) -> str:
    """The name of a layer's keys (`"k"`) or values (`"v"`): `("v", 3)` → `"kv_cache_v_3"`."""
    return f"kv_cache_{kind}_{layer}"


def cache_shapes(config: ModelConfig, cache_length: Any) -> dict[str, tuple[Any, ...]]:
    """Name → shape of every cache: keys (1, K, S, H), values (1, K, H, S)."""
    heads, width = config.num_key_value_heads, config.head_dim
    shapes = {"k": (1, heads, cache_length, width), "v": (1, heads, width, cache_length)}
    return {cache_name(kind, i): shape for i in range(config.num_layers) for kind, shape in shapes.items()}


def choose_lengths(
    config: ModelConfig, *, prefill_lengths: Sequence[int] | None = None, cache_length: int | None = None
) -> tuple[tuple[int, ...], int]:
    """Prefill lengths and cache length to export, checked, with defaults for what is not given.

    Every decode step reads the whole allocated cache, so the default is the context length but at most 1,024 slots. Every
    prefill signature keeps its own copy of the weights in the runtime's memory, so there are two: 16 tokens for a short turn,
    128 for a long one. With a context of 512: `((16, 128), 512)`; of 32: `((16,), 32)`; of 8: `((8,), 8)`. An encoder-decoder
    has one, the longest source; by default as many tokens as the cache.

    Raises:
        ValueError: a length that is not possible for this model.
    """
    slots = min(config.context_length, 1024) if cache_length is None else cache_length
    most_prefill = config.context_length if config.has_encoder else slots
    if not 2 <= slots <= config.context_length:
        raise ValueError(
            f"`cache_length` must be from 2 to the context length of the model, {config.context_length}. "
            f"Received: {slots}. Choose a smaller one; decoding is faster with a smaller cache."
        )
    default = tuple(length for length in (16, 128) if length <= slots and not config.has_encoder) or (slots,)
    lengths = tuple(sorted(set(default if prefill_lengths is None else prefill_lengths)))
    if config.has_encoder and len(lengths) > 1:
        raise ValueError(
            f"An encoder reads sources of one length. Received: `prefill_lengths` {lengths}. Give the longest that you need."
        )
    if not lengths or not all(2 <= length <= most_prefill for length in lengths):
        raise ValueError(
            f"`prefill_lengths` must be one or more numbers from 2 to the cache length, {most_prefill}. "
            f"Received: {lengths}. The default here is {default}."
        )
    return lengths, slots


def choose_windows(config: ModelConfig, *, cache_length: int, windows: Sequence[int] | None = None) -> tuple[int, ...]:
    """The windows to export, checked. Default: a quarter and half of the cache, where that is 128 slots or more.

    With a cache of 1,024: `(256, 512)`; of 256: `(128,)`; of 160: `()`. An encoder-decoder has none.

    Raises:
        ValueError: a window that is not possible for this cache.
    """
    default = [part for part in (cache_length // 4, cache_length // 2) if part >= _LEAST_WINDOW]
    chosen = tuple(sorted(set(default if windows is None else windows)))
    if config.has_encoder:
        if windows:
            raise ValueError(f"An encoder-decoder has no windows. Received: `windows` {chosen}. Leave them out.")
        return ()
    if not all(2 <= window < cache_length for window in chosen):
        raise ValueError(
            f"`windows` must be numbers from 2 to less than the cache length, {cache_length}. Received: {chosen}. "
            f"The default here is {tuple(default)}."
        )
    return chosen


def check_drafts(config: ModelConfig, drafts: int, *, cache_length: int) -> None:
    """Refuses a number of drafts that is not possible: 4 is with a cache of 16, and 16 is not.

    Raises:
        ValueError: it is negative, above 31, or not less than the cache; or an encoder-decoder is asked for any.
    """
    if config.has_encoder and drafts:
        raise ValueError(f"An encoder-decoder has no drafts. Received: `drafts` {drafts}. Leave it out.")
    most = min(_MOST_DRAFTS, cache_length - 1)
    if not 0 <= drafts <= most:
        raise ValueError(f"`drafts` must be from 0, for none, to {most}. Received: {drafts}. 4 is a good start.")


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


def signature_shapes(
    *, prefill_lengths: Sequence[int], cache_length: int, windows: Sequence[int] = (), drafts: int = 0
) -> dict[str, tuple[int, int]]:
    """Name → tokens and slots it looks at. No window is narrower than the tokens that a signature takes.

    With lengths `(16,)`, a cache of 32 and a window of 8:
    `{"prefill_16": (16, 32), "decode": (1, 32), "decode_in_8": (1, 8)}`.
    """
    lengths = {prefill_name(length): length for length in prefill_lengths} | {DECODE: 1}
    if drafts:
        lengths[verify_name(drafts + 1)] = drafts + 1
    shapes = {name: (length, cache_length) for name, length in lengths.items()}
    for window in windows:
        fitting = {name: length for name, length in lengths.items() if length <= window}
        shapes |= {windowed_name(name, window): (length, window) for name, length in fitting.items()}
    return shapes


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
        if name.startswith(_PREFILL):
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
