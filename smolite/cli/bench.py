"""The verb `bench`: tokens per second of a run and its exported files."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from smolite import checkpoint
from smolite.cli.engines import open_engine
from smolite.exporters import engine_files, target_files
from smolite.generation import Engine

Opened = TypeVar("Opened")


def bench(*, run: str, repeats: int, tokens: int) -> None:
    """Prints tokens per second of every engine of a run, medians and spread of interleaved repetitions.

    A file whose runtime gives no logits is measured by the runtime itself. One without its runtime is left out, and named.
    """
    if repeats < 1 or tokens < 1:
        raise ValueError(f"`repeats` and `tokens` must be at least 1. Received: {repeats} and {tokens}. Measure something.")
    opened = checkpoint.open_run(run)
    folder = opened.exports
    names = ["keras", *(name for name, file in engine_files().items() if (folder / file).exists())]
    present = {name: file.target for name, file in target_files().items() if (folder / name).exists()}
    bundles = {name: target for name, target in present.items() if target.speeds_of}
    engines, missing = _present(names, partial(open_engine, opened))
    slots, without = _present(list(bundles), lambda file: bundles[file].call("slots_of", folder / file))
    room = min([*(engine.context_length for engine in engines.values()), *slots.values()])
    prompt = [index % opened.tokenizer.vocab_size for index in range(max(room // 2, 1))]
    count = min(tokens, room - len(prompt))
    turns = {name: partial(_speeds, engine, prompt, count=count) for name, engine in engines.items()}
    lengths = {"prompt_tokens": len(prompt), "new_tokens": count}
    turns |= {file: partial(bundles[file].call, "speeds_of", folder / file, **lengths) for file in slots}
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
