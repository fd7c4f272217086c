"""Worker processes that take turns: one computes while the others sleep, each with its own backend and memory.

A worker is a script that is given a job as JSON. It builds and warms up what it measures, sends one line of facts, and then for
every line it reads does a turn and sends its figures. It ends when its standard input is closed.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAUSE = 0.5  # seconds before a turn, in which threads of the last worker that still spin go to sleep


class Worker:
    """The near end of a worker process; it is ready when the constructor returns.

    Args:
        script: a file in this folder that ends in `main(json.loads(sys.argv[1]), Link())`.
        job: what it is to do.
        backend: the Keras backend it gets.

    Raises:
        RuntimeError: the worker stopped; with its last words.
    """

    def __init__(self, script: str, job: Mapping[str, Any], *, backend: str):
        paths = [str(ROOT), os.environ.get("PYTHONPATH")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environment |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(job)]
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the worker
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.turns: list[dict[str, Any]] = []
        try:
            self.facts = self._receive()
        except RuntimeError:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def turn(self) -> None:
        """Lets the worker do its turn, and keeps the figures."""
        time.sleep(PAUSE)
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        self.turns.append(self._receive())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._log.seek(0)
        last_words = "".join(self._log.readlines()[-20:])
        raise RuntimeError(f"A worker stopped: {' '.join(self._process.args[1:])}\n{last_words}")


class Link:
    """The far end, in the worker. What libraries print goes to the log, not between the answers."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._imported = 0

    def mark_imported(self) -> None:
        """Notes the memory in use, so that what libraries take by themselves can be told from the rest."""
        self._imported = peak_memory()

    def send(self, **figures: Any) -> None:
        """Sends facts or figures, with the highest memory use so far, and by how much it grew since the imports."""
        peak = peak_memory()
        self._answers.write(json.dumps({**figures, "peak": peak, "grown": peak - self._imported}) + "\n")
        self._answers.flush()

    def wait(self) -> None:
        """Sleeps until it is this worker's turn; ends the process when there are no more."""
        if not sys.stdin.readline():
            os._exit(0)  # libraries' threads, and a `fit` that is under way, end with it


def peak_memory() -> int:
    """The most bytes that this process has had in memory.

    Linux hands `ru_maxrss` down from the process that started this one, so its own count is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def take_turns(workers: Mapping[Any, Worker], repeats: int) -> None:
    """Lets each worker do `repeats` turns, one after the other: a, b, c, a, b, c, …"""
    for _ in range(repeats):
        for worker in workers.values():
            worker.turn()
