r"""Training speed and memory of a `fit` step: smolite beside keras-hub's Llama and transformers' of the same shape.

    python benchmarks/train.py --backend jax --case dialogues --size 20m

Each side runs in a process of its own; they take turns of a few steps. The cases:

* `text`: full rows of plain text, every token learnt. Tokens per second.
* `dialogues`: response tokens learnt per second, of the same dialogues with the same tokenizer. We pack them into rows and
  project to the vocabulary where there is something to learn; keras-hub's preprocessor gives each dialogue a row and trains on
  all of it. What counts on both sides are the tokens of the answers and their ends.
* `pairs`, only where it is asked for: full rows of sources and of targets for an encoder-decoder, as deep on either side as the
  size's decoder, beside BART of the same depth, width and number of weights. Target tokens per second.

All sides train with AdamW, weight decay, clipping and tied embeddings, in float32 unless `--dtype` says otherwise, and update
the weights after every `--gradient-accumulation-steps` batches. Loss and metrics are each side's own. transformers' side is a
plain loop with torch's fused AdamW and without `torch.compile`, which can make it faster; no ratio here is one beside compiled
transformers.

The settings of the recipe `smollm2`, for which attention scores and logits take some 80 GB on our side, by arithmetic:

    python benchmarks/train.py --backend torch --case text --size 135m --rows 8 --length 2048 --gradient-accumulation-steps 4 \
        --dtype mixed_bfloat16 --steps 10 --repeats 2

On TensorFlow's CPU both Keras sides run without XLA, which is faster; `--peer-jit default` leaves keras-hub its default.
"""

import argparse
import dataclasses
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from peers import BACKENDS, PACKAGES, SIZES, check_installed, count, shape_of
from table import conditions, gigabytes, markdown, middle, publish, ratio, spread
from turns import ROOT, Worker, take_turns

DIALOGUES = [ROOT.parent / "shared/data/chatbot_ko.train.jsonl", ROOT / "smolite/data/sample/train.jsonl"]
UNITS = {"text": "tokens", "dialogues": "response tokens", "pairs": "target tokens"}
FIGURES = "{unit}/s, lowest–highest, smolite ÷ it, s a step, {unit} a step, places filled, peak GB, grown GB"


def main() -> None:
    """Runs the cases asked for and prints a table of each."""
    options = parse()
    check_installed(options.peers, PACKAGES)
    parts = [f"Training, `{options.size}`, {options.dtype}. {conditions()}."]
    with tempfile.TemporaryDirectory() as folder:
        for backend in options.backend:
            for case in options.case:
                parts.append(compare(case, backend, options, Path(folder)))
    publish("\n\n".join(parts), options.out)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=[backend], help="default: KERAS_BACKEND")
    parser.add_argument("--case", nargs="+", choices=UNITS, default=["text", "dialogues"])
    parser.add_argument("--size", choices=SIZES, default="20m")
    parser.add_argument("--repeats", type=count, default=5, help="turns of each side")
    parser.add_argument("--steps", type=count, help="steps in a turn; default: the size's own")
    parser.add_argument("--rows", type=count, help="rows in a batch; default: the size's own")
    parser.add_argument("--length", type=count, help="tokens in a row; default: the size's own")
    parser.add_argument("--gradient-accumulation-steps", type=count, default=1, help="batches in a step")
    parser.add_argument("--dtype", choices=["float32", "mixed_bfloat16"], default="float32", help="of the arithmetic")
    parser.add_argument("--peers", nargs="*", choices=PACKAGES, default=list(PACKAGES), help="transformers: not for dialogues")
    parser.add_argument("--peer-jit", choices=["same", "default"], default="same", help="keras-hub's `jit_compile`")
    parser.add_argument("--dialogues", type=Path, help="default: chatbot_ko where it is at hand, else the bundled set")
    parser.add_argument("--out", type=Path, help="a file to write the tables to as well")
    return parser.parse_args()


def compare(case: str, backend: str, options: argparse.Namespace, folder: Path) -> str:
    """Measures all sides of a case and returns its heading and table."""
    size = SIZES[options.size]
    size = dataclasses.replace(
        size,
        batch_size=options.rows or size.batch_size,
        sequence_length=options.length or size.sequence_length,
        steps=options.steps or size.steps,
    )
    job: dict[str, Any] = {"case": case, "peer_jit": options.peer_jit, "turns": options.repeats, "dtype": options.dtype}
    job |= {"batch_size": size.batch_size, "sequence_length": size.sequence_length, "steps": size.steps}
    job |= {"gradient_accumulation_steps": options.gradient_accumulation_steps}
    config, source = size.config, "random ids"
    if case == "dialogues":
        path = options.dialogues or next(path for path in DIALOGUES if path.exists())
        job |= {"dialogues": str(path), "tokenizer": str(folder / "tokenizer.model")}
        config, source = dataclasses.replace(config, vocab_size=trained_vocabulary(job, most=config.vocab_size)), path.name
    if case == "pairs":
        config = dataclasses.replace(config, num_encoder_layers=config.num_layers, context_length=size.sequence_length)
    job["config"] = dataclasses.asdict(config)
    script = "pair_sides.py" if case == "pairs" else "train_sides.py"
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(Worker(script, {**job, "side": side}, backend=backend))
            for side in sides_of(case, backend, options.peers)
        }
        take_turns(workers, options.repeats)
    jit = " on both sides" if options.peer_jit == "same" else " on our side, keras-hub's default on its own"
    xla = f", without XLA{jit}" if backend == "tensorflow" else ""
    several = f"{options.gradient_accumulation_steps} × " if options.gradient_accumulation_steps > 1 else ""
    title = f"### {case}, {backend}: batch {several}{size.batch_size} × {size.sequence_length}, {source}"
    note = f"{shape_of(config)}{xla}; {options.repeats} turns of {job['steps']} steps."
    heads = ["side", *FIGURES.format(unit=UNITS[case]).split(", ")]
    return f"{title}\n\n{note}\n\n{markdown(heads, rows_of(workers, job['steps']))}"


def sides_of(case: str, backend: str, peers: list[str]) -> list[str]:
    """Ours, and the peers that can run this case on this backend."""
    able = {"keras-hub": True, "transformers": case != "dialogues" and backend == "torch"}
    return ["smolite", *(peer for peer in peers if able[peer])]


def rows_of(workers: dict[str, Worker], steps: int) -> list[list[str]]:
    """A row of the table for every side, its medians over the turns."""
    speeds = {side: [turn["learnt"] / turn["seconds"] for turn in worker.turns] for side, worker in workers.items()}
    rows = []
    for side, worker in workers.items():
        last = worker.turns[-1]
        rows.append(
            [
                side,
                middle(speeds[side]),
                spread(speeds[side]),
                "" if side == "smolite" else ratio(speeds["smolite"], speeds[side]),
                middle([turn["seconds"] / steps for turn in worker.turns]),
                f"{median(turn['learnt'] / steps for turn in worker.turns):,.0f}",
                f"{worker.facts['fill']:.0%}",
                gigabytes(last["peak"]),
                gigabytes(last["grown"]),
            ]
        )
    return rows


def trained_vocabulary(job: dict[str, Any], *, most: int) -> int:
    """Trains the tokenizer of both sides, unless it is there, and returns its size: as `finetune` would choose it."""
    os.environ["KERAS_BACKEND"] = "numpy"  # of this process, which computes nothing; a worker is given its own
    from smolite.data.dialogues import read_conversations
    from smolite.text.tokenizer import Tokenizer, train_tokenizer, vocabulary_for

    path = Path(job["tokenizer"])
    if path.exists():
        return Tokenizer(path).vocab_size
    conversations = read_conversations(job["dialogues"]).conversations
    texts = [message.content for conversation in conversations for message in conversation.messages]
    return train_tokenizer(texts, path, vocab_size=vocabulary_for(texts, most=most)).vocab_size


if __name__ == "__main__":
    main()
