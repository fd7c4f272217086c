"""The outcome of a verification: one row per artifact, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smolite.files import write_file

REPORT_FILE = "verify.json"


@dataclass(kw_only=True)
class Row:
    """What was found out about one artifact; `None` where a figure does not apply.

    Args:
        artifact: its name.
        runtime: what it ran on.
        num_bytes: its size on disk.
        logits: largest difference of a logit from the plain Keras forward; of a log probability where a runtime has no logits.
        caches: largest difference of a key or value in the caches that it returned.
        tokens: greedy tokens that are the same as Keras'.
        num_tokens: greedy tokens compared.
        bits_per_character: on the held-out dialogues.
        problems: why it does not pass, in words.
    """

    artifact: str
    runtime: str
    num_bytes: int | None = None
    logits: float | None = None
    caches: float | None = None
    tokens: int | None = None
    num_tokens: int | None = None
    bits_per_character: float | None = None
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
        head = ("artifact", "runtime", "size", "logits", "caches", "greedy tokens", "bits/char", "")
        lines = [head, *(_cells(row, self.rows[0].bits_per_character) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        problems = [f"{row.artifact}: {problem}" for row in self.rows for problem in row.problems]
        return "\n".join([*text, *problems])

    def save(self, folder: str | Path) -> Path:
        """Writes `verify.json` to a folder."""
        rows = [asdict(row) | {"passed": row.passed} for row in self.rows]
        content = {"passed": self.passed, "rows": rows, "conditions": self.conditions}
        return write_file(Path(folder, REPORT_FILE), json.dumps(content, indent=2, ensure_ascii=False).encode())


def _cells(row: Row, reference_bits: float | None) -> tuple[str, ...]:
    size = "" if row.num_bytes is None else f"{row.num_bytes / 1e6:,.2f} MB"
    tokens = "" if row.tokens is None else f"{row.tokens}/{row.num_tokens}"
    bits = "" if row.bits_per_character is None else f"{row.bits_per_character:.4f}"
    if row.bits_per_character and reference_bits and row.bits_per_character != reference_bits:
        bits += f" ({row.bits_per_character / reference_bits - 1:+.2%})"
    differences = ("" if value is None else f"{value:.1e}" for value in (row.logits, row.caches))
    return (row.artifact, row.runtime, size, *differences, tokens, bits, "pass" if row.passed else "FAIL")
