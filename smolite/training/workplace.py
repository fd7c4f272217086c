"""Where an unfinished run lives, so that the run directory itself appears only when it is whole."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from smolite.files import write_file
from smolite.models import ModelConfig
from smolite.text import Tokenizer, train_fitting_tokenizer
from smolite.training.callbacks import STATE_FILE


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
        out = out if out.name not in ("", "..") else out.resolve()  # `.` has no name
        # Beside the run and not in a temporary folder: on the same disk, and found again after a restart.
        self.folder = out.with_name(f"{out.name}.training")
        self.out, self.resume = out, resume
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

    def begin(self) -> None:
        """Makes room, now that all that was given is known to be usable: an interrupted run that isn't resumed goes."""
        if not self.resume:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.resume = True  # what is there from now on is ours

    def tokenizer(self, given: str | Path | Tokenizer | None, texts: Sequence[str], *, preset: str) -> Tokenizer:
        """The given tokenizer, or the one trained on `texts`; an interrupted run finds its own again."""
        if given is not None:
            return given if isinstance(given, Tokenizer) else Tokenizer(given)
        self.begin()
        path = self.folder / "tokenizer.model"
        if self.interrupted and path.exists():
            return Tokenizer(path)
        return train_fitting_tokenizer(texts, path, most=ModelConfig.from_preset(preset).vocab_size)

    @property
    def interrupted(self) -> bool:
        """Whether a state to go on from is there."""
        return (self.folder / STATE_FILE).exists()

    def finish(self) -> None:
        """Moves log and curve into the run directory and clears the rest away."""
        for name in ("log.csv", "curve.svg"):
            write_file(self.out / name, (self.folder / name).read_bytes())
        shutil.rmtree(self.folder)
