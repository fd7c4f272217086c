"""Cross-entropy over a large vocabulary: the one place where the cost of the logits is looked after.

A batch of 4,096 tokens has half a gigabyte of float32 logits at a vocabulary of 32,768, so what counts is how often they
are read, written and allocated. The formula is the same on every backend; the seam decides how it is carried out.
"""

import keras
from keras import ops

_CHUNK = 1 << 22  # logits taken at a time on torch: their memory is small enough to be used again


def token_nll(targets, logits):
    """Negative log-likelihood of each target, log Σ exp(logits) - logits[target].

    Example: targets `[[1]]` and logits `[[[0.0, 0.0]]]` → `[[0.6931]]`, the logarithm of 2.

    Args:
        targets: (B, L) int.
        logits: (B, L, V).

    Returns:
        (B, L) in nats.
    """
    seam = {"tensorflow": _by_softmax, "torch": _in_chunks}.get(keras.backend.backend(), _plain)
    return seam(ops.convert_to_tensor(logits), ops.cast(targets, "int32"))


def logit_of(targets, logits):
    """The logits (B, L) of the targets (B, L), out of (B, L, V)."""
    return ops.take_along_axis(logits, ops.cast(targets, "int32")[..., None], axis=-1)[..., 0]


def _plain(logits, targets):
    """XLA fuses this on JAX, gradient and all."""
    return ops.logsumexp(logits, axis=-1) - logit_of(targets, logits)


@ops.custom_gradient
def _by_softmax(logits, targets):
    """One softmax for the value and the gradient; TensorFlow's CPU has a much faster kernel for it than for the rest.

    log Σ exp(x) = max(x) - log(max(softmax(x))) is exact, for the greatest probability is never below 1 / V.
    """
    # Kept for the gradient, which is this and a correction at the targets. The plain form passes over the logits three times:
    # 0.30 s instead of 0.13 s for 4,096 tokens of 32,768 ids.
    probabilities = ops.softmax(logits)
    log_sum = ops.max(logits, axis=-1) - ops.log(ops.max(probabilities, axis=-1))

    def gradient(upstream):
        flat = ops.reshape(probabilities * upstream[..., None], (-1, ops.shape(logits)[-1]))
        corrected = ops.reshape((logit_of(targets, probabilities) - 1.0) * upstream, (-1,))
        rows = ops.arange(ops.shape(flat)[0], dtype="int32")
        places = ops.stack([rows, ops.reshape(targets, (-1,))], axis=-1)
        return ops.reshape(ops.scatter_update(flat, places, corrected), ops.shape(logits)), None

    return log_sum - logit_of(targets, logits), gradient


@ops.custom_gradient
def _in_chunks(logits, targets):
    """A few rows at a time, so that torch asks for no new memory of the logits' size but for the gradient itself."""
    # gather and scatter on torch take int64 alone.
    flat, columns = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1, 1).long()
    size = max(1, _CHUNK // flat.shape[1])
    # The plain form asks for new memory of the size of the logits at every operation: 1.4 to 2.1 s instead of 0.23 s for
    # 4,096 tokens of 32,768 ids.
    log_sum = ops.concatenate([ops.logsumexp(rows, axis=-1) for rows in flat.split(size)])

    def gradient(*_, upstream):
        slope = upstream.reshape(-1, 1)
        # The one large array: all that follows is written into it.
        out = logits.new_empty(flat.shape)
        for place, rows, part, total in zip(*(x.split(size) for x in (out, flat, slope, log_sum[:, None])), strict=True):
            place.copy_(rows).sub_(total).exp_().mul_(part)
        # softmax(x) - 1 at the target, and softmax(x) elsewhere.
        out.scatter_add_(1, columns, -slope)
        return out.reshape(logits.shape), None

    return (log_sum - flat.gather(1, columns)[:, 0]).reshape(targets.shape), gradient
