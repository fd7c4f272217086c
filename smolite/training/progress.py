"""Callbacks that show how a training run goes on: its speed, the time left, and what the model writes."""

import time
from collections.abc import Callable
from typing import Any

import keras

Logs = dict[str, Any]  # the figures of an epoch or a batch so far, which Keras hands on from callback to callback


class Speed(keras.callbacks.Callback):
    """Adds `tokens_per_second` and `trained_per_second` of the epoch's training part to the logs.

    The progress bar shows the tokens per second of the epoch so far.

    Args:
        tokens: real tokens (no padding) in an epoch.
        trained: trained tokens in an epoch.
    """

    # Keras may call `on_train_batch_end` in another thread, while the next step runs.
    async_safe = True

    def __init__(self, tokens: float, trained: float):
        super().__init__()
        self.tokens, self.trained = tokens, trained
        self.started = self.ended = 0.0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.started, self.ended = time.perf_counter(), 0.0

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        tokens = self.tokens * (batch + 1) / self.params["steps"]
        logs["tokens_per_second"] = tokens / (time.perf_counter() - self.started)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        self.ended = self._when_computed()

    def _when_computed(self) -> float:
        """The time at which the last step is done: JAX and GPUs return before that."""
        keras.ops.convert_to_numpy(self.model.optimizer.iterations)
        return time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        seconds = (self.ended or self._when_computed()) - self.started
        logs["tokens_per_second"], logs["trained_per_second"] = self.tokens / seconds, self.trained / seconds


class TimeLeft(keras.callbacks.Callback):
    """Adds `minutes_left` to the logs of an epoch: those of the epochs to come, if they take as long as the ones before.

    Comes after `Journal`, so that it is shown and not kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started, self.done = 0.0, 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.started, self.done = time.perf_counter(), 0

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.done += 1
        minutes = (time.perf_counter() - self.started) / 60
        logs["minutes_left"] = minutes / self.done * (self.params["epochs"] - epoch - 1)


class Pulse(keras.callbacks.Callback):
    """Prints how far an epoch is, every minute, where its progress bar is not shown: `verbose=2`, as in a log file.

    Comes after `Speed`.

    Args:
        seconds: between two lines.
    """

    async_safe = True

    def __init__(self, seconds: float = 60.0):
        super().__init__()
        self.seconds = seconds
        self.started = self.shown = 0.0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.started = self.shown = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        now, done, steps = time.perf_counter(), batch + 1, self.params["steps"]
        if self.params["verbose"] != 2 or now - self.shown < self.seconds or done == steps:
            return
        self.shown = now
        left = (now - self.started) / done * (steps - done) / 60
        loss, speed = float(logs["loss"]), logs["tokens_per_second"]
        state = f"loss: {loss:.4f} - tokens_per_second: {speed:.1f} - minutes_left in the epoch: {left:.1f}"
        print(f"{done}/{steps} - {state}", flush=True)


class Samples(keras.callbacks.Callback):
    """Prints what the model writes, after every `every` batches, counted over all epochs.

    Args:
        write: gives the text to print, from the model as it is now.
        every: batches between two samples.
        epoch_length: batches in an epoch.
    """

    def __init__(self, write: Callable[[], str], every: int, *, epoch_length: int):
        super().__init__()
        self.write, self.every, self.epoch_length = write, every, epoch_length
        self.first = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.first = epoch * self.epoch_length

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        if batch:  # at its beginning, for Keras may call the end of a batch while the next one runs
            self._show(self.first + batch)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._show((epoch + 1) * self.epoch_length)

    def _show(self, done: int) -> None:
        if done % self.every == 0:
            # On JAX, Keras puts the weights of a running epoch into the model when it is asked for.
            _ = self.model
            print(f"\n{self.write()}\n", flush=True)
