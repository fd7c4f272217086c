"""Verbs and flags: what help shows, and what answers a slip."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from smolite.cli import flags
from smolite.cli import parser as cli
from smolite.cli.arguments import nearest
from smolite.cli.catalogue import GROUPS, VERBS
from smolite.training.options import TrainingOptions

ROOT = Path(__file__).parents[2]
TRAINING = ["--dataset", "a", "--out", "b"]


def refused(capsys, *words):
    """What is said to words that are none of ours."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_verbs_are_shown_in_groups(capsys, words):
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for group, members in GROUPS.items():
        block = shown.partition(f"\n{group}\n")[2].partition("\n\n")[0]
        assert [line.split(maxsplit=1) for line in block.splitlines()] == [[name, verb.line] for name, verb in members.items()]


def test_the_package_is_a_command():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "smolite", "finetun"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "smolite: Unknown verb `finetun`. Did you mean `finetune`?\nSee: smolite --help\n",
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_an_example_that_is_understood(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "None" not in shown and "False" not in shown
    program, named, *words = shlex.split(shown.rpartition("Example:\n  ")[2])
    assert (program, named) == ("smolite", verb) and isinstance(cli.read_settings(verb, words), dict)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_function_that_takes_its_settings(monkeypatch, verb):
    """The referee is Python's own binding of arguments."""
    words = shlex.split(VERBS[verb].example)[2:]
    inspect.signature(cli._function(verb)).bind(**cli.read_settings(verb, words))


def options_from(words):
    """The options of a training that these words give."""
    received = cli.read_settings("finetune", [*TRAINING, *words])
    return TrainingOptions(**{name: received[name] for name in TrainingOptions().to_dict()})


def test_the_options_of_a_training_are_flags_of_their_types():
    assert options_from([]) == TrainingOptions()
    words = "--epochs 3 --learning-rate 3e-3 --dropout 0.2 --no-restore-best-weights --dtype mixed_bfloat16".split()
    changes = {"learning_rate": 3e-3, "dropout": 0.2, "restore_best_weights": False, "dtype": "mixed_bfloat16"}
    assert options_from(words) == TrainingOptions(epochs=3, **changes)


def test_the_help_of_an_option_is_its_documentation(capsys):
    assert flags.docs_of_arguments(TrainingOptions)["beta_2"] == "of AdamW"
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    assert "the gradient's norm is cut to this; 0 for never (default: 1.0)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("trian", "smolite: Unknown verb `trian`. Did you mean `pretrain`?"),
        ("fly", "smolite: Unknown verb `fly`.\n"),
        ("--versoin", "smolite: Unknown flag `--versoin`. Did you mean `--version`? Flags of a verb come after it."),
        ("finetune --datset a", "smolite finetune: Unknown flag `--datset`. Did you mean `--dataset`?"),
        ("plan smolite-small --cache-lenght=9", "Unknown flag `--cache-lenght`. Did you mean `--cache-length`?"),
        ("chat run --xyzzy", "smolite chat: Unknown flag `--xyzzy`.\n"),
        ("chat run --temp 0", "Unknown flag `--temp`. Did you mean `--temperature`?"),  # a beginning is no flag
        ("chat", "smolite chat: the following arguments are required: run"),
        ("chat run --seed x", "argument --seed: invalid int value: 'x'"),
        ("chat run --config", "smolite chat: argument --config: expected one argument"),
        (
            "export run --format tflit",
            "`tflit` is no choice. Did you mean `tflite`? Choose one of: saved_model, tflite, litertlm",
        ),
        ("quantize run --out x --bits 5", "argument --bits: `5` is no choice. Choose one of: 8, 4."),
        ("finetune --preset huge", "`huge` is no choice. Choose one of: smolite-small, "),
    ],
)
def test_a_slip_is_answered_with_the_nearest_word(capsys, words, sentence):
    assert sentence in refused(capsys, *words.split())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--accumulation", "--gradient-accumulation-steps"),
        ("--row-length", "--sequence-length"),
        ("--clip-norm", "--global-clipnorm"),
        ("--warmup-share", "--warmup-ratio"),
        ("--final-share", "--min-lr-ratio"),
        ("--keep", "--restore-best-weights"),
        ("--per-device-train-batch-size", "--batch-size"),
        ("--max-grad-norm", "--global-clipnorm"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_ours(capsys, old, new):
    assert re.search(
        rf"Unknown flag `{old}`. (Did you mean|It is called) `{new}`", refused(capsys, "finetune", *TRAINING, old, "1")
    )


def test_words_that_look_like_flags_are_left_to_those_that_take_them():
    assert cli.read_settings("chat", ["run", "--prompt=--hello", "--temperature", "-1"])["prompt"] == "--hello"
    assert cli.read_settings("generate", ["--", "run", "--hello"])["prompt"] == "--hello"


def test_nearest_counts_a_beginning_then_whole_parts_then_letters():
    assert nearest("temp", ["system", "temperature"]) == "temperature"
    assert nearest("accumulation", ["validation", "gradient-accumulation-steps"]) == "gradient-accumulation-steps"
    assert nearest("finetun", ["finetune", "pretrain"]) == "finetune"
    assert nearest("fly", ["finetune", "pretrain"]) is None and nearest("fly", []) is None


def test_every_engine_has_a_name():
    """The way to quantize, or of a float32 file the format; both where an earlier file has that name."""
    engines = cli.parser_of("chat").settings["engine"].choices
    expected = "keras saved_model tflite f16 int8 int4_int8 int4_block32 int4 gguf gguf_f16 q8_0 q4_0"
    assert engines == expected.split()
