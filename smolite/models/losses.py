"""What a language model learns by and is measured by, and which losses and metrics cannot read its logits."""

import re
from typing import Any

import keras
from keras import ops

from smolite.models.cross_entropy import logit_of, token_nll

# Keras' losses and metrics that take what they are given for probabilities unless `from_logits=True` is said.
_OF_PROBABILITIES = frozenset(
    "crossentropy ce binary_crossentropy binary_focal_crossentropy categorical_crossentropy categorical_focal_crossentropy "
    "sparse_categorical_crossentropy kl_divergence kld kullback_leibler_divergence".split()
)


@keras.saving.register_keras_serializable("smolite")
class NextTokenLoss(keras.losses.Loss):
    """Cross-entropy of the next token, averaged over the trained tokens (not over all positions).

    With label smoothing ε the target keeps 1 - ε and the rest is spread evenly over the vocabulary (Szegedy et al. 2016).

    Args:
        label_smoothing: ε, from 0 to below 1.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "next_token_loss", **kwargs: Any):
        super().__init__(name=name, **{"reduction": "mean_with_sample_weight", **kwargs})
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        """(B, L) targets and (B, L, V) logits → (B, L) nats."""
        nll = token_nll(y_true, y_pred)
        if not self.label_smoothing:
            return nll
        advantage = logit_of(y_true, y_pred) - ops.mean(y_pred, axis=-1)
        return nll + self.label_smoothing * advantage

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("smolite")
class Perplexity(keras.metrics.Mean):
    """exp of the mean negative log-likelihood per trained token; label smoothing has no part in it."""

    def __init__(self, name: str = "perplexity", **kwargs: Any):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """(B, L) targets, (B, L, V) logits and (B, L) weights."""
        logits = ops.stop_gradient(ops.convert_to_tensor(y_pred))
        return super().update_state(token_nll(y_true, logits), sample_weight=sample_weight)

    def result(self):
        """The perplexity so far."""
        return ops.exp(super().result())


def check_reads_logits(argument: str, given: Any) -> None:
    """Refuses losses and metrics that would take the logits of a language model for probabilities.

    Keras would clip the logits into [0, 1] and go on: the loss of a new model is then 1.5 times that of chance, and falls.

    Args:
        argument: the argument of `compile` that they were given as, for the message.
        given: a loss or metric as Keras takes them (a name, a function, an object), or lists and dictionaries of them.

    Raises:
        ValueError: one of them reads probabilities.
    """
    wrong = [each for each in keras.tree.flatten(given) if _reads_probabilities(each)]
    if wrong:
        instead = "SparseCategoricalCrossentropy(from_logits=True)"
        default = " or leave out `loss` for `NextTokenLoss`" if argument == "loss" else " or take `Perplexity`"
        raise ValueError(
            f"A {'loss' if argument == 'loss' else 'metric'} must read logits, which this model gives. Received: "
            f"`{argument}` with {_name_of(wrong[0])}, which reads probabilities. Give "
            f"keras.{'losses' if argument == 'loss' else 'metrics'}.{instead},{default}."
        )


def _reads_probabilities(given: Any) -> bool:
    if isinstance(given, str):
        return _snake_case(given) in _OF_PROBABILITIES
    if isinstance(given, keras.losses.Loss | keras.metrics.Metric):
        # Those of a divergence have no such setting: they read probabilities always.
        by_kind = _snake_case(type(given).__name__) in _OF_PROBABILITIES
        return not getattr(given, "from_logits", not by_kind)
    # A class given for its object, or one of Keras' functions; a function of one's own may be called as it likes.
    is_keras = getattr(given, "__module__", "").startswith("keras.")
    return is_keras and _snake_case(getattr(given, "__name__", "")) in _OF_PROBABILITIES


def _snake_case(name: str) -> str:
    """`SparseCategoricalCrossentropy` → `sparse_categorical_crossentropy`, `KLDivergence` → `kl_divergence`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _name_of(given: Any) -> str:
    return repr(given) if isinstance(given, str) else str(getattr(given, "__name__", type(given).__name__))
