"""The cached forward against the uncached one, which `test_models` holds to the numpy reference; and bfloat16."""

import keras
import numpy as np
import pytest
import reference
from reference import AWKWARD_CONFIGS, causal_mask, compiled, random_model, run

ROWS = np.random.RandomState(3).randint(0, 61, (2, 11)).astype("int32")
SLOTS = 16


@pytest.fixture(scope="module")
def model():
    return random_model(AWKWARD_CONFIGS["grouped"])


@pytest.fixture(scope="module")
def half():
    return random_model(AWKWARD_CONFIGS["grouped"], dtype="mixed_bfloat16")


def cached_logits(model, rows, *splits):
    """Logits of rows read in parts that end at `splits`, through a cache."""
    cache, parts = model.empty_cache(len(rows), SLOTS), []
    forward = compiled(model.cached_forward)
    for first, last in zip((0, *splits), (*splits, rows.shape[1]), strict=True):
        mask = causal_mask(first, last - first, SLOTS)
        part, cache = forward(rows[:, first:last], cache, slot=first, mask=mask)
        parts.append(reference.to_numpy(part))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("splits", [(1,), (10,), tuple(range(1, 11)), (3, 8)])
def test_cached_equals_uncached_for_any_split(model, splits):
    np.testing.assert_allclose(cached_logits(model, ROWS, *splits), run(model, ROWS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["multi-query", "multi-head"])
def test_cached_equals_uncached_token_by_token_for_other_heads(name):
    model = random_model(AWKWARD_CONFIGS[name])
    cached = cached_logits(model, ROWS, *range(1, 11))
    np.testing.assert_allclose(cached, run(model, ROWS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("splits", [(1,), (3, 8), tuple(range(1, 11))])
def test_cached_equals_uncached_in_mixed_bfloat16(half, splits):
    """bfloat16 keeps 8 bits: another order of additions may move a logit of 4 by its last step, 0.03."""
    uncached = run(half, ROWS)
    np.testing.assert_allclose(cached_logits(half, ROWS, *splits), uncached, rtol=0, atol=0.05)


def test_a_padded_prefill_and_rows_of_different_lengths_change_nothing(model):
    """Prefill of fixed length writes slots past the prompt; each row's mask hides them until they are rewritten."""
    lengths, full = np.array([5, 8]), run(model, ROWS)
    cache, forward = model.empty_cache(2, SLOTS), compiled(model.cached_forward)
    tokens = np.where(np.arange(8) < lengths[:, None], ROWS[:, :8], 0)
    _, cache = forward(tokens, cache, slot=0, mask=causal_mask(0, 8, SLOTS))
    slots = np.arange(SLOTS)
    seen = (slots < lengths[:, None]) | (slots == 8)
    mask = np.where(seen, 0.0, -1e9).astype("float32")[:, None, None]
    new = np.take_along_axis(ROWS, lengths[:, None], axis=1)
    step, _ = forward(new, cache, slot=8, mask=mask, positions=lengths[:, None].astype("int32"))
    expected = full[np.arange(2), lengths]
    np.testing.assert_allclose(reference.to_numpy(step)[:, 0], expected, rtol=0, atol=1e-4)


def test_every_layer_computes_in_bfloat16_and_the_logits_are_float32(half):
    def outputs(tokens):
        hidden, cache = half.cached_body(half.embed(tokens), half.empty_cache(2, SLOTS), slot=0, mask=causal_mask(0, 11, SLOTS))
        narrow = [half.embed(tokens), hidden, half.final_norm(hidden), *(part for pair in cache for part in pair)]
        return narrow, [half(tokens), half.head(hidden)]

    narrow, wide = compiled(outputs)(ROWS)
    assert {keras.backend.standardize_dtype(tensor.dtype) for tensor in narrow} == {"bfloat16"}
    assert {keras.backend.standardize_dtype(tensor.dtype) for tensor in wide} == {"float32"}
    assert {weight.dtype for weight in half.weights} == {"float32"}


def test_bfloat16_says_about_the_same_as_float32(model, half):
    close, wide = run(half, ROWS), run(model, ROWS)
    assert np.abs(close - wide).max() < 1 and np.abs(close - wide).mean() < 0.1  # the logits spread by 2


def test_empty_cache_has_the_stated_shapes(model, half):
    assert len(model.empty_cache(2)) == 3
    keys, values = model.empty_cache(2)[0]
    assert tuple(keys.shape) == (2, 2, 80, 12) and tuple(values.shape) == (2, 2, 12, 80)
    assert keras.backend.standardize_dtype(half.empty_cache(1, 4)[2][1].dtype) == "bfloat16"
