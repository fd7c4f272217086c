"""Referees: the numpy reference for names, shapes and layout, safetensors itself, and transformers."""

import json

import keras
import numpy as np
import pytest
import reference
from ml_dtypes import bfloat16
from reference import AWKWARD_CONFIGS, random_weights
from safetensors.numpy import save_file

from smolite.checkpoint.tensors import StoredTensors, read_tensors
from smolite.checkpoint.weights import assign_weights, model_weights, stored_model
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig

CONFIG = AWKWARD_CONFIGS["multi-query"]
WEIGHTS = random_weights(CONFIG)
EMBEDDING, KEY = "model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"
WIDTH = CONFIG.hidden_dim


@pytest.fixture(scope="module")
def model():
    return CausalLM(CONFIG)


def same(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(actual[name], tensor)


def test_weights_are_where_the_reference_expects_them(model):
    assign_weights(model, WEIGHTS)
    same(model_weights(model), WEIGHTS)
    assert {name: tensor.shape for name, tensor in WEIGHTS.items()} == reference.tensor_shapes(CONFIG)
    ids = [5, 6, 7, 8, 5]
    expected = reference.forward(CONFIG, WEIGHTS, ids)
    actual = reference.run(model, np.array([ids]))[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_every_weight_has_a_name(model):
    assert sum(tensor.size for tensor in model_weights(model).values()) == CONFIG.num_parameters
    assert all(tensor.flags.c_contiguous for tensor in model_weights(model).values())


@pytest.mark.parametrize("dtype", ["float16", bfloat16])
def test_half_precision_tensors_are_taken(model, dtype):
    half = {name: tensor.astype(dtype) for name, tensor in WEIGHTS.items()}
    assign_weights(model, half)
    same(model_weights(model), {name: tensor.astype("float32") for name, tensor in half.items()})


def test_what_says_nothing_new_is_accepted(model):
    redundant = {"lm_head.weight": WEIGHTS[EMBEDDING], "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3)}
    assign_weights(model, {**WEIGHTS, **redundant})
    same(model_weights(model), WEIGHTS)


def without(name):
    return {key: tensor for key, tensor in WEIGHTS.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without(KEY), f"Missing: {KEY}. Unexpected: none. Use the config.json"),
        ({}, r"Missing: model.embed_tokens.weight, .* and 17 more. Unexpected: none"),
        ({**WEIGHTS, "model.layers.2.x": WEIGHTS[KEY]}, "Missing: none. Unexpected: model.layers.2.x"),
        ({**WEIGHTS, KEY: WEIGHTS[KEY].T}, rf"Received: {KEY} of shape \({WIDTH}, 6\) for \(6, {WIDTH}\), float32"),
        ({**WEIGHTS, EMBEDDING: WEIGHTS[EMBEDDING][:-1]}, rf"{EMBEDDING} of shape \(60, {WIDTH}\) for \(61, {WIDTH}\)"),
        ({**WEIGHTS, KEY: WEIGHTS[KEY].astype("int8")}, r"float32, float16, bfloat16. Received: .*, int8"),
        ({**WEIGHTS, "lm_head.weight": -WEIGHTS[EMBEDDING]}, "`lm_head.weight` must equal `model.embed_tokens"),
        ({**without(EMBEDDING), "lm_head.weight": WEIGHTS[EMBEDDING]}, "`lm_head.weight` must equal"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_change_nothing(model, tensors, message):
    assign_weights(model, WEIGHTS)
    with pytest.raises(ValueError, match=message):
        assign_weights(model, {name: tensor * 2 for name, tensor in tensors.items()})
    same(model_weights(model), WEIGHTS)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold model.safetensors. It is missing. Copy the whole folder"):
        read_tensors(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(WEIGHTS, file)
    whole = file.read_bytes()
    for part in (whole[:-1], whole[:100], b"", b"<html>" * 100):
        file.write_bytes(part)
        with pytest.raises(ValueError, match="model.safetensors must be a whole safetensors file: .* Copy it again"):
            read_tensors(tmp_path)


def test_a_model_begins_with_stored_weights(tmp_path):
    head = {"lm_head.weight": WEIGHTS[EMBEDDING]}
    save_file({**WEIGHTS, **head}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    assert tensors.headers[KEY] == (WEIGHTS[KEY].shape, "float32") and len(tensors) == len(WEIGHTS) + 1
    same(model_weights(stored_model(CONFIG, tensors)), WEIGHTS)
    half = model_weights(stored_model(CONFIG, tensors, dtype="bfloat16"))
    same(half, {name: tensor.astype(bfloat16) for name, tensor in WEIGHTS.items()})


def test_stored_weights_that_do_not_fit_are_named(tmp_path, model):
    file = tmp_path / "model.safetensors"
    save_file({**WEIGHTS, "lm_head.weight": -WEIGHTS[EMBEDDING]}, file)
    with pytest.raises(ValueError, match="`lm_head.weight` must equal"):
        stored_model(CONFIG, StoredTensors([file]))
    save_file({**WEIGHTS, KEY: WEIGHTS[KEY].astype("int8")}, file)
    with pytest.raises(ValueError, match=rf"Received: {KEY} .*, I8. Use the config.json"):
        stored_model(CONFIG, StoredTensors([file]))
    save_file(WEIGHTS, file)
    tensors = StoredTensors([file])
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        stored_model(CONFIG, tensors)
    with keras.StatelessScope():
        whole = CausalLM(CONFIG)
    assert sorted(model_weights(whole)) == sorted(WEIGHTS), "Keras still makes variables"


def test_shards_are_read_together(tmp_path):
    names, index = sorted(WEIGHTS), tmp_path / "model.safetensors.index.json"
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: WEIGHTS[name] for name in part}, tmp_path / file)
    index.write_text(json.dumps({"weight_map": {name: file for file, part in files.items() for name in part}}))
    same(read_tensors(tmp_path), WEIGHTS)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="must hold b.safetensors"):
        read_tensors(tmp_path)
    index.write_text('{"weights": ')
    with pytest.raises(ValueError, match="index.json must be JSON with a `weight_map`"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [False, True])
def test_we_read_what_transformers_writes(tmp_path, dtype, shards):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=10, rope_theta=5e4, rms_norm_eps=1e-4, tie_word_embeddings=True,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "5GB")
    assert (tmp_path / "model.safetensors").exists() != shards
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = np.random.RandomState(0).randint(0, 300, (2, 11))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    model = stored_model(ModelConfig.from_hf(theirs.config.to_dict()), read_tensors(tmp_path))
    np.testing.assert_allclose(reference.run(model, ids), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
