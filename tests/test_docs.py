"""The pages in docs/ are true: commands are known, links lead somewhere, and the code runs as printed, at toy size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from printed import ROOT, assert_known, blocks, commands, inline_commands, make_workshop, run_block

import smolite
from smolite.data import dialogue_pairs, read_pairs, resolve_dataset

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
WITH_CODE = [page for page in PAGES if blocks(page, "bash", "python")]
SEQ2SEQ = (ROOT / "docs" / "seq2seq.md").read_text("utf-8")


def named(pages):
    return [pytest.param(page, id=page.stem) for page in pages]


@pytest.mark.parametrize("page", named(PAGES))
def test_every_block_is_of_a_kind_that_is_tested(page):
    assert {language for language, _ in blocks(page)} <= {"bash", "python", "json", "text"}


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_are_known(page):
    scripts = [words for _, script in blocks(page, "bash") for words in commands(script)]
    for words in scripts + inline_commands(page):
        assert_known(words)


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", named([page for page in PAGES if blocks(page, "json")]))
def test_lines_of_data_are_read(page, tmp_path):
    for _, lines in blocks(page, "json"):
        path = tmp_path / "example.jsonl"
        path.write_text(lines, "utf-8")
        read = read_pairs(path) if '"source"' in lines else smolite.read_conversations(path).conversations
        assert len(read) == len(lines.splitlines())


# keras-hub leaves the vocabulary of a preset open, which is found when the next cycle of garbage is.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.long
@pytest.mark.parametrize("page", named(WITH_CODE))
def test_the_code_runs_as_printed(page, tmp_path, monkeypatch):
    make_workshop(tmp_path, monkeypatch)
    for language, body in blocks(page, "bash", "python"):
        run_block(language, body, page)
    if page.stem == "seq2seq":
        dialogues = smolite.read_conversations("dialogues.jsonl").conversations
        talk = [json.loads(line) for line in Path("talk.jsonl").read_text("utf-8").splitlines()]
        assert len(talk) == len(dialogue_pairs(dialogues)) > 0


@pytest.mark.long
def test_the_inner_loop_runs_as_printed():
    """The files of tests that CONTRIBUTING.md names, in a process of their own; what installs or takes longer is only known."""
    scripts = [words for _, script in blocks(ROOT / "CONTRIBUTING.md", "bash") for words in commands(script)]
    loop = [words for words in scripts if words[0] == "pytest"]
    assert len(loop) == 2
    for words in loop:
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)


def test_the_bundled_pairs_are_as_many_as_said():
    sizes = [len(read_pairs(resolve_dataset(name))) for name in ("sample-pairs", "sample-pairs-heldout")]
    assert f"are {sizes[0]} Korean sentences with their English, and {sizes[1]} more are held out" in SEQ2SEQ
