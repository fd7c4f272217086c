"""What imports neither Keras nor a backend, by the modules that a fresh process has loaded in the end."""

import json

import pytest
from exported import exported_run, run_apart
from tiny import TINY, conversations, tokenizer, write_dialogues

from smolite import checkpoint
from smolite.checkpoint import weights
from smolite.cli import main
from smolite.models import CausalLM

VERBS = """
import json, sys
from smolite.cli import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
from smolite import TFLiteEngine
heavy = {"keras", "tensorflow", "jax", "torch", "huggingface_hub", "transformers"}
print("loaded:", *sorted(heavy & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint.save(tmp_path_factory.mktemp("run") / "run", CausalLM(TINY), tokenizer())


def loaded_by(*commands):
    """The heavy modules that a process has after these verbs."""
    last = run_apart(VERBS, json.dumps([list(map(str, words)) for words in commands])).splitlines()[-1]
    return last.removeprefix("loaded:").split()


def test_planning_a_tokenizer_and_a_look_at_data(run, tmp_path):
    dialogues = write_dialogues(tmp_path / "dialogues.jsonl", conversations()[:40])
    trained = tmp_path / "new.model"
    assert (
        loaded_by(
            ["plan", run],
            ["plan", "smolite-small"],
            ["tokenizer", dialogues, "--vocab-size", 800, "--out", trained],
            ["data", "show", dialogues, "--tokenizer", trained],
        )
        == []
    )


@pytest.mark.slow
def test_talking_and_evaluating_with_an_exported_file(tmp_path_factory, tmp_path):
    run = exported_run(tmp_path_factory)
    dialogues = write_dialogues(tmp_path / "dialogues.jsonl", conversations()[:3])
    few = ("--max-new-tokens", 2)
    assert (
        loaded_by(
            ["chat", run, "--engine", "int8", "--prompt", "안녕하세요!", *few],
            ["generate", run, "안녕", "--engine", "tflite", *few],
            ["evaluate", run, dialogues, "--engine", "int8"],
        )
        == []
    )


def test_a_model_is_built_once_where_its_engine_is_keras(run, monkeypatch, capsys):
    built = []
    read = weights.stored_model
    monkeypatch.setattr(weights, "stored_model", lambda *parts, **settings: built.append(1) or read(*parts, **settings))
    assert main(["chat", str(run), "--prompt", "안녕", "--max-new-tokens", "1"]) == 0
    assert len(built) == 1
