"""What a kind of file says of itself, once, in one row: whoever makes, opens, plans, verifies or measures files asks it.

Imports nothing heavy, so that the command line can offer the names: what is heavy is named, `module:name`, and loaded at use.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smolite.checkpoint import Run
    from smolite.generation import Engine
    from smolite.models import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a quantized file may cost. Four bits are rounding that shows: their limits tell a coarse file from a broken one.

    Args:
        most_bits: the largest share of more bits per character.
        least_agreement: the least share of greedy tokens that must be the same.
    """

    most_bits: float = 0.01
    least_agreement: float = 0.75


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file to export. A new one is a folder with such a row, and its module's name in `targets`.

    What is written `module:name` is a function or class, loaded at its first use.

    Args:
        name: what `--format` calls it.
        runtime: what runs such a file, in words.
        library: import name of that runtime.
        file_names: way to quantize, or `None` → name of the file or folder.
        packages: import name → package, of all that is needed to make and run it.
        builder: `(run, request)` writes the file at `request.path`; in a process of its own where `on_tensorflow`.
        engine: `(path)` opens a file; an `Engine` where `gives_logits`.
        pair_engine: the same for an encoder-decoder, `(path, start_id=…)`; empty where it runs none.
        limits: way to quantize → what it may cost, where that is not as usual.
        extra: the extra of this package that brings `packages`.
        on_tensorflow: whether it is made of a TensorFlow graph.
        takes_lengths: whether it has fixed lengths: of a prompt that is read at once, and of the cache.
        takes_windows: whether it has signatures that look at the first slots of the cache only, or check drafts.
        takes_growing_cache: whether its caches may grow with a chat.
        holds_tokenizer: whether tokenizer and template are in the file, so that a client needs nothing beside it.
        gives_logits: whether the runtime gives logits, so that an `Engine` can run on it; else it takes and gives texts.
        config_check: `(config, quantize)` refuses a form of model.
        run_check: `(run)` refuses a run for what is beside its model.
        proof: `(file)`, a `proof.FileCheck`: further checks of `verify`, which gives rows of their own.
        estimate: `(config, request, tokenizer)` gives a `planning.sizes.Estimate`; empty: not planned.
        prompt_of: `(run, text)` gives what to ask a runtime that takes texts.
        slots_of: `(path)` gives the cache slots of a file whose runtime gives no logits.
        speeds_of: `(path, prompt_tokens=…, new_tokens=…)` gives its tokens per second of prefill and of decode.
    """

    name: str
    runtime: str
    library: str
    file_names: Mapping[str | None, str]
    packages: Mapping[str, str]
    builder: str
    engine: str
    pair_engine: str = ""
    limits: Mapping[str, Limits] = field(default_factory=dict)
    extra: str = "export"
    on_tensorflow: bool = True
    takes_lengths: bool = True
    takes_windows: bool = False
    takes_growing_cache: bool = False
    holds_tokenizer: bool = False
    gives_logits: bool = True
    config_check: str = ""
    run_check: str = ""
    proof: str = ""
    estimate: str = ""
    prompt_of: str = ""
    slots_of: str = ""
    speeds_of: str = ""

    def call(self, step: str, *arguments: Any, **settings: Any) -> Any:
        """Loads what a field such as `builder` names, and calls it; None where the field is empty."""
        reference: str = vars(self)[step]
        return load(reference)(*arguments, **settings) if reference else None

    def file_name(self, quantize: str | None) -> str:
        """The name of a file whose weights are written in a way.

        Raises:
            ValueError: there is no such way.
        """
        if quantize not in self.file_names:
            ways = ", ".join(map(str, self.file_names))
            raise ValueError(f"`quantize` for {self.name} must be one of: {ways}. Received: {quantize!r}.")
        return self.file_names[quantize]

    def limits_of(self, quantize: str) -> Limits:
        """What a way may cost."""
        return self.limits.get(quantize, Limits())

    def check_packages(self) -> None:
        """Refuses to start what cannot be finished.

        Raises:
            ImportError: a package that is needed is not installed.
        """
        missing = [package for module, package in self.packages.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise ImportError(
                f"Exporting to {self.name} needs {', '.join(self.packages.values())}. Missing: {', '.join(missing)}. "
                f"{self.advice}"
            )

    @property
    def advice(self) -> str:
        """What to do where a package is missing."""
        return f'Run: pip install "smolite[{self.extra}]"'

    def open(self, path: Path, run: "Run") -> "Engine":
        """The engine on a file of this kind, made from a run.

        Raises:
            ImportError: the package that runs it is missing.
            ValueError: the file is broken, or of a kind that holds no encoder-decoder.
        """
        reference, settings = self.engine_of(run)
        if not reference:
            raise ValueError(f"{self.runtime} runs no encoder-decoder. Received: {path}. Export it as tflite or saved_model.")
        opened: Engine = load(reference)(path, **settings)
        return opened

    def engine_of(self, run: "Run") -> tuple[str, dict[str, Any]]:
        """What runs such a file of a run, as `engine` or `pair_engine`, and what it takes beside the path."""
        if not run.config.has_encoder:
            return self.engine, {}
        return self.pair_engine, {"start_id": run.tokenizer.start_id}

    def check_config(self, config: "ModelConfig", quantize: str | None) -> None:
        """Refuses a form of model that such a file can't hold.

        Raises:
            ValueError: with what it can't.
        """
        self.call("config_check", config, quantize)


def load(reference: str) -> Any:
    """What `module:name` stands for."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
