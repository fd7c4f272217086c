"""The rules of the house: wings and doors, what an import loads, names, docstrings, sizes of functions."""

import ast
import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ONE_BACKEND

import smolite

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "smolite"
SOURCES = sorted(PACKAGE.rglob("*.py"))
BESIDE = [ROOT / folder for folder in ("tests", "benchmarks", "export")]
CODE = SOURCES + sorted(path for folder in BESIDE for path in folder.rglob("*.py"))

# A wing imports only from wings before it; those of a pair in brackets know nothing of each other.
ORDER = "files backends models text data (generation checkpoint) evaluation (training exporters) serving cli"
BACKENDS = {"tensorflow", "jax", "torch"}
LIGHT = {"keras", "lazy_loader", "numpy", "safetensors", "sentencepiece", "smolite", *sys.stdlib_module_names}
# Their functions may: what comes from the hub.
SEAMS = {
    "data.sources",
    "checkpoint.hub",
    "data.hub_templates",
    "text.json_tokenizer",
    "checkpoint.first_smolite",
}
# Whose functions may reach these wings after their own: the methods of keras-hub's models, which open runs and write text.
OUTWARD = {"models.outward": {"checkpoint", "generation"}}
# What is about a format, not about the backend that computes: these are made of a TensorFlow graph, in a process of its own.
FORMATS = ("exporters.edge", "exporters.saved_model", "exporters.litert", "exporters.targets", "exporters.exporting")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")


def module_name(path):
    """smolite/text/tokenizer.py → "text.tokenizer", smolite/exporters/__init__.py → "exporters"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")}


def imported(node):
    """Full names of what an import statement loads: `from smolite.text import Tokenizer` → "smolite.text.Tokenizer"."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, f"Line {node.lineno} has a relative import. Write `from smolite.… import …`."
    return [f"{node.module}.{alias.name}" for alias in node.names] if roots([node.module]) == {"smolite"} else [node.module]


def imports_of(path, *, inside_functions):
    """Full names of what a file imports, with or without what its functions import when they are called."""
    todo, names = [ast.parse(path.read_text("utf-8"))], set()
    while todo:
        node = todo.pop()
        names.update(imported(node))
        if inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo.extend(ast.iter_child_nodes(node))
    return names


def roots(names):
    return {name.split(".")[0] for name in names}


def wings_before():
    """Wing → the wings that it may import from, as `ORDER` says."""
    before, seen = {}, set()
    for group in re.findall(r"\(([^)]*)\)|(\S+)", ORDER):
        names = "".join(group).split()
        before |= {name: seen | {name} for name in names}
        seen = seen | set(names)
    return before


WINGS = wings_before()


def wing_of(module):
    return module.removeprefix("smolite.").split(".")[0]


def names_of_door(wing):
    """What a wing gives out: the names in its `__init__.pyi`."""
    tree = ast.parse((PACKAGE / wing / "__init__.pyi").read_text("utf-8"))
    return {alias.name for node in tree.body for alias in node.names}


DOORS = {wing: names_of_door(wing) for wing in WINGS if (PACKAGE / wing).is_dir()}
LIGHT_WINGS = WINGS["training"] - {"training", "evaluation"}


def foreign_imports(name):
    """What a module imports from other wings: "text.Tokenizer", or "text" for a wing as a whole."""
    ours = {full for full in imports_of(MODULES[name], inside_functions=True) if roots([full]) == {"smolite"}}
    return {full.removeprefix("smolite.") for full in ours if wing_of(full) != wing_of(name)}


def is_allowed(full, name):
    """Whether a module may import this: from a wing before its own, and only what that wing's door gives out."""
    wing, _, inner = full.partition(".")
    reach = WINGS[wing_of(name)] | OUTWARD.get(name, set())
    return wing == "smolite" or (wing in reach and (not inner or wing not in DOORS or inner in DOORS[wing]))


def test_a_wing_imports_only_from_wings_before_it_and_through_their_doors():
    assert {
        name: bad for name in MODULES if (bad := {full for full in foreign_imports(name) if not is_allowed(full, name)})
    } == {}


@pytest.mark.parametrize("name", OUTWARD)
def test_what_reaches_outward_does_so_when_it_is_called(name):
    at_import = {wing_of(full) for full in imports_of(MODULES[name], inside_functions=False)}
    assert not at_import & OUTWARD[name]


@pytest.mark.parametrize("wing", DOORS)
def test_what_a_door_gives_out_is_there_and_hides_no_module(wing):
    door = importlib.import_module(f"smolite.{wing}")
    modules = {path.stem for path in (PACKAGE / wing).iterdir()}
    assert DOORS[wing] == set(door.__all__) and not DOORS[wing] & modules
    assert all(inspect.ismodule(getattr(door, name)) is False for name in DOORS[wing])


def test_the_wings_are_all_that_there_is():
    there = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert there - {"py"} == set(WINGS)


def test_heavy_libraries_are_imported_inside_functions():
    heavy = {name: roots(imports_of(path, inside_functions=False)) - LIGHT for name, path in MODULES.items()}
    assert {name: libraries for name, libraries in heavy.items() if libraries} == {}


def test_up_to_the_run_directory_only_the_named_seams_import_more():
    light = LIGHT_WINGS - {"backends"}
    modules = {name: path for name, path in MODULES.items() if wing_of(name) in light and name not in SEAMS}
    heavy = {name: roots(imports_of(path, inside_functions=True)) - LIGHT for name, path in modules.items()}
    assert {name: libraries for name, libraries in heavy.items() if libraries} == {}


def mentions_of_a_backend(path):
    """Where a file imports a backend, names one in a string of its own, or asks Keras which one it is; by line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = roots(imported(node)) if isinstance(node, (ast.Import, ast.ImportFrom)) else set()
        is_name = isinstance(node, ast.Constant) and node.value in BACKENDS
        if names & BACKENDS or is_name or (isinstance(node, ast.Attribute) and ast.unparse(node) == "keras.backend.backend"):
            yield node.lineno


def test_only_the_room_of_backends_and_the_formats_of_one_know_a_backend():
    others = {name: path for name, path in MODULES.items() if wing_of(name) != "backends" and not name.startswith(FORMATS)}
    others[""] = PACKAGE / "__init__.py"
    assert {name: lines for name, path in others.items() if (lines := list(mentions_of_a_backend(path)))} == {}


def test_a_backend_reads_no_other_one():
    for name in BACKENDS:
        heavy = roots(imports_of(MODULES[f"backends.{name}"], inside_functions=True)) - LIGHT
        assert heavy <= {name}


def lines_without_docstring(function):
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    trees = [ast.parse(path.read_text("utf-8")) for path in SOURCES]
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    lines = sorted(lines_without_docstring(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds))
    assert np.median(lines) <= 6 and np.quantile(lines, 0.9) <= 20 and lines[-1] <= 45


def test_nothing_is_unfinished_or_badly_named():
    defined = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    for path in CODE:
        text = path.read_text("utf-8")
        names = [path.stem, *(node.name for node in ast.walk(ast.parse(text)) if isinstance(node, defined))]
        words = {word for name in names for word in re.findall("[a-z]+", name.lower())}
        assert not words & FORBIDDEN_NAMES, path
        assert path == Path(__file__) or not UNFINISHED.findall(text), path


def undocumented(owner, prefix):
    """Public functions, classes and methods that neither they themselves nor a base class describe."""
    for name, value in vars(owner).items():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        ours = getattr(value, "__module__", None) == getattr(owner, "__module__", owner.__name__)
        if name.startswith("_") or not ours or not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        if not inspect.getdoc(getattr(owner, name)) and not describes_a_method_of_keras(owner, name):
            yield f"{prefix}{name}"
        if inspect.isclass(value):
            yield from undocumented(value, f"{prefix}{name}.")


def describes_a_method_of_keras(owner, name):
    """Whether a base class from elsewhere has the method, so that its contract is written there."""
    bases = getattr(owner, "__mro__", [None])[1:]
    return any(name in vars(base) and not base.__module__.startswith("smolite") for base in bases)


def test_public_names_have_docstrings():
    for name in (name for name in MODULES if not name.endswith("__main__")):
        module = importlib.import_module(f"smolite.{name}")
        assert module.__doc__ and not list(undocumented(module, "")), name


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if ">>>" in path.read_text("utf-8")])
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"smolite.{name}")
    model = smolite.CausalLM(smolite.ModelConfig.from_preset("smolite-small"))
    names = {"np": np, "model": model, "smolite": smolite, "ModelConfig": smolite.ModelConfig, **vars(module)}
    runner, report = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    for test in doctest.DocTestFinder().find(module, extraglobs=names):
        runner.run(test, out=report.append)
    assert runner.tries and not runner.failures, "".join(report)


def test_a_public_name_is_one_of_a_wing():
    for name in set(smolite.__all__) - {"__version__"}:
        assert any(name in names for names in DOORS.values()) and getattr(smolite, name) is not None


def test_a_name_that_is_not_public():
    with pytest.raises(AttributeError, match="no attribute 'Generator'. Choose one of: .*CausalLM, "):
        smolite.Generator  # noqa: B018


def python(code, **environment):
    """Runs code in a fresh interpreter and returns what it prints."""
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(run, env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_smolite_loads_neither_keras_nor_a_backend():
    loaded = python("import smolite, sys; print(*sys.modules)").split()
    assert "smolite" in loaded
    assert not {"keras", "numpy", "sentencepiece", *BACKENDS} & set(loaded)


ALONE = """
import sys
for absent in {absent}:
    sys.modules[absent] = None
import numpy, smolite
config = smolite.ModelConfig.from_preset("smolite-small", vocab_size=64, num_layers=1)
print(tuple(smolite.CausalLM(config)(numpy.array([[5, 6, 7]])).shape))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_one_backend_is_enough(backend):
    code = ALONE.format(absent=sorted(BACKENDS - {backend}))
    assert python(code, KERAS_BACKEND=backend).split("\n")[-2] == "(1, 3, 64)"


def test_without_the_backend_it_is_said_what_to_install():
    code = "import sys, smolite\nsys.modules['torch'] = None\nsmolite.CausalLM"
    with pytest.raises(AssertionError, match=r"Keras backend torch.*pip install 'smolite\[torch\]'"):
        python(code, KERAS_BACKEND="torch")


def test_files_named_for_one_backend_exist():
    assert {path.stem for path in (ROOT / "tests").rglob("test_*.py")} >= ONE_BACKEND
