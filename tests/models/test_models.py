"""Referees: the numpy reference (1e-4), ids it chose long ago, and what the model promises of itself."""

import keras
import numpy as np
import pytest
import reference
from reference import AWKWARD_CONFIGS, random_model, random_weights, run

from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig

ROWS = np.random.RandomState(3).randint(0, 61, (2, 11)).astype("int32")
# 32 ids that the reference picks after [3, 1, 4] from `random_weights(config)`; every one leads by 0.001 or more.
GOLDEN = {
    "grouped": "38 34 33 33 25 38 55 81 38 15 38 36 81 19 81 39 74 37 25 31 70 71 13 25 38 7 81 38 15 25 81 38",
    "multi-query": "23 17 37 11 45 32 32 13 55 17 12 29 25 48 51 47 57 29 51 45 13 32 37 46 13 32 11 51 47 11 11 11",
    "multi-head": "55 36 54 53 38 57 7 18 47 3 57 54 14 22 36 20 23 23 20 36 7 24 55 14 66 10 47 23 22 57 67 38",
}


@pytest.fixture(scope="module")
def models():
    """One float32 model of each awkward config."""
    return {name: random_model(AWKWARD_CONFIGS[name]) for name in AWKWARD_CONFIGS}


@pytest.fixture(scope="module")
def model(models):
    return models["grouped"]


@pytest.mark.parametrize("name", AWKWARD_CONFIGS)
def test_logits_and_golden_ids_equal_the_reference(models, name):
    config, weights = AWKWARD_CONFIGS[name], random_weights(AWKWARD_CONFIGS[name])
    golden = list(map(int, GOLDEN[name].split()))
    row = [3, 1, 4, *golden]
    actual = run(models[name], np.array([row, row[::-1]], "int32"))
    for tokens, found in zip((row, row[::-1]), actual, strict=True):
        np.testing.assert_allclose(found, reference.forward(config, weights, tokens), rtol=0, atol=1e-4)
    assert reference.greedy(config, weights, row[:3], steps=32) == golden
    assert actual[0, 2:-1].argmax(-1).tolist() == golden


def test_packed_rows_equal_the_reference_and_the_texts_alone(model):
    weights = random_weights(model.config)
    tokens = np.concatenate([ROWS[:1, :5], ROWS[1:, :4], np.zeros((1, 2), "int32")], axis=1)
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0]], "int32")
    segments = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]], "int32")
    packed = run(model, {"tokens": tokens, "positions": positions, "segments": segments})[0]
    places = {"positions": positions[0], "segments": segments[0]}
    expected = reference.forward(model.config, weights, tokens[0], **places)
    np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-4)
    alone = run(model, ROWS)
    np.testing.assert_allclose(packed[:5], alone[0, :5], rtol=0, atol=1e-4)
    np.testing.assert_allclose(packed[5:9], alone[1, :4], rtol=0, atol=1e-4)


def test_a_bare_array_is_the_dictionary_with_tokens_alone(model):
    bare = run(model, ROWS)
    spelt_out = {"tokens": ROWS, "positions": np.repeat(np.arange(11)[None], 2, axis=0), "loss_at": None}
    for inputs in ({"tokens": ROWS}, spelt_out):
        np.testing.assert_allclose(run(model, inputs), bare, rtol=0, atol=5e-5)
    np.testing.assert_allclose(model.predict(ROWS, verbose=0), bare, rtol=0, atol=5e-5)
    assert model(keras.Input((7,), dtype="int32")).shape == (None, 7, 97)


def test_the_small_preset_builds():
    config = ModelConfig.from_preset("smolite-small")
    assert CausalLM(config).count_params() == config.num_parameters
