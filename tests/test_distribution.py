"""What leaves the repository: the wheel, the site, the picture of the wings, and the checks before a commit."""

import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SITE = (ROOT / "mkdocs.yml").read_text("utf-8")


def run(*words):
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_the_picture_of_the_wings_is_that_of_the_code():
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_wings.py"))
    assert drawing["draw"]() == drawing["PICTURE"].read_text("utf-8"), "Draw it anew with `python docs/draw_wings.py`."


def test_the_picture_knows_what_a_wing_imports():
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_wings.py"))
    names = drawing["order"]()
    needs = drawing["imports"](names)
    assert names[0] == "files" and not needs["files"] and needs["text"] == ["files"]
    assert names[-1] == "cli" and "exporters" in needs["cli"]


def test_every_page_and_every_wing_has_its_place_on_the_site():
    named = set(re.findall(r": ([\w/]+\.md)$", SITE, re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    wings = {f"api/{door.parent.name}.md" for door in (ROOT / "smolite").glob("*/__init__.pyi")}
    assert pages | wings <= named


def test_the_addresses_are_one_repository():
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} == set(PROJECT["urls"])
    assert re.search(r"^repo_url: (.+)$", SITE, re.MULTILINE)[1] == PROJECT["urls"]["Repository"]
    assert re.search(r"^site_url: (.+)$", SITE, re.MULTILINE)[1] == PROJECT["urls"]["Documentation"]


@pytest.mark.slow
def test_the_checks_before_a_commit_are_those_of_make_lint():
    pytest.importorskip("pre_commit")
    run(sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml")
    entries = re.findall(r"entry: (\w+(?: \w+)?)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1]
    assert entries == re.findall(r"\$\(BIN\)/(\w+(?: \w+)?)", lint)


@pytest.mark.long
def test_the_site_is_made_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path))
    models = (tmp_path / "api" / "models" / "index.html").read_text("utf-8")
    assert 'id="smolite.models.causal_lm.CausalLM"' in models and (tmp_path / "wings.svg").is_file()


@pytest.mark.long
def test_the_wheel_holds_what_the_package_has(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    # Without an environment of its own, which would need the network.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", str(wheel))
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("smolite/")}
    suffixes = {".py", ".pyi", ".jsonl", ".typed"}
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "smolite").rglob("*")
        if path.suffix in suffixes or path.name == "py.typed"
    }
    assert ours <= held and not [name for name in held if "__pycache__" in name]
    assert {"smolite/py.typed", "smolite/__init__.pyi", "smolite/data/sample/train.jsonl"} <= held
