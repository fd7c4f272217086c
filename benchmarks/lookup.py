"""Drafts from the text so far: tokens a second of .tflite files that check them, beside the same file told to guess nothing.

    python benchmarks/lookup.py RUN --drafts 2 4 8
    python benchmarks/lookup.py RUN --dataset sample-heldout --quantize int8

Answers are measured three ways: one in which no two tokens come again, so that nothing is guessed; one that says its prompt
again word for word, so that every guess is right; and, with `--dataset`, the greedy replies to its first turns. Reading the
prompt counts. The files are exported once and kept in `--work`.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from table import conditions, markdown, middle, publish, ratio, spread

import smolite
from smolite.checkpoint import run as checkpoint
from smolite.data.template import Message, read_conversations, resolve_dataset
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.generation.loop import generate

HEADS = ["drafts", "text", "tokens/s", "spread", "guessing nothing", "ratio", "tokens a call"]


def main() -> None:
    """Prints the table."""
    options = parse()
    run = checkpoint.load(options.run)
    texts = texts_of(run, options)
    rows = []
    for drafts in options.drafts:
        engine = TFLiteEngine(file_of(options, drafts), num_threads=options.threads)
        for name, answer in texts.items():
            rows.append([str(drafts), name, *figures(engine, drafts, answer, options.repeats)])
        engine.close()
    heading = f"{conditions()}; {options.threads} thread{'s' if options.threads > 1 else ''}"
    shape = f"{run.model.config.num_parameters / 1e6:.0f} M parameters, {options.quantize or 'float32'}"
    note = f"{shape}; prompt and answer of {options.tokens} tokens each, replies of at most as many; {options.repeats} turns."
    publish("\n\n".join([heading, note, markdown(HEADS, rows, texts=2)]), options.out)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--drafts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--quantize", help="as for `smolite export`; default: float32")
    parser.add_argument("--dataset", help="dialogues whose first turns are answered")
    parser.add_argument("--count", type=int, default=20, help="dialogues taken of it")
    parser.add_argument("--tokens", type=int, default=96, help="of a prompt, and of the answer to it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each text")
    parser.add_argument("--work", type=Path, help="folder for the files; default: export-drafts in the run directory")
    parser.add_argument("--out", type=Path, help="a file to write the table to as well")
    return parser.parse_args()


def file_of(options: argparse.Namespace, drafts: int) -> Path:
    """The file that checks so many drafts, exported unless it is there."""
    folder = (options.work or options.run / "export-drafts") / str(drafts)
    there = list(folder.glob("*.tflite"))
    return there[0] if there else smolite.export(options.run, out=folder, quantize=options.quantize, drafts=drafts)


def texts_of(run: checkpoint.Run, options: argparse.Namespace) -> dict[str, Callable[[TFLiteEngine], int]]:
    """Name → a function that has an engine write answers, and returns how many tokens they have."""
    shuffled = np.random.default_rng(0).permutation(run.model.config.vocab_size).tolist()
    prompt, other = shuffled[: options.tokens], shuffled[options.tokens : 2 * options.tokens]

    def write(engine: TFLiteEngine, answer: Sequence[int]) -> int:
        engine.start([prompt])
        for index in answer:
            engine.step([index])
        return len(answer)

    texts: dict[str, Callable[[TFLiteEngine], int]] = {
        "nothing comes again": lambda engine: write(engine, other),
        "the prompt once more": lambda engine: write(engine, prompt),
    }
    if options.dataset:
        read = read_conversations(resolve_dataset(options.dataset)).conversations[: options.count]
        asked = [run.template.prompt([Message("user", each.messages[0].content)], run.tokenizer) for each in read]
        stop = run.tokenizer.markers[run.template.stop]

        def reply(engine: TFLiteEngine) -> int:
            replies = generate(engine, asked, max_new_tokens=options.tokens, stop_ids=[stop])
            return sum(len(ids) + 1 for ids in replies)

        texts["replies"] = reply
    return texts


def figures(engine: TFLiteEngine, drafts: int, answer: Callable[[TFLiteEngine], int], repeats: int) -> list[str]:
    """The cells of a row; both ways take turns, after one each to warm up."""
    speeds: dict[int, list[float]] = {drafts: [], 0: []}
    calls, run = 0, engine._run

    def counted(*arguments):
        nonlocal calls
        calls += 1
        return run(*arguments)

    for turn in range(repeats + 1):
        for most, found in speeds.items():
            engine.drafts = most
            started = time.perf_counter()
            count = answer(engine)
            seconds = time.perf_counter() - started
            if turn:
                found.append(count / seconds)
    engine.drafts, engine._run = drafts, counted
    per_call = answer(engine) / calls
    engine._run = run
    cells = [middle(speeds[drafts]), spread(speeds[drafts]), middle(speeds[0])]
    return [*cells, ratio(speeds[drafts], speeds[0]), f"{per_call:.2f}"]


if __name__ == "__main__":
    main()
