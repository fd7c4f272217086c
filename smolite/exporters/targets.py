"""The kinds of file that can be exported, collected: a new one is a folder that says its own row, and a line here."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from smolite.exporters.target import Limits, Target

MODULES: tuple[str, ...] = (
    "smolite.exporters.saved_model.target",
    "smolite.exporters.litert.target",
    "smolite.exporters.litertlm.target",
    "smolite.exporters.gguf.target",
)


class _Targets(Mapping[str, Target]):
    """Name → target, in the order of `MODULES`; the rows are read at first use."""

    def __getitem__(self, name: str) -> Target:
        return _rows(MODULES)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_rows(MODULES))

    def __len__(self) -> int:
        return len(MODULES)


@cache
def _rows(modules: tuple[str, ...]) -> dict[str, Target]:
    rows: list[Target] = [importlib.import_module(module).TARGET for module in modules]
    return {row.name: row for row in rows}


TARGETS: Mapping[str, Target] = _Targets()


@dataclass(frozen=True)
class TargetFile:
    """A file that a target may write.

    Args:
        target: the target.
        quantize: how its weights are written; `None` for float32.
        name: of the file.
    """

    target: Target
    quantize: str | None
    name: str

    @property
    def limits(self) -> Limits | None:
        """What it may cost; `None` for a float32 file, which must be exact."""
        return None if self.quantize is None else self.target.limits_of(self.quantize)


def target_files() -> dict[str, TargetFile]:
    """Name → file, of all that targets may write."""
    files = [TargetFile(row, way, name) for row in TARGETS.values() for way, name in row.file_names.items()]
    return {file.name: file for file in files}


def engine_files() -> dict[str, str]:
    """What `--engine` calls the files that can be talked with, name → file.

    A name is the way to quantize, or of a float32 file the format; both where a file of an earlier target has the name.
    """
    names: dict[str, str] = {}
    for file in target_files().values():
        if file.target.gives_logits:
            short = file.quantize or file.target.name
            names[f"{file.target.name}_{short}" if short in names else short] = file.name
    return names


def find_target(name: str) -> Target:
    """The target of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in TARGETS:
        raise ValueError(f"Unknown `format`. Received: {name!r}. Choose one of: {', '.join(TARGETS)}.")
    return TARGETS[name]


def check_packages(format: str) -> None:
    """As `Target.check_packages`, by the target's name."""
    find_target(format).check_packages()
