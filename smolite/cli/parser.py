"""The command line: one verb, one function of `verbs.py`; its flags are that function's keyword arguments.

Nothing heavy is imported before a verb runs, so `--help` answers at once.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import smolite
from smolite.cli.arguments import Parser, guess
from smolite.cli.catalogue import GROUPS, VERBS

DESCRIPTION = "Small language models that train with Keras and run on anything. Start with `smolite demo`."
READ_ON = "`smolite VERB --help` shows the flags of a verb, and an example."
CONFIG_HELP = "a YAML or JSON file of settings, or a run's recipe.json; flags given beside it win"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: the words after `smolite`. Default: those of this process.

    Returns:
        The exit status: 0, or 1 where a verification fails or an error was printed, or 130 after an interrupt.

    Raises:
        SystemExit: the words are none of ours (status 2), or ask for help alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the encoding lacks a character, as CP949 lacks emoji.
            stream.reconfigure(errors="replace")
    # Keras imports TensorFlow where it is installed.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    verb, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb.startswith("-"):
        return _answer_without_verb(verb)
    _check_verb(verb)
    try:
        settings = read_settings(verb, words)
        return _function(verb, engine=settings.get("engine", "keras"))(**settings) or 0
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError) as error:
        print(f"smolite {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nsmolite {verb}: interrupted", file=sys.stderr)
        return 130


def _answer_without_verb(flag: str) -> int:
    if flag not in ("-h", "--help", "--version"):
        _refuse(f"Unknown flag `{flag}`.{guess(flag, ('--help', '--version'))} Flags of a verb come after it.")
    print(f"smolite {smolite.__version__}" if flag == "--version" else show_verbs())
    return 0


def _check_verb(verb: str) -> None:
    if verb not in VERBS:
        _refuse(f"Unknown verb `{verb}`.{guess(verb, VERBS)}")


def _refuse(sentence: str) -> None:
    print(f"smolite: {sentence}\nSee: smolite --help", file=sys.stderr)
    raise SystemExit(2)


def show_verbs() -> str:
    """The verbs by groups, each with what it does in a line."""
    width = max(map(len, VERBS)) + 2
    lines = ["usage: smolite VERB [--flag …]", "", DESCRIPTION]
    for group, verbs in GROUPS.items():
        lines += ["", group, *(f"  {name:{width}}{verb.line}" for name, verb in verbs.items())]
    return "\n".join([*lines, "", READ_ON])


def read_settings(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """What the words after a verb say: flags, over the file of `--config`, over `--recipe`, over the defaults.

    Args:
        verb: one of `VERBS`.
        words: the words after it.

    Returns:
        The keyword arguments of the verb's function.

    Raises:
        SystemExit: a word is unknown or missing, or help was asked for.
        ValueError, FileNotFoundError: the file of settings cannot be used.
    """
    parser = parser_of(verb)
    first = Parser(prog=parser.prog, add_help=False)
    first.add_argument("--config")
    first.add_argument("--recipe")
    # Looked for first, since what they give is no longer required.
    given, _ = first.parse_known_args(words)
    file = _from_file(given.config, verb) if given.config else {}
    recipe = given.recipe or file.get("recipe")
    if recipe and "recipe" in parser.settings:
        from smolite.training import TrainingOptions

        parser.take(TrainingOptions.from_recipe(recipe).to_dict())
    # In this order: what is taken later wins.
    parser.take(file)
    settings = parser.parse(words)
    return {name: value for name, value in settings.items() if name not in ("config", "recipe")}


def _from_file(path: str, verb: str) -> dict[str, Any]:
    from smolite.cli.config_file import read_config

    return read_config(path, verb)


def parser_of(verb: str) -> Parser:
    """The parser of the words after a verb."""
    from smolite.cli.flags import FLAGS  # `smolite --help` needs none of them

    known = VERBS[verb]
    description = f"{known.line[0].upper()}{known.line[1:]}."
    parser = Parser(prog=f"smolite {verb}", description=description, epilog=f"Example:\n  {known.example}")
    FLAGS[verb](parser)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    parser.shorten_usage()
    return parser


def _function(verb: str, *, engine: str = "keras") -> Callable[..., int | None]:
    known = VERBS[verb]
    if known.needs_backend and engine == "keras":
        _ = smolite.CausalLM  # where the backend is missing, this name says what to install
    function: Callable[..., int | None] = getattr(import_module(known.module), known.function or verb)
    return function
