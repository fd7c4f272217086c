"""Decoding speed: our Keras engine and .tflite files beside keras-hub's `generate` and transformers', batch 1, greedy.

    python benchmarks/decode.py --backend jax torch --size 20m --tokens 128

Each engine runs in a process of its own; they take turns. A turn is one call of `generate` on a prompt of 32 tokens, and the
speed is its new tokens over all of its time, prompt included. Weights are random, float32. Our caches have 256 slots;
keras-hub's is as long as prompt and new tokens together (it has no other way to end), transformers' grows. keras-hub is
compiled as it is by default.
"""

import argparse
import dataclasses
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from peers import BACKENDS, LITERT, PACKAGES, SIZES, check_installed, count, shape_of
from table import conditions, gigabytes, markdown, middle, publish, ratio, spread
from turns import Worker, take_turns

THREADS = (1, 2)
HEADS = ["engine", "on", "tokens/s", "lowest–highest", "smolite ÷ it", "{best} ÷ it", "peak GB", "grown GB"]


@dataclass(frozen=True)
class Side:
    """An engine to measure.

    Args:
        name: of the engine, without its backend.
        on: backend, or format and threads.
        backend: the Keras backend of its process.
        job: what the worker must know beyond the shape.
    """

    name: str
    on: str
    backend: str
    job: dict[str, Any]


def main() -> None:
    """Measures all engines asked for and prints their table."""
    options = parse()
    check_installed(options.peers, PACKAGES)
    check_installed(() if options.no_tflite else LITERT, LITERT)
    heading = f"Decoding, `{options.size}`, float32 but where it says int8. {conditions()}."
    config = dataclasses.replace(SIZES[options.size].config, context_length=options.cache)
    shape = {"config": dataclasses.asdict(config), "prompt": options.prompt, "tokens": options.tokens, "cache": options.cache}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = {
            (side.name, side.on): stack.enter_context(Worker("decode_sides.py", shape | side.job, backend=side.backend))
            for side in sides_of(options, shape, Path(folder))
        }
        take_turns(workers, options.repeats)
    note = (
        f"{shape_of(config)}; prompt {options.prompt}, {options.tokens} new tokens, our caches {options.cache} slots; "
        f"{options.repeats} turns."
    )
    publish("\n\n".join([heading, note, table_of(workers)]), options.out)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="of the Keras engines")
    parser.add_argument("--size", choices=SIZES, default="20m")
    parser.add_argument("--prompt", type=count, default=32, help="tokens of the prompt")
    parser.add_argument("--tokens", type=count, default=128, help="new tokens in a turn")
    parser.add_argument("--cache", type=count, default=256, help="slots of our caches")
    parser.add_argument("--repeats", type=count, default=5, help="turns of each engine")
    parser.add_argument("--peers", nargs="*", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--no-tflite", action="store_true", help="leave the .tflite files out")
    parser.add_argument("--out", type=Path, help="a file to write the table to as well")
    options = parser.parse_args()
    if options.prompt + options.tokens > options.cache:
        parser.error(f"prompt and new tokens must fit into the cache of {options.cache}; choose fewer, or a larger `--cache`.")
    return options


def sides_of(options: argparse.Namespace, shape: dict[str, Any], folder: Path) -> list[Side]:
    """The engines asked for, by backend; transformers, which has only torch, comes last of the peers."""
    peers = [peer for peer in options.peers if peer != "transformers"]
    sides = [Side(name, on, on, {"side": name}) for on in options.backend for name in ("smolite", *peers)]
    if "transformers" in options.peers:
        sides.append(Side("transformers", "torch", "torch", {"side": "transformers"}))
    if options.no_tflite:
        return sides
    files = {kind: str(folder / f"{kind}.tflite") for kind in ("float32", "int8")}
    with Worker("decode_sides.py", {**shape, **files, "side": "build"}, backend="tensorflow"):
        pass
    for kind, path in files.items():
        for threads in THREADS:
            job = {"side": "tflite", "path": path, "threads": threads}
            on = f"{kind}, {threads} thread{'s' if threads > 1 else ''}"
            sides.append(Side("smolite .tflite", on, "numpy", job))  # generation imports Keras, but computes nothing with it
    return sides


def table_of(workers: dict[tuple[str, str], Worker]) -> str:
    """A row for every engine: its speed, ours on the same backend over it, and our best .tflite engine over it."""
    speeds = {key: [turn["tokens"] / turn["seconds"] for turn in worker.turns] for key, worker in workers.items()}
    best = max((key for key in speeds if "int8" in key[1]), key=lambda key: median(speeds[key]), default=None)
    rows = []
    for (name, on), worker in workers.items():
        mine, ours, last = speeds[name, on], speeds.get(("smolite", on)), worker.turns[-1]
        rows.append(
            [
                name,
                on,
                middle(mine),
                spread(mine),
                ratio(ours, mine) if ours and name != "smolite" else "",
                ratio(speeds[best], mine) if best and (name, on) != best else "",
                gigabytes(last["peak"]),
                gigabytes(last["grown"]),
            ]
        )
    return markdown([head.format(best=best[1] if best else "int8") for head in HEADS], rows, texts=2)


if __name__ == "__main__":
    main()
