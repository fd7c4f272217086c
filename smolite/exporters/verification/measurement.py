"""Memory and time to the first token of a file, in a process of its own.

Only so the most memory that a process ever held says something about one file.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolite.exporters.delivery.processes import last_words, start
from smolite.exporters.delivery.report import Row

_FORGET = Path("/proc/self/clear_refs")  # Linux; elsewhere no memory is told


def measure_file(
    row: Row, path: Path, *, library: str, engine: tuple[str, dict[str, Any]], prompt: str | Sequence[int]
) -> None:
    """Opens a file in a fresh process, lets it read a prompt and write one token, and puts the figures into the row.

    Memory is counted from the moment that the runtime's library is imported, so it is what the file needs.

    Args:
        row: gets the figures, or a problem.
        path: the file or folder.
        library: import name of the runtime.
        engine: module and class that run it, with a colon between, and further arguments.
        prompt: token ids, or a text for a runtime that takes texts.
    """
    place, settings = engine
    job = {"library": library, "engine": place, "settings": settings, "path": str(path), "prompt": prompt}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with start("smolite.exporters.verification.measurement", job, log=log) as process:
            assert process.stdout is not None
            said = process.stdout.read()
        if process.returncode:
            row.problems.append(f"it could not be measured: {last_words(log).strip() or process.returncode}")
            return
    for name, value in json.loads(said.splitlines()[-1]).items():
        setattr(row, name, value)


def main(job: dict[str, Any]) -> None:
    """Prints the figures of `Row` as JSON; `job` is described in `measure_file`."""
    importlib.import_module(job["library"])
    module, name = job["engine"].split(":")
    make = getattr(importlib.import_module(module), name)
    before = _forget_peak()
    begun = time.perf_counter()
    engine = make(job["path"], **job["settings"])
    opened = time.perf_counter()
    if isinstance(job["prompt"], str):
        engine.reply(job["prompt"], max_new_tokens=1)
    else:
        engine.start([job["prompt"]])
    answered = time.perf_counter()
    figures = {"open_seconds": opened - begun, "first_token_seconds": answered - opened}
    if before is not None:
        # The peak and not the end: what loading takes for a moment must fit into a phone, too.
        figures["peak_bytes"] = _held("VmHWM") - before
    print(json.dumps(figures))


def _forget_peak() -> int | None:
    """What this process holds now, from where its peak is counted anew."""
    if not _FORGET.exists():
        return None
    # 5 is the kernel's word for: count the peak anew. What importing the library took is then not counted.
    _FORGET.write_text("5")
    return _held("VmRSS")


def _held(line: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
