"""The layers of a decoder: rotary embedding, grouped-query attention, SwiGLU, and the block made of them.

Shape legend, used in comments throughout:
    B batch · T new tokens · S cache slots · D hidden_dim · Q query heads · K key/value heads · G = Q / K queries per key head
    H head_dim · F intermediate_dim · V vocab_size

Cached and uncached forward are the same arithmetic: without a cache, the keys and values of the new tokens are the cache.
"""

import math
from functools import partial

import keras
from keras import ops

from smolite.models.caches import attend, cache_shapes, leading_axes, update_cache
from smolite.models.config import MASKED_SCORE
from smolite.models.projections import project, project_together, projection
from smolite.models.rematerialization import Rematerialized


@keras.saving.register_keras_serializable("smolite")
class RotaryEmbedding(keras.layers.Layer):
    """Cosines and sines of the rotary position embedding (Su et al. 2021), computed once for all blocks.

    Args:
        head_dim: features of a head; they turn in pairs (i, i + head_dim / 2), the half-split layout of Hugging Face's Llama.
        theta: base of the wavelengths.
        scaling: fields of a `RopeScaling`, which stretches the long wavelengths.
    """

    def __init__(self, head_dim: int, theta: float = 10_000.0, *, scaling: dict[str, float] | None = None, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # angles of long contexts do not fit half precision
        self.head_dim = head_dim
        self.theta = theta
        self.scaling = scaling

    def call(self, tokens, positions=None):
        """(B, T) token ids and, unless they count from 0, their (B or 1, T) positions → two (B or 1, T, 1, H / 2) tables."""
        if positions is None:
            positions = ops.expand_dims(ops.arange(ops.shape(tokens)[1], dtype="int32"), 0)
        frequencies = self._frequencies()
        if self.scaling:
            frequencies = frequencies * self.stretch()
        angles = ops.cast(positions, "float32")[:, :, None, None] * frequencies
        return ops.cos(angles), ops.sin(angles)

    def _frequencies(self):
        exponents = ops.arange(0, self.head_dim, 2, dtype="float32") / self.head_dim
        return 1.0 / ops.power(ops.convert_to_tensor(self.theta, "float32"), exponents)

    def stretch(self):
        """The share of its speed that each of the H / 2 frequencies keeps under `scaling`, from 1 / factor to 1."""
        low, high = self.scaling["low_frequency_factor"], self.scaling["high_frequency_factor"]
        turns = self._frequencies() * (self.scaling["original_context_length"] / (2 * math.pi))
        kept = ops.clip((turns - low) / (high - low), 0.0, 1.0)
        return kept + (1.0 - kept) / self.scaling["factor"]

    def get_config(self):
        return {**super().get_config(), "head_dim": self.head_dim, "theta": self.theta, "scaling": self.scaling}


def rotate(heads, cosines, sines):
    """Turns the feature pairs of (B, T, heads, H) by the angles of `RotaryEmbedding`."""
    # Halves, not neighbours: the layout of Hugging Face's Llama, so that kernels are exchanged as they are; llama.cpp's
    # `llama` turns neighbours, for which the GGUF target reorders rows.
    first, second = ops.split(heads, 2, axis=-1)
    # The angles are worked out in float32 and only their cosines rounded: an angle of 2,000 has no digit behind the point in
    # half precision.
    cosines, sines = ops.cast(cosines, heads.dtype), ops.cast(sines, heads.dtype)
    return ops.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


@keras.saving.register_keras_serializable("smolite")
class CausalMask(keras.layers.Layer):
    """The additive attention mask of a batch of rows, laid out for the query groups, computed once for all blocks.

    Args:
        num_groups: queries per key/value head, G.
    """

    def __init__(self, num_groups: int = 1, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.num_groups = num_groups

    def call(self, tokens, segments=None):
        """(B, T) token ids and optional (B, T) segment numbers → (B or 1, 1, G·T, T): 0 where a token may look, else -3e4."""
        index = ops.arange(ops.shape(tokens)[1])
        visible = (index[:, None] >= index[None, :])[None]
        if segments is not None:
            visible = ops.logical_and(visible, segments[:, :, None] == segments[:, None, :])
        mask = ops.where(visible, 0.0, MASKED_SCORE)
        return repeat_for_groups(mask[:, None], self.num_groups)

    def get_config(self):
        return {**super().get_config(), "num_groups": self.num_groups}


def repeat_for_groups(mask, num_groups: int):
    """(…, T, S) mask → (…, G·T, S), the order in which `LightweightAttn` stacks the queries of a key/value head."""
    return mask if num_groups == 1 else ops.concatenate([mask] * num_groups, axis=-2)


@keras.saving.register_keras_serializable("smolite")
class LightweightAttn(keras.layers.Layer):
    """Causal self-attention with rotary positions and grouped queries (Vaswani et al. 2017; Ainslie et al. 2023).

    The queries that share a key head are stacked along the token axis, so keys and values are never repeated and both products
    are plain batched matrix products. Without a cache the new keys and values have the edge layout of `caches.py`.

    Args:
        num_query_heads: Q.
        num_key_value_heads: K, a divisor of Q.
        head_dim: H.
        use_bias: whether the four projections have one.
        dropout: share of the attention weights dropped while training.
    """

    def __init__(
        self,
        num_query_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        *,
        use_bias: bool = False,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_query_heads = num_query_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.use_bias = use_bias
        self.drop = keras.layers.Dropout(dropout, dtype="float32")
        self.query = self._projection(num_query_heads * head_dim, name="query")
        self.key = self._projection(num_key_value_heads * head_dim, name="key")
        self.value = self._projection(num_key_value_heads * head_dim, name="value")

    def _projection(self, width, *, name):
        return projection(width, name=name, use_bias=self.use_bias, dtype=self.dtype_policy)

    def build(self, hidden_shape):
        # Made here, for it is as wide as what comes in, which `__init__` is not told.
        self.output_projection = self._projection(hidden_shape[-1], name="output")
        for dense in (self.query, self.key, self.value):
            dense.build(hidden_shape)
        self.output_projection.build((*hidden_shape[:-1], self.num_query_heads * self.head_dim))

    def call(self, hidden, rotary, mask, cache=None, slot=None, training=None):
        """Attends from the new tokens to the cache, or to themselves where there is none.

        Args:
            hidden: (B, T, D).
            rotary: cosines and sines of the new tokens, from `RotaryEmbedding`; None where positions are learned.
            mask: additive, (B or 1, 1, G·T, S), from `CausalMask` or `repeat_for_groups`. One over fewer slots than the cache
                has looks at the first ones only.
            cache: keys and values of all slots, in either layout of `caches.py`.
            slot: scalar int, where in the cache the new keys and values go. It must hold that slot + T <= S.

        Returns:
            (B, T, D), and the updated cache (without one: the new keys and values in its layout).
        """
        heads = (*leading_axes(hidden), self.num_key_value_heads)
        query, key, value = project_together((self.query, self.key, self.value), hidden)
        query = ops.reshape(query, (*heads[:2], self.num_query_heads, self.head_dim))
        key = ops.reshape(key, (*heads, self.head_dim))
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        value = ops.reshape(value, (*heads, self.head_dim))
        cache = update_cache(cache, ops.transpose(key, (0, 2, 1, 3)), ops.transpose(value, (0, 2, 3, 1)), slot)
        # The queries are scaled, not the scores: T · H numbers a head instead of T · S.
        mixed = attend(query * self.head_dim**-0.5, *cache, mask, partial(self.drop, training=training))
        return project(self.output_projection, mixed), cache

    def compute_output_spec(self, hidden, rotary, mask, cache=None, slot=None, training=None):
        new = cache_shapes(hidden.shape[0], self.num_key_value_heads, hidden.shape[1], self.head_dim)
        shapes = new if cache is None else [part.shape for part in cache]
        parts = tuple(keras.KerasTensor(shape, dtype=self.compute_dtype) for shape in shapes)
        return keras.KerasTensor(hidden.shape, dtype=self.compute_dtype), parts

    def get_config(self):
        heads = {"num_query_heads": self.num_query_heads, "num_key_value_heads": self.num_key_value_heads}
        rest = {"head_dim": self.head_dim, "use_bias": self.use_bias, "dropout": self.drop.rate}
        return {**super().get_config(), **heads, **rest}


@keras.saving.register_keras_serializable("smolite")
class SwiGLU(keras.layers.Layer):
    """Gated feed-forward network, down(silu(gate(x)) · up(x)) (Shazeer 2020).

    Args:
        intermediate_dim: F, the width inside.
        use_bias: whether the three projections have one.
        output_dim: features of the output. Default: as many as come in.
    """

    def __init__(self, intermediate_dim: int, *, use_bias: bool = False, output_dim: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.use_bias = use_bias
        self.output_dim = output_dim
        self.gate = projection(intermediate_dim, name="gate", use_bias=use_bias, dtype=self.dtype_policy)
        self.up = projection(intermediate_dim, name="up", use_bias=use_bias, dtype=self.dtype_policy)

    def build(self, hidden_shape):
        width = self.output_dim or hidden_shape[-1]
        self.down = projection(width, name="down", use_bias=self.use_bias, dtype=self.dtype_policy)
        self.gate.build(hidden_shape)
        self.up.build(hidden_shape)
        self.down.build((*hidden_shape[:-1], self.intermediate_dim))

    def call(self, hidden):
        """(B, T, D) → (B, T, D)."""
        return project(self.down, ops.silu(project(self.gate, hidden)) * project(self.up, hidden))

    def compute_output_shape(self, hidden_shape):
        return (*hidden_shape[:-1], self.output_dim or hidden_shape[-1])

    def get_config(self):
        rest = {"use_bias": self.use_bias, "output_dim": self.output_dim}
        return {**super().get_config(), "intermediate_dim": self.intermediate_dim, **rest}


@keras.saving.register_keras_serializable("smolite")
class DecoderBlock(Rematerialized):
    """Pre-norm block: x + attention(norm(x)), then x + SwiGLU(norm(x)), as in Llama (Touvron et al. 2023).

    Args:
        num_query_heads, num_key_value_heads, head_dim: see `LightweightAttn`.
        intermediate_dim: see `SwiGLU`.
        norm_epsilon: added to the mean square in both norms.
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
        self.attention_norm = keras.layers.RMSNormalization(epsilon=norm_epsilon, name="attention_norm", dtype=policy)
        self.attention = LightweightAttn(num_query_heads, num_key_value_heads, head_dim, name="attention", dtype=policy)
        self.mlp_norm = keras.layers.RMSNormalization(epsilon=norm_epsilon, name="mlp_norm", dtype=policy)
        self.mlp = SwiGLU(intermediate_dim, name="mlp", dtype=policy)
        self.drop = keras.layers.Dropout(dropout, dtype=policy)

    def build(self, hidden_shape):
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            layer.build(hidden_shape)

    def call(self, hidden, rotary, mask, cache=None, slot=None, training=None):
        """(B, T, D) → (B, T, D) and the cache; arguments as in `LightweightAttn.call`."""
        mixed, cache = self.attention(self.attention_norm(hidden), rotary, mask, cache=cache, slot=slot)
        hidden = hidden + self.drop(mixed, training=training)
        return hidden + self.drop(self.mlp(self.mlp_norm(hidden)), training=training), cache

    def compute_output_spec(self, hidden, rotary, mask, cache=None, slot=None, training=None):
        return self.attention.compute_output_spec(hidden, rotary, mask, cache=cache, slot=slot)

    def get_config(self):
        heads = {key: getattr(self.attention, key) for key in ("num_query_heads", "num_key_value_heads", "head_dim")}
        rest = {"intermediate_dim": self.mlp.intermediate_dim, "norm_epsilon": self.attention_norm.epsilon}
        return {**super().get_config(), **heads, **rest, "dropout": self.drop.rate}
