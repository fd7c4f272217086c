"""The encoder-decoder language model: a bidirectional encoder of a source, and a decoder that writes a target.

Shapes use the legend at the top of `layers.py`; N stands for the tokens of the source.
"""

from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from smolite.models.blocks import block_of
from smolite.models.causal_lm import (
    CausalLM,
    TakePositions,
    check_length,
    complete_inputs,
    position_layers,
    tied_logits,
    with_positions,
)
from smolite.models.config import ModelConfig
from smolite.models.cross_attention import CrossBlock, CrossMemory, SourceMask
from smolite.models.layers import CausalMask, repeat_for_groups
from smolite.models.projections import table_initializer
from smolite.models.task import Task

NEEDED_NAMES = ("source", "tokens")
INPUT_NAMES = ("loss_at", "positions", "segments", "source", "source_positions", "source_segments", "tokens")


@keras.saving.register_keras_serializable("smolite")
class Seq2SeqLM(Task):
    """An encoder-decoder language model, made of the same layers as `CausalLM`.

    Source and target share the embedding, which is the output projection too, and what their positions add to it. The encoder's
    blocks are `DecoderBlock`s that look both ways; the decoder's look back at the target and everywhere at the source.

    The functional graph takes a dictionary; `"source"` and `"tokens"` are required.

    * `source`: (B, N) int32.
    * `tokens`: (B, T) int32, the target so far.
    * `source_positions`, `positions`: (B, N) and (B, T) int32, for rows that hold several texts; they count from 0 otherwise.
    * `source_segments`, `segments`: (B, N) and (B, T) int32, 1 everywhere if not given. A token sees only tokens of its own
      number, in source and target, so pairs packed in a row stay apart, and padding has the number 0.
    * `loss_at`: (B, L) int32; the output then has logits of these places of the target only.

    Output: float32 logits of the target's next token, (B, T, V), or (B, L, V) with `loss_at`.

    Args:
        config: a `ModelConfig` with encoder layers.
        dtype: a Keras dtype or policy, for example `"mixed_bfloat16"`.

    Raises:
        ValueError: the config has no encoder layers.

    Example:

    >>> pairs = Seq2SeqLM(ModelConfig.from_preset("smolite-small", num_layers=1, num_encoder_layers=1))
    >>> tuple(pairs({"source": np.array([[5, 6, 7]]), "tokens": np.array([[2, 8]])}).shape)
    (1, 2, 8192)
    """

    def __init__(self, config: ModelConfig, *, dtype: Any = None, **kwargs: Any):
        _check_encoder(config)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        num_groups = config.num_query_heads // config.num_key_value_heads
        parts = _parts(config, policy)
        optional = set(INPUT_NAMES) - set(NEEDED_NAMES)
        inputs = {name: keras.Input((None,), dtype="int32", name=name, optional=name in optional) for name in INPUT_NAMES}
        source, tokens, segments = inputs["source"], inputs["tokens"], inputs["source_segments"]
        look = SourceMask(num_groups, name="source_mask")

        hidden, mask = parts.token_embedding(source), look(source, source, segments, segments)
        memory = _encode(parts, hidden, mask, inputs["source_positions"], source)
        hidden, mask = parts.token_embedding(tokens), CausalMask(num_groups, name="causal_mask")(tokens, inputs["segments"])
        masks = mask, look(tokens, source, inputs["segments"], segments)
        hidden, tables = _begin(parts, hidden, inputs["positions"], tokens)
        hidden, _ = _decode(parts, hidden, tables, masks, memory)
        hidden = TakePositions(name="take_positions", dtype=policy)(hidden, inputs["loss_at"])
        outputs = tied_logits(hidden, parts.final_norm, parts.token_embedding)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.dtype_policy = policy  # as in `CausalLM`

        self.config, self.num_groups, self._parts = config, num_groups, parts
        self.token_embedding, self.final_norm = parts.token_embedding, parts.final_norm
        self.position_embedding, self.embedding_norm = parts.position_embedding, parts.embedding_norm
        self.encoder_blocks, self.encoder_norm = parts.encoder_blocks, parts.encoder_norm
        self.memories, self.blocks = parts.memories, parts.blocks
        self.input_spec = None  # `call` completes the inputs; Keras would count the missing ones as an error

    def call(self, inputs, training=None, mask=None):
        """Logits of the target's next token; see the class for inputs and output."""
        inputs = complete_inputs(inputs, INPUT_NAMES, NEEDED_NAMES)
        for name in NEEDED_NAMES:
            check_length(inputs[name].shape[1], self.config)
        return super().call(inputs, training=training)

    def compute_output_spec(self, inputs, training=None, mask=None):
        inputs = complete_inputs(inputs, INPUT_NAMES, NEEDED_NAMES)
        rows = inputs["tokens"] if inputs["loss_at"] is None else inputs["loss_at"]
        return keras.KerasTensor((*rows.shape, self.config.vocab_size), dtype="float32")

    def embed(self, tokens):
        """(B, T) token ids of a source or a target → (B, T, D), before anything is known of their positions."""
        return self.token_embedding(tokens)

    def head(self, hidden):
        """(B, T, D) → float32 logits (B, T, V): final norm, then the embedding table as output projection."""
        return tied_logits(hidden, self.final_norm, self.token_embedding)

    def encode(self, hidden, *, mask):
        """Reads a source, once for all tokens of its target.

        Args:
            hidden: (B, N, D), from `embed`. Padding stands on the right.
            mask: additive float32, (B or 1, 1, 1, N): 0 for tokens, about -3e4 for padding.

        Returns:
            For each decoder block keys (B, K, N, H) and values (B, K, H, N), for `cached_body`.
        """
        positions = ops.arange(hidden.shape[1], dtype="int32")[None]
        return _encode(self._parts, hidden, mask, positions, positions)

    def empty_cache(self, batch_size: int, length: int | None = None, *, flat: bool = False) -> list[tuple[Any, Any]]:
        """Zeroed keys and values of the target for every decoder block, see `CausalLM.empty_cache`."""
        return CausalLM.empty_cache(self, batch_size, length, flat=flat)

    def cached_body(self, hidden, cache, memory, *, slot, mask, source_mask):
        """The decoder over new tokens of the target, those before in the cache, and the source.

        Args:
            hidden: (B, T, D), from `embed`.
            cache: from `empty_cache` or an earlier call.
            memory: from `encode`, or with each pair `flattened`.
            slot: scalar int, the first cache slot to write and the position of the first new token; slot + T must not pass S.
            mask: additive float32, (B or 1, 1, T, S): 0 where a new token may look in the target, about -3e4 where not.
            source_mask: additive float32, (B or 1, 1, 1, N), as for `encode`.

        Returns:
            (B, T, D) before the final norm, and the new cache.
        """
        positions = (slot + ops.arange(hidden.shape[1], dtype="int32"))[None]
        hidden, tables = _begin(self._parts, hidden, positions, positions)
        mask = mask if positions.shape[1] == 1 else repeat_for_groups(mask, self.num_groups)
        return _decode(self._parts, hidden, tables, (mask, source_mask), memory, cache=cache, slot=slot)

    def cached_forward(self, tokens, cache, memory, *, slot, mask, source_mask):
        """Logits (B, T, V) of new tokens of the target, and the new cache; arguments as in `cached_body`."""
        places = {"slot": slot, "mask": mask, "source_mask": source_mask}
        hidden, cache = self.cached_body(self.embed(tokens), cache, memory, **places)
        return self.head(hidden), cache

    def get_config(self):
        policy = keras.dtype_policies.serialize(self.token_embedding.dtype_policy)
        return {"config": self.config.to_dict(), "dtype": policy, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        dtype = keras.dtype_policies.deserialize(config["dtype"])
        return cls(ModelConfig.from_dict(config["config"]), dtype=dtype, name=config["name"])


LanguageModel = CausalLM | Seq2SeqLM


def new_language_model(config: ModelConfig, *, dtype: Any = None) -> LanguageModel:
    """A model with random weights: a `Seq2SeqLM` where the config has encoder layers, else a `CausalLM`."""
    return (Seq2SeqLM if config.num_encoder_layers else CausalLM)(config, dtype=dtype)


def _check_encoder(config: ModelConfig) -> None:
    if not config.num_encoder_layers:
        raise ValueError(
            "A `Seq2SeqLM` needs an encoder. Received: a config with `num_encoder_layers` 0. Set it to 1 or more, or build a "
            "`CausalLM`."
        )


def _parts(config: ModelConfig, dtype: Any) -> SimpleNamespace:
    """The layers of a model, by name."""
    heads = config.num_query_heads, config.num_key_value_heads, config.head_dim
    sizes = {name: getattr(config, name) for name in ("intermediate_dim", "norm_epsilon", "dropout")}

    def norm(name):
        return keras.layers.RMSNormalization(epsilon=config.norm_epsilon, name=name, dtype=dtype)

    table = {"embeddings_initializer": table_initializer(config.hidden_dim), "name": "token_embedding", "dtype": dtype}
    positions, rotary, embedding_norm = position_layers(config, dtype=dtype)
    numbers = range(config.num_layers)
    return SimpleNamespace(
        token_embedding=keras.layers.ReversibleEmbedding(config.vocab_size, config.hidden_dim, **table),
        position_embedding=positions,
        rotary=rotary,
        embedding_norm=embedding_norm,
        drop=keras.layers.Dropout(config.dropout, name="embedding_dropout", dtype=dtype),
        encoder_blocks=[block_of(config, name=f"encoder_{i}", dtype=dtype) for i in range(config.num_encoder_layers)],
        encoder_norm=norm("encoder_norm"),
        memories=[CrossMemory(*heads[1:], name=f"memory_{i}", dtype=dtype) for i in numbers],
        blocks=[CrossBlock(*heads, **sizes, name=f"block_{i}", dtype=dtype) for i in numbers],
        final_norm=norm("final_norm"),
    )


def _begin(parts, hidden, positions, tokens):
    """Embedded tokens with their positions, and the rotary tables; `tokens` only says how many there are."""
    tables = parts.rotary and parts.rotary(tokens, positions)
    return parts.drop(with_positions(hidden, positions, parts.position_embedding, parts.embedding_norm)), tables


def _encode(parts, hidden, mask, positions, source):
    """Keys and values of an embedded source for each decoder block."""
    hidden, tables = _begin(parts, hidden, positions, source)
    for block in parts.encoder_blocks:
        hidden, _ = block(hidden, tables, mask)
    encoded = parts.encoder_norm(hidden)
    return [memory(encoded) for memory in parts.memories]


def _decode(parts, hidden, tables, masks, memory, *, cache=None, slot=None):
    """The decoder blocks over tokens of a target, and their caches."""
    new_cache = []
    for number, block in enumerate(parts.blocks):
        layer_cache = None if cache is None else cache[number]
        hidden, layer_cache = block(hidden, tables, masks[0], memory[number], masks[1], cache=layer_cache, slot=slot)
        new_cache.append(layer_cache)
    return hidden, new_cache
