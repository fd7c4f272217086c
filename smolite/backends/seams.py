"""What TensorFlow, JAX and torch do differently, as one list of questions; `backend()` answers for the one in use.

All else in Smolite is written with `keras.ops` and knows no backend. A new seam is a method or an attribute of `Backend`, with
what every backend does by itself as its body where there is such a thing, and an answer in the file of each that differs.
"""

import abc
import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import keras
from keras import ops

NAMES = ("tensorflow", "jax", "torch")
# XLA multiplies one row by a small matrix on one core. In parts that run side by side, and with the cache in the flat layout,
# a step of 20 M parameters took 4.0 ms instead of 5.6 (JAX) and 5.5 (TensorFlow) on two cores, where 2 and 4 parts are equally
# fast and 8 slower.
ROW_PARTS = 4


class OnePass(Protocol):
    """Updates of all weights in one pass over them, in place, under the names that Adam has for what they take."""

    def clip_by_global_norm(self, gradients: list[Any], limit: float) -> None:
        """Scales the gradients down, in place, so that their norm, all together, is at most `limit`."""
        ...

    def add(self, sums: list[Any], gradients: list[Any]) -> None:
        """Adds a gradient to each of the sums, in place: several batches to an update."""
        ...

    def clear(self, sums: list[Any]) -> None:
        """Sets the sums to 0, in place."""
        ...

    def adamw(self, weights: list[Any], gradients: list[Any], moments: tuple[list[Any], list[Any]], **settings: float) -> None:
        """AdamW's update of weights and of their first and second moments, in place.

        Args:
            weights, gradients, moments: as many tensors each.
            settings: `count` of the updates before this one, `learning_rate`, `weight_decay`, `beta_1`, `beta_2`, `epsilon`.
        """
        ...


class Backend(abc.ABC):
    """The seams: what depends on the backend, each with the reason.

    Attributes:
        name: as in `KERAS_BACKEND`.
        one_pass: updates of all weights in one pass, where Keras' own are much slower than that; else None. The compiled
            training step of TensorFlow and of JAX fuses Keras' operations; torch runs them one by one, each with a result in
            new memory.
        has_loops: whether a compiled function may hold a loop whose end the data decides, so that the device picks many
            tokens in one call: with 20 M parameters 200 tokens/s instead of 120 (TensorFlow), 218 instead of 160 (JAX).
        remat_keeps_state: whether `keras.remat` takes a function that reads weights and draws dropout, and draws the same again
            in the backward pass; else the function must be pure.
        is_one_program: whether one compiled function serves all lengths without harm, prefill as decode.
    """

    name: str
    one_pass: OnePass | None = None
    has_loops: bool = True
    remat_keeps_state: bool = False
    is_one_program: bool = False

    @abc.abstractmethod
    def compiled(self, model: Any, function: Callable, *, is_step: bool) -> Callable:
        """`function(model, …)` of tensors, compiled; it sees later changes of the weights.

        Args:
            model: the model.
            function: takes the model, a tensor, and more tensors, or lists and tuples of them.
            is_step: whether it is called often with the same shapes, and may take the memory of its second tensor, a cache.
        """

    def row_parts(self) -> int:
        """In how many parts the product of a single row is taken in a compiled step, see `models/projections.py`; 1: whole."""
        return 1

    def write_slice(self, part: Any, starts: tuple, new: Any) -> Any:
        """`part` with `new` at `starts`, of which one may be a tensor, in a compiled step that may take the memory of `part`.

        XLA writes in place by itself where nobody reads the old memory any more.
        """
        return ops.slice_update(part, starts, new)

    def token_nll(self, logits: Any, targets: Any) -> Any:
        """log Σ exp(logits) - logits[target], (B, L) in nats, of logits (B, L, V) and int32 targets (B, L).

        A batch of 4,096 tokens has half a gigabyte of float32 logits at a vocabulary of 32,768, so what counts is how often
        they are read, written and allocated.
        """
        return ops.logsumexp(logits, axis=-1) - at_columns(logits, targets)

    def jit_compile(self) -> bool | str:
        """Keras' `jit_compile` of a model that trains or scores."""
        return "auto"


def at_columns(rows: Any, columns: Any) -> Any:
    """(B, L) numbers of the rows (B, L, V), one of each at the columns (B, L)."""
    return ops.take_along_axis(rows, columns[..., None], axis=-1)[..., 0]


def stateless(model: Any, function: Callable) -> tuple[Callable, Callable]:
    """`function` of the model as one of the weights too, and a function that returns today's weights.

    What records a function with its weights as constants would go on with them after the next update.
    """
    variables = model.variables

    def of_weights(weights, *inputs):
        with keras.StatelessScope(list(zip(variables, weights, strict=True))):
            return function(model, *inputs)

    return of_weights, lambda: [variable.value for variable in variables]


def backend() -> Backend:
    """The seams of the backend in use, that of `KERAS_BACKEND` or of Keras' own settings.

    Raises:
        ValueError: it is one that Smolite does not know.
    """
    return _named(keras.backend.backend())


@functools.cache
def _named(name: str) -> Backend:
    if name not in NAMES:
        raise ValueError(
            f"Keras must run on one of {', '.join(NAMES)}. Received: {name}. Set the environment variable KERAS_BACKEND to one "
            "of them before Python starts."
        )
    # By name, so that a process reads no other backend's file.
    chosen: Backend = importlib.import_module(f"smolite.backends.{name}").BACKEND
    return chosen
