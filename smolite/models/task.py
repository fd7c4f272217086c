"""What every language model here shares with keras-hub's tasks: the methods that a user of Keras looks for, by their names."""

from typing import Any

import keras

from smolite.models.losses import NextTokenLoss, Perplexity, check_reads_logits


class Task(keras.Model):
    """A language model with the doors of keras-hub's `CausalLM`; `CausalLM` and `Seq2SeqLM` say what it computes."""

    def compile(self, optimizer: Any = "auto", loss: Any = "auto", *, metrics=None, weighted_metrics: Any = "auto", **kwargs):
        """`keras.Model.compile`, with defaults for what a language model learns by.

        Args:
            optimizer: as in Keras. Default: Adam at 2e-5 as in keras-hub, a rate for going on with a trained model.
            loss: as in Keras, of logits. Default: `NextTokenLoss`.
            metrics: as in Keras, of logits; they count padding, so take `weighted_metrics`.
            weighted_metrics: as in Keras, of logits. Default: with the default loss `Perplexity` and accuracy, else none.
            kwargs: the other arguments of `keras.Model.compile`.

        Raises:
            ValueError: a loss or metric would take the logits for probabilities.
        """
        for name, given in {"loss": loss, "metrics": metrics, "weighted_metrics": weighted_metrics}.items():
            check_reads_logits(name, given)
        if _is_auto(weighted_metrics):
            # An empty list, for Keras keeps the metrics of an earlier `compile` where it is given None.
            weighted_metrics = _default_metrics() if _is_auto(loss) else []
        super().compile(
            optimizer=keras.optimizers.Adam(2e-5) if _is_auto(optimizer) else optimizer,
            loss=NextTokenLoss() if _is_auto(loss) else loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )

    def compile_from_config(self, config):
        """Compiles the model as it was when it was saved; Keras leaves out models with a `compile` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)


def _is_auto(given: Any) -> bool:
    return isinstance(given, str) and given == "auto"


def _default_metrics() -> list[keras.metrics.Metric]:
    return [Perplexity(), keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
