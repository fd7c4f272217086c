"""The command line: one verb, one function of `verbs.py`; its flags are that function's keyword arguments.

Nothing heavy is imported before a verb runs, so `--help` answers at once.
"""

import argparse
import inspect
import io
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal, get_args, get_origin, get_type_hints

import smolite
from smolite.models import PRESETS
from smolite.training import RECIPES, TrainingOptions

DESCRIPTION = "Small language models that train with Keras and run on anything. Start with `smolite demo`."

FORMATS = ["tflite", "saved_model", "litertlm", "gguf"]
WAYS = ["f16", "int8", "int4_int8", "int4_block32", "int4"]  # as in `exporters.quantization`
ENGINES = ["keras", "tflite", *WAYS, "saved_model", "gguf", "gguf_f16", "q8_0", "q4_0"]  # as in `verbs.ENGINE_FILES`


WINDOWS_HELP = "tflite: slots that short chats are answered from; default: a quarter and half of the cache, from 128 on"
GROWING_HELP = "litertlm: caches as long as the chat so far; quicker, and for the CPU alone"
DRAFTS_HELP = "tflite: tokens guessed from the text so far and checked in one call"
# Verbs that need no backend, and where they are.
LIGHT = {
    "plan": ("smolite.exporters.planning.plan", "print_plan"),
    "tokenizer": ("smolite.cli.light_verbs", "tokenizer"),
    "data": ("smolite.cli.light_verbs", "data"),
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: the words after `smolite`. Default: those of this process.

    Returns:
        The exit status: 0, or 1 where a verification fails or an error was printed, or 130 after an interrupt.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where the encoding lacks a character, as CP949 lacks emoji
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Keras imports TensorFlow where it is installed
    chosen = vars(_parser().parse_args(arguments))
    if recipe := chosen.pop("recipe", None):
        chosen = vars(_parser(TrainingOptions.from_recipe(recipe)).parse_args(arguments))
        del chosen["recipe"]
    verb = chosen.pop("verb")
    try:
        return _function(verb)(**chosen) or 0
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError) as error:
        print(f"smolite {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nsmolite {verb}: interrupted", file=sys.stderr)
        return 130


def _function(verb: str) -> Callable[..., int | None]:
    if verb not in LIGHT:
        _ = smolite.CausalLM  # where the backend is missing, this name says what to install
    module, name = LIGHT.get(verb, ("smolite.cli.verbs", verb))
    function: Callable[..., int | None] = getattr(import_module(module), name)
    return function


def _parser(options: TrainingOptions | None = None) -> argparse.ArgumentParser:
    """The parser, with these options of a training where the command line gives none."""
    parser = argparse.ArgumentParser(prog="smolite", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"smolite {smolite.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = _verb(verbs, "demo", "train on the bundled dialogues, export, verify, and chat from the phone file")
    demo.add_argument("--out", default="runs/demo", help="run directory to make, replaced when it is there")
    demo.add_argument("--epochs", type=int, default=12, help="passes over the dialogues")

    _add_data_verbs(verbs)
    _add_training_verbs(verbs, options or TrainingOptions())
    _add_talking_verbs(verbs)
    _add_file_verbs(verbs)
    _add_measuring_verbs(verbs)
    return parser


def _verb(verbs, name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=HelpFormatter)


def _add_data_verbs(verbs) -> None:
    tokenizer = _verb(verbs, "tokenizer", "train a tokenizer on text or dialogues")
    tokenizer.add_argument("texts", nargs="+", help=".txt or .jsonl with text, or dialogues, or a data set's name")
    tokenizer.add_argument("--out", default="tokenizer.model", help="the file to write")
    tokenizer.add_argument("--vocab-size", type=int, default=8192, help="number of pieces")
    tokenizer.add_argument("--model-type", choices=["bpe", "unigram"], default="bpe", help="how words are split")
    tokenizer.add_argument("--overwrite", action="store_true", help="replace an existing file")

    data = _verb(verbs, "data", "look at dialogues: what a model will learn from them")
    data.add_argument("action", choices=["show"], help="print examples with the trained tokens in [brackets]")
    data.add_argument("dataset", help="a file of dialogues, `sample`, or the name of a data set")
    data.add_argument("--tokenizer", help="a .model file; default: one is trained on the dialogues")
    data.add_argument("--count", type=int, default=3, help="number of examples")


def _add_training_verbs(verbs, options: TrainingOptions) -> None:
    pretrain = _verb(verbs, "pretrain", "train a model from scratch on plain text")
    finetune = _verb(verbs, "finetune", "train a model on dialogues; only the answers are learnt")
    finetune.add_argument("--start", help="run directory to start from; default: a new model")
    pairs = _verb(verbs, "pairs", "train an encoder-decoder on pairs of a source and a target")
    pairs.add_argument("--start", help="run directory to start from; default: a new model")
    known = "a file of dialogues, `sample`, or the name of a data set"
    two = "a file of pairs, `sample-pairs`, or `owner/name:file` on the hub"
    text = "files of text or dialogues, or `owner/name:file` on the hub"
    for parser, form, number in ((pretrain, text, "+"), (finetune, known, None), (pairs, two, None)):
        parser.add_argument("--dataset", required=True, nargs=number, help=form)
        parser.add_argument("--validation", help="held-out data of the same form")
        parser.add_argument("--out", required=True, help="run directory to make")
        parser.add_argument("--preset", choices=list(PRESETS), default="smolite-small", help="shape of a new model")
        parser.add_argument("--recipe", choices=list(RECIPES), help="named settings; flags given beside it win")
        parser.add_argument("--tokenizer", help="a .model file; default: one is trained on the data")
        parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
        parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
        _add_options(parser, options)


def _add_options(parser: argparse.ArgumentParser, options: TrainingOptions) -> None:
    """A flag for each field of `TrainingOptions`, of its type and with its docs."""
    docs = docs_of_arguments(TrainingOptions)
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
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {6}.*)*)", section.partition("\n\n")[0], flags=re.MULTILINE)
    return defaultdict(str) | {name: " ".join(text.split()).removesuffix(".") for name, text in entries}


def _add_talking_verbs(verbs) -> None:
    chat = _verb(verbs, "chat", "talk with a run in the terminal")
    chat.add_argument("run", help="run directory")
    chat.add_argument("--system", help="a system message")
    chat.add_argument("--prompt", help="say this, print the answer, and stop")
    generate = _verb(verbs, "generate", "let a run continue a text, or write the target of a source")
    generate.add_argument("run", help="run directory")
    generate.add_argument("prompt", help="the beginning, or the source")
    app = _verb(verbs, "app", "talk with a run in the browser")
    app.add_argument("run", help="run directory, or a model's name on the hub")
    app.add_argument("--engine", choices=ENGINES, default="keras", help="what runs the model at first")
    app.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets others in")
    app.add_argument("--port", type=int, default=7860, help="port to listen at")
    for parser, temperature in ((chat, 0.7), (generate, 0.8)):
        parser.add_argument("--engine", choices=ENGINES, default="keras", help="what runs the model")
        parser.add_argument("--max-new-tokens", type=int, default=128, help="the most tokens to write")
        parser.add_argument("--min-new-tokens", type=int, default=0, help="the fewest tokens to write")
        parser.add_argument("--temperature", type=float, default=temperature, help="0 always takes the likeliest token")
        parser.add_argument("--top-k", type=int, default=0, help="keep only this many tokens; 0: all")
        parser.add_argument("--top-p", type=float, default=0.9, help="keep the likeliest tokens of this probability")
        parser.add_argument("--min-p", type=float, default=0.0, help="least probability, as a share of the highest")
        parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less")
        parser.add_argument("--seed", type=int, default=0, help="of the random numbers")


def _share(text: str) -> float:
    """A share as people write it: `1%` is 0.01, and so is `0.01`."""
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def _add_file_verbs(verbs) -> None:
    export = _verb(verbs, "export", "write a run as a file for another runtime, and verify it")
    export.add_argument("run", help="run directory")
    export.add_argument("--format", choices=FORMATS, default="tflite", help="kind of file")
    ways = f"tflite, litertlm: {', '.join(WAYS)}; gguf: f16, q8_0, q4_0; default: float32"
    export.add_argument("--quantize", choices=[*WAYS, "q8_0", "q4_0"], help=ways)
    export.add_argument("--out", help="folder to write to; default: export in the run directory")
    export.add_argument("--cache-length", type=int, help="tokens a chat can hold; default: the context length, at most 1,024")
    export.add_argument("--prefill-lengths", type=int, nargs="+", help="tokens of a prompt read at once")
    export.add_argument("--windows", type=int, nargs="*", help=WINDOWS_HELP)
    export.add_argument("--drafts", type=int, default=0, help=DRAFTS_HELP)
    export.add_argument("--growing-cache", action="store_true", help=GROWING_HELP)
    export.add_argument("--overwrite", action="store_true", help="replace existing files")

    quality = _verb(verbs, "quality", "measure every way to quantize, and keep the smallest file that is good enough")
    quality.add_argument("run", help="run directory")
    quality.add_argument("--max-loss", type=_share, default="1%", help="more bits per character that the file may cost")
    quality.add_argument("--dataset", default="sample-heldout", help="held-out dialogues: a file, or a data set's name")
    quality.add_argument("--text", help="held-out plain text; default: what is said in the dialogues")
    quality.add_argument("--count", type=int, default=100, help="the most dialogues, and the most texts, to measure on")
    quality.add_argument("--out", help="folder to write to; default: export in the run directory")
    quality.add_argument("--cache-length", type=int, help="tokens a chat can hold; default: the context length, at most 1,024")
    quality.add_argument("--prefill-lengths", type=int, nargs="+", help="tokens of a prompt read at once")
    quality.add_argument("--overwrite", action="store_true", help="replace existing files")

    quantize = _verb(verbs, "quantize", "write a run with weights of 8 or 4 bits, a quarter or a sixth of the size")
    quantize.add_argument("run", help="run directory, or a model's name on the hub")
    quantize.add_argument("--bits", type=int, choices=[8, 4], default=8, help="of a weight")
    quantize.add_argument("--out", required=True, help="run directory to make")
    quantize.add_argument("--overwrite", action="store_true", help="replace an existing run")

    params = _verb(verbs, "params", "count the parameters of a preset or a run, by kind of layer")
    params.add_argument("model", help=f"{', '.join(PRESETS)}, a run directory, or a model's name on the hub")

    convert = _verb(verbs, "convert", "write a model in another form, with the same weights")
    convert.add_argument("source", help="run, folder or name of Hugging Face, keras-hub preset, or .weights.h5")
    convert.add_argument("out", help="folder to write")
    convert.add_argument("--to", choices=["run", "keras-hub"], default="run", help="a run is a Hugging Face folder, too")
    convert.add_argument("--tokenizer", help="a .model file, for a source without one")
    convert.add_argument("--context-length", type=int, help="for a source that does not record it")
    convert.add_argument("--overwrite", action="store_true", help="replace what is there")


def _add_measuring_verbs(verbs) -> None:
    plan = _verb(verbs, "plan", "say before any export how large the files will be, and what memory and speed they allow")
    plan.add_argument("model", help=f"{', '.join(PRESETS)}, a run directory, or a model's name on the hub")
    plan.add_argument("--cache-length", type=int, help="tokens a chat can hold; default: the context length, at most 1,024")
    plan.add_argument("--prefill-lengths", type=int, nargs="+", help="tokens of a prompt read at once; default: 16 and 128")
    plan.add_argument("--windows", type=int, nargs="*", help=WINDOWS_HELP)
    plan.add_argument("--drafts", type=int, default=0, help=DRAFTS_HELP)
    plan.add_argument("--growing-cache", action="store_true", help=GROWING_HELP)
    plan.add_argument("--bandwidth", type=float, default=26, help="of the memory in GB/s, for the most tokens a second")

    verify = _verb(verbs, "verify", "compare exported files with the Keras model, each in its own runtime")
    verify.add_argument("run", help="run directory")
    verify.add_argument("--out", help="folder of the files; default: export in the run directory")
    verify.add_argument("--measure", action="store_true", help="memory and time to the first token, too")
    verify.add_argument("--browser", metavar="PAGE", help="the built page of export/web; .litertlm files are asked there, too")

    evaluate = _verb(verbs, "evaluate", "bits per character, perplexity and accuracy on held-out dialogues")
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument("dataset", help="a file of dialogues, `sample-heldout`, or the name of a data set")
    evaluate.add_argument("--engine", choices=ENGINES, default="keras", help="what runs the model")

    bench = _verb(verbs, "bench", "measure prefill and decode speed of a run and its exported files")
    bench.add_argument("run", help="run directory")
    bench.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    bench.add_argument("--tokens", type=int, default=64, help="tokens to decode each time")
