"""What each verb of the command line does: a public function of the library, with its outcome printed.

Where each function is, `catalogue` says; those of data and plans are elsewhere.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Of a wing, a verb imports what it calls when it calls it: chatting with an exported file then imports neither Keras nor a
# backend, which takes from 3 seconds (JAX) to 9 (TensorFlow) of its start.
from smolite import checkpoint, evaluation, exporters, models, serving, training
from smolite.cli.engines import open_engine
from smolite.data import Message, fit_context, read_conversations, read_pairs, resolve_dataset
from smolite.generation import Sampling, check_new_tokens, stream, stream_reply


def demo(*, out: str, epochs: int) -> None:
    """Trains, exports, verifies and chats on the bundled dialogues; see `run_demo`."""
    from smolite.cli.demo import run_demo

    run_demo(out, epochs=epochs)


def pretrain(*, dataset: Sequence[str], out: str, **settings: Any) -> None:
    """Trains on plain text; see `training.pretrain`."""
    _report(training.pretrain(dataset, out, **_with_options(settings)), out)


def finetune(*, dataset: str, out: str, **settings: Any) -> None:
    """Trains on dialogues; see `training.finetune`."""
    _report(training.finetune(dataset, out, **_with_options(settings)), out)


def pairs(*, dataset: str, out: str, **settings: Any) -> None:
    """Trains an encoder-decoder on pairs; see `training.train_pairs`."""
    _report(training.train_pairs(dataset, out, **_with_options(settings)), out)


def _with_options(settings: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(training.TrainingOptions)]
    options = training.TrainingOptions(**{name: settings.pop(name) for name in names})
    return {**settings, "options": options}


def _report(run: checkpoint.Run, out: str) -> None:
    rows = run.recipe["log"]
    saved = rows[run.recipe["saved_epoch"] - 1]
    advice = f"Talk with it: smolite chat {out}" if run.template else f"Let it write: smolite generate {out} SOURCE"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in saved.items() if name != "epoch")
    print(f"\n{out}: epoch {saved['epoch']} kept ({figures})\n{advice}")


def chat(*, run: str, engine: str, system: str | None, prompt: str | None, max_new_tokens: int, **sampling: Any) -> None:
    """Talks in the terminal, or answers one prompt."""
    check_new_tokens(max_new_tokens)
    how = Sampling(**sampling)
    opened = checkpoint.open_run(run)
    # Tokenizer and template before the engine: what is broken in them is then said at once.
    reply = partial(stream_reply, tokenizer=opened.tokenizer, template=opened.template, max_new_tokens=max_new_tokens)
    running = open_engine(opened, engine)
    messages = [Message("system", system)] if system else []

    def answer(text: str) -> None:
        messages.append(Message("user", text))
        chunks = []
        for chunk in reply(running, messages, sampling=how):
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
    opened = checkpoint.open_run(run)
    tokenizer = opened.tokenizer
    ids, decoder, stop_ids = tokenizer.encode(prompt), tokenizer.stream(), serving.end_ids(tokenizer)
    new = stream(open_engine(opened, engine), ids, max_new_tokens=max_new_tokens, sampling=how, stop_ids=stop_ids)
    if not opened.config.has_encoder:  # what an encoder-decoder reads is no part of what it writes
        print("".join(decoder.push(index) for index in ids), end="", flush=True)
    for index in new:
        print(decoder.push(index), end="", flush=True)
    print(decoder.finish())


def app(*, run: str, engine: str, host: str, port: int) -> None:
    """Serves a page to talk with the run; see `serving.serve_app`."""
    serving.serve_app(run, engine=exporters.engine_files().get(engine, engine), host=host, port=port)


def export(*, run: str, **settings: Any) -> None:
    """Writes and verifies a file; see `exporters.export`."""
    print(exporters.export(run, **settings))


def convert(*, source: str, out: str, **settings: Any) -> None:
    """Writes a model in another form; see `exporters.convert`."""
    print(exporters.convert(source, out, **settings))


def verify(*, run: str, out: str | None, measure: bool, browser: str | None) -> int:
    """Prints the verification table; the exit status is 1 where a row fails."""
    report = exporters.verify(run, out=out, measure=measure, browser=browser)
    print(report.table())
    return 0 if report.passed else 1


def quality(*, run: str, dataset: str, **settings: Any) -> None:
    """Prints what every way to quantize costs, and the file that was kept; see `exporters.smallest`."""
    ladder = exporters.smallest(run, dialogues=dataset, **settings)
    print(f"{ladder.table()}\n{ladder.path}")


def quantize(*, run: str, bits: int, out: str, overwrite: bool) -> None:
    """Writes a run again with weights of fewer bits; see `checkpoint.save`."""
    loaded = checkpoint.load(run)
    recipe = {**loaded.recipe, "quantized": {"run": run, "bits": bits}}
    checkpoint.save(
        out, loaded.model, loaded.tokenizer, template=loaded.template, recipe=recipe, bits=bits, overwrite=overwrite
    )
    num_bytes = (Path(out) / checkpoint.weights_file(bits)).stat().st_size
    share = num_bytes / (4 * loaded.model.count_params())
    print(f"{out}: {num_bytes / 1e6:.4g} MB of weights, {share:.1%} of float32\nTalk with it: smolite chat {out}")


def params(*, model: str) -> None:
    """Prints the parameters by kind of layer; see `models.show_parameters`."""
    config = models.PRESETS[model] if model in models.PRESETS else checkpoint.load_config(model)
    print(models.show_parameters(config))


def evaluate(*, run: str, dataset: str, engine: str) -> None:
    """Prints bits per character, perplexity and accuracy."""
    opened = checkpoint.open_run(run)
    if opened.config.has_encoder:
        _evaluate_pairs(opened, dataset, engine=engine)
        return
    read = read_conversations(resolve_dataset(dataset))
    running = None if engine == serving.KERAS else open_engine(opened, engine)
    length = running.context_length if running else opened.config.context_length
    fitted = fit_context(read.conversations, opened.tokenizer, context_length=length, template=opened.template)
    print(f"{read.summary()}\n{fitted.summary()} in {length:,} tokens")
    known = fitted.examples, fitted.num_characters
    if running:
        result = evaluation.trace_examples(running, *known).evaluation
    else:
        result = evaluation.evaluate_examples(opened.model, *known)
    print(result.summary())


def _evaluate_pairs(run: checkpoint.Run, dataset: str, *, engine: str) -> None:
    if engine != serving.KERAS:
        raise ValueError(f"Pairs are evaluated with the engine keras. Received: {engine}. Leave out `--engine`.")
    result = evaluation.evaluate_pairs(run.model, read_pairs(resolve_dataset(dataset)), tokenizer=run.tokenizer)
    print(result.summary())
