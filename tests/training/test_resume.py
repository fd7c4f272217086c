"""Referee: the same training, never stopped. The one that is stopped dies of a real SIGKILL in the middle of an epoch."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY, conversations, tokenizer, write_dialogues

from smolite import files
from smolite.checkpoint.run import load
from smolite.data.template import fit_context
from smolite.evaluation.likelihood import evaluate_examples
from smolite.models.config import PRESETS
from smolite.training.fit import finetune
from smolite.training.options import TrainingOptions

STEPS, ACCUMULATION = 5, 2
OPTIONS = {
    "epochs": 12,
    "batch_size": 1,
    "gradient_accumulation_steps": ACCUMULATION,
    "steps_per_epoch": STEPS,
    "sequence_length": 48,
    "learning_rate": 0.1,
    "layer_decay": 0.9,
    "patience": 2,
}
KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from smolite.data.dataset import ChatDataset
from test_resume import PRESETS, TINY, train

batch = ChatDataset.batch

def batch_or_death(self, step):
    if self.shuffle and step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(self, step)

ChatDataset.batch = batch_or_death
PRESETS["tiny"] = TINY
train(Path())
"""


def train(folder, *, first=0, aside=40, resume=False, **changes):
    """The training of this file, with dropout, a random order, and a validation that soon becomes worse."""
    data = write_dialogues(folder / "train.jsonl", conversations()[first : first + 10])
    held_out = write_dialogues(folder / "held-out.jsonl", conversations()[aside : aside + 4])
    options = TrainingOptions(**{**OPTIONS, **changes})
    given = {"validation": held_out, "tokenizer": tokenizer(), "preset": "tiny", "options": options}
    return finetune(data, folder / "run", resume=resume, **given)


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("unbroken"))
        run = train(Path())
    return folder, run.recipe


@pytest.fixture(scope="module")
def killed(tmp_path_factory, unbroken):
    """The folder of a training that died in the epoch after its best one, between two batches of one update."""
    folder = tmp_path_factory.mktemp("killed")
    step = (unbroken[1]["saved_epoch"] * STEPS + STEPS // 2) * ACCUMULATION + 1
    paths = [str(Path(__file__).parents[level]) for level in (0, 1, 2)]
    code = KILLED.format(paths=paths, step=step)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


@pytest.fixture
def stopped(killed, tmp_path, monkeypatch):
    """A copy of that folder, as the working directory."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path()


def without_speed(rows):
    return [{name: value for name, value in row.items() if not name.endswith("per_second")} for row in rows]


def test_the_unbroken_training_is_worth_the_name(unbroken):
    epochs = len(unbroken[1]["log"])
    assert 0 < unbroken[1]["saved_epoch"] == epochs - 2 < epochs < OPTIONS["epochs"], "it must end by patience"


def held_out_bits(folder):
    """Bits per character of the saved weights on the validation's dialogues, and those in the log."""
    fitted = fit_context(conversations()[40:44], tokenizer(), context_length=48)
    run = load(folder / "run")
    result = evaluate_examples(run.model, fitted.examples, fitted.num_characters)
    return result.bits_per_character, [row["val_bits_per_character"] for row in run.recipe["log"]]


def test_the_weights_of_the_best_epoch_are_the_ones_saved(unbroken):
    bits, logged = held_out_bits(unbroken[0])
    assert bits == pytest.approx(min(logged), rel=1e-4) and min(logged) < logged[-1]
    assert logged.index(min(logged)) == unbroken[1]["saved_epoch"] - 1


@pytest.mark.slow
def test_the_last_weights_are_saved_when_asked_for(tmp_path, unbroken):
    assert train(tmp_path, restore_best_weights=False).recipe["saved_epoch"] == len(unbroken[1]["log"])
    bits, logged = held_out_bits(tmp_path)
    assert bits == pytest.approx(logged[-1], rel=1e-4) and min(logged) < logged[-1]
    assert logged == [row["val_bits_per_character"] for row in unbroken[1]["log"]]


def test_a_killed_training_left_nothing_but_its_state(killed, unbroken):
    assert {path.name for path in killed.iterdir()} == {"train.jsonl", "held-out.jsonl", "run.training"}
    state = json.loads((killed / "run.training" / "state.json").read_text("utf-8"))
    assert state["epoch"] == state["best_epoch"] == unbroken[1]["saved_epoch"]


def test_a_killed_and_resumed_training_ends_with_the_same_bits(stopped, unbroken, monkeypatch):
    """And a disk that is full when the run is saved costs nothing: it is saved at the next try."""
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            train(stopped, resume=True)
    assert not (stopped / "run").exists()
    run = train(stopped, resume=True)
    folder, recipe = unbroken
    assert (stopped / "run/model.safetensors").read_bytes() == (folder / "run/model.safetensors").read_bytes()
    assert run.recipe["saved_epoch"] == recipe["saved_epoch"]
    assert without_speed(run.recipe["log"]) == without_speed(recipe["log"])
    assert not (stopped / "run.training").exists() and (stopped / "run/log.csv").exists()


def full_disk(source, target):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rate": 0.2}, "options.learning_rate: 0.1 then, 0.2 now"),
        ({"batch_size": 3, "seed": 4}, "options.batch_size: 1 then, 3 now; options.seed: 0 then, 4 now"),
    ],
)
def test_other_options_are_refused_by_name(stopped, changes, difference):
    with pytest.raises(ValueError, match=f"only with the settings it was started with. Received other ones: {difference}"):
        train(stopped, resume=True, **changes)
    assert (stopped / "run.training/state.json").exists()


def test_other_dialogues_in_the_same_file_are_refused(stopped):
    with pytest.raises(ValueError, match="Received other ones: rows_checksum: [0-9]+ then, [0-9]+ now"):
        train(stopped, first=1, resume=True)
    with pytest.raises(ValueError, match="Received other ones: validation_checksum: [0-9]+ then, [0-9]+ now"):
        train(stopped, aside=41, resume=True)


def test_an_interrupted_run_is_found(stopped):
    with pytest.raises(
        FileExistsError, match="run.training holds an interrupted run. Resume it, choose another name, or allow"
    ):
        train(stopped)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no interrupted run to resume: .*run.training is missing. Leave out"):
        train(tmp_path, resume=True)
