"""Referee: the formula and its derivative in numpy, float64."""

import keras
import numpy as np
import pytest
from keras import ops

from smolite.models.cross_entropy import logit_of, token_nll

RNG = np.random.default_rng(5)
TARGETS = RNG.integers(0, 13, (3, 7)).astype("int32")
CASES = {
    "ordinary": RNG.normal(0, 2, (3, 7, 13)),
    "far apart": RNG.normal(0, 300, (3, 7, 13)),
    "all large": 1e4 + RNG.normal(0, 1, (3, 7, 13)),
    "all equal": np.zeros((3, 7, 13)),
}


def reference(logits):
    """Values (B, L), and derivatives (B, L, V) of their sum weighted by 1, 2, 3 …"""
    logits = logits.astype("float32").astype("float64")
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top
    nll = (log_sum - np.take_along_axis(logits, TARGETS[..., None], -1))[..., 0]
    slopes = np.exp(logits - log_sum) - np.eye(13)[TARGETS]
    return nll, slopes * np.arange(1, 22).reshape(3, 7, 1)


def value_and_gradient(logits):
    weights = np.arange(1, 22, dtype="float32").reshape(3, 7)
    logits = logits.astype("float32")
    if keras.backend.backend() == "jax":
        import jax

        values = token_nll(TARGETS, logits)
        return values, jax.jit(jax.grad(lambda x: (token_nll(TARGETS, x) * weights).sum()))(logits)
    if keras.backend.backend() == "torch":
        logits = ops.convert_to_tensor(logits).requires_grad_()
        values = token_nll(TARGETS, logits)
        (values * ops.convert_to_tensor(weights)).sum().backward()
        return values.detach(), logits.grad
    import tensorflow as tf

    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = token_nll(TARGETS, logits)
        total = tf.reduce_sum(values * weights)
    return values, tape.gradient(total, logits)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1, 40, 1 << 22])
def test_values_and_derivatives_are_those_of_the_formula(case, chunk, monkeypatch):
    monkeypatch.setattr("smolite.backends.torch._CHUNK", chunk)  # torch: a row at a time, three rows at a time, all rows
    values, slopes = value_and_gradient(CASES[case])
    expected_values, expected_slopes = reference(CASES[case])
    rounding = max(1e-5, float(np.finfo("float32").eps * np.abs(CASES[case]).max()))  # of log Σ exp, as large as the logits
    np.testing.assert_allclose(ops.convert_to_numpy(values), expected_values, atol=2 * rounding)
    np.testing.assert_allclose(ops.convert_to_numpy(slopes), expected_slopes, atol=21 * rounding)


def test_the_worked_example():
    assert float(token_nll([[1]], [[[0.0, 0.0]]])[0][0]) == pytest.approx(np.log(2))


def test_the_logit_of_each_target():
    logits = CASES["ordinary"].astype("float32")
    picked = np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
    np.testing.assert_array_equal(ops.convert_to_numpy(logit_of(TARGETS, logits)), picked)


def test_a_broken_logit_gives_a_broken_loss():
    logits = CASES["ordinary"].astype("float32")
    logits[1, 2, 3] = np.nan
    broken = np.isnan(ops.convert_to_numpy(token_nll(TARGETS, logits)))
    assert broken[1, 2] and broken.sum() == 1
