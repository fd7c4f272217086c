"""Referees: a clock that the test sets, and the batches of a real `fit` counted beside it."""

import keras
import numpy as np
import pytest

from smolite.training import progress
from smolite.training.progress import Pulse, Samples, Speed, TimeLeft

X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")


def small_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def clock(monkeypatch, *times):
    moments = iter(times)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(moments))


def fit(model, *callbacks, epochs, first=0, **given):
    """Eight rows in batches of two: four batches in an epoch."""
    settings = {"batch_size": 2, "shuffle": False, "verbose": 0, **given}
    return model.fit(X, X[:, :1], epochs=epochs, initial_epoch=first, callbacks=list(callbacks), **settings)


@pytest.mark.parametrize(("every", "shown"), [(4, [4, 8, 12]), (3, [3, 6, 9, 12]), (5, [5, 10]), (8, [8])])
def test_samples_show_the_model_as_it_is_after_so_many_batches(every, shown):
    """One weight stands for the model. The referee is the same training stopped after so many batches."""
    weights, model = [], small_model()
    samples = Samples(lambda: str(weights.append(model.get_weights()[0].copy())), every, epoch_length=4)
    fit(model, samples, epochs=3)
    assert len(weights) == len(shown)
    for done, seen in zip(shown, weights, strict=True):
        stopped = small_model()
        for batch in range(done):
            rows = slice(batch % 4 * 2, batch % 4 * 2 + 2)
            stopped.train_on_batch(X[rows], X[rows, :1])
        np.testing.assert_allclose(seen, stopped.get_weights()[0], rtol=1e-5, atol=1e-7)


def test_samples_go_on_counting_where_a_run_resumes(capsys):
    fit(small_model(), Samples(lambda: "안녕! → 반가워요", 6, epoch_length=4), epochs=3, first=1)
    assert capsys.readouterr().out.count("\n안녕! → 반가워요\n") == 2


def test_speed_counts_the_training_part_alone(monkeypatch):
    speed = Speed(600, 200)
    speed.set_model(small_model())
    clock(monkeypatch, 10.0, 12.0, 99.0)
    speed.on_epoch_begin(0)
    speed.on_test_begin()
    speed.on_epoch_end(0, logs := {})
    assert logs == {"tokens_per_second": 300.0, "trained_per_second": 100.0}


def test_the_progress_bar_shows_loss_and_speed(capsys):
    fit(small_model(), Speed(600, 200), epochs=1, verbose=1)
    bar = capsys.readouterr().out
    assert "loss: " in bar and "tokens_per_second: " in bar


def test_the_speed_so_far_is_that_of_the_batches_done(monkeypatch):
    speed = Speed(600, 200)
    speed.set_params({"steps": 4})
    clock(monkeypatch, 10.0, 13.0)
    speed.on_epoch_begin(0)
    speed.on_train_batch_end(2, logs := {"loss": 1.0})
    assert logs == {"loss": 1.0, "tokens_per_second": 150.0}


def test_the_time_left_is_that_of_the_epochs_to_come(monkeypatch):
    """Resumed after 2 of 8 epochs; two more took 10 minutes, so the other four take 20."""
    left = TimeLeft()
    left.set_params({"epochs": 8})
    clock(monkeypatch, 0.0, 240.0, 600.0)
    left.on_train_begin()
    left.on_epoch_end(2, {})
    left.on_epoch_end(3, logs := {})
    assert logs == {"minutes_left": 20.0}


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (1, 0), (2, 3)])
def test_a_log_file_sees_an_epoch_go_on(capsys, verbose, lines):
    """Four batches: a line after each but the last, which Keras' own line follows."""
    fit(small_model(), Speed(600, 200), Pulse(seconds=0), epochs=1, verbose=verbose)
    assert capsys.readouterr().out.count("minutes_left in the epoch") == lines


def test_a_pulse_comes_once_a_minute_and_says_what_is_left_of_the_epoch(monkeypatch, capsys):
    """After 61 seconds 3 of 12 batches are done: the other nine take three times as long."""
    pulse = Pulse()
    pulse.set_params({"verbose": 2, "steps": 12})
    clock(monkeypatch, 100.0, 130.0, 161.0, 190.0)
    pulse.on_epoch_begin(0)
    for batch in (0, 2, 3):
        pulse.on_train_batch_end(batch, {"loss": 4.25, "tokens_per_second": 5000.0})
    assert capsys.readouterr().out == "3/12 - loss: 4.2500 - tokens_per_second: 5000.0 - minutes_left in the epoch: 3.0\n"
