"""Work in a process of its own: a module of this package whose one argument is a request as JSON."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO


def start(module: str, request: str, *, log: IO[str], **environment: str) -> "subprocess.Popen[str]":
    """Starts `python -m MODULE REQUEST`, whose standard output can be read from the process.

    Args:
        module: the module.
        request: its only argument, as JSON.
        log: a file that its standard error goes to.
        environment: variables to set there.
    """
    root = str(Path(__file__).parents[3])
    # The new process must find this very package, also where it runs from a checkout that nobody installed.
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    settings = os.environ | {"PYTHONPATH": path} | environment
    command = [sys.executable, "-m", module, request]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=log, text=True)


def last_words(log: IO[str]) -> str:
    """The last 20 lines of a log."""
    log.seek(0)
    return "".join(log.readlines()[-20:])
