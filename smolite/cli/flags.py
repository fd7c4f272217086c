"""The flags of each verb: the keyword arguments of the verb's own function, each with its type, default and one line of help.

Imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import inspect
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, get_args, get_origin, get_type_hints

from smolite.cli.arguments import Parser
from smolite.exporters import TARGETS, engine_files, target_files
from smolite.models import PRESETS
from smolite.training import RECIPES, TrainingOptions

WINDOWS_HELP = "tflite: slots that short chats are answered from; default: a quarter and half of the cache, from 128 on"
GROWING_HELP = "litertlm: caches as long as the chat so far; quicker, and for the CPU alone"
DRAFTS_HELP = "tflite: tokens guessed from the text so far and checked in one call"
DIALOGUES = "a file of dialogues, `sample`, or the name of a data set"
PAIRS = "a file of pairs, `sample-pairs`, or `owner/name:file` on the hub"
TEXTS = "files of text or dialogues, or `owner/name:file` on the hub"
MODEL = f"{', '.join(PRESETS)}, a run directory, or a model's name on the hub"
CACHE_HELP = "tokens a chat can hold; default: the context length, at most 1,024"


def _demo(parser: Parser) -> None:
    parser.add_argument("--out", default="runs/demo", help="run directory to make, replaced when it is there")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the dialogues")


def _tokenizer(parser: Parser) -> None:
    parser.add_argument("texts", nargs="+", help=".txt or .jsonl with text, or dialogues, or a data set's name")
    parser.add_argument("--out", default="tokenizer.model", help="the file to write")
    parser.add_argument("--vocab-size", type=int, default=8192, help="number of tokens that it knows")
    parser.add_argument("--model-type", choices=["bpe", "unigram"], default="bpe", help="how words are split")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _data(parser: Parser) -> None:
    parser.add_argument("action", choices=["show"], help="print examples with the trained tokens in [brackets]")
    parser.add_argument("dataset", help=DIALOGUES)
    parser.add_argument("--tokenizer", help="a .model file; default: one is trained on the dialogues")
    parser.add_argument("--count", type=int, default=3, help="number of examples")


def _pretrain(parser: Parser) -> None:
    parser.add_argument("--dataset", required=True, nargs="+", help=TEXTS)
    _add_training(parser)


def _finetune(parser: Parser) -> None:
    parser.add_argument("--dataset", required=True, help=DIALOGUES)
    _add_training(parser)


def _pairs(parser: Parser) -> None:
    parser.add_argument("--dataset", required=True, help=PAIRS)
    _add_training(parser)


def _add_training(parser: Parser) -> None:
    parser.add_argument("--start", help="run directory to start from; default: a new model")
    parser.add_argument("--validation", help="held-out data of the same form")
    parser.add_argument("--out", required=True, help="run directory to make")
    parser.add_argument("--preset", choices=list(PRESETS), default="smolite-small", help="shape of a new model")
    parser.add_argument("--recipe", choices=list(RECIPES), help="named settings; flags given beside it win")
    parser.add_argument("--tokenizer", help="a .model file; default: one is trained on the data")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    _add_options(parser)


def _add_options(parser: Parser) -> None:
    """A flag for each field of `TrainingOptions`, of its type and with its docs."""
    docs, options = docs_of_arguments(TrainingOptions), TrainingOptions()
    for name, kind in get_type_hints(TrainingOptions).items():
        flag, known = f"--{name.replace('_', '-')}", {"default": getattr(options, name), "help": docs[name]}
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **known)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=get_args(kind), **known)
        else:
            parser.add_argument(flag, type=next(each for each in (kind, *get_args(kind)) if callable(each)), **known)


def docs_of_arguments(documented: type) -> dict[str, str]:
    """Name → text, of the `Args:` in a docstring; the text is empty where Python runs without docstrings."""
    _, _, section = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")
    # A name at the first indentation, and its text as far as lines are indented further.
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {6}.*)*)", section.partition("\n\n")[0], flags=re.MULTILINE)
    return defaultdict(str) | {name: " ".join(text.split()).removesuffix(".") for name, text in entries}


def _chat(parser: Parser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--prompt", help="say this, print the answer, and stop")
    _add_sampling(parser, temperature=0.7)


def _generate(parser: Parser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("prompt", help="the beginning, or the source")
    _add_sampling(parser, temperature=0.8)


def _app(parser: Parser) -> None:
    parser.add_argument("run", help="run directory, or a model's name on the hub")
    parser.add_argument("--engine", choices=_engines(), default="keras", help="what runs the model at first")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets others in")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at")


def _add_sampling(parser: Parser, *, temperature: float) -> None:
    parser.add_argument("--engine", choices=_engines(), default="keras", help="what runs the model")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="the most tokens to write")
    parser.add_argument("--min-new-tokens", type=int, default=0, help="the fewest tokens to write")
    parser.add_argument("--temperature", type=float, default=temperature, help="0 always takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=0, help="keep only this many tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=0.9, help="keep the likeliest tokens of this probability")
    parser.add_argument("--min-p", type=float, default=0.0, help="least probability, as a share of the highest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")


def _export(parser: Parser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("--format", choices=list(TARGETS), default="tflite", help="kind of file")
    parser.add_argument("--quantize", choices=_ways(), help=_ways_help())
    parser.add_argument("--out", help="folder to write to; default: export in the run directory")
    parser.add_argument("--cache-length", type=int, help=CACHE_HELP)
    parser.add_argument("--prefill-lengths", type=int, nargs="+", help="tokens of a prompt read at once")
    parser.add_argument("--windows", type=int, nargs="*", help=WINDOWS_HELP)
    parser.add_argument("--drafts", type=int, default=0, help=DRAFTS_HELP)
    parser.add_argument("--growing-cache", action="store_true", help=GROWING_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _ways() -> list[str]:
    """The ways to quantize of all targets, each once."""
    return list(dict.fromkeys(file.quantize for file in target_files().values() if file.quantize))


def _ways_help() -> str:
    """Which target has which ways: `tflite, litertlm: f16, int8; gguf: f16; default: float32`."""
    names_of: dict[str, list[str]] = {}
    for name, target in TARGETS.items():
        ways = ", ".join(way for way in target.file_names if way)
        if ways:
            names_of.setdefault(ways, []).append(name)
    return "; ".join([*(f"{', '.join(names)}: {ways}" for ways, names in names_of.items()), "default: float32"])


def _engines() -> list[str]:
    return ["keras", *engine_files()]


def _verify(parser: Parser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("--out", help="folder of the files; default: export in the run directory")
    parser.add_argument("--measure", action="store_true", help="memory and time to the first token, too")
    parser.add_argument("--browser", metavar="PAGE", help="the built page of export/web; .litertlm files are asked there, too")


def _quantize(parser: Parser) -> None:
    parser.add_argument("run", help="run directory, or a model's name on the hub")
    parser.add_argument("--bits", type=int, choices=[8, 4], default=8, help="of a weight")
    parser.add_argument("--out", required=True, help="run directory to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")


def _convert(parser: Parser) -> None:
    parser.add_argument("source", help="run, folder or name of Hugging Face, keras-hub preset, or .weights.h5")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--to", choices=["run", "keras-hub"], default="run", help="a run is a Hugging Face folder, too")
    parser.add_argument("--tokenizer", help="a .model file, for a source without one")
    parser.add_argument("--context-length", type=int, help="for a source that does not record it")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _evaluate(parser: Parser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("dataset", help="a file of dialogues, `sample-heldout`, or the name of a data set")
    parser.add_argument("--engine", choices=_engines(), default="keras", help="what runs the model")


def _bench(parser: Parser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to decode each time")


def _quality(parser: Parser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("--max-loss", type=share, default="1%", help="more bits per character that the file may cost")
    parser.add_argument("--dataset", default="sample-heldout", help="held-out dialogues: a file, or a data set's name")
    parser.add_argument("--text", help="held-out plain text; default: the text of the dialogues")
    parser.add_argument("--count", type=int, default=100, help="the most dialogues, and the most texts, to measure on")
    parser.add_argument("--out", help="folder to write to; default: export in the run directory")
    parser.add_argument("--cache-length", type=int, help=CACHE_HELP)
    parser.add_argument("--prefill-lengths", type=int, nargs="+", help="tokens of a prompt read at once")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def share(text: str) -> float:
    """A share as people write it: `1%` is 0.01, and so is `0.01`."""
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def _plan(parser: Parser) -> None:
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--cache-length", type=int, help=CACHE_HELP)
    parser.add_argument("--prefill-lengths", type=int, nargs="+", help="tokens of a prompt read at once; default: 16 and 128")
    parser.add_argument("--windows", type=int, nargs="*", help=WINDOWS_HELP)
    parser.add_argument("--drafts", type=int, default=0, help=DRAFTS_HELP)
    parser.add_argument("--growing-cache", action="store_true", help=GROWING_HELP)
    parser.add_argument("--bandwidth", type=float, default=26, help="of the memory in GB/s, for the most tokens a second")


def _params(parser: Parser) -> None:
    parser.add_argument("model", help=MODEL)


# Verb → what adds its flags to a parser.
FLAGS: dict[str, Callable[[Parser], None]] = {
    "demo": _demo,
    "tokenizer": _tokenizer,
    "data": _data,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "pairs": _pairs,
    "chat": _chat,
    "generate": _generate,
    "app": _app,
    "export": _export,
    "verify": _verify,
    "quantize": _quantize,
    "convert": _convert,
    "evaluate": _evaluate,
    "bench": _bench,
    "quality": _quality,
    "plan": _plan,
    "params": _params,
}
