"""What both kinds of model promise. Referees: the model itself without what must not matter, and the referee's tensors."""

import functools

import keras
import numpy as np
import pytest
from reference import AWKWARD_CONFIGS, PAIR_CONFIGS, random_model, run, tensor_shapes

from smolite.checkpoint.weights import model_weights

KINDS = {**AWKWARD_CONFIGS, "pairs": PAIR_CONFIGS["grouped"], "learned pairs": PAIR_CONFIGS["learned"]}
ROWS, SOURCES = (np.random.RandomState(seed).randint(0, 61, (2, width)).astype("int32") for seed, width in ((3, 11), (4, 13)))
SOURCE = {"source": SOURCES}
each_kind = pytest.mark.parametrize("kind", ["grouped", "pairs"])
with_and_without_segments = pytest.mark.parametrize("with_segments", [False, True])


@functools.cache
def model_of(kind, dtype="float32"):
    return random_model(KINDS[kind], dtype=dtype)


def inputs_of(kind, tokens=ROWS, **more):
    return {**(SOURCE if KINDS[kind].has_encoder else {}), "tokens": tokens, **more}


def padded(row, pad):
    """Four tokens more, and the segments that tell them apart."""
    segments = np.repeat([[1] * row.shape[1] + [0] * 4], 2, axis=0).astype("int32")
    return np.concatenate([row, np.full((2, 4), pad, "int32")], axis=1), segments


@each_kind
@with_and_without_segments
def test_padding_on_the_right_changes_no_real_logit(kind, with_segments):
    plain, tolerance = run(model_of(kind), inputs_of(kind, ROWS[:, :7])), {"grouped": 1e-5, "pairs": 5e-5}[kind]
    for pad in (0, 60):
        tokens, segments = padded(ROWS[:, :7], pad)
        inputs = inputs_of(kind, tokens, **({"segments": segments} if with_segments else {}))
        if "source" in inputs:  # which is looked at from everywhere, so its padding must be told
            inputs["source"], inputs["source_segments"] = padded(SOURCES, pad)
        np.testing.assert_allclose(run(model_of(kind), inputs)[:, :7], plain, rtol=0, atol=tolerance)


@each_kind
@with_and_without_segments
def test_a_token_changes_nothing_before_it_and_everything_after(kind, with_segments):
    segments = {"segments": np.ones_like(ROWS)} if with_segments else {}
    changed = np.array(ROWS)
    changed[:, 6] = (changed[:, 6] + 1) % 61
    before, after = (run(model_of(kind), inputs_of(kind, tokens, **segments)) for tokens in (ROWS, changed))
    difference = np.abs(before - after).max(axis=(0, 2))
    assert difference[:6].max() < 1e-6 and difference[6:].min() > 1e-3


@each_kind
def test_loss_at_picks_positions(kind):
    places = np.array([[2, 7, 7, 0], [10, 0, 3, 4]], "int32")
    expected = np.take_along_axis(run(model_of(kind), inputs_of(kind)), places[..., None], axis=1)
    picked = run(model_of(kind), inputs_of(kind, loss_at=places))
    assert picked.shape == (2, 4, 97)
    np.testing.assert_allclose(picked, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("grouped", {"ids": ROWS}, 'a dictionary with "tokens".*Received keys: ids. Leave out: ids'),
        ("grouped", {"tokens": ROWS, "mask": ROWS}, "Received keys: tokens, mask. Leave out: mask"),
        ("grouped", {"segments": ROWS}, 'with "tokens".*Received keys: segments. Leave out: nothing'),
        ("grouped", {}, "Received keys: none"),
        ("pairs", ROWS, 'a dictionary with "source" and "tokens".*Received keys: none'),
        ("pairs", {"tokens": ROWS}, 'with "source" and "tokens".*Received keys: tokens. Leave out: nothing'),
        ("pairs", {**SOURCE, "tokens": ROWS, "mask": ROWS}, "Received keys: source, tokens, mask. Leave out: mask"),
    ],
)
def test_unknown_and_missing_inputs_are_refused(kind, inputs, message):
    with pytest.raises(ValueError, match=message):
        model_of(kind)(inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_has_the_parameters_its_config_counts(kind):
    model = model_of(kind)
    assert model.count_params() == KINDS[kind].num_parameters
    weights = model_weights(model)
    assert {key: weight.shape for key, weight in weights.items()} == tensor_shapes(KINDS[kind])
    assert len(model.weights) == len(weights)


@pytest.mark.parametrize("kind", ["grouped", "learned pairs"])
def test_every_layer_and_the_model_are_made_anew_from_their_configs(kind):
    model = model_of(kind, dtype="mixed_bfloat16")
    for layer in [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]:
        again = type(layer).from_config(layer.get_config())
        assert (again.name, again.dtype_policy.name) == (layer.name, layer.dtype_policy.name)
    again = type(model).from_config(model.get_config())
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(*(run(each, inputs_of(kind)) for each in (model, again)))
