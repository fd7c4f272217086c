"""Callbacks of a training run: what is checked, seeded, measured and logged, and the state to resume from."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import load_file, save

from smolite.files import write_file
from smolite.training.curves import draw_curves
from smolite.training.progress import Logs

STATE_FILE, WEIGHTS_FILE, BEST_FILE = "state.json", "state.safetensors", "best.safetensors"


class FiniteLoss(keras.callbacks.Callback):
    """Ends a run whose loss is no longer a number, before anything is kept of that epoch. Must be the first callback.

    Raises:
        FloatingPointError: the loss, in training or validation, is infinite or not a number.
    """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        for name in ("loss", "val_loss"):
            if not math.isfinite(logs.get(name, 0)):
                raise FloatingPointError(
                    f"The loss must be a number. Received: `{name}` {logs[name]} in epoch {epoch + 1}. Train again with a "
                    "smaller `learning_rate`, a longer warm-up or a smaller `global_clipnorm`."
                )


class EpochSeed(keras.callbacks.Callback):
    """Seeds the global random generators by the number of each epoch: on torch, Keras draws dropout from one of them.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        # From seed and epoch, so that a resumed run draws what the unbroken one drew; SeedSequence mixes the two, where seed
        # + epoch would repeat an epoch of the next seed.
        keras.utils.set_random_seed(int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]))


class BitsPerCharacter(keras.callbacks.Callback):
    """Adds `val_bits_per_character` to the logs, from the validation perplexity.

    Args:
        tokens: trained tokens of the validation set.
        characters: characters they stand for, one per response added.
    """

    def __init__(self, tokens: int, characters: int):
        super().__init__()
        self.tokens, self.characters = tokens, characters

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        # The perplexity and not the loss, which label smoothing raises.
        bits = math.log2(logs["val_perplexity"])
        logs["val_bits_per_character"] = bits * self.tokens / self.characters


class Journal(keras.callbacks.Callback):
    """Keeps one row per epoch in `log.csv` and redraws `curve.svg`.

    Args:
        folder: where the two files go.
        rows: rows of an interrupted run, from `TrainingState`.
    """

    def __init__(self, folder: Path, rows: Sequence[dict[str, float]] = ()):
        super().__init__()
        self.folder, self.rows = folder, list(rows)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        figures = {name: float(value) for name, value in logs.items()}
        self.rows.append({"epoch": epoch + 1, **figures, "learning_rate": rate})
        write_file(self.folder / "log.csv", _csv(self.rows).encode())
        write_file(self.folder / "curve.svg", loss_curve(self.rows).encode())


def _csv(rows: Sequence[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def loss_curve(rows: Sequence[dict[str, float]]) -> str:
    """The cross-entropy of a run as an SVG picture.

    Args:
        rows: one per epoch, with `epoch`, `perplexity` and perhaps `val_perplexity`, as `Journal` keeps them.
    """
    names = {"perplexity": "training", "val_perplexity": "validation"}
    curves = {
        label: [(row["epoch"], math.log(row[name])) for row in rows if name in row]
        for name, label in names.items()
        if any(name in row for row in rows)
    }
    return draw_curves(curves, title="Cross-entropy", x_label="epoch", y_label="nats per token")


class TrainingState(keras.callbacks.Callback):
    """Writes all that a run needs to go on as if it had never stopped, at the end of every epoch.

    Kept are the variables of the model (random seeds among them) and of the optimizer, the journal, and the weights of the best
    validation. Training stops after `patience` epochs without a better one. Must be the last callback.

    Args:
        folder: where the state goes.
        journal: the journal, whose rows belong to the state.
        settings: what must be the same for a run to be resumed.
        monitor: the log entry that tells the best epoch (less is better); nothing is compared where it is missing.
        patience: see above; 0 for never.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        *,
        settings: dict[str, Any],
        monitor: str = "val_bits_per_character",
        patience: int = 0,
    ):
        super().__init__()
        self.folder, self.journal, self.settings = folder, journal, settings
        self.monitor, self.patience = monitor, patience
        self.best, self.best_epoch, self.epoch, self.best_weights = math.inf, 0, 0, ""

    def restore(self, model: keras.Model) -> int:
        """Puts the kept state into `model` and its optimizer.

        Returns:
            The number of epochs already done.

        Raises:
            ValueError: the run was started with other settings.
        """
        state = json.loads((self.folder / STATE_FILE).read_text(encoding="utf-8"))
        then, now = _flat(state["settings"]), _flat(json.loads(json.dumps(self.settings)))
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if changed:
            differences = "; ".join(f"{key}: {then.get(key)} then, {now.get(key)} now" for key in changed)
            raise ValueError(
                f"A run resumes only with the settings it was started with. Received other ones: {differences}. Give the old "
                "ones, or start anew."
            )
        self.best = math.inf if state["best"] is None else state["best"]
        self.best_epoch, self.best_weights, self.epoch = state["best_epoch"], state["best_weights"], state["epoch"]
        self.journal.rows = state["rows"]
        tensors = load_file(self.folder / state["weights"])
        for name, variable in _state_variables(model).items():
            variable.assign(tensors[name])
        return self.epoch

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch = epoch + 1
        current = (logs or {}).get(self.monitor, math.inf)
        # Not <=: of equal epochs the first is kept, which has seen the data less often.
        if current < self.best:
            self.best, self.best_epoch, self.best_weights = float(current), self.epoch, f"{self.epoch}-{BEST_FILE}"
            write_file(self.folder / self.best_weights, save(_arrays(_weights(self.model))))
        self._write()
        if self.stopped:
            print(f"No better validation for {self.patience} epochs: stopping.", flush=True)
            self.model.stop_training = True

    def _write(self) -> None:
        """New weights under new names, then the small file that names them: whatever is cut off, one whole state remains."""
        # Two names by turns: the file that names one is written last, so that a whole one is always named.
        weights = f"{self.epoch % 2}-{WEIGHTS_FILE}"
        write_file(self.folder / weights, save(_arrays(_state_variables(self.model))))
        best = None if self.best == math.inf else self.best
        state = {"epoch": self.epoch, "weights": weights, "best": best, "best_epoch": self.best_epoch}
        state |= {"best_weights": self.best_weights, "settings": self.settings, "rows": self.journal.rows}
        write_file(self.folder / STATE_FILE, json.dumps(state, ensure_ascii=False, indent=1).encode())
        for path in self.folder.glob(f"*-{BEST_FILE}"):
            if path.name != self.best_weights:
                path.unlink()

    @property
    def stopped(self) -> bool:
        """Whether the validation has not become better for `patience` epochs."""
        return bool(self.patience and self.epoch - self.best_epoch >= self.patience)

    def put_best(self, model: keras.Model) -> int:
        """Puts the weights of the best validation into `model`, and returns their epoch; without any, those are the last."""
        if self.best_epoch:
            tensors = load_file(self.folder / self.best_weights)
            for name, variable in _weights(model).items():
                variable.assign(tensors[name])
        return self.best_epoch or self.epoch


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """`{"seed": 1, "options": {"epochs": 2}}` → `{"seed": 1, "options.epochs": 2}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _weights(model: keras.Model) -> dict[str, Any]:
    return _numbered(model.trainable_variables)


def _state_variables(model: keras.Model) -> dict[str, Any]:
    """All variables of model and optimizer, the states of random generators among them, but not those of the metrics."""
    metrics = {id(variable) for variable in model.metrics_variables}
    ours = [variable for variable in model.variables if id(variable) not in metrics]
    # Metrics begin anew in each epoch, so that they are no part of the state.
    return _numbered([*ours, *model.optimizer.variables])


def _numbered(variables: Sequence[Any]) -> dict[str, Any]:
    """Variables by a name that is the same in every process."""
    # Keras' paths have counters that depend on what the process made before.
    return {f"{number:05d}": variable for number, variable in enumerate(variables)}


def _arrays(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(keras.ops.convert_to_numpy(variable), order="C") for name, variable in variables.items()}
