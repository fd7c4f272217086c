"""Medians, spreads and ratios as Markdown, with what they were measured on."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

PACKAGES = "keras tensorflow jax torch keras-hub transformers ai-edge-litert".split()


def middle(values: Sequence[float]) -> str:
    """The median: `[2.0, 9.0, 4.0]` → `"4.00"`."""
    return number(median(values))


def spread(values: Sequence[float]) -> str:
    """Lowest and highest: `[2.0, 9.0, 4.0]` → `"2.00–9.00"`."""
    return f"{number(min(values))}–{number(max(values))}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratio of the medians, and lowest and highest of the pairs: `[6.0, 8.0], [2.0, 4.0]` → `"2.33 (2.00–3.00)"`."""
    pairs = [our / their for our, their in zip(ours, theirs, strict=True)]
    return f"{median(ours) / median(theirs):.2f} ({min(pairs):.2f}–{max(pairs):.2f})"


def number(value: float) -> str:
    """Three digits or more: 1234.5 → `"1,234"`, 57.31 → `"57.3"`, 1.234 → `"1.23"`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def gigabytes(size: int) -> str:
    """Bytes as decimal gigabytes: 1_234_567_890 → `"1.23"`."""
    return f"{size / 1e9:.2f}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table; all columns but the first `texts` are aligned to the right."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def conditions() -> str:
    """Date, machine, load before the run, and the versions of what is installed."""
    found = {name: _version(name) for name in PACKAGES}
    versions = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    load = f"load {os.getloadavg()[0]:.1f} before the run"
    return f"{now}; {_processor()}, {cpu_count()} cores, {load}; Python {platform.python_version()}, {versions}"


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def publish(text: str, out: Path | None) -> None:
    """Prints a report and, where `out` is given, writes it there."""
    print(text, flush=True)
    if out is not None:
        out.write_text(text + "\n", "utf-8")


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
