"""The code that pages print: their blocks, what their commands are, and a folder in which all of it runs at toy size."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
from tiny import TINY, conversations, tokenizer, write_dialogues

from smolite import PRESETS, CausalLM, read_pairs, resolve_dataset, save
from smolite.cli import parser as cli
from smolite.data import sources

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(smolite [^`\n]+)`")
# What a page may print and a test does not run: it installs, builds, publishes or tests; `assert_known` looks at some.
NOT_RUN = {"make", "pip", "pytest", "git", "twine", "mkdocs", "pre-commit", "source", "cd"}
TRAINING_VERBS = {"pretrain", "finetune", "pairs"}
# The last flag of a name counts, so these cut a training short whatever the page says; its own flags are parsed all the same.
TOY = "--epochs 1 --steps-per-epoch 2 --batch-size 2 --sequence-length 64 --dtype float32".split()


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, body) of a page's blocks, in order; of these languages where any is named."""
    return [pair for pair in BLOCK.findall(page.read_text("utf-8")) if not languages or pair[0] in languages]


def commands(script: str) -> list[list[str]]:
    """The words of each command in a shell block; a backslash at the end of a line joins it with the next."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def inline_commands(page: Path) -> list[list[str]]:
    """The words of each `smolite …` in a page's sentences; RUN and VERB stand for a name, … for more words."""
    found = map(shlex.split, INLINE.findall(page.read_text("utf-8")))
    return [words for words in found if "VERB" not in words and "…" not in words]


def assert_known(words: list[str]) -> None:
    """The command exists: a verb with these flags, a make target, an extra of this package, a file here."""
    program = Path(words[0]).name  # of another environment, as on the page of a release
    if program == "smolite" and words[1:] != ["--help"]:
        cli.read_settings(words[1], words[2:])
    elif program == "make":
        targets = (ROOT / "Makefile").read_text("utf-8")
        assert all(re.search(rf"^{target}:", targets, re.MULTILINE) for target in words[1:] if "=" not in target), words
    elif program == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), words
    elif program == "pip":
        extras = re.findall(r"\[([^\]]+)\]", " ".join(words))
        assert {name for names in extras for name in names.split(",")} <= set(PROJECT["optional-dependencies"]), words
    else:
        assert program in {*NOT_RUN, "python", "smolite"}, words
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words


def make_workshop(folder: Path, monkeypatch) -> None:
    """Makes what the pages take for granted, and goes there: files of text, dialogues and pairs, a tokenizer, a run.

    Every preset is tiny, and the bundled set has a few lines.
    """
    monkeypatch.chdir(folder)
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, dataclasses.replace(TINY, context_length=256))
    few = list(conversations()[:40])
    write_dialogues(folder / "dialogues.jsonl", few)
    texts = [message.content for dialogue in few for message in dialogue.messages]
    (folder / "corpus.txt").write_text("\n".join(texts), "utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer().model_proto)
    _write_pairs(folder)
    _shorten_sample(folder / "bundled", few, monkeypatch)
    shutil.copytree(
        ROOT / "export", folder / "export", ignore=shutil.ignore_patterns("*.tflite", "saved_model", "node_modules")
    )
    keras.utils.set_random_seed(0)
    save("runs/first", CausalLM(PRESETS["smolite-small"]), tokenizer())


def _write_pairs(folder: Path) -> None:
    pairs = [{"source": pair.source, "target": pair.target} for pair in read_pairs(resolve_dataset("sample-pairs"))[:40]]
    lines = "\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
    for name in ("translations", "summaries", "questions"):
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")


def _shorten_sample(folder: Path, few: list, monkeypatch) -> None:
    shutil.copytree(sources.SAMPLE_FOLDER, folder)
    write_dialogues(folder / "train.jsonl", few)
    write_dialogues(folder / "heldout.jsonl", few[:8])
    monkeypatch.setattr(sources, "SAMPLE_FOLDER", folder)


def run_block(language: str, body: str, page: Path) -> None:
    """Runs a block as printed, but for trainings cut short, and for what `NOT_RUN` names."""
    if language == "python":
        exec(compile(body, page.name, "exec"), {})
    elif language == "bash":
        for words in commands(body):
            _run_command(words)


def _run_command(words: list[str]) -> None:
    if words[0] == "smolite":
        toy = TOY if words[1] in TRAINING_VERBS else []
        assert cli.main([*words[1:], *toy]) == 0, words
    elif words[0] == "python" and words[1] != "-m":
        subprocess.run([sys.executable, *words[1:]], check=True, stdin=subprocess.DEVNULL)
