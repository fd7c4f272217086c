"""Batches for `fit`: a seekable dataset over packed rows."""

import math

import keras
import numpy as np

from smolite.packing import PackedRows, next_token_fields, pack, text_rows, unpacked_rows

__all__ = ["ChatDataset", "PackedRows", "next_token_fields", "pack", "text_rows", "unpacked_rows"]


class ChatDataset(keras.utils.PyDataset):
    """Batches of packed rows for `fit` and `evaluate`, that can start at any step.

    The batch of global step s depends on `(seed, s)` alone: the rows are in the order that `seed` and the
    pass (s // batches of a pass) give, so a resumed run sees what an unbroken one would have seen. All
    batches have the same shapes; a last short batch is filled with rows of padding, weight 0.

    Item i is the batch of step `step + i`: `(x, y, sample_weight)` with `x` a dict of `tokens`, `positions`,
    `segments` (batch, length) and `loss_at` (batch, targets), int32. `loss_at` has the places that are
    trained, `y` (batch, targets) int32 their targets and `sample_weight` (batch, targets) float32 their
    weights; unused ones are 0 with weight 0. `targets` is the most that any row trains, rounded up to a
    multiple of 8, at most the length.

    `fit` moves `step` on by an epoch after each epoch that it has read whole. Pass `shuffle=False` to `fit`:
    its default would shuffle the batches of an epoch once more, by Python's global random state.

    Args:
        rows: as `pack`, `unpacked_rows` or `text_rows` gives them.
        batch_size: rows in a batch.
        seed: of the order, 0 or more.
        shuffle: whether each pass has an order of its own; otherwise the rows come as they are.
        steps_per_epoch: batches in an epoch, by default those of one pass. Give it here, not to `fit`.

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
    ):
        super().__init__()
        _check_at_least(1, batch_size=batch_size, steps_per_epoch=steps_per_epoch)
        _check_at_least(0, seed=seed)
        if not rows.num_trained:
            raise ValueError("`rows` must hold a trained token. Received: none. Make them with `pack`.")
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.batches_per_pass = math.ceil(len(rows) / batch_size)
        self.steps_per_epoch = steps_per_epoch or self.batches_per_pass
        most = int(np.count_nonzero(rows.weights, axis=1).max())
        self.num_targets = min(math.ceil(most / 8) * 8, rows.length)
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
        number, place = divmod(step, self.batches_per_pass)
        chosen = self._row_order(number)[place * self.batch_size : (place + 1) * self.batch_size]
        tokens, targets, weights, positions, segments = (self._take(array, chosen) for array in _arrays(self.rows))
        loss_at = np.argsort(weights == 0, axis=1, kind="stable")[:, : self.num_targets].astype("int32")
        sample_weight = np.take_along_axis(weights, loss_at, axis=1)
        y = np.where(sample_weight != 0, np.take_along_axis(targets, loss_at, axis=1), 0).astype("int32")
        loss_at = np.where(sample_weight != 0, loss_at, 0).astype("int32")
        x = {"tokens": tokens, "positions": positions, "segments": segments, "loss_at": loss_at}
        return x, y, sample_weight

    def seek(self, step: int) -> None:
        """Make the batch of this global step item 0."""
        _check_at_least(0, step=step)
        self.step = step

    def on_epoch_begin(self) -> None:
        """Called by Keras before an epoch, and before it draws one batch to build a model."""
        self._drawn = 0

    def on_epoch_end(self) -> None:
        """Called by Keras after an epoch, and also before the first: move on if an epoch was read whole."""
        if self._drawn >= len(self):
            self.seek(self.step + len(self))
        self._drawn = 0

    def _row_order(self, number: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.rows))
        known, order = self._order
        if known != number:
            order = np.random.default_rng((self.seed, number)).permutation(len(self.rows))
            self._order = number, order
        return order

    def _take(self, array: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        filled = np.zeros((self.batch_size, self.rows.length), array.dtype)
        filled[: len(chosen)] = array[chosen]
        return filled


def _arrays(rows: PackedRows) -> tuple[np.ndarray, ...]:
    return rows.tokens, rows.targets, rows.weights, rows.positions, rows.segments


def _check_at_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {number}. Choose a larger number.")
