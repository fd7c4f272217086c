"""The causal language model: a functional Keras model with tied embeddings and one cached forward.

Shapes use the legend at the top of `layers.py`.
"""

from typing import Any

import keras
from keras import ops

from smolite.models.blocks import PositionEmbedding, block_of
from smolite.models.caches import cache_shapes
from smolite.models.config import ModelConfig
from smolite.models.layers import CausalMask, RotaryEmbedding, repeat_for_groups
from smolite.models.projections import table_initializer
from smolite.models.task import Task

INPUT_NAMES = ("loss_at", "positions", "segments", "tokens")


@keras.saving.register_keras_serializable("smolite")
class TakePositions(keras.layers.Layer):
    """Keeps the hidden states at given positions, so that nothing is projected to the vocabulary in vain."""

    def call(self, hidden, positions=None):
        """(B, T, D) and (B, L) positions → (B, L, D); without positions, everything."""
        if positions is None:
            return hidden
        rows, length, width = ops.shape(hidden)[0], ops.shape(hidden)[1], hidden.shape[-1]
        places = positions + length * ops.arange(rows, dtype="int32")[:, None]
        return ops.take(ops.reshape(hidden, (-1, width)), places, axis=0)

    def compute_output_shape(self, hidden_shape, positions_shape=None):
        return hidden_shape if positions_shape is None else (*positions_shape, hidden_shape[-1])


@keras.saving.register_keras_serializable("smolite")
class CausalLM(Task):
    """A causal language model: a Llama, or of another form that its config chooses.

    The functional graph takes a dictionary; only `"tokens"` is required, and a bare array of token ids works too.

    * `tokens`: (B, T) int32.
    * `positions`: (B, T) int32, for rows that hold several texts; counts from 0 in every row otherwise.
    * `segments`: (B, T) int32; a token attends only to tokens of its own number, so texts packed in a row stay apart.
    * `loss_at`: (B, L) int32; the output then has logits of these positions only.

    Output: float32 logits of the next token, (B, T, V), or (B, L, V) with `loss_at`. Padding on the right never changes the
    logits of real tokens, because attention is causal.

    Args:
        config: a `ModelConfig` without encoder layers.
        dtype: a Keras dtype or policy, for example `"mixed_bfloat16"`.

    Example:

    >>> model = CausalLM(ModelConfig.from_preset("smolite-small"))
    >>> tuple(model(np.array([[5, 6, 7]])).shape)
    (1, 3, 8192)
    """

    def __init__(self, config: ModelConfig, *, dtype: Any = None, **kwargs: Any):
        _check_no_encoder(config)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        num_groups = config.num_query_heads // config.num_key_value_heads
        token_embedding = keras.layers.ReversibleEmbedding(
            config.vocab_size,
            config.hidden_dim,
            embeddings_initializer=table_initializer(config.hidden_dim),
            name="token_embedding",
            dtype=policy,
        )
        position_embedding, rotary, embedding_norm = position_layers(config, dtype=policy)
        blocks = [block_of(config, name=f"block_{i}", dtype=policy) for i in range(config.num_layers)]
        final_norm = None  # where each block ends in a norm
        if config.form == "llama":
            final_norm = keras.layers.RMSNormalization(epsilon=config.norm_epsilon, name="final_norm", dtype=policy)

        inputs = {name: keras.Input((None,), dtype="int32", name=name, optional=name != "tokens") for name in INPUT_NAMES}
        tables = rotary and rotary(inputs["tokens"], inputs["positions"])
        mask = CausalMask(num_groups, name="causal_mask")(inputs["tokens"], inputs["segments"])
        hidden = with_positions(token_embedding(inputs["tokens"]), inputs["positions"], position_embedding, embedding_norm)
        dropout = config.dropout if config.form == "llama" else 0.0
        hidden = keras.layers.Dropout(dropout, name="embedding_dropout", dtype=policy)(hidden)
        for block in blocks:
            hidden, _ = block(hidden, tables, mask)
        hidden = TakePositions(name="take_positions", dtype=policy)(hidden, inputs["loss_at"])
        super().__init__(inputs=inputs, outputs=tied_logits(hidden, final_norm, token_embedding), **kwargs)
        self.dtype_policy = policy  # by which `compile` scales the loss of float16; Keras ignores `dtype` here

        self.config = config
        self.num_groups = num_groups
        self.token_embedding, self.blocks, self.final_norm = token_embedding, blocks, final_norm
        self.position_embedding, self.rotary, self.embedding_norm = position_embedding, rotary, embedding_norm
        self.input_spec = None  # `call` completes the inputs; Keras would count the missing ones as an error

    def call(self, inputs, training=None, mask=None):
        """Logits of the next token; see the class for inputs and output."""
        inputs = complete_inputs(inputs, INPUT_NAMES)
        check_length(inputs["tokens"].shape[1], self.config)
        return super().call(inputs, training=training)

    def compute_output_spec(self, inputs, training=None, mask=None):
        inputs = complete_inputs(inputs, INPUT_NAMES)
        rows = inputs["tokens"] if inputs["loss_at"] is None else inputs["loss_at"]
        return keras.KerasTensor((*rows.shape, self.config.vocab_size), dtype="float32")

    def embed(self, tokens):
        """(B, T) token ids → (B, T, D), before anything is known of their positions."""
        return self.token_embedding(tokens)

    def head(self, hidden):
        """(B, T, D) → float32 logits (B, T, V): final norm, then the embedding table as output projection."""
        return tied_logits(hidden, self.final_norm, self.token_embedding)

    def empty_cache(self, batch_size: int, length: int | None = None, *, flat: bool = False) -> list[tuple[Any, Any]]:
        """Zeroed keys and values for every layer, in the compute dtype: (B, K, S, H) and (B, K, H, S).

        Args:
            batch_size: B.
            length: S. Default: the context length.
            flat: give the layout (B·K, H, S) and (B·K, S, H), over which a compiled step is faster.
        """
        slots, heads = length or self.config.context_length, self.config.num_key_value_heads
        keys, values = cache_shapes(batch_size, heads, slots, self.config.head_dim, flat=flat)
        dtype = self.token_embedding.compute_dtype
        return [(ops.zeros(keys, dtype), ops.zeros(values, dtype)) for _ in self.blocks]

    def cached_body(self, hidden, cache, *, slot, mask, positions=None):
        """The blocks over new tokens and a cache: prefill for many tokens, decode for one.

        Args:
            hidden: (B, T, D), from `embed`.
            cache: from `empty_cache` or an earlier call.
            slot: scalar int, the first cache slot to write; slot + T must not pass S.
            mask: additive float32, (B or 1, 1, T, S): 0 where a new token may look, about -3e4 where not.
            positions: (B or 1, T) int. Default: slot, slot + 1, …

        Returns:
            (B, T, D) before the final norm, and the new cache.
        """
        length = hidden.shape[1]
        if positions is None:
            positions = (slot + ops.arange(length, dtype="int32"))[None]
        hidden = with_positions(hidden, positions, self.position_embedding, self.embedding_norm)
        rotary = self.rotary and self.rotary(positions, positions)
        mask = mask if length == 1 else repeat_for_groups(mask, self.num_groups)
        new_cache = []
        for block, layer_cache in zip(self.blocks, cache, strict=True):
            hidden, layer_cache = block(hidden, rotary, mask, cache=layer_cache, slot=slot)
            new_cache.append(layer_cache)
        return hidden, new_cache

    def cached_forward(self, tokens, cache, *, slot, mask, positions=None):
        """Logits (B, T, V) of new tokens that also see the cache, and the new cache; arguments as in `cached_body`."""
        hidden, cache = self.cached_body(self.embed(tokens), cache, slot=slot, mask=mask, positions=positions)
        return self.head(hidden), cache

    def get_config(self):
        policy = keras.dtype_policies.serialize(self.token_embedding.dtype_policy)
        return {"config": self.config.to_dict(), "dtype": policy, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        dtype = keras.dtype_policies.deserialize(config["dtype"])
        return cls(ModelConfig.from_dict(config["config"]), dtype=dtype, name=config["name"])


def position_layers(config: ModelConfig, *, dtype: Any) -> tuple[Any, Any, Any]:
    """The table of learned positions, the rotary embedding, and the norm after the embedding; None for what there is not."""
    table, rotary, norm = None, None, None
    if config.positions == "learned":
        table = PositionEmbedding(config.context_length, name="position_embedding", dtype=dtype)
    else:
        scaling = config.to_dict()["rope_scaling"]
        rotary = RotaryEmbedding(config.head_dim, config.rope_theta, scaling=scaling, name="rotary")
    if config.embedding_norm:
        norm = keras.layers.LayerNormalization(epsilon=config.norm_epsilon, name="embedding_norm", dtype=dtype)
    return table, rotary, norm


def check_length(length: int | None, config: ModelConfig) -> None:
    """Refuses rows longer than a table of learned positions.

    Raises:
        ValueError: `length`, where it is known, is more than `context_length`.
    """
    if config.positions == "learned" and length is not None and length > config.context_length:
        raise ValueError(
            f"With learned positions, rows must have at most {config.context_length} tokens, the `context_length`. Received: "
            f"{length}. Shorten them, or train a model of a longer context."
        )


def _check_no_encoder(config: ModelConfig) -> None:
    if config.num_encoder_layers:
        raise ValueError(
            f"A `CausalLM` has no encoder. Received: a config with {config.num_encoder_layers} encoder layers. Build a "
            "`Seq2SeqLM` of it, or set `num_encoder_layers` to 0."
        )


def with_positions(hidden, positions, position_embedding, embedding_norm):
    """Token embeddings with what their positions add, normalized where the config says so."""
    if position_embedding is not None:
        hidden = position_embedding(hidden, positions)
    return hidden if embedding_norm is None else embedding_norm(hidden)


def tied_logits(hidden, final_norm, token_embedding):
    """(B, T, D) → float32 logits (B, T, V): final norm, where there is one, then the embedding table as output projection."""
    hidden = hidden if final_norm is None else final_norm(hidden)
    return ops.cast(token_embedding(hidden, reverse=True), "float32")


def complete_inputs(inputs, names, needed=("tokens",)):
    """The inputs of a model by name, with `None` for what was not given. A bare array is the tokens, where that is enough.

    Raises:
        ValueError: a name is unknown, or one that is needed is missing.
    """
    if not isinstance(inputs, dict) and len(needed) == 1:
        return {**dict.fromkeys(names), needed[0]: inputs}
    given = inputs if isinstance(inputs, dict) else {}
    unknown = sorted(set(given) - set(names))
    if unknown or any(given.get(name) is None for name in needed):
        needs, others = " and ".join(f'"{name}"' for name in needed), [name for name in names if name not in needed]
        raise ValueError(
            f"The model takes a dictionary with {needs} and optionally {', '.join(others)}. "
            f"Received keys: {', '.join(map(str, given)) or 'none'}. Leave out: {', '.join(unknown) or 'nothing'}."
        )
    return {name: given.get(name) for name in names}
