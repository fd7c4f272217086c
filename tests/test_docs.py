"""docs/seq2seq.md is true: its commands and its Python run as printed, at toy size."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from tiny import TINY, conversations

import smolite
from smolite.cli import parser as cli
from smolite.data.pairs import dialogue_pairs, read_pairs
from smolite.data.sources import resolve_dataset
from smolite.models.config import PRESETS

DOCS = (Path(__file__).parents[1] / "docs" / "seq2seq.md").read_text("utf-8")


def write_lines(path, lines):
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")


@pytest.mark.long
def test_the_page_of_recipes_runs_as_printed(tmp_path, monkeypatch, capsys):
    """At toy size: the preset is tiny, and the files have a few lines."""
    monkeypatch.setitem(PRESETS, "smolite-small", dataclasses.replace(TINY, context_length=256))
    monkeypatch.chdir(tmp_path)
    pairs = read_pairs(resolve_dataset("sample-pairs"))[:40]
    for name in ("translations", "summaries", "questions"):
        write_lines(tmp_path / f"{name}.jsonl", [{"source": pair.source, "target": pair.target} for pair in pairs])
    few = dataclasses.replace(smolite.read_conversations(resolve_dataset("sample")), conversations=list(conversations()[:40]))
    monkeypatch.setattr(smolite, "read_conversations", lambda path: few, raising=False)
    (example,) = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "example.jsonl").write_text(example, "utf-8")
    assert len(read_pairs(tmp_path / "example.jsonl")) == 1
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "docs/seq2seq.md", "exec"), {})
    assert len(dialogue_pairs(few.conversations)) == len((tmp_path / "talk.jsonl").read_text("utf-8").splitlines())
    for line in re.search(r"```bash\n(.*?)```", DOCS, re.DOTALL)[1].splitlines():
        assert cli.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err


def test_the_bundled_pairs_are_as_many_as_said():
    sizes = [len(read_pairs(resolve_dataset(name))) for name in ("sample-pairs", "sample-pairs-heldout")]
    assert f"are {sizes[0]} Korean sentences with their English, and {sizes[1]} more are held out" in DOCS
