"""Referees: the published `config.json` of SmolLM2, its parameter counts, and `LlamaConfig`."""

import dataclasses
import json

import pytest
from reference import AWKWARD_CONFIGS, tensor_shapes
from transformers import LlamaConfig

from smolite.models.config import PRESETS, ModelConfig

ALL_CONFIGS = {**AWKWARD_CONFIGS, **{name: config for name, config in PRESETS.items() if config.is_llama}}
CONFIGS = pytest.mark.parametrize("config", ALL_CONFIGS.values(), ids=ALL_CONFIGS)
SHAPE = {
    "vocab_size": 64,
    "num_layers": 2,
    "num_query_heads": 6,
    "num_key_value_heads": 2,
    "hidden_dim": 48,
    "intermediate_dim": 64,
}

# As `HuggingFaceTB/SmolLM2-135M-Instruct` has it on the hub.
SMOLLM2_135M_JSON = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}


def test_a_config_is_frozen_and_equal_by_value():
    config = ModelConfig(**SHAPE)
    assert config == ModelConfig(**SHAPE) and hash(config) == hash(ModelConfig(**SHAPE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_layers = 3


def test_head_dim_follows_from_the_heads_unless_it_is_given():
    assert ModelConfig(**SHAPE).head_dim == 8
    assert ModelConfig(**SHAPE, head_dim=20).head_dim == 20


@CONFIGS
def test_dictionaries_in_both_forms_survive_json(config):
    config = dataclasses.replace(config, dropout=0.25)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@CONFIGS
def test_num_parameters_counts_the_tensors_of_the_reference(config):
    sizes = [shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in tensor_shapes(config).values()]
    assert config.num_parameters == sum(sizes)


@pytest.mark.parametrize(
    "name, count",
    [("smollm2-135m", 134_515_008), ("smollm2-360m", 361_821_120), ("smollm2-1.7b", 1_711_376_384)],
)
def test_smollm2_presets_have_the_published_number_of_parameters(name, count):
    assert ModelConfig.from_preset(name).num_parameters == count


def test_the_published_json_of_smollm2_is_the_preset():
    assert ModelConfig.from_hf(SMOLLM2_135M_JSON) == PRESETS["smollm2-135m"]


@pytest.mark.parametrize("name, millions", [("smolite-small", 5), ("smolite-medium", 20), ("smolite-xl", 60)])
def test_our_presets_have_their_size_and_widths_of_whole_blocks(name, millions):
    config = PRESETS[name]
    assert 0.9 * millions < config.num_parameters / 1e6 < 1.1 * millions
    for tensor, shape in tensor_shapes(config).items():
        assert all(width % 32 == 0 for width in shape), (tensor, shape)


def test_a_preset_takes_changes_and_stays_as_it_was():
    assert ModelConfig.from_preset("smolite-small", context_length=128, dropout=0.1).context_length == 128
    assert PRESETS["smolite-small"].context_length == 512


def test_transformers_reads_the_config_and_writes_it_back():
    """`to_dict` of transformers 5 holds every default and puts theta into `rope_parameters`."""
    config = AWKWARD_CONFIGS["grouped"]
    theirs = LlamaConfig(**config.to_hf())
    assert (theirs.head_dim, theirs.num_key_value_heads, theirs.rms_norm_eps) == (12, 2, 1e-5)
    assert theirs.rope_parameters["rope_theta"] == 50_000.0 and theirs.tie_word_embeddings
    written = theirs.to_dict()
    assert "rope_theta" not in written and ModelConfig.from_hf(written) == config


def test_what_a_json_leaves_out_means_what_it_means_to_transformers():
    given = {
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "tie_word_embeddings": True,
    }
    theirs, ours = LlamaConfig(**given), ModelConfig.from_hf(given)
    assert ours.num_key_value_heads == theirs.num_key_value_heads == 6
    assert ours.head_dim == theirs.head_dim == 8
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] == 10_000.0
    assert ours.norm_epsilon == theirs.rms_norm_eps == 1e-6
    assert ours.context_length == theirs.max_position_embeddings == 2048


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tie_word_embeddings": False}, r"tie_word_embeddings=False \(only True is implemented\)"),
        ({"attention_bias": True}, r"attention_bias=True \(only False is implemented\)"),
        ({"mlp_bias": True}, r"mlp_bias=True \(only False is implemented\)"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu' \(only 'silu' is implemented\)"),
        ({"model_type": "qwen2"}, r"model_type='qwen2' \(only 'llama' is implemented\)"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling=.*llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, r"rope_scaling="),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, r"rope_scaling="),
        ({"rope_interleaved": True}, r"rope_interleaved=True"),
        ({"pretraining_tp": 2}, r"pretraining_tp=2"),
        ({"sliding_window": 4096}, r"sliding_window=4096 \(not known\)"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config=.*\(not known\)"),
    ],
)
def test_what_a_hub_model_needs_and_we_lack_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match="smolite does not implement: .*" + message):
        ModelConfig.from_hf({**SMOLLM2_135M_JSON, **change})


def test_every_refused_attribute_is_named_at_once():
    changes = {"attention_bias": True, "hidden_act": "relu", "sliding_window": 8}
    with pytest.raises(ValueError, match="attention_bias=True .*hidden_act='relu' .*sliding_window=8"):
        ModelConfig.from_hf({**SMOLLM2_135M_JSON, **changes})


def test_the_default_of_transformers_is_refused_because_its_tables_are_not_tied():
    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        ModelConfig.from_hf(LlamaConfig().to_dict())


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"num_key_value_heads": 4},
            r"`num_query_heads` must be a multiple of `num_key_value_heads`. Received: 6 and 4. "
            r"Choose 1, 2, 3 or 6 key/value heads.",
        ),
        ({"num_query_heads": 1}, r"Received: 1 and 2. Choose 1 key/value heads"),
        ({"hidden_dim": 50}, r"`hidden_dim` must be a multiple of `num_query_heads`.*: 50 and 6.*`head_dim`"),
        ({"head_dim": 7}, r"`head_dim` must be even.*Received: 7. Choose 8"),
        ({"hidden_dim": 18}, r"`head_dim` must be even.*Received: 3. Choose 4"),
        ({"head_dim": -2}, r"`head_dim` must be a positive whole number. Received: -2"),
        ({"num_query_heads": 0}, r"`num_query_heads` must be a positive whole number. Received: 0"),
        ({"num_layers": 2.0}, r"`num_layers` must be a positive whole number. Received: 2.0"),
        ({"vocab_size": True}, r"`vocab_size` must be a positive whole number. Received: True"),
        ({"context_length": "512"}, r"`context_length` must be a positive whole number. Received: '512'"),
        ({"intermediate_dim": -1}, r"`intermediate_dim` must be a positive whole number. Received: -1"),
        ({"rope_theta": 0.0}, r"`rope_theta` must be a positive number. Received: 0.0"),
        ({"rope_theta": float("nan")}, r"`rope_theta` must be a positive number. Received: nan"),
        ({"norm_epsilon": -1e-5}, r"`norm_epsilon` must be a positive number. Received: -1e-05"),
        ({"dropout": 1.0}, r"`dropout` must be a number from 0 to below 1. Received: 1.0"),
        ({"dropout": "0.1"}, r"`dropout` must be a number from 0 to below 1. Received: '0.1'"),
    ],
)
def test_shapes_that_no_model_has_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**SHAPE, **change})


def test_unknown_and_missing_names_are_refused():
    with pytest.raises(ValueError, match="Unknown preset. Received: 'smolite-huge'. Choose one of: smolite-s"):
        ModelConfig.from_preset("smolite-huge")
    with pytest.raises(ValueError, match="Unknown config keys. Received: heads. Known are: vocab_size, "):
        ModelConfig.from_preset("smolite-small", heads=4)
    with pytest.raises(ValueError, match="Config keys are missing: vocab_size. Received: num_layers, "):
        ModelConfig.from_dict({key: value for key, value in SHAPE.items() if key != "vocab_size"})
