"""The referee: the whole forward pass in plain numpy, one row at a time, float64 inside.

The arithmetic shares nothing with `smolite` but the names of the config. Weights carry Hugging Face's Llama names and layout:
a projection is (outputs, inputs), so it is applied as `x @ weight.T`.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from smolite.checkpoint.weights import assign_weights
from smolite.models.config import ModelConfig
from smolite.models.seq2seq_lm import new_language_model

# Sizes that tell apart what the usual ones confuse: query and key/value heads, head_dim and hidden/heads.
AWKWARD_CONFIGS = {
    "grouped": ModelConfig(
        vocab_size=97,
        num_layers=3,
        num_query_heads=6,
        num_key_value_heads=2,
        hidden_dim=42,
        intermediate_dim=56,
        head_dim=12,
        context_length=80,
        rope_theta=50_000.0,
    ),
    "multi-query": ModelConfig(
        vocab_size=61,
        num_layers=2,
        num_query_heads=5,
        num_key_value_heads=1,
        hidden_dim=35,
        intermediate_dim=47,
        head_dim=6,
        context_length=80,
        rope_theta=100_000.0,
        norm_epsilon=1e-3,
    ),
    "multi-head": ModelConfig(
        vocab_size=71,
        num_layers=2,
        num_query_heads=3,
        num_key_value_heads=3,
        hidden_dim=30,
        intermediate_dim=44,
        context_length=80,
        rope_theta=300.0,
    ),
}
# Learned positions with a norm after the embedding, as an encoder-decoder has them, for a decoder alone.
LEARNED_POSITIONS = dataclasses.replace(AWKWARD_CONFIGS["grouped"], positions="learned", embedding_norm=True)
# Encoder and decoder are not equally deep.
PAIR_CONFIGS = {
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


def rms_norm(x, scale, epsilon):
    """x / sqrt(mean(x²) + epsilon) · scale over the features."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def layer_norm(x, scale, shift, epsilon):
    """(x - mean) / sqrt(variance + epsilon) · scale + shift over the features."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + epsilon) * scale + shift


def softmax(x):
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rope(head, positions, theta):
    """Turns feature i and feature i + H/2 of a (T, H) head by the angle position · theta^(-2i/H)."""
    half = head.shape[-1] // 2
    angle = positions[:, None] * theta ** (-np.arange(half) / half)
    first, second = head[:, :half], head[:, half:]
    turned = first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)
    return np.concatenate(turned, axis=-1)


def attention(x, w, config, positions, visible, *, read=None):
    """Tokens x (T, D) attend to themselves or to `read` (S, D), one head after the other, where `visible` (T, S) says so.

    `w` maps "q", "k", "v", "o" to weights. What is read beside the tokens has no positions.
    """
    size, groups = config.head_dim, config.num_query_heads // config.num_key_value_heads
    turns, read = config.positions == "rotary" and read is None, x if read is None else read
    heads = []
    for h in range(config.num_query_heads):
        kv = slice(h // groups * size, (h // groups + 1) * size)
        query, key = x @ w["q"][h * size : (h + 1) * size].T, read @ w["k"][kv].T
        if turns:
            query, key = (rope(each, positions, config.rope_theta) for each in (query, key))
        scores = np.where(visible, query @ key.T / np.sqrt(size), -np.inf)
        heads.append(softmax(scores) @ (read @ w["v"][kv].T))
    return np.concatenate(heads, axis=-1) @ w["o"].T


def causal(segments):
    """(T, T): a token sees those of its own segment up to itself."""
    return np.tri(len(segments), dtype=bool) & (segments[:, None] == segments[None, :])


def swiglu(x, w):
    """down(silu(gate(x)) · up(x)); `w` maps "gate", "up", "down" to weights."""
    gate = x @ w["gate"].T
    return (gate / (1 + np.exp(-gate)) * (x @ w["up"].T)) @ w["down"].T


def block(x, weights, layer, config, positions, visible, encoded=None):
    """The block whose weights begin with `layer`: attention, perhaps over what is `encoded`, too, and SwiGLU, added."""

    def normed(name):
        return rms_norm(x, weights[f"{layer}.{name}_layernorm.weight"], config.norm_epsilon)

    def of(kind, names):
        return {name: weights[f"{layer}.{kind}.{name}_proj.weight"] for name in names}

    x = x + attention(normed("input"), of("self_attn", "qkvo"), config, positions, visible)
    if encoded is not None:
        everything = np.ones((len(x), len(encoded)), bool)
        x = x + attention(normed("cross_attn"), of("cross_attn", "qkvo"), config, positions, everything, read=encoded)
    return x + swiglu(normed("post_attention"), of("mlp", ("gate", "up", "down")))


def stack(config, weights, side, tokens, positions, visible, encoded=None):
    """The embedding, all blocks of a side and the norm after them: `side` is "encoder.", "decoder." or "", a decoder alone."""
    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    if config.positions == "learned":
        x = x + weights["model.embed_positions.weight"][positions]
    if config.embedding_norm:
        x = layer_norm(x, weights["model.embed_norm.weight"], weights["model.embed_norm.bias"], config.norm_epsilon)
    for i in range(config.num_encoder_layers if side == "encoder." else config.num_layers):
        x = block(x, weights, f"model.{side}layers.{i}", config, positions, visible, encoded)
    return rms_norm(x, weights[f"model.{side}norm.weight"], config.norm_epsilon)


def forward(config, weights, tokens, *, source=None, positions=None, segments=None):
    """Logits (T, V) of one row of T tokens, of an encoder-decoder after a source of N."""
    weights = {name: np.asarray(value, "float64") for name, value in weights.items()}
    positions = np.arange(len(tokens)) if positions is None else np.asarray(positions)
    segments = np.zeros(len(tokens), int) if segments is None else np.asarray(segments)
    side, encoded = "", None
    if source is not None:
        everything = np.ones((len(source), len(source)), bool)
        side, encoded = "decoder.", stack(config, weights, "encoder.", source, np.arange(len(source)), everything)
    x = stack(config, weights, side, tokens, positions, causal(segments), encoded)
    return x @ weights["model.embed_tokens.weight"].T


def greedy(config, weights, prompt, *, steps, source=None):
    """The `steps` ids that follow `prompt`, always the likeliest: after [5, 6] perhaps [9, 4]."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(np.argmax(forward(config, weights, ids, source=source)[-1])))
    return ids[len(prompt) :]


def tensor_shapes(config):
    """The Hugging Face name and shape of every tensor of a model."""
    d, f, size = config.hidden_dim, config.intermediate_dim, config.head_dim
    q, kv = config.num_query_heads * size, config.num_key_value_heads * size
    shapes = {"model.embed_tokens.weight": (config.vocab_size, d)}
    if config.positions == "learned":
        shapes["model.embed_positions.weight"] = (config.context_length, d)
    if config.embedding_norm:
        shapes |= {"model.embed_norm.weight": (d,), "model.embed_norm.bias": (d,)}
    projections = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
    pair = [("encoder.", config.num_encoder_layers), ("decoder.", config.num_layers)]
    for side, count in pair if config.num_encoder_layers else [("", config.num_layers)]:
        kinds = ["self_attn", "cross_attn"] if side == "decoder." else ["self_attn"]
        norms = ["input", "post_attention", "cross_attn"][: 1 + len(kinds)]
        for layer in (f"model.{side}layers.{i}" for i in range(count)):
            shapes |= {f"{layer}.{kind}.{n}_proj.weight": shape for kind in kinds for n, shape in projections.items()}
            shapes |= {f"{layer}.mlp.{n}_proj.weight": (f, d) for n in ("gate", "up")}
            shapes |= {f"{layer}.mlp.down_proj.weight": (d, f)} | {f"{layer}.{n}_layernorm.weight": (d,) for n in norms}
        shapes[f"model.{side}norm.weight"] = (d,)
    return shapes


def random_weights(config, *, seed=1):
    """Weights large enough for sharp attention and spread logits, the same for ever.

    NumPy never changes what `RandomState` draws, so golden ids may rest on it.
    """
    rng, weights = np.random.RandomState(seed), {}
    spread = 1.8 if config.num_encoder_layers else 2.5
    for name, shape in tensor_shapes(config).items():
        noise = rng.standard_normal(shape)
        scale = 0.3 if "embed" in name else spread / np.sqrt(shape[-1])
        weights[name] = 1 + 0.2 * noise if len(shape) == 1 else noise * scale
    return {name: value.astype("float32") for name, value in weights.items()}


def random_model(config, *, dtype="float32"):
    """A model of either kind with the weights of `random_weights`."""
    model = new_language_model(config, dtype=dtype)
    assign_weights(model, random_weights(config))
    return model


def to_numpy(tensor):
    """A tensor of any backend as float32 or integer numpy array."""
    tensor = ops.cast(tensor, "float32") if "float" in str(tensor.dtype) else tensor
    return np.array(ops.convert_to_numpy(tensor))


def compiled(function):
    """The function, compiled as a whole on JAX, which takes long over each operation alone; itself elsewhere.

    Variables may be read in it, but not written.
    """
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def run(function, *arguments, **named):
    """Calls a function of tensors, compiled, and returns numpy arrays."""
    return keras.tree.map_structure(to_numpy, compiled(function)(*arguments, **named))


def causal_mask(first, count, slots):
    """Additive (1, 1, count, slots) mask of tokens in slots first, first + 1, …, that see what is before."""
    visible = np.arange(slots)[None, :] <= first + np.arange(count)[:, None]
    return np.where(visible, 0.0, -1e9).astype("float32")[None, None]
