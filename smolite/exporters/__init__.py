"""Files for other runtimes, made from a run directory and checked before they are left behind."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolite.config import ModelConfig
from smolite.exporters.signatures import choose_lengths
from smolite.exporters.targets import TARGETS, Target
from smolite.hub import resolve_model

__all__ = ["TARGETS", "export"]


def export(
    run: str | Path,
    *,
    format: str = "tflite",
    out: str | Path | None = None,
    quantize: str | None = None,
    prefill_lengths: Sequence[int] | None = None,
    cache_length: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a run as a file for another runtime, with what a chat client needs beside it, and verifies it.

    Files of TensorFlow's formats are made in a process of its own, whatever backend trained the weights. A file that does not
    say what the model says is not left behind; an existing one is replaced only by one that does.

    Args:
        run: the run directory, or a model's name on the hub.
        format: a key of `TARGETS`.
        out: the folder to write to. Default: `export` in the run directory; for a name on the hub, `export` in a folder here
            that is called as the model.
        quantize: `None` for float32, or a way that the format knows: `"int8"` for TFLite and LiteRT-LM, `"f16"`, `"q8_0"` or
            `"q4_0"` for GGUF.
        prefill_lengths: how many tokens of a prompt are read at once; several are possible. Default: 16 and 128. GGUF has no
            fixed lengths.
        cache_length: how many tokens a chat can hold. Default: the context length, at most 1,024. Not for GGUF.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path of the file or folder.

    Raises:
        ImportError: a package that the target needs is missing.
        FileExistsError: the output exists, and `overwrite` is false.
        ValueError: an argument is out of its range.
        RuntimeError: the conversion failed, or the file does not say what the model says.
    """
    target, name = _find_target(format, quantize)
    check_packages(format)
    given, run = run, resolve_model(run)
    config = _read_config(run)
    if not target.on_tensorflow and (prefill_lengths or cache_length):
        raise ValueError(f"{format} has no fixed lengths. Received: `prefill_lengths` or `cache_length`. Leave them out.")
    lengths, slots = choose_lengths(config, prefill_lengths=prefill_lengths, cache_length=cache_length)
    beside = run if run == Path(given).expanduser() else Path(Path(given).name)
    folder = beside / "export" if out is None else Path(out)
    if (folder / name).exists() and not overwrite:
        raise FileExistsError(
            f"The output must not exist yet. Received: {folder / name}. Choose another `out`, or give `overwrite=True`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as staging:
        if target.on_tensorflow:
            job = {"quantize": quantize, "prefill_lengths": lengths, "cache_length": slots, "complete": target.complete}
            _convert_apart({**job, "module": target.module, "run": str(run), "path": str(Path(staging, name))})
        else:
            _convert(target.module, run, Path(staging, name), quantize=quantize)
        _verify(run, Path(staging), folder, overwrite=overwrite, client=not target.complete)
        _replace(Path(staging), folder)
    return folder / name


def _find_target(format: str, quantize: str | None) -> tuple[Target, str]:
    if format not in TARGETS:
        raise ValueError(f"Unknown `format`. Received: {format!r}. Choose one of: {', '.join(TARGETS)}.")
    names = TARGETS[format].file_names
    if quantize not in names:
        raise ValueError(f"`quantize` for {format} must be one of: {', '.join(map(str, names))}. Received: {quantize!r}.")
    return TARGETS[format], names[quantize]


def check_packages(format: str) -> None:
    """Refuses to start what cannot be finished.

    Raises:
        ImportError: a package that `format` needs is not installed.
    """
    target = TARGETS[format]
    missing = [package for module, package in target.packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(
            f"Exporting to {format} needs {', '.join(target.packages.values())}. Missing: {', '.join(missing)}. "
            f'Run: pip install "smolite[{target.extra}]"'
        )


def _read_config(run: Path) -> ModelConfig:
    file = run / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"A run directory with a config.json was expected. Received: {run}. Train or save one first.")
    return ModelConfig.from_hf(json.loads(file.read_text("utf-8")))


def _convert(module: str, run: Path, path: Path, *, quantize: str | None) -> None:
    from smolite import checkpoint

    importlib.import_module(module).build(checkpoint.load(run, dtype="float32"), path, quantize=quantize)


def _convert_apart(job: dict[str, Any]) -> None:
    """Runs `smolite.exporters.__main__` on TensorFlow; its progress goes to our standard output, its log into the error."""
    environment = os.environ | {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "smolite.exporters", json.dumps(job)]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                print(line, end="", flush=True)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"The conversion failed. Its last words:\n{''.join(log.readlines()[-20:])}")


def _verify(run: Path, staging: Path, folder: Path, *, overwrite: bool, client: bool) -> None:
    """Puts the client's files beside the new one, unless it holds them itself, and checks everything."""
    from smolite import checkpoint
    from smolite.exporters.client_files import check_client_files, write_client_files
    from smolite.exporters.verification import verify

    loaded = checkpoint.load(run, dtype="float32")
    if client:
        write_client_files(staging, tokenizer=loaded.tokenizer, template=loaded.template)
    if not overwrite:
        check_client_files(staging, folder)
    report = verify(run, out=staging)
    print(report.table(), flush=True)
    if not report.passed:
        raise RuntimeError(
            f"The file does not say what the model says, and was not kept; see the rows with problems:\n{report.table()}"
        )


def _replace(staging: Path, folder: Path) -> None:
    """Moves everything to its place; a folder that stands there gives way as a whole."""
    for new in staging.iterdir():
        old = folder / new.name
        if old.is_dir():
            old.rename(staging / f"{new.name}.old")
        new.replace(old)
        shutil.rmtree(staging / f"{new.name}.old", ignore_errors=True)
