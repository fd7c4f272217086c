"""What the site has beside docs/: pages from other folders, pages of the public names, and links that lead there."""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "smolite"
# Page of the site → its file in the repository.
ORIGINS = {
    "index.md": "README.md",
    "runtimes.md": "export/README.md",
    "android.md": "export/android/README.md",
    "ios.md": "export/ios/README.md",
    "web.md": "export/web/README.md",
    "space.md": "export/space/README.md",
    "results.md": "benchmarks/RESULTS.md",
    "korean.md": "benchmarks/korean.md",
    "korean.svg": "benchmarks/korean.svg",
    "quality.md": "benchmarks/quality.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PLACES = {origin: page for page, origin in ORIGINS.items()}
LINK = re.compile(r'(\]\(|src=")(?!\w+:|#)([^)#"\s]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not in docs/."""
    for page, origin in ORIGINS.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text("utf-8")))
    for door in sorted(PACKAGE.glob("*/__init__.pyi")):
        files.append(File.generated(config, f"api/{door.parent.name}.md", content=wing_page(door)))
    files.append(File.generated(config, "api/index.md", content=names_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages, or to the repository."""
    origin = ORIGINS.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if origin.startswith("docs/api/"):
        return markdown
    return LINK.sub(lambda found: found[1] + _link(found[2], origin, str(config.repo_url)), markdown)


def _link(target: str, origin: str, repository: str) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    if path in PLACES or path.startswith("docs/"):
        return PLACES.get(path, path.removeprefix("docs/"))
    return f"{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"


def names_of(door: Path) -> dict[str, str]:
    """Name → module of a door: `from .causal_lm import CausalLM` → {"CausalLM": "smolite.models.causal_lm"}."""
    here = ".".join(door.parent.relative_to(ROOT).parts)
    imports = [node for node in ast.parse(door.read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"{here}.{node.module}" for node in imports for alias in node.names}


def definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The class or function of that name; None for a constant."""
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    nodes = ast.parse(path.read_text("utf-8")).body
    return next((node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name), None)


def wing_page(door: Path) -> str:
    """The docstrings of what a wing gives out: first what `import smolite` gives, then what only other wings use."""
    text = ast.get_docstring(ast.parse(door.with_suffix(".py").read_text("utf-8"))) or ""
    modules = {name: module for name, module in names_of(door).items() if definition(module, name)}
    public = [f"::: {module}.{name}" for name, module in modules.items() if name in names_of(PACKAGE / "__init__.pyi")]
    others = [f"::: {module}.{name}" for name, module in modules.items() if name not in names_of(PACKAGE / "__init__.pyi")]
    return "\n\n".join([f"# smolite.{door.parent.name}", text, *public, "*What follows is for other wings.*", *others])


def names_page() -> str:
    """A table of what `import smolite` gives, with the first sentence about each."""
    doors = {door.parent.name: names_of(door) for door in PACKAGE.glob("*/__init__.pyi")}
    rows = []
    for name, wing in names_of(PACKAGE / "__init__.pyi").items():
        module = doors[wing.removeprefix("smolite.")][name]
        node = definition(module, name)
        text = (ast.get_docstring(node) or "").split("\n")[0] if node else "A constant."
        label = f"[`{name}`][{module}.{name}]" if node else f"`{name}`"
        rows.append(f"| {label} | {text.replace('|', '¦')} |")
    return "\n".join(["# Public names", "", "What `import smolite` gives.", "", "| name | |", "|---|---|", *rows])
