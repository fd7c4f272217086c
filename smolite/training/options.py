"""The settings of a training run, in a module that imports nothing heavy."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

LEAST_COUNTS = {
    "epochs": 1,
    "batch_size": 1,
    "sequence_length": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_epoch": 0,
    "sample_steps": 0,
    "patience": 0,
    "seed": 0,
}
Dtype = Literal["float32", "mixed_bfloat16", "mixed_float16"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of a training run; each is a command-line flag, with what stands here as its help.

    Each is called what Keras calls it (`global_clipnorm`), or else Hugging Face (`warmup_ratio`).

    Args:
        epochs: passes over the rows (with `steps_per_epoch`: stretches of that many steps).
        batch_size: rows in a batch, as many as memory holds.
        sequence_length: tokens in a row; several dialogues share one. At most the model's context length.
        gradient_accumulation_steps: batches in a step, which is one update of the weights with the mean of their gradients.
            Each batch counts the same in it: where all rows train equally many tokens, as full rows of text do, that is one
            batch of all their rows; where a batch trains fewer tokens than another, its tokens count for more.
        steps_per_epoch: steps between two validations and checkpoints; 0 for those of one pass. With
            `gradient_accumulation_steps` the last step of a pass is filled up from the next one.
        sample_steps: steps between two samples of what the model writes; 0 for the ends of five epochs.
        learning_rate: highest learning rate, reached after the warm-up.
        warmup_ratio: share of all steps in which the rate climbs from 0; with 0 it starts at its highest.
        min_lr_ratio: share of the highest rate that the cosine ends on.
        layer_decay: share of the learning rate that is left from each block to the one before it, see `LayerwiseAdamW`; 1
            for one rate everywhere.
        weight_decay: of AdamW, on matrices only; norm scales are left alone.
        beta_2: of AdamW.
        global_clipnorm: the gradient's norm is cut to this; 0 for never.
        label_smoothing: share of the target spread over the vocabulary. Perplexity is reported without it.
        dropout: share of activations dropped; default: the model's own.
        token_noise: share of the tokens read that are replaced by random ones; a small set is learnt by heart more slowly.
        patience: epochs without a better validation after which training stops; 0 for never. Needs validation data.
        restore_best_weights: whether the weights of the best validation are saved, or those of the last epoch.
        seed: of weights, dropout and the order of rows.
        dtype: of the arithmetic; the weights stay float32.

    Raises:
        ValueError: an option is out of range.
    """

    epochs: int = 10
    batch_size: int = 16
    sequence_length: int = 128
    gradient_accumulation_steps: int = 1
    steps_per_epoch: int = 0
    sample_steps: int = 0
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.05
    min_lr_ratio: float = 0.05
    layer_decay: float = 1.0
    weight_decay: float = 0.1
    beta_2: float = 0.98
    global_clipnorm: float = 1.0
    label_smoothing: float = 0.0
    dropout: float | None = None
    token_noise: float = 0.0
    patience: int = 0
    restore_best_weights: bool = True
    seed: int = 0
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name, least in LEAST_COUNTS.items():
            count = getattr(self, name)
            self._check(type(count) is int and count >= least, name, f"a whole number, {least} or more")
        self._check(0 < self.learning_rate < math.inf, "learning_rate", "a number above 0, such as 1e-3")
        self._check(0 < self.layer_decay <= 1, "layer_decay", "a share above 0, up to 1")
        for name in ("weight_decay", "global_clipnorm"):
            self._check(0 <= getattr(self, name) < math.inf, name, "a number, 0 or more")
        for name in ("warmup_ratio", "min_lr_ratio", "beta_2", "label_smoothing", "dropout", "token_noise"):
            share = getattr(self, name)
            self._check((name == "dropout" and share is None) or 0 <= share < 1, name, "a share from 0 to below 1")
        self._check(type(self.restore_best_weights) is bool, "restore_best_weights", "True or False")
        self._check(self.dtype in get_args(Dtype), "dtype", f"one of {', '.join(get_args(Dtype))}")

    def _check(self, good: bool, name: str, expected: str) -> None:
        if not good:
            raise ValueError(f"`{name}` must be {expected}. Received: {getattr(self, name)!r}. Choose another value.")

    @classmethod
    def from_recipe(cls, name: str, **changes: Any) -> "TrainingOptions":
        """The recipe called `name`, with the options in `changes` replaced.

        Raises:
            ValueError: there is no such recipe, or an option is out of range.
        """
        if name not in RECIPES:
            raise ValueError(f"Unknown recipe. Received: {name!r}. Choose one of: {', '.join(RECIPES)}.")
        return replace(RECIPES[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        """The options as a JSON-ready dictionary."""
        return asdict(self)


# Named settings. `smollm2` is for `smollm2-135m` from scratch on text: batches of 8 × 2,048 tokens, four of them in a step,
# checkpoints every 1,000 steps and samples every 500. 1,000 steps are an epoch, 66 million tokens; choose `epochs` by the text.
RECIPES: dict[str, TrainingOptions] = {
    "smollm2": TrainingOptions(
        batch_size=8,
        sequence_length=2048,
        gradient_accumulation_steps=4,
        steps_per_epoch=1000,
        sample_steps=500,
        learning_rate=3e-3,
        weight_decay=0.01,
        beta_2=0.95,
        dtype="mixed_bfloat16",
    ),
}
