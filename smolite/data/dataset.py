"""Batches for `fit`: a seekable dataset over packed rows."""

import math
from collections.abc import Collection

import keras
import numpy as np

from smolite.data.packing import PackedRows, next_token_fields, pack, text_rows, unpacked_rows

__all__ = ["ChatDataset", "PackedRows", "next_token_fields", "pack", "shift_labels", "text_rows", "unpacked_rows"]

# The label that Hugging Face's models leave out of the loss.
_NOT_LEARNT = -100
# Keeps the random numbers of the noise apart from those of the order, which are drawn by (seed, pass).
_NOISE_STREAM = 1


def shift_labels(ids: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Labels in Hugging Face's way, as `(x, y, sample_weight)` for `fit`, which give the same loss.

    There, a label stands in the column of its own token, the shift to the next token is made inside the model, and -100 is not
    learnt. Here the arrays are shifted beforehand.

    Example: ids `[[5, 6, 7]]` and labels `[[-100, -100, 7]]` → tokens `[[5, 6]]`, y `[[0, 7]]`, weights `[[0.0, 1.0]]`.

    Args:
        ids: (batch, length) token ids.
        labels: (batch, length) ids to learn, -100 where nothing is.

    Raises:
        ValueError: the two differ in shape, or are not (batch, length) of at least 2 tokens.
    """
    ids, labels = np.asarray(ids, "int32"), np.asarray(labels, "int32")
    if ids.ndim != 2 or ids.shape != labels.shape or ids.shape[1] < 2:
        raise ValueError(
            f"`ids` and `labels` must both be (batch, length), of at least 2 tokens. Received: {ids.shape} and {labels.shape}. "
            "Give one label for each id, -100 where nothing is learnt."
        )
    learnt = labels[:, 1:] != _NOT_LEARNT
    return {"tokens": ids[:, :-1]}, np.where(learnt, labels[:, 1:], 0), learnt.astype("float32")


class ChatDataset(keras.utils.PyDataset):
    """Batches of packed rows for `fit` and `evaluate`, that can start at any step.

    The batch of global step s depends on `(seed, s)` alone: the rows are in the order that `seed` and the
    pass (s // batches of a pass) give, so a resumed run sees what an unbroken one would have seen. All
    batches have the same shapes; a last short batch is filled with rows of padding, weight 0.

    Item i is the batch of step `step + i`: `(x, y, sample_weight)` with `x` a dict of `tokens`, `positions`,
    `segments` (batch, length) and `loss_at` (batch, targets), int32. `loss_at` has the columns that are
    trained, `y` (batch, targets) int32 their targets and `sample_weight` (batch, targets) float32 their
    weights; unused ones are 0 with weight 0. `targets` is the most that any row trains, rounded up to a
    multiple of 8, at most the length; where it is the length, every column has its target and `loss_at` is left out.

    Rows with sources add `source`, `source_positions` and `source_segments` to `x`.

    `fit` moves `step` on by an epoch after each epoch that it has read whole. Pass `shuffle=False` to `fit`:
    its default would shuffle the batches of an epoch once more, by Python's global random state.

    Args:
        rows: as `pack`, `unpacked_rows` or `text_rows` gives them.
        batch_size: rows in a batch.
        seed: of the order, 0 or more.
        shuffle: whether each pass has an order of its own; otherwise the rows come as they are.
        steps_per_epoch: batches in an epoch, by default those of one pass. Give it here, not to `fit`.
        token_noise: share of the tokens read, not of targets and sources, that are replaced by others, as frequent as these are
            in `rows`; others in each pass. What smoothing is to an n-gram model (Xie et al. 2017, unigram noising).
        spared_ids: ids, such as the markers', that noise neither replaces nor draws.

    Raises:
        ValueError: an argument out of range, or rows in which nothing is trained.
    """

    def __init__(
        self,
        rows: PackedRows,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        steps_per_epoch: int | None = None,
        token_noise: float = 0.0,
        spared_ids: Collection[int] = (),
    ):
        super().__init__()
        _check_at_least(1, batch_size=batch_size, steps_per_epoch=steps_per_epoch)
        _check_at_least(0, seed=seed)
        if not 0 <= token_noise < 1:
            raise ValueError(f"`token_noise` must be a share from 0 to below 1. Received: {token_noise}. Choose a smaller one.")
        if not rows.num_trained:
            raise ValueError("`rows` must hold a trained token. Received: none. Make them with `pack`.")
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.batches_per_pass = math.ceil(len(rows) / batch_size)
        self.steps_per_epoch = steps_per_epoch or self.batches_per_pass
        # Logits are computed for the trained columns alone, of dialogues the answers: no other pays for the projection to the
        # whole vocabulary and its loss. One number for all batches, as each shape would be compiled anew.
        most = int(np.count_nonzero(rows.weights, axis=1).max())
        self.num_targets = min(math.ceil(most / 8) * 8, rows.length)
        self.token_noise = token_noise
        self._noisy = (rows.segments != 0) & ~np.isin(rows.tokens, list(spared_ids)) if token_noise else None
        # Drawn from the tokens themselves, a frequent one is drawn as often as it is read.
        self._pool = rows.tokens[self._noisy] if token_noise else rows.tokens[:0]
        self.step = 0
        self._drawn = 0
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be from 0 to {len(self) - 1}. Received: {index}. Use `batch(step)`.")
        self._drawn += 1
        return self.batch(self.step + index)

    def batch(self, step: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Return the batch of a global step, counted from 0 over all passes."""
        _check_at_least(0, step=step)
        number, within = divmod(step, self.batches_per_pass)
        chosen = self._row_order(number)[within * self.batch_size : (within + 1) * self.batch_size]
        x = {name: self._take(array, chosen) for name, array in self.rows.inputs.items()}
        targets, weights = self._take(self.rows.targets, chosen), self._take(self.rows.weights, chosen)
        if self._noisy is not None:
            x["tokens"] = self._with_noise(x["tokens"], self._take(self._noisy, chosen), step)
        if self.num_targets == self.rows.length:
            return x, np.where(weights != 0, targets, 0), weights
        # A stable sort of "not trained" brings the trained columns to the front in their order.
        loss_at = np.argsort(weights == 0, axis=1, kind="stable")[:, : self.num_targets].astype("int32")
        sample_weight = np.take_along_axis(weights, loss_at, axis=1)
        y = np.where(sample_weight != 0, np.take_along_axis(targets, loss_at, axis=1), 0).astype("int32")
        loss_at = np.where(sample_weight != 0, loss_at, 0).astype("int32")
        return {**x, "loss_at": loss_at}, y, sample_weight

    def seek(self, step: int) -> None:
        """Make the batch of this global step item 0."""
        _check_at_least(0, step=step)
        self.step = step

    def on_epoch_begin(self) -> None:
        """Called by Keras before an epoch, and before it draws one batch to build a model."""
        self._drawn = 0

    def on_epoch_end(self) -> None:
        """Called by Keras after an epoch, and also before the first: move on if an epoch was read whole."""
        # Keras calls this before the first epoch, too, after one batch that it builds the model with.
        if self._drawn >= len(self):
            self.seek(self.step + len(self))
        self._drawn = 0

    def _row_order(self, number: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.rows))
        known, order = self._order
        if known != number:
            # By seed and pass, and not by a generator that goes on: any step can be asked for without those before it.
            order = np.random.default_rng((self.seed, number)).permutation(len(self.rows))
            self._order = number, order
        return order

    def _with_noise(self, tokens: np.ndarray, noisy: np.ndarray, step: int) -> np.ndarray:
        """Tokens, of which some that may be noisy are drawn anew, by the seed and the step alone."""
        generator = np.random.default_rng((self.seed, _NOISE_STREAM, step))
        hit = noisy & (generator.random(tokens.shape) < self.token_noise)
        return np.where(hit, generator.choice(self._pool, tokens.shape), tokens)

    def _take(self, array: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        # Padding of weight 0 keeps the shape of the last batch, which would be compiled for itself.
        filled = np.zeros((self.batch_size, array.shape[1]), array.dtype)
        filled[: len(chosen)] = array[chosen]
        return filled


def _check_at_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {number}. Choose a larger number.")
