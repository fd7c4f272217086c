"""A parser of flags that answers a slip with the nearest word it knows, and takes settings from elsewhere."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NoReturn, cast

# What transformers and the first Smolite call our flags, where no likeness tells.
NAMES_ELSEWHERE = {
    "--adam-beta2": "--beta-2",
    "--bf16": "--dtype",
    "--final-share": "--min-lr-ratio",
    "--keep": "--restore-best-weights",
    "--lr": "--learning-rate",
    "--max-grad-norm": "--global-clipnorm",
    "--max-length": "--sequence-length",
    "--num-train-epochs": "--epochs",
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` begins, or that shares most of its parts, or else is most like it; None where none is near.

    `temp` is nearest to `temperature`, `accumulation` to `gradient-accumulation-steps`, `finetun` to `finetune`.
    """

    def likeness(other: str) -> tuple[bool, int, float]:
        return other.startswith(word), len(_parts(word) & _parts(other)), SequenceMatcher(None, word, other).ratio()

    best = max(known, key=likeness, default="")
    begins, shared, ratio = likeness(best)
    return best if begins or shared or ratio >= 0.6 else None


def _parts(name: str) -> set[str]:
    """`--cache-length`, and `cache_length` → {"cache", "length"}."""
    return set(re.findall(r"[^\W_]+", name))


def guess(word: str, known: Iterable[str]) -> str:
    """The sentence that offers the nearest word, with a space before it, or nothing."""
    best = nearest(word, known)
    return f" Did you mean `{best}`?" if best else ""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but not where there is none, and says by a letter what a flag takes."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        letter = "N" if action.type is int else "X" if action.type is float else ""
        return letter or action.dest.rpartition("_")[2].upper()


class Parser(argparse.ArgumentParser):
    """The flags of one verb. Flags are whole words: a beginning is no flag, so that a new flag never changes what it means."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)

    @property
    def settings(self) -> dict[str, argparse.Action]:
        """Name → what takes it: `cache_length` → the action of `--cache-length`."""
        return {action.dest: action for action in self._actions if action.dest not in ("help", "config")}

    def shorten_usage(self) -> None:
        """Leaves out of the usage what need not be given: a training has thirty flags."""
        words = []
        for action in self.settings.values():
            name = action.dest.replace("_", "-")
            if action.required:
                words.append(f"--{name} {name.upper()}" if action.option_strings else name.upper())
        self.usage = " ".join([self.prog, *words, "[--flag …]"])

    def take(self, settings: Mapping[str, Any]) -> None:
        """Makes `settings` the defaults, so that flags win over them, and asks no more for what they give; None gives nothing.

        Raises:
            ValueError: a name or a value is none of this verb's.
        """
        for name, value in settings.items():
            if name not in self.settings:
                raise ValueError(f"`{name}` is no setting of `{self.prog}`.{guess(name, self.settings)}")
            if value is None:
                continue
            action = self.settings[name]
            # A default, since argparse lets every flag that is given win over it.
            action.default, action.required = converted(action, value), False
            if not action.option_strings:
                action.nargs = "*" if action.nargs == "+" else "?"

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Setting → value. A flag that isn't there is named before what is missing."""
        flags = {flag for action in self._actions for flag in action.option_strings}
        for word in words:
            flag = word.partition("=")[0]
            # Behind it argparse takes every word for a value.
            if word == "--":
                break
            if re.fullmatch(r"--?[A-Za-z][\w-]*", flag) and flag not in flags:
                name = NAMES_ELSEWHERE.get(flag)
                self.error(f"Unknown flag `{flag}`." + (f" It is called `{name}`." if name in flags else guess(flag, flags)))
        return vars(self.parse_args(words))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, no_choice(value, action.choices))

    def error(self, message: str) -> NoReturn:
        """One sentence, and where to read on: the usage would hide it."""
        self.exit(2, f"{self.prog}: {message}\nSee: {self.prog} --help\n")


def no_choice(value: Any, choices: Iterable[Any]) -> str:
    """The sentence that refuses `value`."""
    known = [str(choice) for choice in choices]
    return f"`{value}` is no choice.{guess(str(value), known)} Choose one of: {', '.join(known)}."


def converted(action: argparse.Action, value: Any) -> Any:
    """`value`, of a file of settings, as the flag would give it.

    Raises:
        ValueError: it is of another kind, or no choice.
    """
    if isinstance(action.default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"`{action.dest}` must be true or false. Received: {value!r}. Write one of them.")
        return value
    several, kind = action.nargs in ("+", "*"), cast(Callable[[str], Any], action.type or str)
    values = value if several and isinstance(value, list) else [value]
    if any(isinstance(each, list | dict) for each in values):
        raise ValueError(f"`{action.dest}` must be one value. Received: {value!r}. Write a single one.")
    try:
        results = [kind(str(each)) for each in values]
    except ValueError as error:
        expected = f"`{action.dest}` must be of type {kind.__name__}"
        raise ValueError(f"{expected}. Received: {value!r}. Choose another value.") from error
    for result in results:
        if action.choices is not None and result not in action.choices:
            raise ValueError(f"`{action.dest}`: {no_choice(result, action.choices)}")
    return results if several else results[0]
