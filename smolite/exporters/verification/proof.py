"""What a target's own proof is given, and the limits that every proof keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolite.checkpoint import Run
from smolite.data import Conversation
from smolite.exporters.delivery.report import Row
from smolite.exporters.target import Limits
from smolite.exporters.verification.reference import Case

# Largest difference of a logit or cache value in float32, as `reference.Difference` has it, and of a log probability, as a
# runtime that takes texts tells it. Sums in another order differ by about 1e-6 of the largest value, so a fault stands out by
# far. Two tokens that Keras rates within this limit count as one.
FLOAT_LIMIT = 1e-4


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """A file that is being proven.

    Args:
        path: the file or folder.
        engine: what runs it: an `Engine`, or whatever the target has for a runtime that takes texts.
        run: the run that it was made from.
        row: gets figures and problems.
        keras_row: the row of the Keras model, which gets its bits per character.
        limits: what a quantized file may cost; `None` for a float32 file, which must be exact.
        texts: what a tokenizer must read as the run's does.
        questions: what a user says, and what Keras does with it.
        held_out: dialogues for the bits per character.
        browser: a built page that is to open it, too, where its target has one.
    """

    path: Path
    engine: Any
    run: Run
    row: Row
    keras_row: Row
    limits: Limits | None
    texts: Sequence[str] = ()
    questions: Sequence[tuple[str, Case]] = ()
    held_out: Sequence[Conversation] = ()
    browser: str | Path | None = None

    def limit_bits(self, reference: float) -> None:
        """Notes a problem where the bits per character in the row are too many, beside those of the Keras model."""
        change, limit = (self.row.bits_per_character or 0.0) / reference - 1, (self.limits or Limits()).most_bits
        if not change <= limit:
            self.row.problems.append(f"{change:+.1%} bits per character; at most {limit:+.0%} is allowed")
