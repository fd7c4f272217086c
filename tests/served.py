"""Runs the app as a process of its own, on a tiny model that has learnt one answer by heart, full of markup."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from exported import CONVERT, made_once, run_apart
from tiny import TINY, tokenizer, write_dialogues

from smolite.data.template import Conversation, Message
from smolite.models.config import PRESETS
from smolite.training.fit import finetune
from smolite.training.options import TrainingOptions

ROOT = Path(__file__).parents[1]
CLI = "import sys\nfrom smolite import cli\nsys.exit(cli.main())"
HOSTILE = '<script>document.title="x"</script> <b>a</b>\n**b** $$c$$'


def hostile_run(factory):
    """The run directory, made once per test session; its `export` folder holds a SavedModel and both .tflite files.

    Args:
        factory: pytest's `tmp_path_factory`.
    """
    return made_once(factory, "hostile", _train) / "run"


def _train(folder):
    dialogue = Conversation((Message("user", "안녕!"), Message("assistant", HOSTILE)))
    data = write_dialogues(folder / "hostile.jsonl", [dialogue] * 40)
    options = TrainingOptions(
        epochs=15, batch_size=4, sequence_length=120, learning_rate=1e-2, dropout=0.0, restore_best_weights=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", dataclasses.replace(TINY, context_length=128))
        finetune(data, folder / "run", tokenizer=tokenizer(), preset="tiny", options=options)
    (folder / "run" / "export").mkdir()
    convert = CONVERT.replace("cache_length=48", "cache_length=128")
    run_apart(convert, folder / "run", folder / "run" / "export", KERAS_BACKEND="tensorflow")


def free_port():
    with closing(socket.socket()) as chosen:
        chosen.bind(("127.0.0.1", 0))
        return str(chosen.getsockname()[1])


def fetch(url, data=None):
    body = data and json.dumps(data).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def _hear_interrupts():
    """A shell lets what it starts in the background ignore interrupts, and so would the server."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def served(command, folder, *, port, path="config", **environment):
    """The address of a server that `command` starts in `folder`, once it gives `path`; it must end at an interrupt."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with open(folder / "log.txt", "w+") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, preexec_fn=_hear_interrupts)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    fetch(f"{address}/{path}")
                    break
                except OSError:
                    assert server.poll() is None, (folder / "log.txt").read_text()
                    time.sleep(0.25)
            yield address
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(timeout=20)
            finally:
                server.kill()
