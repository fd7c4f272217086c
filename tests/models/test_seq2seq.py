"""Referees: the numpy reference (1e-4), which knows no padding, no packing and no cache; and a pair alone."""

import dataclasses

import keras
import numpy as np
import pytest
import reference
from reference import PAIR_CONFIGS, causal_mask, compiled, random_model, random_weights, run

from smolite.checkpoint.weights import assign_weights, model_weights
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.models.seq2seq_lm import Seq2SeqLM

SOURCES = np.random.RandomState(3).randint(0, 61, (2, 13)).astype("int32")
ROWS = np.random.RandomState(4).randint(0, 61, (2, 9)).astype("int32")
BOTH = {"source": SOURCES, "tokens": ROWS}
SLOTS = 16


@pytest.fixture(scope="module")
def models():
    return {name: random_model(config) for name, config in PAIR_CONFIGS.items()}


@pytest.fixture(scope="module")
def model(models):
    return models["grouped"]


@pytest.mark.parametrize("name", PAIR_CONFIGS)
def test_logits_equal_the_reference(models, name):
    found = run(models[name], BOTH)
    for source, tokens, logits in zip(SOURCES, ROWS, found, strict=True):
        expected = reference.forward(PAIR_CONFIGS[name], random_weights(PAIR_CONFIGS[name]), tokens, source=source)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def packed(first, second, width):
    """Two rows behind one another, filled with zeros, and their positions and segments."""
    fill = [0] * (width - len(first) - len(second))
    positions = [*range(len(first)), *range(len(second)), *fill]
    segments = [1] * len(first) + [2] * len(second) + fill
    return [np.array([row], "int32") for row in ([*first, *second, *fill], positions, segments)]


@pytest.mark.parametrize("name", PAIR_CONFIGS)
def test_packed_pairs_equal_the_pairs_alone(models, name):
    tokens, positions, segments = packed(ROWS[0, :5], ROWS[1, :7], 14)
    source, source_positions, source_segments = packed(SOURCES[0, :9], SOURCES[1, :6], 17)
    rest = {"source_positions": source_positions, "source_segments": source_segments, "segments": segments}
    found = run(models[name], {"source": source, "tokens": tokens, "positions": positions, **rest})[0]
    weights = random_weights(PAIR_CONFIGS[name])
    first = reference.forward(PAIR_CONFIGS[name], weights, ROWS[0, :5], source=SOURCES[0, :9])
    second = reference.forward(PAIR_CONFIGS[name], weights, ROWS[1, :7], source=SOURCES[1, :6])
    np.testing.assert_allclose(found[:12], np.concatenate([first, second]), rtol=0, atol=1e-4)


def change(row, place):
    changed = np.array(row)
    changed[:, place] = (changed[:, place] + 1) % 61
    return changed


@pytest.mark.parametrize("place", [0, 12])
def test_every_token_of_the_source_changes_every_logit(model, place):
    difference = np.abs(run(model, {**BOTH, "source": change(SOURCES, place)}) - run(model, BOTH))
    assert difference.max(axis=(0, 2)).min() > 1e-3


def test_the_encoder_looks_both_ways(model):
    """The last decoder block's keys of each token of the source change with its first and with its last token."""

    def keys(source):
        return model.encode(model.embed(source), mask=np.zeros((1, 1, 1, 13), "float32"))[-1][0]

    plain = run(keys, SOURCES)
    for place in (0, 12):
        assert np.abs(run(keys, change(SOURCES, place)) - plain).max(axis=(0, 1, 3)).min() > 1e-3


def cached_logits(model, splits):
    """Logits of the target read in parts that end at `splits`; source and memory are padded to 15 slots."""
    width = SOURCES.shape[1] + 2
    source = np.pad(SOURCES, ((0, 0), (0, 2)), constant_values=5)
    source_mask = np.where(np.arange(width) < width - 2, 0, -1e9).astype("float32")[None, None, None]
    memory = compiled(lambda source: model.encode(model.embed(source), mask=source_mask))(source)
    cache, parts = model.empty_cache(len(ROWS), SLOTS), []
    forward = compiled(model.cached_forward)
    for first, last in zip((0, *splits), (*splits, ROWS.shape[1]), strict=True):
        masks = {"mask": causal_mask(first, last - first, SLOTS), "source_mask": source_mask}
        part, cache = forward(ROWS[:, first:last], cache, memory, slot=first, **masks)
        parts.append(reference.to_numpy(part))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(("name", "splits"), [("grouped", (4,)), ("grouped", tuple(range(1, 9))), ("learned", (1, 2))])
def test_cached_equals_uncached_for_any_split(models, name, splits):
    np.testing.assert_allclose(cached_logits(models[name], splits), run(models[name], BOTH), rtol=0, atol=1e-4)


def test_mixed_bfloat16_says_about_the_same(model):
    half = random_model(PAIR_CONFIGS["grouped"], dtype="mixed_bfloat16")
    close, wide = run(half, BOTH), run(model, BOTH)
    assert np.abs(close - wide).mean() < 0.15  # the logits spread by 2; a sharp attention may fall to another token
    np.testing.assert_allclose(cached_logits(half, tuple(range(1, 9))), close, rtol=0, atol=0.06)
    assert {weight.dtype for weight in half.weights} == {"float32"}
    keys, values = half.empty_cache(1, 4)[1]
    assert keras.backend.standardize_dtype(keys.dtype) == keras.backend.standardize_dtype(values.dtype) == "bfloat16"


def test_padding_that_sees_no_source_is_a_number_in_float16():
    half = random_model(PAIR_CONFIGS["grouped"], dtype="mixed_float16")
    tokens, positions, segments = packed(ROWS[0, :5], [], 9)
    whole = {"source": SOURCES[:1], "source_segments": np.ones_like(SOURCES[:1])}
    assert np.isfinite(run(half, {**whole, "tokens": tokens, "positions": positions, "segments": segments})).all()


def test_keras_saves_and_loads_the_model(models, tmp_path):
    models["learned"].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, Seq2SeqLM) and loaded.config == PAIR_CONFIGS["learned"]
    for name, weight in model_weights(models["learned"]).items():
        np.testing.assert_array_equal(model_weights(loaded)[name], weight)


def test_dropout_drops_only_while_training(model):
    drops = Seq2SeqLM(dataclasses.replace(PAIR_CONFIGS["grouped"], dropout=0.5))
    assign_weights(drops, random_weights(PAIR_CONFIGS["grouped"]))
    np.testing.assert_allclose(run(drops, BOTH), run(model, BOTH), rtol=0, atol=1e-6)
    states = [[variable.value for variable in part] for part in (drops.trainable_variables, drops.non_trainable_variables)]
    trained, _ = run(lambda weights, others: drops.stateless_call(weights, others, BOTH, training=True), *states)
    assert np.abs(trained - run(model, BOTH)).max() > 0.1


@pytest.mark.parametrize("name", ["source", "tokens"])
def test_rows_longer_than_learned_positions_are_refused(models, name):
    with pytest.raises(ValueError, match="at most 24 tokens, the `context_length`. Received: 25"):
        models["learned"]({**BOTH, name: np.zeros((2, 25), "int32")})


def test_each_class_refuses_the_configs_of_the_other():
    with pytest.raises(ValueError, match="needs an encoder. Received: a config with `num_encoder_layers` 0"):
        Seq2SeqLM(dataclasses.replace(PAIR_CONFIGS["grouped"], num_encoder_layers=0))
    with pytest.raises(ValueError, match="A `CausalLM` has no encoder. Received: a config with 1 encoder layers"):
        CausalLM(PAIR_CONFIGS["grouped"])
    with pytest.raises(ValueError, match="An encoder needs `form` \"llama\". Received: 'smolite-1'"):
        ModelConfig.from_preset("smolite-1", num_encoder_layers=1)
