"""Cross-entropy over a large vocabulary. The formula is the same on every backend; each carries it out in its own way."""

from keras import ops

from smolite.backends import backend


def token_nll(targets, logits):
    """Negative log-likelihood of each target, log Σ exp(logits) - logits[target].

    Example: targets `[[1]]` and logits `[[[0.0, 0.0]]]` → `[[0.6931]]`, the logarithm of 2.

    Args:
        targets: (B, L) int.
        logits: (B, L, V).

    Returns:
        (B, L) in nats.
    """
    return backend().token_nll(ops.convert_to_tensor(logits), ops.cast(targets, "int32"))


def logit_of(targets, logits):
    """The logits (B, L) of the targets (B, L), out of (B, L, V)."""
    return ops.take_along_axis(logits, ops.cast(targets, "int32")[..., None], axis=-1)[..., 0]
