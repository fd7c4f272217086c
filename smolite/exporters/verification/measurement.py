"""Memory and time to the first token of a file, in a process of its own.

Only so the most memory that a process ever held says something about one file.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolite.exporters.delivery.processes import last_words, start
from smolite.exporters.delivery.report import Row
from smolite.exporters.target import load

_FORGET = Path("/proc/self/clear_refs")  # Linux; elsewhere no memory is told


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured in the other process.

    Args:
        path: the file or folder.
        library: import name of the runtime.
        engine: what opens it, as `module:name`.
        settings: further arguments of that.
        prompt: token ids, or a text for a runtime that takes texts.
    """

    path: str
    library: str
    engine: str
    settings: Mapping[str, Any]
    prompt: str | Sequence[int]


def measure_file(row: Row, measurement: Measurement) -> None:
    """Opens a file in a fresh process, lets it read a prompt and write one token, and puts the figures into the row.

    Memory is counted from the moment that the runtime's library is imported, so it is what the file needs.

    Args:
        row: gets the figures, or a problem.
        measurement: what to measure.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with start("smolite.exporters.verification.measurement", json.dumps(asdict(measurement)), log=log) as process:
            assert process.stdout is not None
            output = process.stdout.read()
        if process.returncode:
            row.problems.append(f"it could not be measured: {last_words(log).strip() or process.returncode}")
            return
    for name, value in json.loads(output.splitlines()[-1]).items():
        setattr(row, name, value)


def main(measurement: Measurement) -> None:
    """Prints the figures of `Row` as JSON."""
    importlib.import_module(measurement.library)
    make = load(measurement.engine)
    before = _forget_peak()
    begun = time.perf_counter()
    engine = make(measurement.path, **measurement.settings)
    opened = time.perf_counter()
    if isinstance(measurement.prompt, str):
        engine.reply(measurement.prompt, max_new_tokens=1)
    else:
        engine.start([measurement.prompt])
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
    main(Measurement(**json.loads(sys.argv[1])))
