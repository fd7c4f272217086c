"""Referee of the flat layout: the edge layout, which `test_layers` holds to the numpy reference."""

import keras
import numpy as np
import pytest
from keras import ops
from reference import run

from smolite.generation.compiled_steps import compiled
from smolite.models.caches import attend, cache_shapes, flattened, leading_axes, update_cache

B, T, Q, K, S, H = 2, 3, 6, 2, 8, 4


def noise(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype("float32")


def filled(dtype="float32"):
    shapes = cache_shapes(B, K, S, H)
    return tuple(noise(*shape, seed=i).astype(dtype) for i, shape in enumerate(shapes))


def flat(pair):
    """As `flattened`, in numpy."""
    keys, values = pair
    return keys.swapaxes(2, 3).reshape(B * K, H, -1), values.swapaxes(2, 3).reshape(B * K, -1, H)


def test_shapes_of_both_layouts():
    assert cache_shapes(B, K, S, H) == ((2, 2, 8, 4), (2, 2, 4, 8))
    assert cache_shapes(B, K, S, H, flat=True) == ((4, 4, 8), (4, 8, 4))
    pairs = zip(run(lambda *pair: flattened(pair), *filled()), flat(filled()), strict=True)
    for actual, expected in pairs:
        np.testing.assert_array_equal(actual, expected)


def test_what_a_reshape_is_told_of_the_first_two_axes():
    assert leading_axes(keras.KerasTensor((1, 5, 8))) == (-1, 5)
    assert leading_axes(keras.KerasTensor((None, 5, 8)), 3) == (-1, 15)
    assert leading_axes(keras.KerasTensor((2, None, 8)), 3) == (2, -1)


@pytest.mark.parametrize("groups", [1, 3])
def test_attention_over_a_length_that_only_the_data_has(groups):
    """Referee: the same with every shape known."""
    query, (keys, values), mask = noise(B, T, K * groups, H), filled(), noise(1, 1, groups * T, S, seed=3)
    inputs = [
        keras.Input(batch_shape=(part.shape[0], *(None if n == size else n for n in part.shape[1:])))
        for part, size in ((query, T), (keys, S), (values, S), (mask, groups * T))
    ]
    model = keras.Model(inputs, attend(*inputs))
    actual = ops.convert_to_numpy(model([query, keys, values, mask]))
    np.testing.assert_allclose(actual, run(attend, query, keys, values, mask), rtol=0, atol=1e-6)


def test_update_cache_writes_at_the_slot_and_nowhere_else():
    new_keys, new_values = noise(1, 2, 3, 4), noise(1, 2, 4, 3, seed=1)
    assert update_cache(None, new_keys, new_values, None) == (new_keys, new_values)
    old = ops.zeros((1, 2, 8, 4), "float16"), ops.zeros((1, 2, 4, 8), "float16")
    updated = update_cache(old, new_keys, new_values, 2)
    assert {keras.backend.standardize_dtype(part.dtype) for part in updated} == {"float16"}
    keys, values = run(lambda *parts: parts, *updated)
    np.testing.assert_array_equal(keys[:, :, 2:5], new_keys.astype("float16"))
    np.testing.assert_array_equal(values[..., 2:5], new_values.astype("float16"))
    assert np.count_nonzero(keys) == new_keys.size and np.count_nonzero(values) == new_values.size


def test_a_flat_cache_is_written_as_one_of_the_edge_layout():
    new = noise(B, K, T, H, seed=5), noise(B, K, H, T, seed=6)
    expected = flat(run(lambda *pair: update_cache(pair, *new, 4), *filled()))
    for actual, part in zip(run(lambda *pair: update_cache(pair, *new, 4), *flat(filled())), expected, strict=True):
        np.testing.assert_array_equal(actual, part)


@pytest.mark.parametrize("flat_layout", [False, True])
def test_a_compiled_step_writes_one_slot_on_torch_in_place(flat_layout):
    """On the others the compiler decides: `slice_update` of memory that a step may take."""
    new, old = (noise(B, K, 1, H, seed=5), noise(B, K, H, 1, seed=6)), flat(filled()) if flat_layout else filled()
    cache = tuple(map(ops.convert_to_tensor, old))
    step = compiled(keras.Sequential(), lambda _, key, cache, value, slot: update_cache(cache, key, value, slot), is_step=True)
    expected = tuple(map(np.copy, old))
    for slot in (2, 4):  # the first call records, the second one replays
        expected = run(lambda *pair, slot=slot: update_cache(pair, *new, slot), *expected)
        before, place = cache, ops.convert_to_tensor(np.array(slot, "int32"))
        cache = step(ops.convert_to_tensor(new[0]), before, ops.convert_to_tensor(new[1]), place)
        for actual, part, earlier in zip(cache, expected, before, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(actual), part)
            assert keras.backend.backend() != "torch" or actual.data_ptr() == earlier.data_ptr()


@pytest.mark.parametrize("window", [S, 5, 2])
@pytest.mark.parametrize("rows", [1, B], ids=["one mask", "a mask a row"])
def test_attention_is_the_same_over_both_layouts(window, rows):
    query, mask = (
        noise(B, T, Q, H, seed=2),
        np.where(noise(rows, 1, T * Q // K, window, seed=3) > -1, 0, -1e9).astype("float32"),
    )
    expected = run(attend, query, *filled(), mask)
    assert expected.shape == (B, T, Q * H)
    np.testing.assert_allclose(run(attend, query, *flat(filled()), mask), expected, rtol=0, atol=1e-6)
