"""README.md is true: its commands run as printed, its tables are what the code says, its Korean twin has the same code."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import smolite
from smolite.cli import parser as cli
from smolite.exporters.targets import TARGETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
KOREAN = (ROOT / "README.ko.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
BLOCKS = BLOCK.findall(README)


def code(language, text=README):
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def commands(script):
    """The commands of a shell block; a backslash at the end of a line joins it with the next."""
    return script.replace("\\\n", " ").splitlines()


def takes_long(words):
    """Whether a command installs, tests or measures: those are not run here, but `assert_exists` looks at them."""
    return words[0] in {"make", "pip", "pytest"} or words[1].startswith("benchmarks/")


def assert_exists(words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    elif words[0] == "pip":
        assert words[1:3] == ["install", "-e"]
        assert set(re.fullmatch(r"\.\[(.+)\]", words[3])[1].split(",")) <= set(PROJECT["optional-dependencies"])
    elif words[0] == "pytest":
        assert any(need.startswith("pytest>") for need in PROJECT["optional-dependencies"]["dev"])
    else:
        assert (ROOT / words[1]).is_file()


def inline(text, first):
    return [words for words in map(shlex.split, INLINE.findall(text)) if words[0] == first and "…" not in words]


@pytest.fixture
def clone(tmp_path):
    """An empty folder with the files that README's commands name, and a `smolite` as pip would install it."""
    shutil.copytree(ROOT / "export", tmp_path / "export", ignore=shutil.ignore_patterns("*.tflite", "saved_model"))
    module, function = PROJECT["scripts"]["smolite"].split(":")
    script = tmp_path / "bin" / "smolite"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    return tmp_path


def run(command, folder):
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.long
def test_the_walk_runs_as_printed(clone):
    printed = {}
    for kind, body in BLOCKS:
        if kind == "bash":
            for command in commands(body):
                if not takes_long(shlex.split(command)):
                    printed[command] = run(["bash", "-c", command], clone)
        elif kind == "python":
            printed[body] = run([sys.executable, "-c", body], clone)
    # After two epochs the likeliest reply may be an empty one; every other command has something to say.
    silent = [command for command, text in printed.items() if not text.strip() and "--prompt" not in command]
    assert len(printed) > 8 and not silent and all(printed.values()), printed
    assert sorted(names_of_rows(page("run_directory.md"))) == sorted(path.name for path in (clone / "runs" / "first").iterdir())
    assert (clone / "runs" / "first" / "export" / "model_int8.tflite").is_file()


@pytest.mark.parametrize("command", [command for script in code("bash") for command in commands(script)])
def test_a_command_is_known(command):
    words = shlex.split(command)
    if takes_long(words):
        assert_exists(words)
    elif words[0] == "smolite":
        cli.read_settings(words[1], words[2:])
    else:
        assert words[0] == "python" and (ROOT / words[1]).is_file()


@pytest.mark.parametrize("text", [README, KOREAN], ids=["en", "ko"])
def test_commands_in_sentences_are_known(text):
    inlined = [words for words in inline(text, "smolite") if len(words) > 1 and "VERB" not in words]
    assert len(inlined) >= 5
    for words in inlined:
        cli.read_settings(words[1], words[2:])
    for first in ("make", "pip"):
        for words in inline(text, first):
            assert_exists(words)


def page(name):
    return (ROOT / "docs" / name).read_text("utf-8")


def test_presets_have_these_sizes():
    row = r"^\| `([\w.-]+)` \| ([\d,]+) \| (\d+) × (\d+) \| ([\d,]+) \| ([\d,]+) \|"
    rows = re.findall(row, page("models.md"), re.MULTILINE)
    sizes = {name: [int(figure.replace(",", "")) for figure in figures] for name, *figures in rows}
    assert sizes == {
        name: [config.num_parameters, config.num_layers, config.hidden_dim, config.vocab_size, config.context_length]
        for name, config in smolite.PRESETS.items()
    }


def names_of_rows(text):
    """What stands in code in the first cell of each row of a table."""
    return set(INLINE.findall("\n".join(re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE))))


def test_extras_and_exported_files_have_these_names():
    assert set(PROJECT["optional-dependencies"]) == names_of_rows(page("install.md"))
    assert {name for target in TARGETS.values() for name in target.file_names.values()} <= names_of_rows(page("exports.md"))


def test_the_bundled_set_has_this_size():
    parts = [ROOT / "smolite" / "data" / "sample" / name for name in ("train.jsonl", "heldout.jsonl")]
    sizes = [len(path.read_text("utf-8").splitlines()) for path in parts]
    assert f"({sizes[0]} to train on, {sizes[1]} held out)" in README
    assert f"학습용 {sizes[0]}개" in KOREAN and re.search(rf"평가용\s+{sizes[1]}개", KOREAN)


def test_dialogues_in_the_text_are_read(tmp_path):
    (example,) = code("json")
    path = tmp_path / "dialogues.jsonl"
    path.write_text(example, "utf-8")
    result = smolite.read_conversations(path)
    assert result.counts["kept"] == result.counts["read"] == 2
    assert [message.role for message in result.conversations[1].messages] == ["system", "user", "assistant"]


def test_the_client_is_as_short_as_said():
    assert "at most 80 lines" in README and "80줄 이하" in KOREAN
    assert len((ROOT / "export" / "chat_tflite.py").read_text("utf-8").splitlines()) <= 80


def test_the_korean_page_has_the_same_code():
    assert BLOCK.findall(KOREAN) == BLOCKS


@pytest.mark.parametrize("text", [README, KOREAN], ids=["en", "ko"])
def test_every_link_leads_somewhere(text):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("text", [README, KOREAN], ids=["en", "ko"])
def test_no_figure_is_missing(text):
    assert not re.findall("‹[^›]*›", text)
