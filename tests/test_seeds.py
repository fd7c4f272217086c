"""docs/seeds.md is true: no row is empty, each test that it names is there, and each command is known."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from smolite.cli import parser as cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "seeds.md").read_text("utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [cells for cells in ROWS if cells[0] != "it describes"]


def test_the_page_has_rows_for_each_of_the_five():
    parts = PAGE.split("\n## ")[1:]
    assert len(parts) == 5 and all(part.count("\n| ") >= 9 for part in parts)
    assert len(ROWS) == sum(part.count("\n| ") - 1 for part in parts)


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: cells[0])
def test_a_row_is_shown_by_what_it_names(cells):
    assert len(cells) == 3 and all(cells)
    (shown,) = re.fullmatch(r"`([^`]+)`", cells[2]).groups()
    if shown.startswith("tests/"):
        file, name = shown.split("::")
        functions = [node for node in ast.parse((ROOT / file).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        assert name in [function.name for function in functions]
    else:
        program, *words = shlex.split(shown)
        assert program == "smolite"
        cli.read_settings(words[0], words[1:])


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", PAGE))
def test_links_lead_somewhere(link):
    assert (ROOT / "docs" / link).is_file()
