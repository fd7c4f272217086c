"""The settings of a training run, in a module that imports nothing heavy."""

import math
from dataclasses import asdict, dataclass
from typing import Any

LEAST_COUNTS = {"epochs": 1, "batch_size": 1, "row_length": 1, "steps_per_epoch": 0, "patience": 0, "seed": 0}
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of a training run; each is a command-line flag.

    Args:
        epochs: passes over the rows (with `steps_per_epoch`: stretches of that many steps).
        batch_size: rows in a step.
        row_length: tokens in a row; several dialogues share one. At most the model's context length.
        steps_per_epoch: steps between two validations and checkpoints. Default 0: those of one pass.
        learning_rate: highest learning rate, reached after the warm-up.
        warmup_share: share of all steps in which the rate climbs from 0; with 0 it starts at its highest.
        final_share: share of the highest rate that the cosine ends on.
        weight_decay: of AdamW, on matrices only; norm scales are left alone.
        beta_2: of AdamW.
        clip_norm: the gradient's norm is cut to this; 0 for never.
        label_smoothing: share of the target spread over the vocabulary. Perplexity is reported without it.
        dropout: share of activations dropped; the model's own where None.
        token_noise: share of the tokens read that are replaced by random ones; a small set is learnt by heart more slowly.
        patience: epochs without a better validation after which training stops; 0 for never. Needs validation data.
        keep: which weights to save: `"best"` by validation, or `"last"`.
        seed: of weights, dropout and the order of rows.
        dtype: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.

    Raises:
        ValueError: an option is out of range.
    """

    epochs: int = 10
    batch_size: int = 16
    row_length: int = 128
    steps_per_epoch: int = 0
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    final_share: float = 0.05
    weight_decay: float = 0.1
    beta_2: float = 0.98
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    dropout: float | None = None
    token_noise: float = 0.0
    patience: int = 0
    keep: str = "best"
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, least in LEAST_COUNTS.items():
            count = getattr(self, name)
            self._check(type(count) is int and count >= least, name, f"a whole number, {least} or more")
        self._check(0 < self.learning_rate < math.inf, "learning_rate", "a number above 0, such as 1e-3")
        for name in ("weight_decay", "clip_norm"):
            self._check(0 <= getattr(self, name) < math.inf, name, "a number, 0 or more")
        for name in ("warmup_share", "final_share", "beta_2", "label_smoothing", "dropout", "token_noise"):
            share = getattr(self, name)
            self._check((name == "dropout" and share is None) or 0 <= share < 1, name, "a share from 0 to below 1")
        self._check(self.keep in ("best", "last"), "keep", "best or last")
        self._check(self.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}")

    def _check(self, good: bool, name: str, expected: str) -> None:
        if not good:
            raise ValueError(f"`{name}` must be {expected}. Received: {getattr(self, name)!r}. Choose another value.")

    def to_dict(self) -> dict[str, Any]:
        """The options as a JSON-ready dictionary."""
        return asdict(self)
