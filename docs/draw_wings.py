"""Draws `wings.svg`, the picture of the house: `python docs/draw_wings.py`.

What it draws is read from the code: the wings' order from the test that keeps it, what each is for and imports from its files.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "wings.svg"
PACKAGE = ROOT / "smolite"
WIDTH, ROW, BOX, LEFT, TOP = 860, 56, 46, 20, 76  # pixels
BOX_WIDTH, FIRST_COLUMN = 350, 400
STYLE = "text{font-family:sans-serif;font-size:14px;fill:#222}.small{font-size:11px;fill:#666}"


def order() -> list[str]:
    """Wings and rooms from left to right, as `tests/test_house.py` asks for them; those of a pair in brackets are equals."""
    text = (ROOT / "tests" / "test_house.py").read_text("utf-8")
    (found,) = re.findall(r'^ORDER = "(.+)"$', text, re.MULTILINE)
    names = re.findall(r"\w+", found)
    return [name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()]


def sources(name: str) -> list[Path]:
    """The Python files of a wing, or the one of a room."""
    return sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / f"{name}.py"]


def purpose(name: str) -> str:
    """The beginning of a wing's docstring, up to its first comma, colon or full stop."""
    door = PACKAGE / name / "__init__.py"
    text = ast.get_docstring(ast.parse((door if door.is_file() else PACKAGE / f"{name}.py").read_text("utf-8"))) or ""
    return re.split(r"[:,.](?:\s|$)", text)[0].replace("`", "")


def imported_wings(path: Path) -> Iterator[str]:
    """The wings that a file imports, at its top or in a function: `from smolite.text import Tokenizer` → "text"."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "smolite":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smolite."):
            yield str(node.module).split(".")[1]


def imports(names: list[str]) -> dict[str, list[str]]:
    """Wing → the other wings that it imports, in the order of the house."""
    seen = {name: {wing for path in sources(name) for wing in imported_wings(path)} - {name} for name in names}
    return {name: [wing for wing in names if wing in seen[name]] for name in names}


def draw() -> str:
    """The picture: a row for each wing, the last on top, with a dot under each wing that it imports."""
    names = order()
    needs = imports(names)
    columns = {name: FIRST_COLUMN + index * (WIDTH - FIRST_COLUMN) // len(names) for index, name in enumerate(names)}
    height = TOP + len(names) * ROW + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">', f"<style>{STYLE}</style>"]
    parts += [f"<title>The wings of Smolite and what each imports</title><rect width='{WIDTH}' height='{height}' fill='#fff'/>"]
    parts += [_heading(name, x, height) for name, x in columns.items()]
    for index, name in enumerate(reversed(names)):
        parts.append(_row(name, TOP + index * ROW, [columns[wing] for wing in needs[name]], columns[name]))
    return "\n".join([*parts, "</svg>", ""])


def _heading(name: str, x: int, height: int) -> str:
    line = f'<line x1="{x}" y1="{TOP - 8}" x2="{x}" y2="{height - 10}" stroke="#ddd"/>'
    return f'{line}<text class="small" transform="translate({x + 4},{TOP - 14}) rotate(-40)">{name}</text>'


def _row(name: str, y: int, needed: list[int], own: int) -> str:
    middle = y + BOX // 2
    box = f'<rect x="{LEFT}" y="{y}" width="{BOX_WIDTH}" height="{BOX}" rx="6" fill="#eef3fb" stroke="#5b7db1"/>'
    label = f'<text x="{LEFT + 12}" y="{middle - 3}">{name}</text>'
    label += f'<text class="small" x="{LEFT + 12}" y="{middle + 14}">{escape(purpose(name))}</text>'
    line = f'<line x1="{LEFT + BOX_WIDTH}" y1="{middle}" x2="{max([own, *needed])}" y2="{middle}" stroke="#9db4d6"/>'
    # A wing after its own is reached by a function, when it is called: a smaller dot.
    dots = "".join(f'<circle cx="{x}" cy="{middle}" r="{6 if x < own else 3}" fill="#5b7db1"/>' for x in needed)
    return f'{box}{label}{line}{dots}<circle cx="{own}" cy="{middle}" r="6" fill="#fff" stroke="#5b7db1"/>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), "utf-8")
