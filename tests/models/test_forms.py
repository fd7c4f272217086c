"""Forms that are no Llama: learned positions with a norm after the embedding. Referees: the numpy reference, and TFLite."""

import dataclasses
import json

import numpy as np
import pytest
import reference
from exported import TEXTS, random_weights
from reference import LEARNED_POSITIONS, causal_mask, compiled, random_model, run
from transformers import AutoConfig

import smolite
from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS, ModelConfig, RopeScaling
from smolite.text.tokenizer import train_tokenizer

ROWS = np.random.RandomState(3).randint(0, 61, (2, 11)).astype("int32")
WEIGHTS = reference.random_weights(LEARNED_POSITIONS)


@pytest.fixture(scope="module")
def model():
    return random_model(LEARNED_POSITIONS)


def test_learned_positions_and_the_norm_equal_the_reference(model):
    for tokens, found in zip(ROWS, run(model, ROWS), strict=True):
        np.testing.assert_allclose(found, reference.forward(LEARNED_POSITIONS, WEIGHTS, tokens), rtol=0, atol=1e-4)


def test_positions_of_packed_texts_start_again(model):
    inputs = {
        "tokens": ROWS[:1],
        "positions": np.array([[*range(4), *range(7)]], "int32"),
        "segments": np.array([[1] * 4 + [2] * 7], "int32"),
    }
    packed = run(model, inputs)[0]
    apart = [reference.forward(LEARNED_POSITIONS, WEIGHTS, part) for part in (ROWS[0, :4], ROWS[0, 4:])]
    np.testing.assert_allclose(packed, np.concatenate(apart), rtol=0, atol=1e-4)


def test_cached_equals_uncached(model):
    cache, parts = model.empty_cache(2, 16), []
    forward = compiled(model.cached_forward)
    for first, last in ((0, 5), *((i, i + 1) for i in range(5, 11))):
        part, cache = forward(ROWS[:, first:last], cache, slot=first, mask=causal_mask(first, last - first, 16))
        parts.append(reference.to_numpy(part))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), run(model, ROWS), rtol=0, atol=1e-4)


def test_a_longer_row_than_the_table_is_refused(model):
    with pytest.raises(ValueError, match=r"at most 80 tokens, the `context_length`. Received: 81. Shorten"):
        model(np.zeros((1, 81), "int32"))


@pytest.mark.parametrize("config", [LEARNED_POSITIONS, PRESETS["smolite-1"]], ids=["learned", "smolite-1"])
def test_a_config_comes_back_and_transformers_refuses_it(config, tmp_path):
    stored = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(stored) == config and not config.is_llama
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="smolite"):
        AutoConfig.from_pretrained(tmp_path)


def test_parameters_are_counted(model):
    assert model.count_params() == LEARNED_POSITIONS.num_parameters
    assert LEARNED_POSITIONS.num_parameters == sum(weight.size for weight in WEIGHTS.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"form": "gpt"}, r"`form` must be 'llama' or 'smolite-1'. Received: 'gpt'"),
        ({"positions": "none"}, r"`positions` must be 'rotary' or 'learned'. Received: 'none'"),
        ({"embedding_norm": 1}, r"`embedding_norm` must be False or True. Received: 1"),
        ({"num_encoder_layers": -1}, r"`num_encoder_layers` must be a whole number, 0 or above. Received: -1"),
        (
            {"rope_scaling": RopeScaling(factor=2, low_frequency_factor=1, high_frequency_factor=4, original_context_length=8)},
            r"`rope_scaling` needs rotary positions. Received: learned ones",
        ),
    ],
)
def test_what_no_form_has_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LEARNED_POSITIONS, **change)


@pytest.mark.long
@pytest.mark.parametrize(
    "change", [{"positions": "learned", "embedding_norm": True}, {"form": "smolite-1"}], ids=["learned", "smolite-1"]
)
def test_exported_files_say_what_the_model_says(change, tmp_path):
    """`export` refuses to leave a file that differs from the Keras model in logits, caches or greedy tokens."""
    tokenizer = train_tokenizer(TEXTS, tmp_path / "tokenizer.model", vocab_size=330)
    shape = {"vocab_size": 330, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 64}
    model = CausalLM(ModelConfig(**shape, intermediate_dim=96, context_length=48, **change))
    random_weights(model, 3)
    path = smolite.save(tmp_path / "run", model, tokenizer)
    for kind in ("tflite", "saved_model"):
        smolite.export(path, format=kind)
        report = json.loads((path / "export" / "verify.json").read_text("utf-8"))
        keras, file, *_ = report["rows"]
        assert report["passed"] and file["logits"] < 1e-4 and file["tokens"] == keras["num_tokens"] > 100
