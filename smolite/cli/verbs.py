"""What each verb of the command line does: a public function of the library, with its outcome printed.

Those that need no backend are elsewhere: `text_verbs`, `exporters.planning`.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from smolite import checkpoint, evaluation, serving, training
from smolite.checkpoint import export_folder, weights_file
from smolite.cli.demo import run_demo
from smolite.data import Message, fit_context, read_conversations, read_pairs, resolve_dataset
from smolite.evaluation import evaluate_pairs
from smolite.exporters import TARGETS, count_slots, measure_speeds, smallest
from smolite.exporters import convert as convert_model
from smolite.exporters import export as export_run
from smolite.exporters import verify as verify_run
from smolite.generation import Engine, Sampling, check_new_tokens, stream, stream_reply
from smolite.models import PRESETS, Seq2SeqLM, show_parameters
from smolite.training import TrainingOptions, train_pairs

Opened = TypeVar("Opened")


def _name_engines() -> dict[str, str]:
    """Name → file. A name is the way to quantize, or of a float32 file the format; both where an earlier file has the name."""
    names: dict[str, str] = {}
    for format in ("tflite", "saved_model", "gguf"):
        for way, file in TARGETS[format].file_names.items():
            names[f"{format}_{way}" if way in names else way or format] = file
    return names


# What `--engine` calls the files in the run's export folder that can be talked with.
ENGINE_FILES = _name_engines()


def demo(*, out: str, epochs: int) -> None:
    """Trains, exports, verifies and chats on the bundled dialogues; see `run_demo`."""
    run_demo(out, epochs=epochs)


def pretrain(*, dataset: Sequence[str], out: str, **settings: Any) -> None:
    """Trains on plain text; see `training.pretrain`."""
    _report(training.pretrain(dataset, out, **_with_options(settings)), out)


def finetune(*, dataset: str, out: str, **settings: Any) -> None:
    """Trains on dialogues; see `training.finetune`."""
    _report(training.finetune(dataset, out, **_with_options(settings)), out)


def pairs(*, dataset: str, out: str, **settings: Any) -> None:
    """Trains an encoder-decoder on pairs; see `pair_recipes.train_pairs`."""
    _report(train_pairs(dataset, out, **_with_options(settings)), out)


def _with_options(settings: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(TrainingOptions)]
    options = TrainingOptions(**{name: settings.pop(name) for name in names})
    return {**settings, "options": options}


def _report(run: checkpoint.Run, out: str) -> None:
    rows = run.recipe["log"]
    best = rows[run.recipe["best_epoch"] - 1]  # 0 where the last was kept
    advice = f"Talk with it: smolite chat {out}" if run.template else f"Let it write: smolite generate {out} SOURCE"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in best.items() if name != "epoch")
    print(f"\n{out}: epoch {best['epoch']} kept ({figures})\n{advice}")


def chat(*, run: str, engine: str, system: str | None, prompt: str | None, max_new_tokens: int, **sampling: Any) -> None:
    """Talks in the terminal, or answers one prompt."""
    check_new_tokens(max_new_tokens)
    how = Sampling(**sampling)
    loaded = checkpoint.load(run)
    talker = open_engine(loaded, engine)
    messages = [Message("system", system)] if system else []
    settings: dict[str, Any] = {
        "tokenizer": loaded.tokenizer,
        "template": loaded.template,
        "max_new_tokens": max_new_tokens,
    }

    def answer(text: str) -> None:
        messages.append(Message("user", text))
        chunks = []
        for chunk in stream_reply(talker, messages, sampling=how, **settings):
            print(chunk, end="", flush=True)
            chunks.append(chunk)
        print()
        messages.append(Message("assistant", "".join(chunks)))

    if prompt is not None:
        answer(prompt)
        return
    print("Say something; an empty line ends the chat.")
    while text := _ask():
        try:
            answer(text)
        except ValueError as too_long:
            print(too_long)
            messages.pop()


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def generate(*, run: str, prompt: str, engine: str, max_new_tokens: int, **sampling: Any) -> None:
    """Prints `prompt` and what the model writes after it; of an encoder-decoder what it writes for `prompt`."""
    check_new_tokens(max_new_tokens)
    how = Sampling(**sampling)
    loaded = checkpoint.load(run)
    ids, decoder = loaded.tokenizer.encode(prompt), loaded.tokenizer.stream()
    lent = open_engine(loaded, engine)
    new = stream(lent, ids, max_new_tokens=max_new_tokens, sampling=how, stop_ids=serving.end_ids(loaded.tokenizer))
    if not loaded.model.config.num_encoder_layers:  # what an encoder-decoder reads is no part of what it writes
        print("".join(decoder.push(index) for index in ids), end="", flush=True)
    for index in new:
        print(decoder.push(index), end="", flush=True)
    print(decoder.finish())


def app(*, run: str, engine: str, host: str, port: int) -> None:
    """Serves a page to talk with the run; see `serve_app`."""
    serving.serve_app(run, engine=ENGINE_FILES.get(engine, engine), host=host, port=port)


def open_engine(run: checkpoint.Run, name: str) -> Engine:
    """The engine called `name`: `keras`, or one of `ENGINE_FILES`."""
    return serving.open_engine(run, ENGINE_FILES.get(name, name))


def export(*, run: str, **settings: Any) -> None:
    """Writes and verifies a file; see `exporters.export`."""
    print(export_run(run, **settings))


def convert(*, source: str, out: str, **settings: Any) -> None:
    """Writes a model in another form; see `conversion.convert`."""
    print(convert_model(source, out, **settings))


def verify(*, run: str, out: str | None, measure: bool, browser: str | None) -> int:
    """Prints the verification table; the exit status is 1 where a row fails."""
    report = verify_run(run, out=out, measure=measure, browser=browser)
    print(report.table())
    return 0 if report.passed else 1


def quality(*, run: str, dataset: str, **settings: Any) -> None:
    """Prints what every way to quantize costs, and the file that was kept; see `quality.smallest`."""
    found = smallest(run, dialogues=dataset, **settings)
    print(f"{found.table()}\n{found.path}")


def quantize(*, run: str, bits: int, out: str, overwrite: bool) -> None:
    """Writes a run again with weights of fewer bits; see `checkpoint.save`."""
    loaded = checkpoint.load(run)
    recipe = {**loaded.recipe, "quantized": {"run": run, "bits": bits}}
    checkpoint.save(
        out, loaded.model, loaded.tokenizer, template=loaded.template, recipe=recipe, bits=bits, overwrite=overwrite
    )
    num_bytes = (Path(out) / weights_file(bits)).stat().st_size
    share = num_bytes / (4 * loaded.model.count_params())
    print(f"{out}: {num_bytes / 1e6:.4g} MB of weights, {share:.1%} of float32\nTalk with it: smolite chat {out}")


def params(*, model: str) -> None:
    """Prints the parameters by kind of layer; see `parameter_table`."""
    print(show_parameters(PRESETS[model] if model in PRESETS else checkpoint.load_config(model)))


def evaluate(*, run: str, dataset: str, engine: str) -> None:
    """Prints bits per character, perplexity and accuracy."""
    loaded = checkpoint.load(run)
    if isinstance(loaded.model, Seq2SeqLM):
        if engine != "keras":
            raise ValueError(f"Pairs are evaluated with the engine keras. Received: {engine}. Leave out `--engine`.")
        result = evaluate_pairs(loaded.model, read_pairs(resolve_dataset(dataset)), tokenizer=loaded.tokenizer)
        print(result.summary())
        return
    read = read_conversations(resolve_dataset(dataset))
    lent = None if engine == "keras" else open_engine(loaded, engine)
    length = lent.context_length if lent else loaded.model.config.context_length
    fitted = fit_context(read.conversations, loaded.tokenizer, context_length=length, template=loaded.template)
    counts = ", ".join(f"{count:,} {case}" for case, count in fitted.counts.items() if count)
    print(f"{read.summary()}\n{counts} in {length:,} tokens")
    known = fitted.examples, evaluation.count_characters(fitted)
    result = evaluation.trace_examples(lent, *known).evaluation if lent else evaluation.evaluate_examples(loaded.model, *known)
    print(result.summary())


def bench(*, run: str, repeats: int, tokens: int) -> None:
    """Prints tokens per second of every engine of a run, medians and spread of interleaved repetitions.

    .litertlm files are measured by LiteRT-LM's own benchmark mode. A file without its runtime is left out, and named.
    """
    if repeats < 1 or tokens < 1:
        raise ValueError(f"`repeats` and `tokens` must be at least 1. Received: {repeats} and {tokens}. Measure something.")
    loaded = checkpoint.load(run)
    folder = export_folder(loaded.path)
    names = ["keras", *(name for name, file in ENGINE_FILES.items() if (folder / file).exists())]
    bundles = [file for file in TARGETS["litertlm"].file_names.values() if (folder / file).exists()]
    engines, missing = _present(names, partial(open_engine, loaded))
    slots, without = _present(bundles, lambda file: count_slots(folder / file))
    room = min([*(engine.context_length for engine in engines.values()), *slots.values()])
    prompt = [index % loaded.tokenizer.vocab_size for index in range(max(room // 2, 1))]
    count = min(tokens, room - len(prompt))
    turns = {name: partial(_speeds, engine, prompt, count=count) for name, engine in engines.items()}
    turns |= {file: partial(measure_speeds, folder / file, prompt_tokens=len(prompt), new_tokens=count) for file in slots}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(repeats + 1):
        for name, turn in turns.items():
            speeds[name].append(turn())
    print(f"tokens per second, median (lowest–highest) of {repeats}; prompt {len(prompt)}, decoded {count}")
    width = max(map(len, speeds))
    for name, pairs in speeds.items():
        print("  ".join([f"{name:{width}}", *(_spread(column) for column in zip(*pairs[1:], strict=True))]))
    for name, reason in (missing | without).items():
        print(f"{name} left out: {reason}")


def _present(names: Sequence[str], open_one: Callable[[str], Opened]) -> tuple[dict[str, Opened], dict[str, str]]:
    """Name → what `open_one` gives, and of those whose runtime is not installed name → what to do."""
    present: dict[str, Opened] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            present[name] = open_one(name)
        except ImportError as error:
            missing[name] = str(error)
    return present, missing


def _speeds(engine: Engine, prompt: Sequence[int], *, count: int) -> tuple[float, float]:
    """Tokens per second of prefill and of `count` decoding steps."""
    begun = time.perf_counter()
    engine.start([prompt])
    read = time.perf_counter()
    for _ in range(count):
        engine.step([1])
    return len(prompt) / (read - begun), count / (time.perf_counter() - read)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):8,.0f} ({min(values):,.0f}–{max(values):,.0f})"
