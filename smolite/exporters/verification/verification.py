"""Proof that every artifact of a run says what its Keras model says, each opened in its real runtime."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
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
from smolite.exporters.gguf.engine import LlamaCppEngine
from smolite.exporters.litert.flatbuffer import structure_problems
from smolite.exporters.litertlm.browser_engine import check_browser
from smolite.exporters.litertlm.engine import LiteRTLMEngine
from smolite.exporters.litertlm.private_markers import PrivateTemplate
from smolite.exporters.targets import AGREEMENT_LIMIT, AGREEMENT_LIMITS, BITS_LIMIT, BITS_LIMITS, TARGETS
from smolite.exporters.verification.measurement import measure_file
from smolite.exporters.verification.reference import Case, compare, work_out_cases
from smolite.exporters.verification.text_check import asker, check_answers, check_page, check_scores, check_tokenizer
from smolite.exporters.verification.texts import SAMPLE, TEXTS, parity_texts
from smolite.exporters.verification.tokenizer_check import check_client_files_of, check_llama_tokenizer
from smolite.generation import Engine, KerasEngine, Seq2SeqEngine

# Largest difference of a logit or cache value in float32, as `reference.Difference` has it, and of a log probability, as
# `text_check.check_scores` has it. Sums in another order differ by about 1e-6 of the largest value, so a fault stands out by
# far. Two tokens that Keras rates within this limit count as one.
FLOAT_LIMIT = 1e-4
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
    if browser is not None:
        check_browser(browser)
    loaded = checkpoint.load(run, dtype="float32")
    rows, opened = _open_artifacts(folder, loaded)
    slots = min((engine.context_length for engine in opened.values()), default=loaded.model.config.context_length)
    bundles = {name: engine for name, engine in opened.items() if isinstance(engine, LiteRTLMEngine)}
    artifacts = {name: engine for name, engine in opened.items() if name not in bundles}
    engines: dict[str, Engine] = {KERAS_ROW: _reference_engine(loaded, artifacts.values(), slots), **artifacts}
    rows[KERAS_ROW].num_bytes = sum(map(_size, loaded.path.glob("*.safetensors")))

    prompts = prompts or _default_prompts(loaded, artifacts, slots)
    # The end of a long prompt, so that each engine reads a whole cache.
    ids = [_prompt_ids(prompt, loaded)[-slots:] for prompt in prompts]
    cases = work_out_cases(loaded.model, engines[KERAS_ROW], ids, max_new_tokens=max_new_tokens)
    for name, engine in engines.items():
        _check_numbers(rows[name], engine, cases)
        if name.endswith(".tflite"):
            rows[name].problems += structure_problems(folder / name, loaded.model.config)
    held_out = _held_out(dialogues, loaded, slots) if loaded.template and any(map(_is_quantized, opened)) else []
    _check_quality(rows, artifacts, loaded, held_out)
    said = [(prompt, case) for prompt, case in zip(prompts, cases, strict=True) if isinstance(prompt, str)]
    texts = parity_texts(loaded.tokenizer)
    for name, bundle in bundles.items():
        rows[f"tokenizer in {name}"] = check_tokenizer(name, bundle, loaded, texts)
        _check_bundle(rows, bundle, loaded, path=folder / name, browser=browser, said=said, held_out=held_out)
    for name, engine in artifacts.items():
        if isinstance(engine, LlamaCppEngine):
            rows[f"tokenizer in {name}"] = check_llama_tokenizer(engine, name, loaded.tokenizer, texts)
    rows |= {row.artifact: row for row in check_client_files_of(folder, loaded, texts)}
    _compare_with_manifest(rows, folder, loaded.path)
    if measure:
        _measure(rows, folder, loaded, opened)
    report = Report(rows=list(rows.values()), conditions=_conditions(ids, max_new_tokens))
    report.save(folder)
    return report


def _open_artifacts(folder: Path, loaded: checkpoint.Run) -> tuple[dict[str, Row], dict[str, Engine]]:
    """Rows and engines by name; a file that its runtime refuses, or that has none here, has a problem and no engine."""
    rows = {KERAS_ROW: Row(artifact=KERAS_ROW, runtime=f"Keras, {backend().name}")}
    engines: dict[str, Engine] = {}
    for target in TARGETS.values():
        for name in filter(lambda name: (folder / name).exists(), target.file_names.values()):
            rows[name] = Row(artifact=name, runtime=target.runtime, num_bytes=_size(folder / name))
            try:
                engines[name] = target.open(folder / name, loaded)
            except ImportError:
                rows[name].problems.append(f'it runs on {target.runtime}. Run: pip install "smolite[{target.extra}]"')
            except (ValueError, RuntimeError, OSError) as error:
                rows[name].problems.append(f"{target.runtime} refuses it: {error}")
    return rows, engines


def _check_folder(folder: Path) -> None:
    if not any((folder / name).exists() for target in TARGETS.values() for name in target.file_names.values()):
        raise FileNotFoundError(f"There is nothing to verify. Received: {folder}. Make something with `smolite export`.")


def _reference_engine(loaded: checkpoint.Run, artifacts: Iterable[Engine], slots: int) -> Engine:
    """The Keras model, with as much room as the least of the artifacts."""
    if not loaded.config.has_encoder:
        return KerasEngine(loaded.model, context_length=slots)
    length = min((engine.target_length for engine in artifacts if engine.target_length is not None), default=slots)
    return Seq2SeqEngine(loaded.model, start_id=loaded.tokenizer.start_id, context_length=slots, target_length=length)


def _is_quantized(name: str) -> bool:
    quantized = {file_name for target in TARGETS.values() for way, file_name in target.file_names.items() if way is not None}
    return name in quantized


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


def _check_numbers(row: Row, engine: Engine, cases: Sequence[Case]) -> None:
    """Logits, caches and greedy tokens. A quantized file has no limit for the first two."""
    if engine.vocab_size != cases[0].logits.shape[-1]:
        row.problems.append(f"it has {engine.vocab_size} tokens, the model {cases[0].logits.shape[-1]}")
        return
    found = compare(None if row.artifact == KERAS_ROW else engine, cases, tie=FLOAT_LIMIT)
    for field in dataclasses.fields(found):
        setattr(row, field.name, getattr(found, field.name))
    quantized = _is_quantized(row.artifact)
    for name, value in (("logit", found.logits), ("cache value", found.caches or 0.0)):
        if not quantized and value > FLOAT_LIMIT:
            row.problems.append(f"a {name} differs by {value:.1e}; at most {FLOAT_LIMIT:.0e} is allowed")
    least, most = SCALE_LIMITS
    if quantized and not least <= found.scale <= most:
        row.problems.append(f"its logits are {found.scale:.2g} times as large; from {least} to {most} is allowed")
    share = AGREEMENT_LIMITS.get(row.artifact, AGREEMENT_LIMIT) if quantized else 1
    least = share * found.num_tokens
    if found.tokens < least:
        row.problems.append(f"{found.tokens} of {found.num_tokens} greedy tokens are the same; at least {least:.0f} must be")


def _check_bundle(
    rows: dict[str, Row],
    engine: LiteRTLMEngine,
    loaded: checkpoint.Run,
    *,
    path: Path,
    browser: str | Path | None,
    said: Sequence[tuple[str, Case]],
    held_out: Sequence[Conversation],
) -> None:
    """Greedy answers, in a browser, too, and log probabilities of a file whose runtime shows no logits."""
    row, exact = rows[path.name], not _is_quantized(path.name)
    ask, slots = asker(engine, loaded), engine.context_length
    check_answers(row, ask, loaded, said, slots=slots, tie=FLOAT_LIMIT, must_agree=exact)
    answer = Message("assistant", TEXTS[0])
    room = engine.context_length - len(loaded.tokenizer.encode(answer.content)) - 1
    fitting = [text for text, case in said if len(case.prompt) <= room]
    check_scores(row, engine, loaded, [Conversation((Message("user", text), answer)) for text in fitting], slots=slots)
    if held_out:
        bits = check_scores(row, engine, loaded, held_out, slots=slots)
        rows[KERAS_ROW].bits_per_character, row.bits_per_character = bits
        _limit_bits(row, bits[0])
    if exact and row.logits is not None and row.logits > FLOAT_LIMIT:
        row.problems.append(f"a log probability differs by {row.logits:.1e}; at most {FLOAT_LIMIT:.0e} is allowed")
    if browser is not None:
        there = check_page(browser, path, engine, loaded, said, tie=FLOAT_LIMIT, exact=exact)
        rows[there.artifact] = there


def _held_out(dialogues: str | Path | None, loaded: checkpoint.Run, slots: int) -> list[Conversation]:
    """The first dialogues that fit into the cache as a whole."""
    assert loaded.template is not None
    read = read_conversations(dialogues or SAMPLE).conversations
    fitting = (each for each in read if len(loaded.template.render(each, loaded.tokenizer)[0]) <= slots)
    return list(islice(fitting, MOST_DIALOGUES))


def _check_quality(
    rows: dict[str, Row],
    engines: Mapping[str, Engine],
    loaded: checkpoint.Run,
    conversations: Sequence[Conversation],
) -> None:
    """Bits per character of the Keras model and of quantized files, unless the cache is too short for any dialogue."""
    quantized = [name for name in engines if _is_quantized(name) and engines[name].vocab_size == loaded.model.config.vocab_size]
    if not conversations or not quantized:
        return
    texts: dict[str, Any] = {"tokenizer": loaded.tokenizer, "template": loaded.template}
    said = evaluate(loaded.model, conversations, **texts, batch_size=_ROWS_AT_ONCE)
    reference = rows[KERAS_ROW].bits_per_character = said.bits_per_character
    for name in quantized:
        rows[name].bits_per_character = trace(engines[name], conversations, **texts).evaluation.bits_per_character
        _limit_bits(rows[name], reference)


def _limit_bits(row: Row, reference: float) -> None:
    change = (row.bits_per_character or 0.0) / reference - 1
    limit = BITS_LIMITS.get(row.artifact, BITS_LIMIT)
    if not change <= limit:
        row.problems.append(f"{change:+.1%} bits per character; at most {limit:+.0%} is allowed")


def _compare_with_manifest(rows: dict[str, Row], folder: Path, run: Path) -> None:
    if not (folder / MANIFEST_FILE).exists():
        return
    for name, problems in manifest_problems(folder, run).items():
        rows.setdefault(name, Row(artifact=name, runtime="SHA-256")).problems += problems


def _measure(rows: Mapping[str, Row], folder: Path, loaded: checkpoint.Run, opened: Iterable[str]) -> None:
    """A question in a process for each artifact that opens, as text for a runtime that takes no ids."""
    question, targets = TEXTS[0], {name: target for target in TARGETS.values() for name in target.file_names.values()}
    for name in opened:
        target = targets[name]
        prompt: str | list[int] = _prompt_ids(question, loaded)
        if not target.gives_logits and loaded.template:
            prompt = PrivateTemplate(loaded.template, loaded.tokenizer).render([Message("user", question)])
        measure_file(rows[name], folder / name, library=target.library, engine=target.engine_of(loaded), prompt=prompt)


def _conditions(ids: Sequence[Sequence[int]], max_new_tokens: int) -> dict[str, Any]:
    return {
        "limits": {
            "float": FLOAT_LIMIT,
            "bits_per_character": BITS_LIMIT,
            "greedy_tokens": AGREEMENT_LIMIT,
            "scale": list(SCALE_LIMITS),
        },
        "prompt_lengths": [len(prompt) for prompt in ids],
        "max_new_tokens": max_new_tokens,
        "versions": installed_versions(),
    }
