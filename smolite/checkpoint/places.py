"""Where the weights of a model are: their names in Hugging Face's files, their shapes by the config, and the layers with them.

The shapes follow from the config alone, so what is written and what is read are held to the same list, whatever has become of
the layers of a model.
"""

from collections.abc import Sequence
from typing import Any

import keras

from smolite.models import CrossBlock, LanguageModel, ModelConfig, PositionEmbedding, Smolite1Block

Shape = tuple[int, ...]
Place = tuple[Any, str]  # a layer, and its variable's name

# What Hugging Face calls the variables of a layer. A layer of another kind has no place in a file.
_VARIABLES: dict[type, dict[str, str]] = {
    keras.layers.Dense: {"kernel": "weight", "bias": "bias"},
    keras.layers.Embedding: {"embeddings": "weight"},
    PositionEmbedding: {"embeddings": "weight"},
    keras.layers.RMSNormalization: {"scale": "weight"},
    keras.layers.LayerNormalization: {"gamma": "weight", "beta": "bias"},
}


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of every weight of a model under Hugging Face's name; a projection is (outputs, inputs)."""
    width = config.hidden_dim
    # The output projection is this table, so it has no name of its own.
    shapes: dict[str, Shape] = {"embed_tokens.weight": (config.vocab_size, width)}
    if config.positions == "learned":
        shapes["embed_positions.weight"] = (config.context_length, width)
    if config.embedding_norm:
        shapes |= {"embed_norm.weight": (width,), "embed_norm.bias": (width,)}
    if config.has_encoder:
        shapes |= _stack_shapes("encoder.", config, config.num_encoder_layers)
        shapes |= _stack_shapes("decoder.", config, config.num_layers, has_source=True)
    else:
        shapes |= _stack_shapes("", config, config.num_layers)
    return {f"model.{name}": shape for name, shape in shapes.items()}


def _stack_shapes(prefix: str, config: ModelConfig, num_layers: int, *, has_source: bool = False) -> dict[str, Shape]:
    """The shapes of some blocks and of the norm after them."""
    block = _block_shapes(config, has_source=has_source)
    shapes = {f"{prefix}layers.{number}.{name}": shape for number in range(num_layers) for name, shape in block.items()}
    # The first Smolite's blocks end in a norm each, and none follows the last of them.
    return shapes | ({f"{prefix}norm.weight": (config.hidden_dim,)} if config.form == "llama" else {})


def _block_shapes(config: ModelConfig, *, has_source: bool) -> dict[str, Shape]:
    width, inside, is_llama = config.hidden_dim, config.intermediate_dim, config.form == "llama"
    adapted = width if is_llama else width // 2  # what the first Smolite's adapter leaves to its feed-forward network
    matrices = _attention_shapes("self_attn", config)
    matrices |= {"mlp.gate_proj": (inside, adapted), "mlp.up_proj": (inside, adapted), "mlp.down_proj": (width, inside)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if has_source:
        matrices |= _attention_shapes("cross_attn", config)
        norms.append("cross_attn_layernorm")
    if not is_llama:
        matrices["adapter"] = (adapted, width)
        norms += ["input_norm", "output_norm"]
    shapes = matrices | dict.fromkeys(norms, (width,))
    biases = {} if is_llama else {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()} | biases


def _attention_shapes(name: str, config: ModelConfig) -> dict[str, Shape]:
    width, queries = config.hidden_dim, config.num_query_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, queries)}
    return {f"{name}.{projection}": shape for projection, shape in shapes.items()}


def places_of(model: LanguageModel) -> dict[str, Place]:
    """For each Hugging Face name the layer, and the name of its variable, that hold the weight."""
    layers = {
        "embed_tokens": model.token_embedding,
        "embed_positions": model.position_embedding,
        "embed_norm": model.embedding_norm,
    }
    # A decoder alone has Llama's names; beside an encoder each side has its own, as in transformers' other models.
    side = "decoder." if model.config.has_encoder else ""
    if model.config.has_encoder:
        layers |= _stack("encoder.", model.encoder_blocks, model.encoder_norm)
    layers |= _stack(side, model.blocks, model.final_norm)
    for number, memory in enumerate(model.memories):
        cross = f"{side}layers.{number}.cross_attn"
        layers |= {f"{cross}.k_proj": memory.key, f"{cross}.v_proj": memory.value}
    return {
        f"model.{name}.{suffix}": (layer, variable)
        for name, layer in layers.items()
        for variable, suffix in _named_variables(layer).items()
    }


def _named_variables(layer: Any) -> dict[str, str]:
    known = next((names for kind, names in _VARIABLES.items() if isinstance(layer, kind)), {})
    return {name: suffix for name, suffix in known.items() if name in variables_of(layer)}


def variables_of(layer: Any) -> dict[str, Any]:
    """The variables of a layer by their names, which stay what they are under LoRA and after `quantize`."""
    return {variable.name: variable for variable in layer.variables}


def _stack(prefix: str, blocks: Sequence[Any], norm: Any) -> dict[str, Any]:
    """The layers of some blocks and the norm after them."""
    named = enumerate(map(_layers_of, blocks))
    return {f"{prefix}layers.{number}.{name}": layer for number, layers in named for name, layer in layers.items()} | {
        f"{prefix}norm": norm
    }


def _layers_of(block: Any) -> dict[str, Any]:
    """The layers of a block under Hugging Face's names; what Llama has no name for keeps ours."""
    attention, mlp = block.attention, block.mlp
    layers = {
        "input_layernorm": block.attention_norm,
        "post_attention_layernorm": block.mlp_norm,
        "self_attn.q_proj": attention.query,
        "self_attn.k_proj": attention.key,
        "self_attn.v_proj": attention.value,
        "self_attn.o_proj": attention.output_projection,
        "mlp.gate_proj": mlp.gate,
        "mlp.up_proj": mlp.up,
        "mlp.down_proj": mlp.down,
    }
    if isinstance(block, Smolite1Block):
        layers |= {"input_norm": block.input_norm, "adapter": block.adapter, "output_norm": block.output_norm}
    if isinstance(block, CrossBlock):
        cross = block.cross_attention
        layers |= {"cross_attn_layernorm": block.cross_norm, "cross_attn.q_proj": cross.query}
        layers["cross_attn.o_proj"] = cross.output_projection
    return layers
