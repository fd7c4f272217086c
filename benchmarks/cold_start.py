"""Cold starts: what `smolite chat RUN --engine … --prompt … --max-new-tokens 1` takes from the shell to its end.

    python benchmarks/cold_start.py RUN
    python benchmarks/cold_start.py RUN --engine int8 --backend torch jax --tree ../before .

Each start is a process of its own; engines, backends and trees take turns. Give `--tree` another checkout to compare with it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import NamedTuple

from table import conditions, markdown, middle, publish, ratio, spread

CODE = "import sys; from smolite.cli import main; sys.exit(main())"
HEADS = ["tree", "engine", "backend", "wall s", "spread", "CPU s", "spread", "peak MB", "first row's wall ÷ this"]
PROMPT = "안녕하세요!"


class Side(NamedTuple):
    """One thing to start: a checkout, an engine of `smolite chat`, and a Keras backend."""

    tree: Path
    engine: str
    backend: str


class Start(NamedTuple):
    """What one process took."""

    wall: float
    cpu: float
    peak: float


def main() -> None:
    """Prints the table."""
    options = parse()
    sides = [Side(*each) for each in product(options.tree, options.engine, options.backend)]
    starts: dict[Side, list[Start]] = {side: [] for side in sides}
    for turn in range(options.repeats + 1):
        for side in sides:
            measured = start(side, options.run, options.prompt)
            if turn:  # the first turn reads the files from the disk
                starts[side].append(measured)
    rows = [cells(side, starts[side], starts[sides[0]]) for side in sides]
    note = f"`smolite chat RUN --prompt '{options.prompt}' --max-new-tokens 1`, {options.repeats} starts each, in turns."
    publish("\n\n".join([conditions(), note, markdown(HEADS, rows, texts=3)]), options.out)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with an exported file of each engine")
    parser.add_argument("--engine", nargs="+", default=["int8", "keras"], help="as for `smolite chat`")
    parser.add_argument("--backend", nargs="+", default=["tensorflow", "torch", "jax"], help="Keras backends")
    parser.add_argument("--tree", type=Path, nargs="+", default=[Path(__file__).parents[1]], help="checkouts of smolite")
    parser.add_argument("--prompt", default=PROMPT, help="what is said")
    parser.add_argument("--repeats", type=int, default=5, help="starts of each")
    parser.add_argument("--out", type=Path, help="a file to write the table to as well")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"`--repeats` must be from 1 on. Received: {options.repeats}.")
    return options


def start(side: Side, run: Path, prompt: str) -> Start:
    """Starts the command, waits for its end and says what it took; a command that fails ends the benchmark."""
    words = ["chat", str(run.resolve()), "--engine", side.engine, "--prompt", prompt, "--max-new-tokens", "1"]
    environment = os.environ | {"PYTHONPATH": str(side.tree.resolve()), "KERAS_BACKEND": side.backend}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        begun = time.perf_counter()
        # `python -c` looks for modules in its working directory first, whatever PYTHONPATH says.
        command = [sys.executable, "-c", CODE, *words]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, cwd=side.tree)
        # Only `wait4` says what one child took; `resource` sums the children, and has the peak of the largest.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        if status:
            errors.seek(0)
            raise SystemExit(f"smolite {' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}:\n{errors.read()}")
    # Linux counts the memory of this small process as the child's until its program begins, which is less than any start takes.
    unit = 1 if sys.platform == "darwin" else 1024
    return Start(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def cells(side: Side, starts: list[Start], first: list[Start]) -> list[str]:
    """A row of the table."""
    wall, cpu, peak = zip(*starts, strict=True)
    figures = [middle(wall), spread(wall), middle(cpu), spread(cpu), middle(peak)]
    return [side.tree.resolve().name, side.engine, side.backend, *figures, ratio([each.wall for each in first], wall)]


if __name__ == "__main__":
    main()
