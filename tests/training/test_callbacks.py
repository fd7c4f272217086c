"""Referees: the files themselves, read with csv, XML and safetensors; and a training that nothing interrupted."""

import csv
import json
import math
import os
import shutil
import xml.etree.ElementTree as ElementTree

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file

from smolite import files
from smolite.training.callbacks import BitsPerCharacter, EpochSeed, FiniteLoss, Journal, TrainingState

X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")


def small_model(seed=1):
    """Dropout and Adam, so that random states and moments must be kept too."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


class Scores(keras.callbacks.Callback):
    """Puts a perplexity, and perhaps a given validation score, into the logs of each epoch."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs["perplexity"] = math.exp(logs["loss"])
        if self.scores:
            logs["val_bits_per_character"] = self.scores[epoch]


def train(folder, epochs, *, scores=(), patience=0, settings=None, resume=False):
    """Trains a small model up to an epoch, and returns it with its state."""
    model, journal = small_model(), Journal(folder)
    state = TrainingState(folder, journal, settings=settings or {}, patience=patience)
    done = state.restore(model) if resume else 0
    given = {"callbacks": [EpochSeed(3), Scores(scores), journal, state], "shuffle": False, "verbose": 0}
    model.fit(X, X[:, :1], epochs=epochs, initial_epoch=done, batch_size=4, **given)
    return model, state


def weights(model):
    return [ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables]


def assert_equal(one, other):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The weights after one, two and three epochs without a stop."""
    return [weights(train(tmp_path_factory.mktemp("run"), epochs)[0]) for epochs in (1, 2, 3)]


def test_a_resumed_training_ends_with_the_same_bits(tmp_path, after_one, unbroken):
    shutil.copytree(after_one, tmp_path, dirs_exist_ok=True)
    assert_equal(weights(train(tmp_path, 3, scores=SCORES, resume=True)[0]), unbroken[2])


def test_the_state_holds_random_states_moments_and_steps(tmp_path, unbroken):
    model, _ = train(tmp_path, 2)
    copy = small_model(seed=7)
    state = TrainingState(tmp_path, Journal(tmp_path), settings={})
    assert state.restore(copy) == 2 and [row["epoch"] for row in state.journal.rows] == [1, 2]
    for kind in ("variables", "optimizer"):
        ours, theirs = (getattr(each, kind) for each in (copy, model))
        ours, theirs = (each if kind == "variables" else each.variables for each in (ours, theirs))
        kept = [pair for pair in zip(ours, theirs, strict=True) if "loss" not in pair[0].path]
        assert_equal(*([ops.convert_to_numpy(variable) for variable in side] for side in zip(*kept, strict=True)))
    assert int(ops.convert_to_numpy(copy.optimizer.iterations)) == 4


SCORES = [5.0, 3.0, 4.0, 3.5, 6.0]


def test_the_best_epoch_is_kept_and_patience_ends_the_training(tmp_path, unbroken, capsys):
    model, state = train(tmp_path, 5, scores=SCORES, patience=2)
    assert (state.epoch, state.best_epoch, state.best, state.stopped) == (4, 2, 3.0, True)
    assert "No better validation for 2 epochs: stopping." in capsys.readouterr().out
    state.put_best(model)
    assert_equal(weights(model), unbroken[1])
    assert [path.name for path in tmp_path.glob("*best*")] == [state.best_weights], "older best weights are in the way"


def test_a_resumed_training_still_knows_the_best_epoch(tmp_path, unbroken):
    train(tmp_path, 3, scores=SCORES, patience=2)
    model, state = train(tmp_path, 5, scores=SCORES, patience=2, resume=True)
    assert (state.epoch, state.best_epoch) == (4, 2)
    state.put_best(model)
    assert_equal(weights(model), unbroken[1])


def test_without_a_validation_the_last_weights_stay(tmp_path, unbroken):
    model, state = train(tmp_path, 2)
    state.put_best(model)
    assert_equal(weights(model), unbroken[1])
    assert not state.stopped and not list(tmp_path.glob("*best*"))


class Full(OSError):
    pass


def broken_disk(monkeypatch, good_writes):
    """The real `os.replace`, until it has been called so often; then the disk is full."""
    replace, calls = os.replace, []

    def replaced(source, target):
        calls.append(target)
        if len(calls) > good_writes:
            raise Full(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", replaced)


@pytest.fixture(scope="module")
def after_one(tmp_path_factory):
    """The folder of a training stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    train(folder, 1, scores=SCORES)
    return folder


@pytest.mark.parametrize("good_writes", range(5))
def test_a_full_disk_leaves_the_whole_state_of_the_epoch_before(tmp_path, monkeypatch, after_one, unbroken, good_writes):
    """In an epoch log, curve, best weights, weights and state are written: each fails once here."""
    shutil.copytree(after_one, tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        broken_disk(patch, good_writes)
        with pytest.raises(Full, match="No space left on device"):
            train(tmp_path, 2, scores=SCORES, resume=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    model, state = small_model(seed=5), TrainingState(tmp_path, Journal(tmp_path), settings={})
    assert state.restore(model) == 1 and len(state.journal.rows) == 1
    assert_equal(weights(model), unbroken[0])
    state.put_best(another := small_model(seed=6))
    assert_equal(weights(another), unbroken[0])


def test_other_settings_are_refused_by_name(tmp_path):
    then = {"data": "a.jsonl", "options": {"seed": 1, "learning_rate": 0.1}}
    (tmp_path / "state.json").write_text(json.dumps({"settings": then}), "utf-8")
    now = {"data": "b.jsonl", "options": {"seed": 1, "learning_rate": 0.2}}
    differences = "data: a.jsonl then, b.jsonl now; options.learning_rate: 0.1 then, 0.2 now"
    with pytest.raises(
        ValueError, match=f"only with the settings it was started with. Received other ones: {differences}. Give"
    ):
        TrainingState(tmp_path, Journal(tmp_path), settings=now).restore(small_model())


def journal_of(folder, *epochs):
    model, journal = small_model(), Journal(folder)
    journal.set_model(model)
    for number, logs in enumerate(epochs):
        journal.on_epoch_end(number, logs)
    return journal


def test_the_journal_is_a_table_and_a_picture(tmp_path):
    losses = [(4.0, 4.5), (3.0, 3.5), (2.0, 4.0)]
    epochs = [{"loss": a + 1, "perplexity": math.exp(a), "val_perplexity": math.exp(b)} for a, b in losses]
    journal_of(tmp_path, *epochs)
    with (tmp_path / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows] == [5.0, 4.0, 3.0]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.05] * 3)
    root = ElementTree.parse(tmp_path / "curve.svg").getroot()
    lines = [line.get("points").split() for line in root.iter() if line.get("fill") == "none" and len(line.attrib) == 4]
    training, validation = (line for line in lines if len(line) == 3)
    heights = [[float(point.split(",")[1]) for point in line] for line in (training, validation)]
    assert heights[0][1] - heights[0][0] == pytest.approx(heights[0][2] - heights[0][1], abs=0.11), "nats, not perplexity"
    assert heights[1][2] == pytest.approx(heights[0][0], abs=0.11)


def test_a_figure_that_comes_later_or_is_missing_leaves_a_gap(tmp_path):
    journal_of(tmp_path, {"perplexity": 9.0}, {"perplexity": 8.0, "val_perplexity": 7.0})
    lines = (tmp_path / "log.csv").read_text("utf-8").splitlines()
    assert [line.rsplit(",", 1)[0] for line in lines] == ["epoch,perplexity,val_perplexity", "1,9.0,", "2,8.0,7.0"]


def test_bits_per_character_by_hand():
    """2 nats on each of 30 tokens that stand for 50 characters: 2 / ln 2 · 30 / 50 bits."""
    logs = {"val_perplexity": math.exp(2.0)}
    BitsPerCharacter(30, 50).on_epoch_end(0, logs)
    assert logs["val_bits_per_character"] == pytest.approx(2 / math.log(2) * 30 / 50)


@pytest.mark.parametrize(("name", "loss"), [("loss", math.nan), ("val_loss", math.inf)])
def test_a_loss_that_is_no_number_ends_the_training(name, loss):
    with pytest.raises(
        FloatingPointError, match=f"The loss must be a number. Received: `{name}` {loss} in epoch 3. Train again"
    ):
        FiniteLoss().on_epoch_end(2, {"loss": 1.0, "val_loss": 1.0, name: loss})
    FiniteLoss().on_epoch_end(2, {"loss": 1.0})


def test_the_state_is_plain_safetensors(after_one, unbroken):
    name = json.loads((after_one / "state.json").read_text("utf-8"))["weights"]
    kept = load_file(after_one / name)
    assert any(array.shape == unbroken[0][0].shape and (array == unbroken[0][0]).all() for array in kept.values())
