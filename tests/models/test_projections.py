"""Referee: `keras.layers.Dense`, and the projections taken one by one."""

import keras
import numpy as np
import pytest
from keras import ops

from smolite.models import projections
from smolite.models.projections import project, project_together, projection, rows_in_parts, rows_joined

ROW = np.random.RandomState(0).standard_normal((1, 1, 24)).astype("float32")
WIDTHS = 8, 12, 20


def build(*widths, **options):
    layers = [projection(width, name=f"p{width}", **options) for width in widths]
    for layer in layers:
        layer.build(ROW.shape)
        if layer.bias is not None:
            layer.bias.assign(np.arange(layer.units))
    return layers


def close(actual, expected):
    np.testing.assert_allclose(ops.convert_to_numpy(actual), ops.convert_to_numpy(expected), rtol=0, atol=1e-5)


@pytest.fixture
def products(monkeypatch):
    """The shapes of the right factors of all products; those of `Dense` have two axes."""
    shapes, matmul = [], ops.matmul

    def noted(left, right):
        shapes.append(tuple(right.shape))
        return matmul(left, right)

    monkeypatch.setattr(projections.ops, "matmul", noted)
    return shapes


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "activation": "gelu"}])
def test_rows_of_a_length_that_only_the_data_has(options):
    (layer,), rows = build(12, **options), np.random.RandomState(1).standard_normal((2, 5, 24)).astype("float32")
    inputs = keras.Input(batch_shape=(2, None, 24))
    close(keras.Model(inputs, project(layer, inputs))(rows), layer(rows))


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "activation": "gelu"}])
def test_a_row_in_parts_equals_dense(options):
    (layer,) = build(12, **options)
    with rows_in_parts(4):
        actual = project(layer, ROW)
    assert tuple(actual.shape) == (1, 1, 12)
    close(actual, layer(ROW))


def test_a_row_is_taken_in_parts(products):
    (layer,) = build(12)
    with rows_in_parts(4):
        project(layer, ROW)
    assert (4, 6, 12) in products


@pytest.mark.parametrize(("inputs", "parts"), [(np.tile(ROW, (2, 1, 1)), 4), (np.tile(ROW, (1, 3, 1)), 4), (ROW, 5), (ROW, 1)])
def test_several_rows_and_what_does_not_divide_are_left_to_dense(products, inputs, parts):
    first, second = build(8, 12)
    with rows_in_parts(parts), rows_joined():
        actual = project_together([first, second], inputs)
    assert all(len(shape) == 2 for shape in products)
    close(actual[0], inputs @ ops.convert_to_numpy(first.kernel))
    close(actual[1], inputs @ ops.convert_to_numpy(second.kernel))


@pytest.mark.parametrize("use_bias", [False, True])
def test_joined_projections_equal_single_ones(products, use_bias):
    layers = build(*WIDTHS, use_bias=use_bias)
    expected = project_together(layers, ROW)
    products.clear()
    with rows_in_parts(2), rows_joined():
        actual = project_together(layers, ROW)
    assert products == [(2, 12, sum(WIDTHS))]
    for part, each in zip(actual, expected, strict=True):
        close(part, each)


def test_quantized_projections_are_not_joined_and_low_rank_ones_keep_what_they_learnt():
    layers = build(*WIDTHS)
    layers[1].enable_lora(2)
    layers[1].lora_kernel_b.assign(np.ones((2, 12)))
    expected = project_together(layers, ROW)
    with rows_in_parts(2), rows_joined():
        for part, each in zip(project_together(layers, ROW), expected, strict=True):
            close(part, each)
    quantized = build(*WIDTHS)
    for layer in quantized:
        layer.quantize("int8")
    expected = project_together(quantized, ROW)
    with rows_in_parts(2), rows_joined():
        for part, each in zip(project_together(quantized, ROW), expected, strict=True):
            close(part, each)


def test_half_precision_is_left_to_dense(products):
    (layer,) = build(12, dtype="mixed_bfloat16")
    with rows_in_parts(4):
        project(layer, ops.cast(ROW, "bfloat16"))
    assert all(len(shape) == 2 for shape in products)


def test_nothing_is_in_parts_after_the_scope_also_when_it_ends_in_an_error(products):
    (layer,) = build(8)
    with pytest.raises(KeyError), rows_in_parts(2):
        raise KeyError
    project(layer, ROW)
    assert all(len(shape) == 2 for shape in products)
