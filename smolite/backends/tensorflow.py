"""TensorFlow's answers: graphs that read the variables, XLA for steps only, one softmax for the loss."""

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from smolite.backends.seams import ROW_PARTS, Backend, at_columns


class TensorFlow(Backend):
    """See `Backend`."""

    name = "tensorflow"

    def compiled(self, model: Any, function: Callable, *, is_step: bool) -> Callable:
        """A graph that reads the variables; XLA for steps only, which it makes twice as fast.

        A prompt's program is another one for each length, and called once: not worth what XLA takes to compile it.
        """
        import tensorflow as tf

        @functools.cache
        def recorded(shape):
            # No Python branch or loop in it depends on a tensor: autograph would have nothing to rewrite.
            return tf.function(functools.partial(function, model), jit_compile=is_step or None, autograph=False)

        # One for each shape: TensorFlow warns of a function that it records for many.
        return lambda first, *rest: recorded(tuple(first.shape))(first, *rest)

    def row_parts(self) -> int:
        """XLA's products of a row in parts, but on a GPU."""
        return 1 if _has_gpu() else ROW_PARTS

    def token_nll(self, logits: Any, targets: Any) -> Any:
        """By one softmax: 0.13 s instead of 0.30 for 4,096 tokens of 32,768 ids on two cores."""
        return _by_softmax(logits, targets)

    def jit_compile(self) -> bool | str:
        """Off on a processor, where XLA trains at two thirds of the speed; on a GPU Keras decides."""
        return "auto" if _has_gpu() else False


def _has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


@ops.custom_gradient
def _by_softmax(logits, targets):
    """One softmax for the value and the gradient; TensorFlow's CPU has a much faster kernel for it than for the rest.

    log Σ exp(x) = max(x) - log(max(softmax(x))) is exact, for the greatest probability is never below 1 / V.
    """
    # Kept for the gradient, which is this and a correction at the targets. The plain form passes over the logits three times.
    probabilities = ops.softmax(logits)
    log_sum = ops.max(logits, axis=-1) - ops.log(ops.max(probabilities, axis=-1))

    def gradient(upstream):
        flat = ops.reshape(probabilities * upstream[..., None], (-1, ops.shape(logits)[-1]))
        # The target's own column is written, not added to: a dense one-hot would be another tensor of the logits' size.
        corrected = ops.reshape((at_columns(probabilities, targets) - 1.0) * upstream, (-1,))
        rows = ops.arange(ops.shape(flat)[0], dtype="int32")
        places = ops.stack([rows, ops.reshape(targets, (-1,))], axis=-1)
        return ops.reshape(ops.scatter_update(flat, places, corrected), ops.shape(logits)), None

    return log_sum - at_columns(logits, targets), gradient


BACKEND = TensorFlow()
