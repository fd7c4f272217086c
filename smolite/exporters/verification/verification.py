"""Proof that every artifact of a run says what its Keras model says, each opened in its real runtime."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from smolite import checkpoint
from smolite.backends import backend
from smolite.checkpoint import export_folder, resolve_model
from smolite.data import Conversation, Message, read_conversations
from smolite.evaluation import evaluate, trace
from smolite.exporters.delivery.manifest import MANIFEST_FILE, manifest_problems
from smolite.exporters.delivery.report import Report, Row, installed_versions
from smolite.exporters.target import Limits
from smolite.exporters.targets import TargetFile, target_files
from smolite.exporters.verification.measurement import Measurement, measure_file
from smolite.exporters.verification.proof import FLOAT_LIMIT, FileCheck
from smolite.exporters.verification.reference import Case, compare, work_out_cases
from smolite.exporters.verification.texts import SAMPLE, TEXTS, parity_texts
from smolite.exporters.verification.tokenizer_check import check_client_files_of
from smolite.generation import Engine, KerasEngine, Seq2SeqEngine

# Rounding leaves the logits about as large as they were, even where the bits per character of a weak model cannot tell.
SCALE_LIMITS = (0.5, 2.0)

MOST_DIALOGUES = 20
_ROWS_AT_ONCE = 4  # that Keras reads of them: their logits are many for a large vocabulary
KERAS_ROW = "Keras model"


def verify(
    run: str | Path,
    *,
    out: str | Path | None = None,
    prompts: Sequence[str | Sequence[int]] | None = None,
    dialogues: str | Path | None = None,
    max_new_tokens: int = 32,
    measure: bool = False,
    browser: str | Path | None = None,
) -> Report:
    """Compares every artifact in the export folder of a run with its Keras model.

    The outcome is written there, as `verify.json` and `verify.md`. Files are compared with `MANIFEST.json`, too, where there is
    one: that nobody changed them, and that the run has not changed since.

    Args:
        run: the run directory.
        out: the export folder. Default: as in `export`.
        prompts: what a user says, as texts, or as token ids that are fed as they are. Default: a few texts, Korean and not, and
            ids of the lengths where prefill changes its chunks.
        dialogues: held-out dialogues for the bits per character of quantized files; the first 20 that fit into the cache are
            used. Default: the bundled ones.
        max_new_tokens: greedy tokens to compare after each prompt.
        measure: whether to start a process for each artifact that measures its memory and the time to its first token.
        browser: the built page of `export/web`; .litertlm files are then asked there, too, in headless Chromium.

    Returns:
        The report; `report.passed` says whether all is well.

    Raises:
        FileNotFoundError: the folder has nothing to verify; or, with `browser`, there is no such page or no Chromium.
        ImportError: with `browser`, selenium is not installed.
    """
    folder = export_folder(resolve_model(run)) if out is None else Path(out)
    _check_folder(folder)
    _check_browser(browser)
    loaded = checkpoint.load(run, dtype="float32")
    rows, opened = _open_artifacts(folder, loaded)
    slots = min((engine.context_length for engine in opened.values()), default=loaded.model.config.context_length)
    files = target_files()
    artifacts = {name: engine for name, engine in opened.items() if files[name].target.gives_logits}
    reference = _reference_engine(loaded, artifacts.values(), slots)
    rows[KERAS_ROW].num_bytes = sum(map(_size, loaded.path.glob("*.safetensors")))

    prompts = prompts or _default_prompts(loaded, artifacts, slots)
    # The end of a long prompt, so that each engine reads a whole cache.
    ids = [_prompt_ids(prompt, loaded)[-slots:] for prompt in prompts]
    cases = work_out_cases(loaded.model, reference, ids, max_new_tokens=max_new_tokens)
    held_out = _held_out(dialogues, loaded, slots) if loaded.template and any(files[name].limits for name in opened) else []
    texts = parity_texts(loaded.tokenizer)
    check_of = partial(
        FileCheck,
        run=loaded,
        keras_row=rows[KERAS_ROW],
        texts=texts,
        questions=[(prompt, case) for prompt, case in zip(prompts, cases, strict=True) if isinstance(prompt, str)],
        held_out=held_out,
        browser=browser,
    )
    checks = {
        name: check_of(path=folder / name, engine=engine, row=rows[name], limits=files[name].limits)
        for name, engine in opened.items()
    }
    _check_numbers(rows[KERAS_ROW], None, cases, limits=None)
    for name, engine in artifacts.items():
        _check_numbers(rows[name], engine, cases, limits=files[name].limits)
    _check_quality([checks[name] for name in artifacts], loaded, held_out)
    for name, check in checks.items():
        rows |= {row.artifact: row for row in files[name].target.call("proof", check) or ()}
    rows |= {row.artifact: row for row in check_client_files_of(folder, loaded, texts)}
    _compare_with_manifest(rows, folder, loaded.path)
    if measure:
        for check in checks.values():
            _measure(check, files[check.path.name])
    report = Report(rows=list(rows.values()), conditions=_conditions(ids, max_new_tokens))
    report.save(folder)
    return report


def _open_artifacts(folder: Path, loaded: checkpoint.Run) -> tuple[dict[str, Row], dict[str, Any]]:
    """Rows and engines by name; a file that its runtime refuses, or that has none here, has a problem and no engine."""
    rows = {KERAS_ROW: Row(artifact=KERAS_ROW, runtime=f"Keras, {backend().name}")}
    engines: dict[str, Any] = {}
    for name, file in target_files().items():
        if not (folder / name).exists():
            continue
        target = file.target
        rows[name] = Row(artifact=name, runtime=target.runtime, num_bytes=_size(folder / name))
        try:
            engines[name] = target.open(folder / name, loaded)
        except ImportError:
            rows[name].problems.append(f"it runs on {target.runtime}. {target.advice}")
        except (ValueError, RuntimeError, OSError) as error:
            rows[name].problems.append(f"{target.runtime} refuses it: {error}")
    return rows, engines


def _check_browser(page: str | Path | None) -> None:
    """Refuses early what would fail after a long proof."""
    if page is not None:
        from smolite.exporters.litertlm.browser_engine import check_browser

        check_browser(page)


def _check_folder(folder: Path) -> None:
    if not any((folder / name).exists() for name in target_files()):
        raise FileNotFoundError(f"There is nothing to verify. Received: {folder}. Make something with `smolite export`.")


def _reference_engine(loaded: checkpoint.Run, artifacts: Iterable[Engine], slots: int) -> Engine:
    """The Keras model, with as much room as the least of the artifacts."""
    if not loaded.config.has_encoder:
        return KerasEngine(loaded.model, context_length=slots)
    length = min((engine.target_length for engine in artifacts if engine.target_length is not None), default=slots)
    return Seq2SeqEngine(loaded.model, start_id=loaded.tokenizer.start_id, context_length=slots, target_length=length)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _default_prompts(loaded: checkpoint.Run, artifacts: Mapping[str, Engine], slots: int) -> list[str | list[int]]:
    """The texts, and ids of lengths around every prefill length and window and near the end of the cache."""
    chunks = {length for engine in artifacts.values() for length in engine.read_lengths}
    # Prefill is cut anew at each of its lengths; a fault in a mask or a position shows one token beyond.
    lengths = {1, 2, *chunks, *(chunk + 1 for chunk in chunks), slots - 2}
    random = np.random.default_rng(0)
    ids = [random.integers(loaded.model.config.vocab_size, size=n).tolist() for n in sorted(lengths) if 1 <= n <= slots]
    return [*TEXTS, *ids]


def _prompt_ids(prompt: str | Sequence[int], loaded: checkpoint.Run) -> list[int]:
    if not isinstance(prompt, str):
        return list(prompt)
    if loaded.template:
        return loaded.template.prompt([Message("user", prompt)], loaded.tokenizer)
    return loaded.tokenizer.encode(prompt)


def _check_numbers(row: Row, engine: Engine | None, cases: Sequence[Case], *, limits: Limits | None) -> None:
    """Logits, caches and greedy tokens; `None` is the Keras model itself. A quantized file has no limit for the first two."""
    if engine and engine.vocab_size != cases[0].logits.shape[-1]:
        row.problems.append(f"it has {engine.vocab_size} tokens, the model {cases[0].logits.shape[-1]}")
        return
    difference = compare(engine, cases, tie=FLOAT_LIMIT)
    for field in dataclasses.fields(difference):
        setattr(row, field.name, getattr(difference, field.name))
    for name, value in (("logit", difference.logits), ("cache value", difference.caches or 0.0)):
        if limits is None and value > FLOAT_LIMIT:
            row.problems.append(f"a {name} differs by {value:.1e}; at most {FLOAT_LIMIT:.0e} is allowed")
    least, most = SCALE_LIMITS
    if limits and not least <= difference.scale <= most:
        row.problems.append(f"its logits are {difference.scale:.2g} times as large; from {least} to {most} is allowed")
    least = (limits.least_agreement if limits else 1) * difference.num_tokens
    if difference.tokens < least:
        row.problems.append(
            f"{difference.tokens} of {difference.num_tokens} greedy tokens are the same; at least {least:.0f} must be"
        )


def _held_out(dialogues: str | Path | None, loaded: checkpoint.Run, slots: int) -> list[Conversation]:
    """The first dialogues that fit into the cache as a whole."""
    assert loaded.template is not None
    read = read_conversations(dialogues or SAMPLE).conversations
    fitting = (each for each in read if len(loaded.template.render(each, loaded.tokenizer)[0]) <= slots)
    return list(islice(fitting, MOST_DIALOGUES))


def _check_quality(checks: Sequence[FileCheck], loaded: checkpoint.Run, conversations: Sequence[Conversation]) -> None:
    """Bits per character of the Keras model and of quantized files, unless the cache is too short for any dialogue."""
    vocab_size = loaded.model.config.vocab_size
    quantized = [check for check in checks if check.limits and check.engine.vocab_size == vocab_size]
    if not conversations or not quantized:
        return
    texts: dict[str, Any] = {"tokenizer": loaded.tokenizer, "template": loaded.template}
    reference = evaluate(loaded.model, conversations, **texts, batch_size=_ROWS_AT_ONCE).bits_per_character
    for check in quantized:
        check.keras_row.bits_per_character = reference
        check.row.bits_per_character = trace(check.engine, conversations, **texts).evaluation.bits_per_character
        check.limit_bits(reference)


def _compare_with_manifest(rows: dict[str, Row], folder: Path, run: Path) -> None:
    if not (folder / MANIFEST_FILE).exists():
        return
    for name, problems in manifest_problems(folder, run).items():
        rows.setdefault(name, Row(artifact=name, runtime="SHA-256")).problems += problems


def _measure(check: FileCheck, file: TargetFile) -> None:
    """A question in a process of the file's own, as text for a runtime that takes no ids."""
    engine, settings = file.target.engine_of(check.run)
    asked = file.target.call("prompt_of", check.run, TEXTS[0]) or _prompt_ids(TEXTS[0], check.run)
    measurement = Measurement(path=str(check.path), library=file.target.library, engine=engine, settings=settings, prompt=asked)
    measure_file(check.row, measurement)


def _conditions(ids: Sequence[Sequence[int]], max_new_tokens: int) -> dict[str, Any]:
    return {
        "limits": {
            "float": FLOAT_LIMIT,
            "bits_per_character": Limits().most_bits,
            "greedy_tokens": Limits().least_agreement,
            "scale": list(SCALE_LIMITS),
        },
        "prompt_lengths": [len(prompt) for prompt in ids],
        "max_new_tokens": max_new_tokens,
        "versions": installed_versions(),
    }
