"""Exports that are killed, interrupted, or run out of disk: what stood in the folder is as it was, byte for byte."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from exported import ROOT, run_apart, save_small_run

from smolite.exporters.delivery import manifest
from smolite.exporters.delivery.manifest import manifest_problems
from smolite.exporters.delivery.placement import UNFINISHED, staging_folder
from smolite.exporters.exporting import export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with a verified .gguf file, which is the quickest to make, and a foreign file beside it."""
    run = save_small_run(tmp_path_factory.mktemp("interrupted"))
    export(run, format="gguf")
    (run / "export" / "notes.txt").write_text("mine")
    return run


@pytest.fixture
def run(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "run")


def age(run):
    """Makes every file of the export another one than a new export writes."""
    for path in (run / "export").iterdir():
        old = json.dumps(json.loads(path.read_text("utf-8"))) if path.name == manifest.MANIFEST_FILE else f"old {path.name}"
        path.write_text(old, "utf-8")


def contents(run):
    return {path.name: path.read_bytes() for path in (run / "export").iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["verify.md", "MANIFEST.json"])
def test_a_keystroke_while_files_are_moved(run, monkeypatch, name):
    age(run)
    before, move = contents(run), Path.replace

    def replace(self, target):
        if self.name == name and self.parent.name.startswith(UNFINISHED):
            raise KeyboardInterrupt
        return move(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        export(run, format="gguf", overwrite=True)
    assert contents(run) == before and len(list((run / "export").iterdir())) == len(before)
    monkeypatch.undo()
    export(run, format="gguf", overwrite=True)
    assert not {name for name in before if contents(run)[name] == before[name]} - {"notes.txt"}
    assert not any(manifest_problems(run / "export", run).values())


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_manifest_is_written(run, monkeypatch):
    def write_file(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    age(run)
    before = contents(run)
    monkeypatch.setattr(manifest, "write_file", write_file)
    with pytest.raises(OSError, match="No space left on device"):
        export(run, format="gguf", overwrite=True)
    assert contents(run) == before and len(list((run / "export").iterdir())) == len(before)


def test_a_second_export_into_a_folder_waits_for_the_first(tmp_path, capsys):
    order, waiting = [], threading.Event()

    def second():
        waiting.set()
        with staging_folder(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with staging_folder(tmp_path) as staging:
        (staging / "half").write_text("half a file")
        thread.start()
        waiting.wait()
        thread.join(timeout=0.5)
        assert thread.is_alive() and (staging / "half").exists()
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and "waiting for another export" in capsys.readouterr().out


@pytest.mark.slow
def test_an_export_that_is_killed_while_it_converts(run):
    """The next export removes what it left, and keeps in the manifest what is still there."""
    before = contents(run)
    code = "import sys; from smolite import export; export(sys.argv[1], prefill_lengths=(4,), cache_length=16)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with subprocess.Popen([sys.executable, "-c", code, run], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert any("converting" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert contents(run) == before
    assert [path.name.startswith(UNFINISHED) for path in (run / "export").iterdir() if path.is_dir()] == [True]
    export(run, format="gguf", quantize="f16")
    assert not [path for path in (run / "export").iterdir() if path.is_dir()]
    assert {name: data for name, data in contents(run).items() if name in ("model.gguf", "notes.txt")}.items() <= before.items()
    assert set(manifest.read_manifest(run / "export")["artifacts"]) == {"model.gguf", "model_f16.gguf"}


FULL = """
import resource, signal, sys
from smolite.exporters.exporting import export

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (170_000, 170_000))
try:
    export(sys.argv[1], prefill_lengths=(4,), cache_length=16)
except RuntimeError as error:
    print(type(error).__name__, "The conversion failed" in str(error))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="a limit of the size of files is Unix's")
def test_a_disk_that_is_full_while_it_converts(run):
    before = contents(run)
    assert run_apart(FULL, run).splitlines()[-1] == "RuntimeError True"
    assert contents(run) == before and len(list((run / "export").iterdir())) == len(before)
