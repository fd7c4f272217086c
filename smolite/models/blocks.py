"""The blocks that a `ModelConfig` can choose by its `form`.

Shapes use the legend at the top of `layers.py`.
"""

from typing import Any

import keras

from smolite.models.config import ModelConfig
from smolite.models.cross_attention import CrossBlock
from smolite.models.layers import DecoderBlock, LightweightAttn, SwiGLU
from smolite.models.projections import project, projection
from smolite.models.rematerialization import Rematerialized


@keras.saving.register_keras_serializable("smolite")
class Smolite1Block(Rematerialized):
    """The block of the first Smolite, with LayerNorm and biases.

    With n₁ … n₄ its norms: y = n₁(x), then y + attention(n₂(y)), then SwiGLU(adapter(n₃(·))), and x + n₄(·) comes out. The
    adapter is a GELU layer of D / 2 features.

    Args:
        num_query_heads, num_key_value_heads, head_dim: see `LightweightAttn`.
        intermediate_dim: see `SwiGLU`.
        norm_epsilon: added to the variance in all norms.
        dropout: share of the attention weights dropped while training.
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
        policy, heads = self.dtype_policy, (num_query_heads, num_key_value_heads, head_dim)
        self.norm_epsilon = norm_epsilon
        self.input_norm = self._norm("input_norm")
        self.attention_norm = self._norm("attention_norm")
        self.attention = LightweightAttn(*heads, use_bias=True, dropout=dropout, name="attention", dtype=policy)
        self.mlp_norm = self._norm("mlp_norm")
        self.output_norm = self._norm("output_norm")
        self.intermediate_dim = intermediate_dim

    def _norm(self, name):
        return keras.layers.LayerNormalization(epsilon=self.norm_epsilon, name=name, dtype=self.dtype_policy)

    def build(self, hidden_shape):
        width, policy = hidden_shape[-1], self.dtype_policy
        self.adapter = projection(width // 2, name="adapter", use_bias=True, activation="gelu", dtype=policy)
        self.mlp = SwiGLU(self.intermediate_dim, use_bias=True, output_dim=width, name="mlp", dtype=policy)
        norms = self.input_norm, self.attention_norm, self.mlp_norm, self.output_norm
        for layer in (*norms, self.attention, self.adapter):
            layer.build(hidden_shape)
        self.mlp.build((*hidden_shape[:-1], width // 2))

    def call(self, hidden, rotary, mask, cache=None, slot=None, training=None):
        """(B, T, D) → (B, T, D) and the cache; arguments as in `LightweightAttn.call`."""
        inner = self.input_norm(hidden)
        mixed, cache = self.attention(self.attention_norm(inner), rotary, mask, cache=cache, slot=slot, training=training)
        inner = self.mlp(project(self.adapter, self.mlp_norm(inner + mixed)))
        return hidden + self.output_norm(inner), cache

    def compute_output_spec(self, hidden, rotary, mask, cache=None, slot=None, training=None):
        return self.attention.compute_output_spec(hidden, rotary, mask, cache=cache, slot=slot)

    def get_config(self):
        attention = self.attention
        heads = {key: getattr(attention, key) for key in ("num_query_heads", "num_key_value_heads", "head_dim")}
        rest = {"intermediate_dim": self.intermediate_dim, "norm_epsilon": self.norm_epsilon}
        return {**super().get_config(), **heads, **rest, "dropout": attention.drop.rate}


_BLOCKS = {"llama": DecoderBlock, "smolite-1": Smolite1Block}


def block_of(config: ModelConfig, *, name: str, dtype: Any, reads_source: bool = False) -> keras.layers.Layer:
    """A block of the form that the config asks for, or one that reads a source as well."""
    kind = CrossBlock if reads_source else _BLOCKS[config.form]
    return kind(
        config.num_query_heads,
        config.num_key_value_heads,
        config.head_dim,
        intermediate_dim=config.intermediate_dim,
        norm_epsilon=config.norm_epsilon,
        dropout=config.dropout,
        name=name,
        dtype=dtype,
    )


@keras.saving.register_keras_serializable("smolite")
class PositionEmbedding(keras.layers.Layer):
    """Adds an embedding of each token's position, learnt with the model (Gehring et al. 2017).

    Args:
        context_length: positions in the table.
    """

    def __init__(self, context_length: int, **kwargs):
        super().__init__(**kwargs)
        self.context_length = context_length

    def build(self, hidden_shape):
        self.embeddings = self.add_weight(
            (self.context_length, hidden_shape[-1]), initializer=keras.initializers.RandomNormal(stddev=0.02), name="embeddings"
        )

    def call(self, hidden, positions=None):
        """(B, T, D) and, unless they count from 0, (B or 1, T) positions → (B, T, D)."""
        if positions is None:
            positions = keras.ops.arange(keras.ops.shape(hidden)[1], dtype="int32")[None]
        return hidden + keras.ops.take(self.embeddings, positions, axis=0)

    def compute_output_shape(self, hidden_shape, positions_shape=None):
        return hidden_shape

    def get_config(self):
        return {**super().get_config(), "context_length": self.context_length}
