"""Where an unfinished run lives, so that the run directory itself appears only when it is whole."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from smolite.callbacks import STATE_FILE
from smolite.config import ModelConfig
from smolite.files import write_file
from smolite.tokenizer import Tokenizer, train_tokenizer, vocabulary_for


class Workplace:
    """The folder beside a run directory that holds the unfinished run: `<out>.training`.

    Args:
        out: the run directory to make.
        resume: go on with what the folder holds.
        overwrite: `out`, or an interrupted run, may be replaced.

    Raises:
        FileExistsError: there is a finished or an interrupted run, and neither `resume` nor `overwrite` says what to do.
        FileNotFoundError: there is nothing to resume.
        NotADirectoryError: `out` is a file.
    """

    def __init__(self, out: Path, *, resume: bool, overwrite: bool):
        self.folder = out.with_name(f"{out.name}.training")
        self.out = out
        if out.is_file():
            raise NotADirectoryError(f"The run directory must not be a file. Received: {out}. Choose another name.")
        if out.exists() and any(out.iterdir()) and not overwrite:
            raise FileExistsError(f"{out} exists already. Choose another name, or allow overwriting it.")
        if resume and not self.folder.exists():
            raise FileNotFoundError(f"There is no interrupted run to resume: {self.folder} is missing. Leave out `resume`.")
        if not resume and self.interrupted and not overwrite:
            raise FileExistsError(
                f"{self.folder} holds an interrupted run. Resume it, choose another name, or allow overwriting it."
            )
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)

    def tokenizer(self, given: str | Path | Tokenizer | None, texts: Sequence[str], *, preset: str) -> Tokenizer:
        """The given tokenizer, or the one trained on `texts`; an interrupted run finds its own again."""
        if given is not None:
            return given if isinstance(given, Tokenizer) else Tokenizer(given)
        path = self.folder / "tokenizer.model"
        if self.interrupted and path.exists():
            return Tokenizer(path)
        vocab_size = vocabulary_for(texts, most=ModelConfig.from_preset(preset).vocab_size)
        return train_tokenizer(texts, path, vocab_size=vocab_size, overwrite=True)

    @property
    def interrupted(self) -> bool:
        """Whether a state to go on from is there."""
        return (self.folder / STATE_FILE).exists()

    def finish(self) -> None:
        """Moves log and curve into the run directory and clears the rest away."""
        for name in ("log.csv", "curve.svg"):
            write_file(self.out / name, (self.folder / name).read_bytes())
        shutil.rmtree(self.folder)
