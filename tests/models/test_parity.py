"""The same random weights in keras-hub and transformers: the same logits (1e-4) and the same 64 greedy tokens."""

import re

import keras_hub
import numpy as np
import pytest
import torch
from reference import AWKWARD_CONFIGS, greedy, random_model, random_weights, run
from transformers import LlamaConfig, LlamaForCausalLM

from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.models.config import PRESETS, ModelConfig

ROWS = np.random.RandomState(3).randint(0, 61, (2, 13)).astype("int32")
PROMPT = [3, 1, 4]
# keras-hub knows no head_dim of its own, so hidden_dim is num_query_heads times head_dim here.
KERAS_HUB_CONFIG = ModelConfig(
    vocab_size=97,
    num_layers=3,
    num_query_heads=6,
    num_key_value_heads=2,
    hidden_dim=48,
    intermediate_dim=56,
    context_length=80,
    rope_theta=50_000.0,
    norm_epsilon=1e-3,
)
KERAS_HUB_NAMES = {
    "^token_embedding/embeddings$": "embed_tokens",
    "^sequence_output_layernorm$": "norm",
    "^transformer_layer_": "layers.",
    "/self_attention/(query|key|value)$": lambda match: f".self_attn.{match[1][0]}_proj",
    "/self_attention/attention_output$": ".self_attn.o_proj",
    "/self_attention_layernorm$": ".input_layernorm",
    "/feedforward_layernorm$": ".post_attention_layernorm",
    "/feedforward_gate_dense$": ".mlp.gate_proj",
    "/feedforward_intermediate_dense$": ".mlp.up_proj",
    "/feedforward_output_dense$": ".mlp.down_proj",
}


def llama_of_transformers(config):
    model = LlamaForCausalLM(LlamaConfig(**config.to_hf())).eval()
    state = {name: torch.tensor(weight) for name, weight in random_weights(config).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected  # tied to the embedding
    return model


def llama_of_keras_hub(config):
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_layers,
        num_query_heads=config.num_query_heads,
        num_key_value_heads=config.num_key_value_heads,
        hidden_dim=config.hidden_dim,
        intermediate_dim=config.intermediate_dim,
        rope_max_wavelength=config.rope_theta,
        layer_norm_epsilon=config.norm_epsilon,
        tie_word_embeddings=True,
    )
    for weight in backbone.weights:
        weight.assign(keras_hub_weight(weight, random_weights(config)))
    return keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None)


def keras_hub_weight(weight, tensors):
    """The tensor for a weight called, for example, `transformer_layer_2/self_attention/query/kernel`."""
    name = weight.path.removesuffix("/kernel").removesuffix("/scale")
    for theirs, ours in KERAS_HUB_NAMES.items():
        name = re.sub(theirs, ours, name)
    tensor = tensors[f"model.{name}.weight"]
    return tensor.T.reshape(weight.shape) if weight.path.endswith("kernel") else tensor


@pytest.fixture(scope="module", params=AWKWARD_CONFIGS)
def pair(request):
    """Our model and the one of transformers, with the same weights."""
    config = AWKWARD_CONFIGS[request.param]
    return random_model(config), llama_of_transformers(config)


def test_logits_equal_those_of_transformers(pair):
    ours, theirs = pair
    with torch.no_grad():
        expected = theirs(torch.tensor(ROWS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(run(ours, ROWS), expected, rtol=0, atol=1e-4)


def test_logits_of_packed_texts_equal_those_of_transformers(pair):
    """transformers is given the same positions and the block-diagonal mask spelt out."""
    ours, theirs = pair
    positions, segments = np.array([[*range(6), *range(7)]]), np.array([[1] * 6 + [2] * 7])
    visible = np.tril(segments[0][:, None] == segments[0][None, :])
    mask = torch.tensor(np.where(visible, 0.0, -1e9)[None, None], dtype=torch.float32)
    tokens = torch.tensor(ROWS[:1], dtype=torch.long)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=mask, position_ids=torch.tensor(positions)).logits.numpy()
    inputs = {"tokens": ROWS[:1], "positions": positions, "segments": segments}
    np.testing.assert_allclose(run(ours, inputs), expected, rtol=0, atol=1e-4)


def test_64_greedy_tokens_equal_those_of_transformers_and_of_the_reference(pair):
    ours, theirs = pair
    prompt = torch.tensor([PROMPT])
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    written = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **settings)
    expected = written[0, len(PROMPT) :].tolist()
    assert len(expected) == 64 and len(set(expected)) > 10
    assert greedy(ours.config, random_weights(ours.config), PROMPT, steps=64) == expected
    logits = run(ours, np.array([PROMPT + expected], "int32"))[0]
    assert logits[len(PROMPT) - 1 : -1].argmax(-1).tolist() == expected


@pytest.fixture(scope="module")
def keras_pair():
    """Our model and the one of keras-hub, with the same weights."""
    return random_model(KERAS_HUB_CONFIG), llama_of_keras_hub(KERAS_HUB_CONFIG)


def test_logits_equal_those_of_keras_hub_with_and_without_padding(keras_pair):
    ours, theirs = keras_pair
    for lengths in ([13, 13], [13, 6]):
        real = np.arange(13) < np.array(lengths)[:, None]
        expected = run(theirs, {"token_ids": ROWS, "padding_mask": real.astype("int32")})
        actual = run(ours, {"tokens": ROWS, "segments": real.astype("int32")})
        np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=1e-4)


def test_64_greedy_tokens_of_our_engine_equal_those_of_keras_hub(keras_pair):
    ours, theirs = keras_pair
    theirs.compile(sampler="greedy")
    prompt = np.array([PROMPT + [0] * 64])
    inputs = {"token_ids": prompt, "padding_mask": (np.arange(67) < 3).astype("int32")[None]}
    written = theirs.generate(inputs, stop_token_ids=None)["token_ids"]
    expected = np.array(written)[0, 3:].tolist()
    assert len(expected) == 64 and len(set(expected)) > 10
    assert generate(KerasEngine(ours), [PROMPT], max_new_tokens=64) == [expected]


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("smollm2")])
def test_presets_have_as_many_parameters_as_transformers_counts(name):
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**PRESETS[name].to_hf()))
    assert PRESETS[name].num_parameters == theirs.num_parameters()
