"""Files for other runtimes, made from a run directory and checked before they are left behind."""

import importlib
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolite.checkpoint import export_folder, resolve_model
from smolite.exporters.delivery.placement import move_files, staging_folder
from smolite.exporters.delivery.processes import last_words, start
from smolite.exporters.edge.signatures import check_drafts, choose_lengths, choose_windows
from smolite.exporters.litert.quantization import check_way
from smolite.exporters.targets import TARGETS, Target
from smolite.models import ModelConfig


def export(
    run: str | Path,
    *,
    format: str = "tflite",
    out: str | Path | None = None,
    quantize: str | None = None,
    prefill_lengths: Sequence[int] | None = None,
    cache_length: int | None = None,
    windows: Sequence[int] | None = None,
    drafts: int = 0,
    growing_cache: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a run as a file for another runtime, with what a chat client needs beside it, and verifies it.

    Files of TensorFlow's formats are made in a process of its own, whatever backend trained the weights. A file that does not
    say what the model says is not left behind; an existing one is replaced only by one that does. What an export that was
    interrupted left is removed by the next one. `MANIFEST.json` says what each file is and what it was made from.

    Args:
        run: the run directory, or a model's name on the hub.
        format: a key of `TARGETS`.
        out: the folder to write to. Default: `export` in the run directory; for a name on the hub, `export` in a folder here
            that is called as the model.
        quantize: `None` for float32, or a way that the format knows: a key of `quantization.WAYS` for TFLite and LiteRT-LM;
            `"f16"`, `"q8_0"` or `"q4_0"` for GGUF.
        prefill_lengths: how many tokens of a prompt are read at once; several are possible. Default: 16 and 128. GGUF has no
            fixed lengths.
        cache_length: how many tokens a chat can hold. Default: the context length, at most 1,024. Not for GGUF.
        windows: slots of the cache that a chat is answered from as long as it fits there, which is quicker; for TFLite alone.
            Default: a quarter and half of the cache, where that is 128 or more.
        drafts: tokens that the engine guesses from what was said before and has checked in one call, which is quicker where
            answers repeat their prompts; for TFLite alone. Default: none.
        growing_cache: for LiteRT-LM alone: whether a chat's cache is as long as the chat so far, up to `cache_length`, and a
            prompt is read at once whatever its length. Much quicker on the CPU, the only place where such a file runs.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path of the file or folder.

    Raises:
        ImportError: a package that the target needs is missing.
        FileExistsError: the output exists, and `overwrite` is false.
        ValueError: an argument is out of its range, or the format has no place for what the run is.
        RuntimeError: the conversion failed, or the file does not say what the model says.
        OSError: the disk is full, or the folder cannot be written; what was there before is whole.
    """
    target, name = _find_target(format, quantize)
    check_packages(format)
    run = resolve_model(run)
    config = _read_config(run)
    if target.on_tensorflow and quantize:
        check_way(quantize, config)
    if not target.on_tensorflow and (prefill_lengths or cache_length):
        raise ValueError(f"{format} has no fixed lengths. Received: `prefill_lengths` or `cache_length`. Leave them out.")
    if windows and not target.windowed:
        raise ValueError(f"{format} has no windows. Received: `windows` {tuple(windows)}. Leave them out.")
    if drafts and not target.windowed:
        raise ValueError(f"{format} has no drafts. Received: `drafts` {drafts}. Leave it out.")
    if growing_cache and (format != "litertlm" or prefill_lengths):
        _refuse_growing(format, prefill_lengths)
    lengths, slots = choose_lengths(config, prefill_lengths=prefill_lengths, cache_length=cache_length)
    check_drafts(config, drafts, cache_length=slots)
    looks: dict[str, Any] = {}
    if target.windowed:
        looks = {"windows": choose_windows(config, cache_length=slots, windows=windows), "drafts": drafts}
    elif growing_cache:
        lengths = ()
    folder = export_folder(run) if out is None else Path(out)
    _check_place(folder, name, overwrite=overwrite)
    making: dict[str, Any] = {"format": format, "quantize": quantize, "prefill_lengths": None, "cache_length": None}
    if target.on_tensorflow:
        making |= {"prefill_lengths": lengths or None, "cache_length": slots, **looks}
    with staging_folder(folder) as staging:
        _prepare(target, run, staging, folder, overwrite=overwrite)
        if target.on_tensorflow:
            job = {"quantize": quantize, "prefill_lengths": lengths, "cache_length": slots, "complete": target.complete}
            _convert_apart({**job, **looks, "module": target.module, "run": str(run), "path": str(staging / name)})
        else:
            _convert(target.module, run, staging / name, quantize=quantize)
        _finish(run, staging, folder, name=name, making=making)
    return folder / name


def _refuse_growing(format: str, prefill_lengths: Sequence[int] | None) -> None:
    if format != "litertlm":
        raise ValueError(f"{format} has no growing cache. Received: `growing_cache`. Leave it out, or export to litertlm.")
    raise ValueError(
        f"With a growing cache a prompt is read at once, whatever its length. Received: `prefill_lengths` {prefill_lengths}, "
        "too. Leave one of them out."
    )


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
    from smolite.checkpoint import load_config

    if not (run / "config.json").is_file():
        raise FileNotFoundError(f"A run directory with a config.json was expected. Received: {run}. Train or save one first.")
    return load_config(run)


def _check_place(folder: Path, name: str, *, overwrite: bool) -> None:
    from smolite.exporters.delivery.manifest import read_manifest

    if (folder / name).exists() and not overwrite:
        raise FileExistsError(
            f"The output must not exist yet. Received: {folder / name}. Choose another `out`, or give `overwrite=True`."
        )
    read_manifest(folder)


def _prepare(target: Target, run: Path, staging: Path, folder: Path, *, overwrite: bool) -> None:
    """Puts the client's files beside the new one, unless it holds them itself; refuses what would be converted in vain."""
    from smolite import checkpoint
    from smolite.exporters.delivery.client_files import check_client_files, write_client_files

    loaded = checkpoint.load(run, dtype="float32")
    if check := getattr(importlib.import_module(target.module), "check_run", None):
        check(loaded)
    if not target.complete:
        write_client_files(staging, tokenizer=loaded.tokenizer, template=loaded.template)
    if not overwrite:
        check_client_files(staging, folder)


def _convert(module: str, run: Path, path: Path, *, quantize: str | None) -> None:
    from smolite import checkpoint

    importlib.import_module(module).build(checkpoint.load(run, dtype="float32"), path, quantize=quantize)


def _convert_apart(job: dict[str, Any]) -> None:
    """Runs `smolite.exporters.__main__` on TensorFlow; its progress goes to our standard output, its log into the error."""
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = start("smolite.exporters", job, log=log, **environment)
        assert process.stdout is not None
        with process:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise RuntimeError(f"The conversion failed. Its last words:\n{last_words(log)}")


def _finish(run: Path, staging: Path, folder: Path, *, name: str, making: dict[str, Any]) -> None:
    """Moves a new file that says what the model says to its place, with all that describes it; refuses another."""
    from smolite.exporters.delivery.manifest import MANIFEST_FILE, write_manifest
    from smolite.exporters.verification.verification import verify

    report = verify(run, out=staging)
    print(report.table(), flush=True)
    if not report.passed:
        raise RuntimeError(
            f"The file does not say what the model says, and was not kept; see the rows with problems:\n{report.table()}"
        )
    row = next(row for row in report.rows if row.artifact == name)
    write_manifest(staging, folder, row=row, run=run, making=making)
    move_files(staging, folder, last=MANIFEST_FILE)
