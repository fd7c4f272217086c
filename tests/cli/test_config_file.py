"""Settings from a file. Referee: the same words on the command line."""

import json

import pytest
from tiny import TINY, conversations, tokenizer, write_dialogues

from smolite.checkpoint import run as checkpoint
from smolite.cli import parser as cli
from smolite.models.config import PRESETS

SETTINGS = """
dataset: dialogues.jsonl
out: runs/chat
epochs: 3
learning-rate: 3e-3
dropout: null
restore_best_weights: false
dtype: mixed_bfloat16
overwrite: true
"""
WORDS = "--dataset dialogues.jsonl --out runs/chat --epochs 3 --learning-rate 3e-3 --no-restore-best-weights".split()
WORDS += "--dtype mixed_bfloat16 --overwrite".split()


@pytest.fixture
def written(tmp_path):
    """Text → the words that give it as a file of settings."""

    def write(text):
        (tmp_path / "settings").write_text(text, encoding="utf-8")
        return ["--config", str(tmp_path / "settings")]

    return write


def test_a_file_says_what_flags_say(written):
    assert cli.read_settings("finetune", written(SETTINGS)) == cli.read_settings("finetune", WORDS)


def test_json_is_read_too(written):
    text = json.dumps({"model": "smolite-small", "cache_length": 256, "prefill_lengths": [8, 32]}, indent="\t")
    words = "smolite-small --cache-length 256 --prefill-lengths 8 32".split()
    assert cli.read_settings("plan", written(text)) == cli.read_settings("plan", words)


def test_flags_win_over_the_file_and_the_file_over_the_recipe(written):
    file = written("recipe: smollm2\nbatch_size: 5\ndataset: a\nout: b\nseed: 1")
    received = cli.read_settings("pretrain", [*file, "--seed", "2", "--dataset", "c", "d"])
    assert (received["batch_size"], received["seed"], received["dataset"]) == (5, 2, ["c", "d"])
    assert received["sequence_length"] == 2048 and "recipe" not in received
    assert cli.read_settings("plan", [*written("model: smolite-small"), "smollm2-135m"])["model"] == "smollm2-135m"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch: 3", "`epoch` is no setting of `smolite finetune`. Did you mean `epochs`?"),
        ("epochs: many", "`epochs` must be of type int. Received: 'many'."),
        ("epochs: [1, 2]", "`epochs` must be one value. Received: [1, 2]."),
        ("resume: 1", "`resume` must be true or false. Received: 1."),
        ("dtype: float23", "`dtype`: `float23` is no choice. Did you mean `float32`?"),
        ("- epochs", "must hold names and values. Received: a list."),
        ("1: 2", "must hold names and values. Received: a dict."),
        ("epochs: {", "must be YAML or JSON. Received: while parsing"),
        ("verb: pairs\noptions: {}", "must be the recipe of `finetune`. Received: one of `pairs`. Run that verb with it."),
        (
            "verb: finetune\noptions: {row_length: 9}",
            "`row_length` is no setting of `smolite finetune`. Did you mean `sequence_le",
        ),
        ("recipe: smollm", "Unknown recipe. Received: 'smollm'. Choose one of: smollm2."),
    ],
)
def test_a_file_that_cannot_be_used(capsys, written, text, sentence):
    assert cli.main(["finetune", "--dataset", "a", "--out", "b", *written(text)]) == 1
    assert sentence in capsys.readouterr().err


def test_a_missing_file(capsys):
    assert cli.main(["finetune", "--config", "nowhere.yaml"]) == 1
    assert "`--config` must name a file of settings. Received: nowhere.yaml." in capsys.readouterr().err


def test_what_the_file_does_not_give_is_still_asked_for(capsys, written):
    with pytest.raises(SystemExit):
        cli.main(["finetune", *written("dataset: a")])
    assert "the following arguments are required: --out" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_the_recipe_of_a_run_repeats_its_training(monkeypatch, tmp_path, verb):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    data = write_dialogues(tmp_path / "some.jsonl", conversations()[:6])
    tokenizer().save(tmp_path / "t.model")
    words = f"--epochs 2 --batch-size 4 --sequence-length 48 --preset tiny --seed 5 --tokenizer {tmp_path / 't.model'}"
    given = [verb, "--dataset", str(data), "--validation", str(data), "--out", str(tmp_path / "first"), *words.split()]
    assert cli.main(given) == 0
    assert cli.main([verb, "--config", str(tmp_path / "first/recipe.json"), "--out", str(tmp_path / "again")]) == 0
    first, again = (checkpoint.load(tmp_path / name) for name in ("first", "again"))
    assert first.recipe["dataset"] == again.recipe["dataset"] and first.recipe["options"] == again.recipe["options"]
    pairs = zip(first.model.get_weights(), again.model.get_weights(), strict=True)
    assert all((left == right).all() for left, right in pairs)
