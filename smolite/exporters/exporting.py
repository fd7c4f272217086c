"""Files for other runtimes, made from a run directory and checked before they are left behind."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from smolite.checkpoint import export_folder, resolve_model
from smolite.exporters.delivery.placement import move_files, staging_folder
from smolite.exporters.delivery.processes import last_words, start
from smolite.exporters.request import ExportRequest, checked_request
from smolite.exporters.targets import find_target
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
    target = find_target(format)
    name = target.file_name(quantize)
    target.check_packages()
    run = resolve_model(run)
    config = _read_config(run)
    folder = export_folder(run) if out is None else Path(out)
    request = checked_request(
        target,
        config,
        run=run,
        path=folder / name,
        quantize=quantize,
        prefill_lengths=prefill_lengths,
        cache_length=cache_length,
        windows=windows,
        drafts=drafts,
        growing_cache=growing_cache,
    )
    _check_folder(folder, name, overwrite=overwrite)
    with staging_folder(folder) as staging:
        staged = replace(request, path=staging / name)
        _prepare(staged, folder, overwrite=overwrite)
        _convert(staged)
        _finish(staged, folder)
    return request.path


def _read_config(run: Path) -> ModelConfig:
    from smolite.checkpoint import load_config

    if not (run / "config.json").is_file():
        raise FileNotFoundError(f"A run directory with a config.json was expected. Received: {run}. Train or save one first.")
    return load_config(run)


def _check_folder(folder: Path, name: str, *, overwrite: bool) -> None:
    from smolite.exporters.delivery.manifest import read_manifest

    if (folder / name).exists() and not overwrite:
        raise FileExistsError(
            f"The output must not exist yet. Received: {folder / name}. Choose another `out`, or give `overwrite=True`."
        )
    read_manifest(folder)


def _prepare(request: ExportRequest, folder: Path, *, overwrite: bool) -> None:
    """Puts the client's files beside the new one, unless it holds them itself; refuses what would be converted in vain."""
    from smolite import checkpoint
    from smolite.exporters.delivery.client_files import check_client_files, write_client_files

    staging, loaded = request.path.parent, checkpoint.open_run(request.run, dtype="float32")
    request.target.call("run_check", loaded)
    if not request.target.holds_tokenizer:
        write_client_files(staging, tokenizer=loaded.tokenizer, template=loaded.template)
    if not overwrite:
        check_client_files(staging, folder)


def _convert(request: ExportRequest) -> None:
    from smolite import checkpoint

    if request.target.on_tensorflow:
        _convert_apart(request)
    else:
        request.target.call("builder", checkpoint.open_run(request.run, dtype="float32"), request)


def _convert_apart(request: ExportRequest) -> None:
    """Runs `smolite.exporters.__main__` on TensorFlow; its progress goes to our standard output, its log into the error."""
    # The converter keeps what it took of memory, and a process has one backend: both end with a process of its own.
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = start("smolite.exporters", request.to_json(), log=log, **environment)
        assert process.stdout is not None
        with process:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
            except BaseException:  # an interrupt, too, must not leave it converting into a folder that is gone
                process.kill()
                raise
        if process.returncode:
            raise RuntimeError(f"The conversion failed. Its last words:\n{last_words(log)}")


def _finish(request: ExportRequest, folder: Path) -> None:
    """Moves a new file that says what the model says to its place, with all that describes it; refuses another."""
    from smolite.exporters.delivery.manifest import MANIFEST_FILE, write_manifest
    from smolite.exporters.verification.verification import verify

    staging = request.path.parent
    report = verify(request.run, out=staging)
    print(report.table(), flush=True)
    if not report.passed:
        raise RuntimeError(
            f"The file does not say what the model says, and was not kept; see the rows with problems:\n{report.table()}"
        )
    row = next(row for row in report.rows if row.artifact == request.path.name)
    write_manifest(staging, folder, row=row, request=request)
    move_files(staging, folder, last=MANIFEST_FILE)
