"""The referee is transformers: models whose rotary embedding is stretched as Llama 3.1 and 3.2 stretch it."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import reference
import torch
import transformers
from reference import AWKWARD_CONFIGS

from smolite.checkpoint.run import load_model
from smolite.checkpoint.weights import model_weights
from smolite.generation.keras_engine import KerasEngine
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig, RopeScaling

SCALING = {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_context_length": 16}
CONFIG = dataclasses.replace(AWKWARD_CONFIGS["grouped"], rope_theta=5000.0, rope_scaling=RopeScaling(**SCALING))
IDS = np.random.RandomState(0).randint(0, CONFIG.vocab_size, (2, 70))

# As `meta-llama/Llama-3.2-1B` has it on the hub.
LLAMA_JSON = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    hf = {**CONFIG.to_hf(), "initializer_range": 0.2, "dtype": None}
    folder = tmp_path_factory.mktemp("stretched")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf)).save_pretrained(folder)
    return folder


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_logits_far_beyond_the_original_context(folder):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    model = load_model(folder)
    assert model.config == CONFIG
    close(reference.run(model, IDS), expected)
    plain = CausalLM(dataclasses.replace(CONFIG, rope_scaling=None))
    plain.set_weights(model.get_weights())
    assert np.abs(reference.run(plain, IDS) - expected).max() > 0.01 * np.abs(expected).max(), "or this test shows nothing"
    engine = KerasEngine(model, batch_size=2)
    engine.start(IDS[:, :60].tolist())
    for place in range(60, 70):
        logits = engine.step(IDS[:, place].tolist())
        close(logits, expected[:, place])


def test_keras_own_files_keep_it(folder, tmp_path):
    model = load_model(folder)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.config == CONFIG and sorted(model_weights(again)) == sorted(model_weights(model))
    close(reference.run(again, IDS), reference.run(model, IDS))


def test_both_forms_of_the_config(folder):
    assert ModelConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    assert ModelConfig.from_hf(json.loads(json.dumps(CONFIG.to_hf()))) == CONFIG
    written = json.loads((folder / "config.json").read_text())
    assert written["rope_parameters"]["rope_type"] == "llama3" and "rope_scaling" not in written
    assert ModelConfig.from_hf(written) == CONFIG and hash(CONFIG) == hash(ModelConfig.from_hf(written))
    assert ModelConfig.from_hf({**CONFIG.to_hf(), "rope_scaling": {"rope_type": "default"}}).rope_scaling is None


def test_the_published_json_of_llama_32():
    config = ModelConfig.from_hf(LLAMA_JSON)
    assert config.num_parameters == 1_235_814_400 and config.rope_scaling.factor == 32.0


@pytest.mark.parametrize(
    "change",
    [{"rope_type": "yarn"}, {"attention_factor": 2.0}, {"rope_type": "linear"}],
)
def test_another_scaling_is_refused_by_name(change):
    scaling = {**LLAMA_JSON["rope_scaling"], **change}
    with pytest.raises(ValueError, match=r"does not implement: rope_scaling=.*\(only None and 'llama3' with its four numbers"):
        ModelConfig.from_hf({**LLAMA_JSON, "rope_scaling": scaling})


@pytest.mark.parametrize("change", [{"factor": 0}, {"factor": "8"}, {"low_frequency_factor": 4.0}])
def test_numbers_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match="`rope_scaling` must have positive numbers, and a .* Copy them from the model's"):
        RopeScaling(**{**SCALING, **change})


def test_every_attribute_of_llama_config_is_known():
    assert ModelConfig.from_hf(transformers.LlamaConfig(tie_word_embeddings=True).to_dict()).num_layers == 32
