"""The outcome of a verification: one row per artifact, as a table, as JSON and as Markdown."""

import html
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import smolite
from smolite.files import write_file

REPORT_FILE, PAGE_FILE = "verify.json", "verify.md"
_PACKAGES = "keras tensorflow jax torch ai-edge-litert ai-edge-quantizer litert-lm-api litert-lm-builder cyllama gguf"
_HEAD = ("artifact", "runtime", "size", "logits", "caches", "greedy tokens", "bits/char", "peak MB", "open + first token", "")


@dataclass(kw_only=True)
class Row:
    """What was found out about one artifact; `None` where a figure does not apply.

    Args:
        artifact: its name.
        runtime: what it ran on.
        num_bytes: its size on disk.
        logits: largest difference of a logit from the plain Keras forward; of a log probability, as a share
            where it is above 1, for a runtime that shows no logits.
        caches: largest difference of a key or value in the caches that it returned, as a share of the largest of its layer
            where that is above 1.
        tokens: greedy tokens that are the same as Keras'.
        num_tokens: greedy tokens compared.
        scale: how many times as large as Keras' its logits are.
        bits_per_character: on the held-out dialogues.
        peak_bytes: the most memory that opening it and writing one token took, in a process of its own.
        open_seconds: time to open it there.
        first_token_seconds: time to the first token of an answer after that.
        problems: why it does not pass, in words.
    """

    artifact: str
    runtime: str
    num_bytes: int | None = None
    logits: float | None = None
    caches: float | None = None
    tokens: int | None = None
    num_tokens: int | None = None
    scale: float | None = None
    bits_per_character: float | None = None
    peak_bytes: int | None = None
    open_seconds: float | None = None
    first_token_seconds: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows of a verification, and how it was made.

    Args:
        rows: one per artifact; the first is the Keras model.
        conditions: limits, prompts and versions, for the record.
    """

    rows: list[Row]
    conditions: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every row passes."""
        return all(row.passed for row in self.rows)

    def table(self) -> str:
        """The rows as aligned text, problems below."""
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*text, *self._problems()])

    def page(self) -> str:
        """The same in Markdown, with the conditions."""
        head, *lines = self._lines()
        rows = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in (head, *lines)]
        rows.insert(1, "|" + " --- |" * len(head))
        problems = [f"- {html.escape(' '.join(problem.split()), quote=False)}" for problem in self._problems()]
        conditions = [f"- {name.replace('_', ' ')}: {_said(value)}" for name, value in self.conditions.items()]
        title = "Every file says what the model says." if self.passed else "Not every file says what the model says."
        parts = [["# Verification"], [title], rows, problems, ["## Conditions"], conditions]
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Writes `verify.json` and `verify.md` to a folder; returns the path of the first."""
        rows = [asdict(row) | {"passed": row.passed} for row in self.rows]
        content = {"passed": self.passed, "rows": rows, "conditions": self.conditions}
        write_file(Path(folder, PAGE_FILE), self.page().encode())
        return write_file(Path(folder, REPORT_FILE), json.dumps(content, indent=2, ensure_ascii=False).encode())

    def _lines(self) -> list[tuple[str, ...]]:
        """Head and rows, without the columns of figures that no row has."""
        lines = [_HEAD, *(_cells(row, self.rows[0].bits_per_character) for row in self.rows)]
        measured = any(row.open_seconds is not None for row in self.rows)
        return lines if measured else [(*line[:7], line[-1]) for line in lines]

    def _problems(self) -> list[str]:
        return [f"{row.artifact}: {problem}" for row in self.rows for problem in row.problems]


def installed_versions() -> dict[str, str]:
    """The versions of Python, smolite, and every package that makes or runs a file, as far as they are installed."""
    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    packages = [*_PACKAGES.split(), "tokenizers", "sentencepiece", "numpy"]
    ours = {"smolite": smolite.__version__, "python": platform.python_version()}
    return ours | {name: installed[name] for name in packages if name in installed}


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cells(row: Row, reference_bits: float | None) -> tuple[str, ...]:
    size = "" if row.num_bytes is None else f"{row.num_bytes / 1e6:,.2f} MB"
    tokens = "" if row.tokens is None else f"{row.tokens}/{row.num_tokens}"
    bits = "" if row.bits_per_character is None else f"{row.bits_per_character:.4f}"
    if row.bits_per_character and reference_bits and row.bits_per_character != reference_bits:
        bits += f" ({row.bits_per_character / reference_bits - 1:+.2%})"
    differences = ("" if value is None else f"{value:.1e}" for value in (row.logits, row.caches))
    peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.1f}"
    passed = "pass" if row.passed else "FAIL"
    return (row.artifact, row.runtime, size, *differences, tokens, bits, peak, _first_token(row), passed)


def _first_token(row: Row) -> str:
    if row.open_seconds is None or row.first_token_seconds is None:
        return ""
    return f"{row.open_seconds:.2f} + {row.first_token_seconds:.3f} s"
