"""Referees: torch's cross-entropy in float64, the schedule and AdamW written out by hand."""

import math
from functools import cache

import keras
import numpy as np
import pytest
import torch
from keras import ops
from tiny import TINY

from smolite.models.causal_lm import CausalLM
from smolite.models.losses import NextTokenLoss, Perplexity
from smolite.training.compilation import compile_for_training, learning_rate_schedule
from smolite.training.options import TrainingOptions

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(0, 2, (3, 5, 11)).astype("float32")
TARGETS = RNG.integers(0, 11, (3, 5)).astype("int32")
WEIGHTS = np.array([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]], "float32")
TARGETS[WEIGHTS == 0] = 0


def torch_loss(label_smoothing=0.0):
    """Mean over the trained tokens, by torch."""
    trained = WEIGHTS.ravel() == 1
    logits = torch.tensor(LOGITS.reshape(-1, 11)[trained], dtype=torch.float64)
    targets = torch.tensor(TARGETS.ravel()[trained], dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing).item()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_that_of_torch_over_trained_tokens(label_smoothing):
    loss = NextTokenLoss(label_smoothing)(TARGETS, LOGITS, sample_weight=WEIGHTS)
    assert float(loss) == pytest.approx(torch_loss(label_smoothing), abs=1e-5)


def test_padding_does_not_dilute_the_loss():
    filler = np.zeros((4, 5, 11), "float32"), np.zeros((4, 5), "int32"), np.zeros((4, 5), "float32")
    logits, targets, weights = (np.concatenate(p) for p in zip((LOGITS, TARGETS, WEIGHTS), filler, strict=True))
    assert float(NextTokenLoss()(targets, logits, sample_weight=weights)) == pytest.approx(torch_loss(), abs=1e-5)


def test_the_loss_is_saved_with_its_smoothing():
    copy = keras.losses.deserialize(keras.losses.serialize(NextTokenLoss(0.25)))
    assert type(copy) is NextTokenLoss and copy.label_smoothing == 0.25
    assert float(copy(TARGETS, LOGITS, sample_weight=WEIGHTS)) == pytest.approx(torch_loss(0.25), abs=1e-5)


def test_perplexity_is_that_of_all_trained_tokens_over_batches():
    metric = Perplexity()
    metric.update_state(TARGETS[:1], LOGITS[:1], WEIGHTS[:1])
    metric.update_state(TARGETS[1:], LOGITS[1:], WEIGHTS[1:])
    assert float(metric.result()) == pytest.approx(math.exp(torch_loss()), rel=1e-5)
    metric.reset_state()
    metric.update_state(TARGETS, LOGITS, WEIGHTS)
    assert float(metric.result()) == pytest.approx(math.exp(torch_loss()), rel=1e-5)


@pytest.mark.parametrize("warmup_ratio", [0.1, 0.25])
def test_the_learning_rate_climbs_straight_and_falls_as_a_cosine(warmup_ratio):
    options = TrainingOptions(learning_rate=2e-3, warmup_ratio=warmup_ratio, min_lr_ratio=0.1)
    schedule = learning_rate_schedule(options, total_steps=40)
    warmup = int(40 * warmup_ratio)
    for step in (0, 1, warmup - 1, warmup, 20, 39, 40):
        along = (step - warmup) / (40 - warmup)
        falling = 2e-4 + (2e-3 - 2e-4) * (1 + math.cos(math.pi * along)) / 2
        expected = 2e-3 * step / warmup if step < warmup else falling
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-8), step
    assert float(schedule(1000)) == pytest.approx(2e-4, abs=1e-8)


def test_without_warm_up_the_first_step_is_the_largest():
    schedule = learning_rate_schedule(TrainingOptions(warmup_ratio=0.0, min_lr_ratio=0.0), total_steps=10)
    assert float(schedule(0)) == pytest.approx(1e-3) and float(schedule(5)) == pytest.approx(5e-4)
    assert float(schedule(10)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_the_shortest_runs_learn_too(total_steps):
    schedule = learning_rate_schedule(TrainingOptions(warmup_ratio=0.9), total_steps=total_steps)
    rates = [float(schedule(step)) for step in range(total_steps)]
    assert max(rates) == pytest.approx(1e-3)


@cache
def stepped(options, weight):
    """A tiny model before and after one training step in which every target has this weight, and the step's logs."""
    keras.utils.set_random_seed(1)
    model = CausalLM(TINY)
    compile_for_training(model, options, total_steps=10)
    tokens = np.random.default_rng(1).integers(5, TINY.vocab_size, (2, 16)).astype("int32")
    before = {variable.path: ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables}
    logs = model.train_on_batch(tokens, tokens, sample_weight=np.full((2, 16), weight, "float32"), return_dict=True)
    return model, before, logs


def test_weight_decay_shrinks_matrices_and_leaves_norm_scales_alone():
    model, before, _ = stepped(TrainingOptions(learning_rate=0.1, weight_decay=0.5, warmup_ratio=0.0), 0.0)
    scales = 0
    for variable in model.trainable_variables:
        is_scale = len(variable.shape) == 1
        scales += is_scale
        left = before[variable.path] * (1.0 if is_scale else 1 - 0.1 * 0.5)
        np.testing.assert_allclose(ops.convert_to_numpy(variable), left, rtol=1e-6, err_msg=variable.path)
    assert scales == 3 and len(model.trainable_variables) > 3


PLAIN = TrainingOptions(global_clipnorm=0.0)
CLIPPED_AND_SMOOTHED = TrainingOptions(global_clipnorm=0.001, label_smoothing=0.5)


def test_the_gradient_is_cut_to_the_norm():
    """Adam's first moment after one step is 0.1 times the gradient that it was given."""
    norms = []
    for options in (PLAIN, CLIPPED_AND_SMOOTHED):
        moments = [ops.convert_to_numpy(moment) for moment in stepped(options, 1.0)[0].optimizer._momentums]
        norms.append(math.sqrt(sum(float((moment**2).sum()) for moment in moments)) / 0.1)
    assert norms[0] > 0.01 and norms[1] == pytest.approx(0.001, rel=1e-3)


def test_smoothing_changes_the_loss_and_not_the_perplexity():
    plain, smoothed = (stepped(options, 1.0)[2] for options in (PLAIN, CLIPPED_AND_SMOOTHED))
    assert smoothed["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-5)
    assert float(plain["loss"]) == pytest.approx(math.log(plain["perplexity"]), abs=1e-5)
    assert abs(smoothed["loss"] - plain["loss"]) > 1e-3
