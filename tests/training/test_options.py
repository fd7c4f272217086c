"""Options are refused where they are made, before any slow work."""

import json
import math
from dataclasses import fields

import pytest

from smolite.training.options import TrainingOptions

REFUSED = {
    "epochs": (0, "a whole number, 1 or more"),
    "batch_size": (-1, "a whole number, 1 or more"),
    "sequence_length": (12.5, "a whole number, 1 or more"),
    "gradient_accumulation_steps": (0, "a whole number, 1 or more"),
    "steps_per_epoch": (-1, "a whole number, 0 or more"),
    "sample_steps": (2.0, "a whole number, 0 or more"),
    "learning_rate": (0.0, "a number above 0, such as 1e-3"),
    "warmup_ratio": (1.0, "a share from 0 to below 1"),
    "min_lr_ratio": (-0.1, "a share from 0 to below 1"),
    "layer_decay": (1.1, "a share above 0, up to 1"),
    "weight_decay": (-0.1, "a number, 0 or more"),
    "beta_2": (1.0, "a share from 0 to below 1"),
    "global_clipnorm": (-1.0, "a number, 0 or more"),
    "label_smoothing": (1.0, "a share from 0 to below 1"),
    "dropout": (1.0, "a share from 0 to below 1"),
    "token_noise": (1.0, "a share from 0 to below 1"),
    "patience": (-2, "a whole number, 0 or more"),
    "restore_best_weights": ("best", "True or False"),
    "seed": (-1, "a whole number, 0 or more"),
    "dtype": ("float16", "one of float32, mixed_bfloat16, mixed_float16"),
}


def test_every_option_is_checked():
    assert list(REFUSED) == [field.name for field in fields(TrainingOptions)]


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_out_of_range(name):
    value, expected = REFUSED[name]
    with pytest.raises(ValueError, match=f"`{name}` must be {expected}. Received: {value!r}. Choose another value."):
        TrainingOptions(**{name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_learning_rate_that_is_no_number(value):
    with pytest.raises(ValueError, match=f"`learning_rate` must be a number above 0, such as 1e-3. Received: {value!r}"):
        TrainingOptions(learning_rate=value)


def test_true_is_not_a_count():
    with pytest.raises(ValueError, match="`epochs` must be a whole number, 1 or more. Received: True"):
        TrainingOptions(epochs=True)


def test_the_least_values_are_allowed():
    least = {
        "epochs": 1,
        "batch_size": 1,
        "sequence_length": 1,
        "global_clipnorm": 0,
        "warmup_ratio": 0,
        "weight_decay": 0,
        "dropout": 0,
    }
    options = TrainingOptions(**least)
    assert TrainingOptions(**json.loads(json.dumps(options.to_dict()))) == options


def test_a_recipe_is_options_that_can_be_changed():
    options = TrainingOptions.from_recipe("smollm2", epochs=3, batch_size=2)
    assert (options.epochs, options.batch_size, options.sequence_length, options.gradient_accumulation_steps) == (3, 2, 2048, 4)
    assert (options.learning_rate, options.beta_2, options.weight_decay) == (3e-3, 0.95, 0.01)
    assert (options.dtype, options.steps_per_epoch, options.sample_steps) == ("mixed_bfloat16", 1000, 500)


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="Unknown recipe. Received: 'smollm'. Choose one of: smollm2."):
        TrainingOptions.from_recipe("smollm")
