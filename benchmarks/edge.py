"""The edge: our files in LiteRT and LiteRT-LM beside litert-torch's in LiteRT-LM and llama.cpp, on the same random weights.

    python benchmarks/edge.py --size 135m --work edge_files --litert-torch-python litert-torch/bin/python

Files are made once into `--work` and found there again; making them is no part of the timing. They take turns, a, b, c, a, b,
c; each turn is a process of its own, which opens the file, does a turn to warm up and then the one that counts. The Python of
litert-torch is made as litert_torch_export.py says. Weights are random, caches equally long.

The rows of llama.cpp are no measure of llama.cpp, and a ratio beside them is no claim: they show that the file runs and holds
the same weights (`log p`). It runs from cyllama's wheel, which may lack the processor's instructions, with float32 caches and
without flash attention, so that logits can be compared, and every step makes a Python list of logits. Its users do none of it.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from edge_files import GROWING, LLAMA_CPP, TEXT_FILE, make_files
from edge_profile import profile, words
from peers import SIZES, check_installed, count, shape_of
from table import conditions, markdown, middle, number, publish, ratio, spread
from turns import Worker

from smolite.exporters.targets import TARGETS

OURS = GROWING  # what the ratios are of
WAYS = tuple(way or "float32" for way in TARGETS["litertlm"].file_names)
PACKAGES = {"litert-lm-api": "litert_lm", "ai-edge-litert": "ai_edge_litert", "ai-edge-quantizer": "ai_edge_quantizer"}
PEERS = {"llama.cpp": "cyllama"}
MEASURES = ("prefill", "decode", "grown")  # of which there are ratios
HEADS = (
    "side,way,prefill/s,lowest–highest,decode/s,lowest–highest,of memory,first token ms,start-up s,peak MB,grown MB,file MB,"
    "prefill: ours ÷ it,decode: ours ÷ it,grown: ours ÷ it,log p"
).split(",")
Turns = Mapping[Any, Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Side:
    """A file in a runtime, on a number of threads.

    Args:
        name: a key of `edge_sides.SIDES`.
        way: the way that its weights are quantized, in our words.
        threads: of the processor.
        path: the file.
    """

    name: str
    way: str
    threads: int
    path: str = ""


def main() -> None:
    """Makes the files that are missing, measures them all and prints a table for each number of threads."""
    options = parse()
    check_installed(PACKAGES, PACKAGES)
    check_installed(options.peers, PEERS)
    config = SIZES[options.size].config
    slots = options.cache_length
    config = dataclasses.replace(config, context_length=max(slots, config.context_length))
    shape = {"config": dataclasses.asdict(config), "cache": slots, "prefill": options.prefill_lengths, "ways": options.ways}
    shape |= {"prompt": options.prompt + 1, "peers": options.peers}
    folder = options.work / "-".join(map(str, [options.size, slots, *options.prefill_lengths, options.prompt]))
    files = make_files(folder, shape, litert_torch=options.litert_torch_python)
    texts = json.loads((folder / TEXT_FILE).read_text())
    heading = f"The edge, `{options.size}`. {conditions()}, {', '.join(versions(options))}."
    note = (
        f"{shape_of(config)}; caches of {slots} slots, prompt {options.prompt} + 1, {options.tokens} new tokens; "
        f"{options.repeats} turns; LiteRT-LM with `{options.weight_cache}` for packed weights. Memory is read at "
    )
    if options.profile:
        report = profile(files, threads=options.threads)
    else:
        job = {"tokens": options.tokens, "cache": slots, "weight_cache": options.weight_cache}
        turns = measure(sides_of(options, files), texts | job, options.repeats)
        reads = {threads: memory_speed(turns, threads) for threads in options.threads}
        note += " and ".join(f"{speed / 1e9:.1f} GB/s by {words(threads)}" for threads, speed in reads.items()) + "."
        report = "\n\n".join([note, *(f"#### {words(n)}\n\n{table_of(turns, n)}" for n in options.threads)])
    publish("\n\n".join([heading, report]), options.out)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="135m")
    parser.add_argument("--work", type=Path, required=True, help="the folder of the files")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how weights are stored")
    parser.add_argument("--threads", nargs="+", type=count, default=[1, 2])
    parser.add_argument("--cache-length", type=count, help="slots of all caches; default: 1,280 for `135m`, else 512")
    parser.add_argument("--prefill-lengths", nargs="+", type=count, default=[128], help="of our files and litert-torch's")
    parser.add_argument("--prompt", type=count, default=128, help="tokens that are prefilled")
    parser.add_argument("--tokens", type=count, default=128, help="new tokens in a turn")
    parser.add_argument("--repeats", type=count, default=5, help="turns of each side")
    parser.add_argument("--weight-cache", default=":nocache", help="LiteRT-LM's: `:nocache`, `:memory` or a folder")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--litert-torch-python", help="a Python with litert-torch; without it, that side is left out")
    parser.add_argument("--profile", action="store_true", help="the time of each kind of operator in our .tflite files instead")
    parser.add_argument("--out", type=Path, help="a file to write the table to as well")
    options = parser.parse_args()
    options.cache_length = options.cache_length or (1280 if options.size == "135m" else 512)
    if options.prompt + 1 + options.tokens > options.cache_length:
        parser.error(
            f"prompt and new tokens must fit into the caches of {options.cache_length}; choose fewer, or a larger "
            "`--cache-length`."
        )
    return options


def versions(options: argparse.Namespace) -> list[str]:
    """Of the runtimes that conditions() does not name."""
    names = ["litert-lm-api", "ai-edge-quantizer", *(PEERS[peer] for peer in options.peers)]
    return [f"{name} {version(name)}" for name in names]


def sides_of(options: argparse.Namespace, files: Mapping[tuple[str, str], Path]) -> list[Side]:
    """What takes turns: for each number of threads the memory and then every file, those of one way side by side."""
    order = sorted(files.items(), key=lambda item: options.ways.index(item[0][1]))
    return [
        side
        for threads in options.threads
        for side in (Side("memory", "", threads), *(Side(*key, threads, str(path)) for key, path in order))
    ]


def measure(sides: Sequence[Side], job: Mapping[str, Any], repeats: int) -> dict[Side, list[dict[str, float]]]:
    """The turns of all sides, each in a fresh process, one after the other."""
    turns: dict[Side, list[dict[str, float]]] = {side: [] for side in sides}
    start, total = time.perf_counter(), repeats * len(sides)
    for done in range(total):
        side = sides[done % len(sides)]
        own = {"side": side.name, "path": side.path, "threads": side.threads}
        with Worker("edge_sides.py", {**job, **own}, backend="numpy") as worker:  # imports Keras, computes nothing with it
            worker.turn()
        turns[side] += worker.turns
        seconds = time.perf_counter() - start
        print(f"{done + 1} of {total}, {seconds:.0f} s: {side.name} {side.way}", file=sys.stderr, flush=True)
    return turns


def memory_speed(turns: Turns, threads: int) -> float:
    """Bytes a second that so many threads read."""
    return median(turn["decode"] for turn in turns[Side("memory", "", threads)])


def table_of(turns: Turns, threads: int) -> str:
    """A row for every file on so many threads, with our growing .litertlm file of the same way over it."""
    sides = [side for side in turns if side.threads == threads and side.path]
    ours = {side.way: column(turns[side]) for side in sides if side.name == OURS}
    rows = [row_of(side, column(turns[side]), ours[side.way], memory_speed(turns, threads)) for side in sides]
    return markdown(HEADS, rows, texts=2)


def column(turns: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Figures by name: `[{"a": 1}, {"a": 2}]` → `{"a": [1, 2]}`."""
    return {name: [turn[name] for turn in turns] for name in turns[0]}


def row_of(side: Side, found: Mapping[str, list[float]], ours: Mapping[str, list[float]], limit: float) -> list[str]:
    """The cells of a side; `limit` is how many bytes of weights can be read in a second."""
    size = Path(side.path).stat().st_size
    theirs = LLAMA_CPP.get(side.way) if side.name == "llama.cpp" else None
    return [
        side.name,
        f"{side.way} ({theirs})" if theirs and theirs != side.way else side.way,
        middle(found["prefill"]),
        spread(found["prefill"]),
        middle(found["decode"]),
        spread(found["decode"]),
        f"{median(found['decode']) * size / limit:.0%}",
        number(1000 * median(found["first"])),
        middle(found["startup"]),
        megabytes(median(found["peak"])),
        megabytes(median(found["grown"])),
        megabytes(size),
        *("" if side.name == OURS else ratio(ours[name], found[name]) for name in MEASURES),
        f"{median(found['score']):.4f}",
    ]


def megabytes(size: float) -> str:
    """Bytes as decimal megabytes: 1_234_567 → `"1.23"`."""
    return number(size / 1e6)


if __name__ == "__main__":
    main()
