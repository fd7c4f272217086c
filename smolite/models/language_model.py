"""What every language model here has in common: its inputs, its embedding and head, its cache, and how it is saved.

Shapes use the legend at the top of `layers.py`; N stands for the tokens of a source.
"""

from abc import abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import keras
from keras import ops

from smolite.models.blocks import PositionEmbedding, block_of
from smolite.models.caches import cache_shapes
from smolite.models.config import ModelConfig
from smolite.models.cross_attention import CrossMemory
from smolite.models.layers import RotaryEmbedding, repeat_for_groups
from smolite.models.outward import sampling_of
from smolite.models.projections import table_initializer
from smolite.models.quantization import quantize_again, quantized_layers
from smolite.models.task import Task


@keras.saving.register_keras_serializable("smolite")
class TakePositions(keras.layers.Layer):
    """Keeps the hidden states at given positions, so that nothing is projected to the vocabulary in vain."""

    def call(self, hidden, positions=None):
        """(B, T, D) and (B, L) positions → (B, L, D); without positions, everything."""
        if positions is None:
            return hidden
        rows, length, width = ops.shape(hidden)[0], ops.shape(hidden)[1], hidden.shape[-1]
        # One flat gather: `take_along_axis` would repeat the positions for every feature.
        places = positions + length * ops.arange(rows, dtype="int32")[:, None]
        return ops.take(ops.reshape(hidden, (-1, width)), places, axis=0)

    def compute_output_shape(self, hidden_shape, positions_shape=None):
        return hidden_shape if positions_shape is None else (*positions_shape, hidden_shape[-1])

    def get_config(self):
        # Without this line Keras makes up a config of the arguments, and refuses it for the dtype policy among them.
        return super().get_config()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The layers of a model by name. What a model lacks is None or an empty list."""

    token_embedding: Any
    position_embedding: Any
    rotary: Any
    embedding_norm: Any
    embedding_dropout: Any
    blocks: list[Any]
    final_norm: Any
    encoder_blocks: list[Any] = field(default_factory=list)
    encoder_norm: Any = None
    memories: list[Any] = field(default_factory=list)

    def begin(self, hidden, positions, tokens):
        """Embedded tokens with what their positions add, and the rotary tables; `tokens` only says how many there are."""
        tables = self.rotary and self.rotary(tokens, positions)
        if self.position_embedding is not None:
            hidden = self.position_embedding(hidden, positions)
        if self.embedding_norm is not None:
            hidden = self.embedding_norm(hidden)
        return self.embedding_dropout(hidden), tables

    def encode(self, hidden, mask, positions, source):
        """Keys and values of an embedded source for each decoder block."""
        hidden, tables = self.begin(hidden, positions, source)
        for block in self.encoder_blocks:
            hidden, _ = block(hidden, tables, mask)
        encoded = self.encoder_norm(hidden)
        return [memory(encoded) for memory in self.memories]

    def decode(self, hidden, tables, mask, memory=None, source_mask=None, *, cache=None, slot=None):
        """The decoder blocks over tokens, with the memory of a source where there is one, and their caches."""
        new_cache = []
        for number, block in enumerate(self.blocks):
            read = () if memory is None else (memory[number], source_mask)
            layer_cache = None if cache is None else cache[number]
            hidden, layer_cache = block(hidden, tables, mask, *read, cache=layer_cache, slot=slot)
            new_cache.append(layer_cache)
        return hidden, new_cache

    def head(self, hidden):
        """(B, T, D) → float32 logits (B, T, V): final norm, where there is one, then the embedding as output projection."""
        return self.logits(hidden if self.final_norm is None else self.final_norm(hidden))

    def logits(self, hidden):
        """(B, T, D) after the final norm → float32 logits (B, T, V)."""
        return ops.cast(self.token_embedding(hidden, reverse=True), "float32")


def parts_of(config: ModelConfig, *, dtype: Any) -> Parts:
    """The layers that a config asks for, not built yet."""

    def norm(name):
        return keras.layers.RMSNormalization(epsilon=config.norm_epsilon, name=name, dtype=dtype)

    is_llama = config.form == "llama"
    table = {"embeddings_initializer": table_initializer(config.hidden_dim), "name": "token_embedding", "dtype": dtype}
    numbers = range(config.num_layers)
    encoder: dict[str, Any] = {}
    if config.has_encoder:
        heads = config.num_key_value_heads, config.head_dim
        blocks = [block_of(config, name=f"encoder_{i}", dtype=dtype) for i in range(config.num_encoder_layers)]
        memories = [CrossMemory(*heads, name=f"memory_{i}", dtype=dtype) for i in numbers]
        encoder = {"encoder_blocks": blocks, "encoder_norm": norm("encoder_norm"), "memories": memories}
    return Parts(
        token_embedding=keras.layers.ReversibleEmbedding(config.vocab_size, config.hidden_dim, **table),
        **_position_layers(config, dtype=dtype),
        blocks=[block_of(config, name=f"block_{i}", dtype=dtype, reads_source=config.has_encoder) for i in numbers],
        # The first Smolite drops attention weights alone, and each of its blocks ends in a norm.
        final_norm=norm("final_norm") if is_llama else None,
        # Last, because layers draw their seeds as they are made: so a seed gives the weights that it always gave.
        embedding_dropout=keras.layers.Dropout(config.dropout * is_llama, name="embedding_dropout", dtype=dtype),
        **encoder,
    )


def _position_layers(config: ModelConfig, *, dtype: Any) -> dict[str, Any]:
    """The table of learned positions, the rotary embedding, and the norm after the embedding; None for what there is not."""
    table, rotary, norm = None, None, None
    if config.positions == "learned":
        table = PositionEmbedding(config.context_length, name="position_embedding", dtype=dtype)
    else:
        scaling = config.to_dict()["rope_scaling"]
        rotary = RotaryEmbedding(config.head_dim, config.rope_theta, scaling=scaling, name="rotary")
    if config.embedding_norm:
        norm = keras.layers.LayerNormalization(epsilon=config.norm_epsilon, name="embedding_norm", dtype=dtype)
    return {"position_embedding": table, "rotary": rotary, "embedding_norm": norm}


class LanguageModel(Task):
    """A functional Keras model from a dictionary of token ids to logits of the next token, with tied embeddings.

    Derived classes say which inputs they take, which configs, and how tokens become hidden states.

    Args:
        config: a `ModelConfig`.
        dtype: a Keras dtype or policy, for example `"mixed_bfloat16"`.

    Raises:
        ValueError: the config is of another kind of model.
    """

    # Keras sorts a dictionary of inputs by name, so these are sorted, too.
    input_names: tuple[str, ...]
    needed_names: tuple[str, ...]

    def __init__(self, config: ModelConfig, *, dtype: Any = None, **kwargs: Any):
        self.check_config(config)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        num_groups = config.num_query_heads // config.num_key_value_heads
        parts = parts_of(config, dtype=policy)
        optional = set(self.input_names) - set(self.needed_names)
        inputs = {name: keras.Input((None,), dtype="int32", name=name, optional=name in optional) for name in self.input_names}
        hidden = self.hidden_states(parts, inputs, num_groups)
        hidden = TakePositions(name="take_positions", dtype=policy)(hidden, inputs["loss_at"])
        super().__init__(inputs=inputs, outputs=parts.head(hidden), **kwargs)
        self.dtype_policy = policy  # by which `compile` scales the loss of float16; Keras ignores `dtype` here
        self.input_spec = None  # `call` completes the inputs; Keras would count the missing ones as an error

        self.config, self.num_groups, self._parts = config, num_groups, parts
        self.token_embedding, self.blocks, self.final_norm = parts.token_embedding, parts.blocks, parts.final_norm
        self.position_embedding, self.rotary = parts.position_embedding, parts.rotary
        self.embedding_norm, self.encoder_norm = parts.embedding_norm, parts.encoder_norm
        self.encoder_blocks, self.memories = parts.encoder_blocks, parts.memories

    @staticmethod
    @abstractmethod
    def check_config(config: ModelConfig) -> None:
        """Refuses the configs of other kinds of models."""

    @staticmethod
    @abstractmethod
    def hidden_states(parts: Parts, inputs: dict[str, Any], num_groups: int) -> Any:
        """The inputs by name → hidden states (B, T, D) of the last block, before the final norm; the functional graph."""

    def call(self, inputs, training=None, mask=None):
        """Logits of the next token; see the class for inputs and output."""
        inputs = complete_inputs(inputs, self.input_names, self.needed_names)
        for name in self.needed_names:
            check_length(inputs[name].shape[1], self.config)
        return super().call(inputs, training=training)

    def compute_output_spec(self, inputs, training=None, mask=None):
        inputs = complete_inputs(inputs, self.input_names, self.needed_names)
        rows = inputs["tokens"] if inputs["loss_at"] is None else inputs["loss_at"]
        return keras.KerasTensor((*rows.shape, self.config.vocab_size), dtype="float32")

    def embed(self, tokens):
        """(B, T) token ids → (B, T, D), before anything is known of their positions."""
        return self.token_embedding(tokens)

    def head(self, hidden):
        """(B, T, D) → float32 logits (B, T, V): final norm, then the embedding table as output projection."""
        return self._parts.head(hidden)

    def empty_cache(self, batch_size: int, length: int | None = None, *, flat: bool = False) -> list[tuple[Any, Any]]:
        """Zeroed keys and values for every decoder block, in the compute dtype: (B, K, S, H) and (B, K, H, S).

        Args:
            batch_size: B.
            length: S. Default: the context length.
            flat: give the layout (B·K, H, S) and (B·K, S, H), over which a compiled step is faster.
        """
        slots, heads = length or self.config.context_length, self.config.num_key_value_heads
        keys, values = cache_shapes(batch_size, heads, slots, self.config.head_dim, flat=flat)
        dtype = self.token_embedding.compute_dtype
        return [(ops.zeros(keys, dtype), ops.zeros(values, dtype)) for _ in self.blocks]

    def cached_body(self, hidden, cache, memory=None, *, slot, mask, positions=None, source_mask=None):
        """The decoder blocks over new tokens and a cache: prefill for many tokens, decode for one.

        Args:
            hidden: (B, T, D), from `embed`.
            cache: from `empty_cache` or an earlier call.
            memory: of an encoder-decoder, from `encode`, or with each pair `flattened`.
            slot: scalar int, the first cache slot to write; slot + T must not pass S.
            mask: additive float32, (B or 1, 1, T, S): 0 where a new token may look, about -3e4 where not.
            positions: (B or 1, T) int. Default: slot, slot + 1, …
            source_mask: of an encoder-decoder, additive float32, (B or 1, 1, 1, N), as for `encode`.

        Returns:
            (B, T, D) before the final norm, and the new cache.
        """
        if positions is None:
            positions = (slot + ops.arange(hidden.shape[1], dtype="int32"))[None]
        hidden, tables = self._parts.begin(hidden, positions, positions)
        # One row of a mask serves all queries of a token as it is.
        mask = mask if hidden.shape[1] == 1 else repeat_for_groups(mask, self.num_groups)
        return self._parts.decode(hidden, tables, mask, memory, source_mask, cache=cache, slot=slot)

    def cached_forward(self, tokens, cache, memory=None, **places):
        """Logits (B, T, V) of new tokens that also see the cache, and the new cache; arguments as in `cached_body`."""
        hidden, cache = self.cached_body(self.embed(tokens), cache, memory, **places)
        return self.head(hidden), cache

    @cached_property
    def backbone(self) -> keras.Model:
        """Token ids (B, T) → hidden states (B, T, D) after the final norm, of the same layers; a head can be put on top of it.

        Padding on the right changes no hidden state of real tokens. The backbone of an encoder-decoder takes a dictionary of
        `source` and `tokens`.
        """
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in self.needed_names}
        hidden = self.hidden_states(self._parts, {**dict.fromkeys(self.input_names), **inputs}, self.num_groups)
        hidden = hidden if self.final_norm is None else self.final_norm(hidden)
        return keras.Model(inputs if len(inputs) > 1 else inputs["tokens"], hidden, name="backbone")

    @property
    def input(self) -> Any:
        """The input of `backbone`, the tokens alone, so that `keras.Model(model.input, …)` needs nothing else."""
        return self.backbone.input

    @cached_property
    def output(self) -> Any:
        """The logits (B, T, V) of `input`."""
        return self._parts.logits(self.backbone.output)

    def get_config(self):
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        config = {"config": self.config.to_dict(), "dtype": policy, "name": self.name}
        if quantized := quantized_layers(self):
            config["quantized_layers"] = quantized
        # Not in the settings of `compile`, which Keras hands on to clones, models that have no sampler.
        return config | {"sampler": asdict(self.sampler)} if self.sampler is not None else config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        dtype = keras.dtype_policies.deserialize(config["dtype"])
        model = cls(ModelConfig.from_dict(config["config"]), dtype=dtype, name=config["name"])
        quantize_again(model, config.get("quantized_layers", {}))
        model.sampler = sampling_of(config["sampler"]) if "sampler" in config else None
        return model

    def _run_through_graph(self, inputs, *args, **kwargs):
        """Keras' own; of `input` alone, as `keras.models.clone_model` asks it, the graph from there to `output`."""
        whole = len(keras.tree.flatten(inputs)) == len(self.input_names)
        graph = super() if whole else keras.Model(self.input, self.output)
        return graph._run_through_graph(inputs, *args, **kwargs)


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
