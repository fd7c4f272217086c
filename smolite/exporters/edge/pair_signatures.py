"""The edge contract of an encoder-decoder: `encode` and `decode` as TensorFlow functions with named, static signatures.

* `encode`: `tokens` int32 (1, N) and `source_mask` float32 (1, 1, 1, N), 0 for tokens and about -3e4 for the padding on their
  right → `cross_cache_k_<i>` float32 (1, K, N, H) and `cross_cache_v_<i>` float32 (1, K, H, N) for every decoder layer i.
* `decode`: as in `signatures`, with `source_mask` and the cross caches as further inputs: `tokens`, `input_pos`, `mask`,
  `kv_cache_k_<i>`, `kv_cache_v_<i>` → the caches of the target, and `logits` float32 (1, 1, V). The first token is `<start>`.
* `forward`: `source` int32 (B, N) and `tokens` int32 (B, T) → `logits` float32 (B, T, V). Only in a SavedModel.

A source is encoded once, and `decode` runs for each token of the target, whose caches start as zeros in S slots.
"""

from typing import TYPE_CHECKING, Any

from smolite.exporters.edge.names import DECODE, cache_name, cache_shapes
from smolite.exporters.edge.signatures import decode_specs, exact_head, look_up
from smolite.models import ModelConfig

if TYPE_CHECKING:
    from smolite.models import Seq2SeqLM

ENCODE = "encode"
_CROSS = "cross_cache"


def cross_name(kind: str, layer: int) -> str:
    """The name of a layer's keys (`"k"`) or values (`"v"`) of the source: `("v", 3)` → `"cross_cache_v_3"`."""
    return f"{_CROSS}_{kind}_{layer}"


def is_cache(name: str) -> bool:
    """Whether an input of `decode` is kept between calls: `"kv_cache_k_0"` and `"cross_cache_k_0"` are, `"mask"` is not."""
    return name.startswith(("kv_cache", _CROSS))


def cross_shapes(config: ModelConfig, source_length: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every cache of the source: keys (1, K, N, H), values (1, K, H, N)."""
    shapes = cache_shapes(config, source_length)
    return {name.replace("kv_cache", _CROSS): shape for name, shape in shapes.items()}


def pair_signatures(model: "Seq2SeqLM", *, source_length: int, cache_length: int) -> dict[str, Any]:
    """The concrete functions `encode` and `decode` by name, for a model on the TensorFlow backend."""
    import tensorflow as tf

    source_mask = tf.TensorSpec((1, 1, 1, source_length), tf.float32, "source_mask")
    tokens = tf.TensorSpec((1, source_length), tf.int32, "tokens")
    shapes = cross_shapes(model.config, source_length)
    memory = {name: tf.TensorSpec(shape, tf.float32, name) for name, shape in shapes.items()}
    decode = {**decode_specs(model.config, 1, cache_length), "source_mask": source_mask, **memory}
    return {
        ENCODE: _encode_function(model).get_concrete_function(tokens=tokens, source_mask=source_mask),
        DECODE: _decode_function(model).get_concrete_function(**decode),
    }


def pair_forward(model: "Seq2SeqLM") -> Any:
    """The concrete function `forward`, for any batch and lengths."""
    import tensorflow as tf

    def forward(source, tokens):
        return {"logits": model({"source": source, "tokens": tokens}, training=False)}

    specs = {name: tf.TensorSpec((None, None), tf.int32, name) for name in ("source", "tokens")}
    return tf.function(forward, autograph=False).get_concrete_function(**specs)


def _encode_function(model: "Seq2SeqLM") -> Any:
    import tensorflow as tf

    def encode(tokens, source_mask):
        hidden = look_up(model.token_embedding.embeddings.value, tokens)
        # Keys and values of the source are worked out here, once, and not by each step of `decode`.
        memory = enumerate(model.encode(hidden, mask=source_mask))
        return {cross_name(kind, layer): pair["kv".index(kind)] for layer, pair in memory for kind in "kv"}

    return tf.function(encode, autograph=False)


def _decode_function(model: "Seq2SeqLM") -> Any:
    import tensorflow as tf

    layers = range(model.config.num_layers)

    def decode(tokens, input_pos, mask, source_mask, **caches):
        cache, memory = ([tuple(caches[name(kind, i)] for kind in "kv") for i in layers] for name in (cache_name, cross_name))
        hidden = look_up(model.token_embedding.embeddings.value, tokens)
        places = {"slot": input_pos[0], "mask": mask, "source_mask": source_mask}
        hidden, cache = model.cached_body(hidden, cache, memory, **places)
        outputs = {cache_name(kind, i): cache[i]["kv".index(kind)] for i in layers for kind in "kv"}
        return {**outputs, "logits": exact_head(model, hidden)}

    return tf.function(decode, autograph=False)
