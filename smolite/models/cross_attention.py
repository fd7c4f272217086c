"""How a decoder reads a source: the keys and values of what the encoder made of it, attention over them, and the block.

Shapes use the legend at the top of `layers.py`; N stands for the tokens of the source.
"""

import keras
from keras import ops

from smolite.models.caches import attend
from smolite.models.config import MASKED_SCORE
from smolite.models.layers import LightweightAttn, SwiGLU, repeat_for_groups
from smolite.models.projections import project, projection
from smolite.models.rematerialization import Rematerialized


@keras.saving.register_keras_serializable("smolite")
class SourceMask(keras.layers.Layer):
    """The additive mask of tokens that look at a source, computed once for all blocks; no token is hidden by its place.

    Args:
        num_groups: queries per key/value head, G.
    """

    def __init__(self, num_groups: int = 1, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.num_groups = num_groups

    def call(self, tokens, source, segments=None, source_segments=None):
        """(B, T) and (B, N) ids and segment numbers, 1 where not given → (B, 1, G·T, N): 0 where they agree, else -3e4."""
        segments = ops.ones_like(tokens) if segments is None else segments
        source_segments = ops.ones_like(source) if source_segments is None else source_segments
        mask = ops.where(segments[:, :, None] == source_segments[:, None, :], 0.0, MASKED_SCORE)
        return repeat_for_groups(mask[:, None], self.num_groups)

    def get_config(self):
        return {**super().get_config(), "num_groups": self.num_groups}


@keras.saving.register_keras_serializable("smolite")
class CrossMemory(keras.layers.Layer):
    """Keys and values of a source for one decoder block, computed once however many tokens look at them.

    Args:
        num_key_value_heads: K.
        head_dim: H.
    """

    def __init__(self, num_key_value_heads: int, head_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.key = projection(num_key_value_heads * head_dim, name="key", dtype=self.dtype_policy)
        self.value = projection(num_key_value_heads * head_dim, name="value", dtype=self.dtype_policy)

    def build(self, encoded_shape):
        self.key.build(encoded_shape)
        self.value.build(encoded_shape)

    def call(self, encoded):
        """(B, N, D) of the encoder → keys (B, K, N, H) and values (B, K, H, N)."""
        heads = (-1, ops.shape(encoded)[1], self.num_key_value_heads, self.head_dim)
        keys = ops.transpose(ops.reshape(self.key(encoded), heads), (0, 2, 1, 3))
        return keys, ops.transpose(ops.reshape(self.value(encoded), heads), (0, 2, 3, 1))

    def compute_output_spec(self, encoded):
        (batch, length, _), heads, width = encoded.shape, self.num_key_value_heads, self.head_dim
        shapes = (batch, heads, length, width), (batch, heads, width, length)
        return tuple(keras.KerasTensor(shape, dtype=self.compute_dtype) for shape in shapes)

    def get_config(self):
        return {**super().get_config(), "num_key_value_heads": self.num_key_value_heads, "head_dim": self.head_dim}


@keras.saving.register_keras_serializable("smolite")
class CrossAttention(keras.layers.Layer):
    """Attention of a target's tokens over the keys and values of its source (Vaswani et al. 2017), without rotary positions.

    Args:
        num_query_heads: Q, a multiple of the heads of the keys.
        head_dim: H.
    """

    def __init__(self, num_query_heads: int, head_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.num_query_heads = num_query_heads
        self.head_dim = head_dim
        self.query = projection(num_query_heads * head_dim, name="query", dtype=self.dtype_policy)

    def build(self, hidden_shape):
        self.output_projection = projection(hidden_shape[-1], name="output", dtype=self.dtype_policy)
        self.query.build(hidden_shape)
        self.output_projection.build((*hidden_shape[:-1], self.num_query_heads * self.head_dim))

    def call(self, hidden, memory, mask):
        """(B, T, D), the memory in either layout of `caches.py`, additive mask (B or 1, 1, G·T or 1, N) → (B, T, D)."""
        query = ops.reshape(project(self.query, hidden), (-1, ops.shape(hidden)[1], self.num_query_heads, self.head_dim))
        return project(self.output_projection, attend(query * self.head_dim**-0.5, *memory, mask))

    def compute_output_spec(self, hidden, memory, mask):
        return keras.KerasTensor(hidden.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "num_query_heads": self.num_query_heads, "head_dim": self.head_dim}


@keras.saving.register_keras_serializable("smolite")
class CrossBlock(Rematerialized):
    """`DecoderBlock` with attention over a source in the middle, after a norm of its own.

    Args:
        num_query_heads, num_key_value_heads, head_dim: see `LightweightAttn`.
        intermediate_dim: see `SwiGLU`.
        norm_epsilon: added to the mean square in the three norms.
        dropout: share of each branch's output dropped while training.
    """

    def __init__(
        self,
        num_query_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        *,
        intermediate_dim: int,
        norm_epsilon: float = 1e-5,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.norm_epsilon = norm_epsilon
        self.attention_norm = self._norm("attention_norm")
        self.attention = LightweightAttn(num_query_heads, num_key_value_heads, head_dim, name="attention", dtype=policy)
        self.cross_norm = self._norm("cross_norm")
        self.cross_attention = CrossAttention(num_query_heads, head_dim, name="cross_attention", dtype=policy)
        self.mlp_norm = self._norm("mlp_norm")
        self.mlp = SwiGLU(intermediate_dim, name="mlp", dtype=policy)
        self.drop = keras.layers.Dropout(dropout, dtype=policy)

    def _norm(self, name):
        return keras.layers.RMSNormalization(epsilon=self.norm_epsilon, name=name, dtype=self.dtype_policy)

    def build(self, hidden_shape):
        norms = self.attention_norm, self.cross_norm, self.mlp_norm
        for layer in (*norms, self.attention, self.cross_attention, self.mlp):
            layer.build(hidden_shape)

    def call(self, hidden, rotary, mask, memory, source_mask, cache=None, slot=None, training=None):
        """(B, T, D) → (B, T, D) and the cache; arguments as in `DecoderBlock.call` and `CrossAttention.call`."""
        mixed, cache = self.attention(self.attention_norm(hidden), rotary, mask, cache=cache, slot=slot)
        hidden = hidden + self.drop(mixed, training=training)
        mixed = self.cross_attention(self.cross_norm(hidden), memory, source_mask)
        hidden = hidden + self.drop(mixed, training=training)
        return hidden + self.drop(self.mlp(self.mlp_norm(hidden)), training=training), cache

    def compute_output_spec(self, hidden, rotary, mask, memory, source_mask, cache=None, slot=None, training=None):
        return self.attention.compute_output_spec(hidden, rotary, mask, cache=cache, slot=slot)

    def get_config(self):
        heads = {key: getattr(self.attention, key) for key in ("num_query_heads", "num_key_value_heads", "head_dim")}
        rest = {"intermediate_dim": self.mlp.intermediate_dim, "norm_epsilon": self.norm_epsilon}
        return {**super().get_config(), **heads, **rest, "dropout": self.drop.rate}
