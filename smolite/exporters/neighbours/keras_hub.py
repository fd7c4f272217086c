"""Our models as keras-hub's Llama and back, for those who want its tasks. The weights are copied; nothing is written."""

from typing import Any

from smolite.checkpoint import Run, assign_weights, model_weights
from smolite.models import CausalLM, ModelConfig, RopeScaling
from smolite.text import Tokenizer

_LAYERS = {
    "self_attention_layernorm": "input_layernorm",
    "self_attention/query": "self_attn.q_proj",
    "self_attention/key": "self_attn.k_proj",
    "self_attention/value": "self_attn.v_proj",
    "self_attention/attention_output": "self_attn.o_proj",
    "feedforward_layernorm": "post_attention_layernorm",
    "feedforward_gate_dense": "mlp.gate_proj",
    "feedforward_intermediate_dense": "mlp.up_proj",
    "feedforward_output_dense": "mlp.down_proj",
}
_SCALING = {
    "factor": "rope_frequency_adjustment_factor",
    "low_frequency_factor": "rope_low_freq_factor",
    "high_frequency_factor": "rope_high_freq_factor",
    "original_context_length": "rope_pretraining_sequence_length",
}
_PIECES = {"<start>": "<s>", "<end>": "</s>"}  # what keras-hub's Llama tokenizer asks for


def to_keras_hub(run: Run | CausalLM) -> Any:
    """Returns a keras-hub `LlamaCausalLM` with the same weights and logits.

    Args:
        run: a run, whose tokenizer then becomes its preprocessor; or a model, for one without.

    Raises:
        ImportError: keras-hub is not installed.
        ValueError: the model is no Llama, or its heads are not as wide as `hidden_dim / num_query_heads`, as keras-hub's
            always are.
    """
    keras_hub = library()
    model = run if isinstance(run, CausalLM) else run.model
    backbone = empty_backbone(model.config)
    weights = model_weights(model)
    for weight in backbone.weights:
        tensor = weights[_hf_name(weight.path)]
        # keras-hub's projections have an axis of heads; ours are matrices over the same numbers in the same order.
        weight.assign(tensor.T.reshape(weight.shape) if weight.path.endswith("kernel") else tensor)
    preprocessor = None if isinstance(run, CausalLM) else preprocessor_of(run.tokenizer, length=model.config.context_length)
    return keras_hub.models.LlamaCausalLM(backbone, preprocessor=preprocessor)


def from_keras_hub(model: Any, *, context_length: int = 2048) -> CausalLM:
    """Returns our model with the weights of a keras-hub Llama.

    Args:
        model: a `LlamaCausalLM` or `LlamaBackbone`, with a tied embedding.
        context_length: the most tokens it is meant for; keras-hub does not record it.

    Raises:
        ValueError: the embedding is not tied, or positions are scaled in another way than Llama 3.1's.
    """
    backbone = getattr(model, "backbone", model)
    fields = backbone.get_config()  # in which keras-hub leaves out whether the embedding is tied
    stretched = {ours: fields[theirs] for ours, theirs in _SCALING.items() if fields[theirs] is not None}
    problems = [f"{name}={fields[name]}" for name in ("rope_position_scaling_factor",) if fields[name] != 1]
    if stretched and len(stretched) < len(_SCALING):
        problems.append(f"of Llama 3.1's scaling only {', '.join(stretched)}")
    if not backbone.token_embedding.tie_weights:
        problems.append("tie_word_embeddings=False")
    if problems:
        raise ValueError(
            "A keras-hub Llama with a tied embedding, and positions plain or as Llama 3.1's, was expected. Received: "
            f"{', '.join(problems)}. Choose another model."
        )
    names = "num_layers num_query_heads num_key_value_heads hidden_dim intermediate_dim dropout".split()
    config = ModelConfig(
        vocab_size=fields["vocabulary_size"],
        context_length=context_length,
        rope_theta=fields["rope_max_wavelength"],
        norm_epsilon=fields["layer_norm_epsilon"],
        rope_scaling=RopeScaling(**stretched) if stretched else None,
        **{name: fields[name] for name in names},
    )
    ours = CausalLM(config)
    assign_weights(ours, {_hf_name(weight.path): _hf_layout(weight, config) for weight in backbone.weights})
    return ours


def empty_backbone(config: ModelConfig) -> Any:
    """keras-hub's Llama of the same shape, with random weights.

    Raises:
        ImportError: keras-hub is not installed.
        ValueError: the model is no Llama, or its heads are not as wide as `hidden_dim / num_query_heads`.
    """
    config.check_llama("keras-hub's Llama")
    if config.head_dim * config.num_query_heads != config.hidden_dim:
        raise ValueError(
            "`head_dim` must be `hidden_dim // num_query_heads` for keras-hub. "
            f"Received: {config.head_dim}, {config.hidden_dim} and {config.num_query_heads}. Choose another run."
        )
    backbone = library().models.LlamaBackbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_layers,
        num_query_heads=config.num_query_heads,
        num_key_value_heads=config.num_key_value_heads,
        hidden_dim=config.hidden_dim,
        intermediate_dim=config.intermediate_dim,
        rope_max_wavelength=config.rope_theta,
        layer_norm_epsilon=config.norm_epsilon,
        tie_word_embeddings=True,
        dropout=config.dropout,
        **({theirs: getattr(config.rope_scaling, ours) for ours, theirs in _SCALING.items()} if config.rope_scaling else {}),
    )
    plain_config = backbone.get_config
    # keras-hub leaves this out, and could not open what it saves.
    backbone.get_config = lambda: {**plain_config(), "tie_word_embeddings": True}
    return backbone


def preprocessor_of(tokenizer: Tokenizer, *, length: int) -> Any:
    """keras-hub's Llama preprocessor for texts of `length` tokens, on a tokenizer of ours.

    keras-hub asks for pieces called `<s>` and `</s>`; this copy has them for `<start>` and `<end>`. Texts get the
    same ids, with `<start>` before and `<end>` after them, as keras-hub puts them.
    """
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto.FromString(tokenizer.guarded_proto)
    for piece in proto.pieces:
        piece.piece = _PIECES.get(piece.piece, piece.piece)
    proto.trainer_spec.bos_piece, proto.trainer_spec.eos_piece = _PIECES.values()
    keras_hub = library()
    theirs = keras_hub.tokenizers.LlamaTokenizer(proto.SerializeToString())
    return keras_hub.models.LlamaCausalLMPreprocessor(theirs, sequence_length=length)


def tokenizer_of(model: Any) -> Tokenizer | None:
    """Our tokenizer for the ids of a keras-hub Llama; None where the model has no preprocessor.

    Pieces `<s>` and `</s>` are called `<start>` and `<end>` again where the tokenizer has our other markers.
    """
    from sentencepiece import sentencepiece_model_pb2

    if getattr(model, "preprocessor", None) is None:
        return None
    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto.FromString(model.preprocessor.tokenizer.proto)
    if {"<sep>", "<pad>"} <= {piece.piece for piece in proto.pieces}:
        ours = {theirs: name for name, theirs in _PIECES.items()}
        for piece in proto.pieces:
            piece.piece = ours.get(piece.piece, piece.piece)
        proto.trainer_spec.bos_piece, proto.trainer_spec.eos_piece = _PIECES
    return Tokenizer(proto.SerializeToString())


def _hf_name(path: str) -> str:
    """`transformer_layer_2/self_attention/query/kernel` → `model.layers.2.self_attn.q_proj.weight`."""
    first, *layer, _ = path.split("/")
    if first == "token_embedding":
        return "model.embed_tokens.weight"
    if first == "sequence_output_layernorm":
        return "model.norm.weight"
    return f"model.layers.{first.removeprefix('transformer_layer_')}.{_LAYERS['/'.join(layer)]}.weight"


def _hf_layout(weight: Any, config: ModelConfig) -> Any:
    """A keras-hub weight as an array in Hugging Face's layout: a projection is (outputs, inputs)."""
    import keras

    array = keras.ops.convert_to_numpy(weight)
    if not weight.path.endswith("kernel"):
        return array
    inputs = config.intermediate_dim if "feedforward_output" in weight.path else config.hidden_dim
    return array.reshape(inputs, -1).T


def library() -> Any:
    """The package keras-hub.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError("This needs keras-hub. Run: pip install keras-hub") from error
    return keras_hub
