"""The referee of the encoder-decoder: its forward pass in plain numpy, one pair at a time, one head after the other.

It shares the small functions of `reference`, and nothing with `smolite` but the names of the config and of the tensors.
"""

import numpy as np
import reference
from reference import layer_norm, rms_norm, rope, softmax, swiglu

from smolite.checkpoint.weights import assign_weights
from smolite.models.config import ModelConfig
from smolite.models.seq2seq_lm import Seq2SeqLM

# Query heads are not key heads, head_dim is not hidden / heads, and encoder and decoder are not equally deep.
CONFIGS = {
    "grouped": ModelConfig(
        vocab_size=97,
        num_layers=2,
        num_query_heads=6,
        num_key_value_heads=2,
        hidden_dim=42,
        intermediate_dim=56,
        head_dim=12,
        context_length=24,
        rope_theta=50_000.0,
        num_encoder_layers=1,
    ),
    "learned": ModelConfig(
        vocab_size=61,
        num_layers=1,
        num_query_heads=5,
        num_key_value_heads=1,
        hidden_dim=35,
        intermediate_dim=47,
        head_dim=6,
        context_length=24,
        norm_epsilon=1e-3,
        positions="learned",
        embedding_norm=True,
        num_encoder_layers=2,
    ),
}


def attention(x, read, w, config, *, visible, positions):
    """Tokens x (T, D) attend to `read` (S, D); `visible` (T, S); `positions` of both, or None for no rotation."""
    size, groups = config.head_dim, config.num_query_heads // config.num_key_value_heads
    heads = []
    for h in range(config.num_query_heads):
        kv = slice(h // groups * size, (h // groups + 1) * size)
        query, key = x @ w["q"][h * size : (h + 1) * size].T, read @ w["k"][kv].T
        if positions is not None and config.positions == "rotary":
            query, key = rope(query, positions, config.rope_theta), rope(key, positions, config.rope_theta)
        scores = np.where(visible, query @ key.T / np.sqrt(size), -np.inf)
        heads.append(softmax(scores) @ (read @ w["v"][kv].T))
    return np.concatenate(heads, axis=-1) @ w["o"].T


def embed(config, weights, tokens, positions):
    """Embedding, what the positions add, and the norm after it."""
    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    if config.positions == "learned":
        x = x + weights["model.embed_positions.weight"][positions]
    if config.embedding_norm:
        x = layer_norm(x, weights["model.embed_norm.weight"], weights["model.embed_norm.bias"], config.norm_epsilon)
    return x


def block(x, encoded, weights, layer, config, *, positions, visible):
    """One block, of the encoder where `encoded` is None."""

    def normed(name, x):
        return rms_norm(x, weights[f"{layer}.{name}.weight"], config.norm_epsilon)

    def of(kind, names):
        return {name[0] if len(name) == 1 else name: weights[f"{layer}.{kind}.{name}_proj.weight"] for name in names}

    inner = normed("input_layernorm", x)
    x = x + attention(inner, inner, of("self_attn", "qkvo"), config, visible=visible, positions=positions)
    if encoded is not None:
        everything = np.ones((len(x), len(encoded)), bool)
        inner = normed("cross_attn_layernorm", x)
        x = x + attention(inner, encoded, of("cross_attn", "qkvo"), config, visible=everything, positions=None)
    return x + swiglu(normed("post_attention_layernorm", x), of("mlp", ("gate", "up", "down")))


def forward(config, weights, source, tokens):
    """Logits (T, V) of a target of T tokens after a source of N."""
    weights = {name: np.asarray(value, "float64") for name, value in weights.items()}
    positions = np.arange(len(source))
    x = embed(config, weights, source, positions)
    for i in range(config.num_encoder_layers):
        visible = np.ones((len(x), len(x)), bool)
        x = block(x, None, weights, f"model.encoder.layers.{i}", config, positions=positions, visible=visible)
    encoded = rms_norm(x, weights["model.encoder.norm.weight"], config.norm_epsilon)
    positions = np.arange(len(tokens))
    x = embed(config, weights, tokens, positions)
    for i in range(config.num_layers):
        visible = np.tri(len(x), dtype=bool)
        x = block(x, encoded, weights, f"model.decoder.layers.{i}", config, positions=positions, visible=visible)
    x = rms_norm(x, weights["model.decoder.norm.weight"], config.norm_epsilon)
    return x @ weights["model.embed_tokens.weight"].T


def greedy(config, weights, source, *, start_id, steps):
    """The `steps` ids after `start_id`, always the likeliest."""
    ids = [start_id]
    for _ in range(steps):
        ids.append(int(np.argmax(forward(config, weights, source, ids)[-1])))
    return ids[1:]


def tensor_shapes(config):
    """The name and shape of every tensor of a model."""
    d, f, size = config.hidden_dim, config.intermediate_dim, config.head_dim
    q, kv = config.num_query_heads * size, config.num_key_value_heads * size
    shapes = {"model.embed_tokens.weight": (config.vocab_size, d)}
    if config.positions == "learned":
        shapes["model.embed_positions.weight"] = (config.context_length, d)
    if config.embedding_norm:
        shapes |= {"model.embed_norm.weight": (d,), "model.embed_norm.bias": (d,)}
    projections = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
    for side, count in (("encoder", config.num_encoder_layers), ("decoder", config.num_layers)):
        kinds = {"encoder": ["self_attn"], "decoder": ["self_attn", "cross_attn"]}[side]
        norms = ["input", "post_attention", "cross_attn"][: 1 + len(kinds)]
        for layer in (f"model.{side}.layers.{i}" for i in range(count)):
            shapes |= {f"{layer}.{kind}.{n}_proj.weight": shape for kind in kinds for n, shape in projections.items()}
            shapes |= {f"{layer}.mlp.{n}_proj.weight": (f, d) for n in ("gate", "up")}
            shapes |= {f"{layer}.mlp.down_proj.weight": (d, f)} | {f"{layer}.{n}_layernorm.weight": (d,) for n in norms}
        shapes[f"model.{side}.norm.weight"] = (d,)
    return shapes


def random_weights(config, *, seed=1):
    """Weights large enough for sharp attention and spread logits."""
    rng, weights = np.random.RandomState(seed), {}
    for name, shape in tensor_shapes(config).items():
        noise = rng.standard_normal(shape)
        scale = 0.3 if "embed" in name else 1.8 / np.sqrt(shape[-1])
        weights[name] = 1 + 0.2 * noise if len(shape) == 1 else noise * scale
    return {name: value.astype("float32") for name, value in weights.items()}


def random_model(config, *, dtype="float32"):
    """A `Seq2SeqLM` with the weights of `random_weights`."""
    model = Seq2SeqLM(config, dtype=dtype)
    assign_weights(model, random_weights(config))
    return model


run, to_numpy, compiled, causal_mask = reference.run, reference.to_numpy, reference.compiled, reference.causal_mask
