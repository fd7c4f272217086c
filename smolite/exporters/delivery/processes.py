"""Work in a process of its own: a module of this package that takes a job as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def start(module: str, job: Mapping[str, Any], *, log: IO[str], **environment: str) -> "subprocess.Popen[str]":
    """Starts `python -m MODULE JOB`, whose standard output can be read from the process.

    Args:
        module: the module.
        job: its only argument, ready for JSON.
        log: a file that its standard error goes to.
        environment: variables to set there.
    """
    root = str(Path(__file__).parents[3])
    # The new process must find this very package, also where it runs from a checkout that nobody installed.
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    settings = os.environ | {"PYTHONPATH": path} | environment
    command = [sys.executable, "-m", module, json.dumps(job)]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=log, text=True)


def last_words(log: IO[str]) -> str:
    """The last 20 lines of a log."""
    log.seek(0)
    return "".join(log.readlines()[-20:])
