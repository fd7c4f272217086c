"""What every language model here shares with keras-hub's tasks: the methods that a user of Keras looks for, by their names."""

from typing import Any

import keras

from smolite.models import outward
from smolite.models.adapters import enable_lora
from smolite.models.losses import NextTokenLoss, Perplexity, check_reads_logits
from smolite.models.rematerialization import leave_remat_to_blocks
from smolite.models.sharding import layout_map


class Task(keras.Model):
    """A language model with the doors of keras-hub's `CausalLM`; `CausalLM` and `Seq2SeqLM` say what it computes."""

    # What `from_preset` brings along, and `generate` and `save_to_preset` use.
    tokenizer: Any = None
    template: Any = None
    sampler: Any = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        leave_remat_to_blocks(self)

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        metrics=None,
        weighted_metrics: Any = "auto",
        sampler: Any = "greedy",
        **kwargs,
    ):
        """`keras.Model.compile`, with defaults for what a language model learns by.

        Args:
            optimizer: as in Keras. Default: Adam at 2e-5 as in keras-hub, a rate for going on with a trained model.
            loss: as in Keras, of logits. Default: `NextTokenLoss`.
            metrics: as in Keras, of logits; they count padding, so take `weighted_metrics`.
            weighted_metrics: as in Keras, of logits. Default: with the default loss `Perplexity` and accuracy, else none.
            sampler: how `generate` picks ids: a `Sampling`, or `"greedy"`, `"top_k"`, `"top_p"` or `"random"` as in keras-hub.
            kwargs: the other arguments of `keras.Model.compile`.

        Raises:
            ValueError: a loss or metric would take the logits for probabilities, or there is no such sampler.
        """
        for name, given in {"loss": loss, "metrics": metrics, "weighted_metrics": weighted_metrics}.items():
            check_reads_logits(name, given)
        if _is_auto(weighted_metrics):
            # An empty list, for Keras keeps the metrics of an earlier `compile` where it is given None.
            weighted_metrics = _default_metrics() if _is_auto(loss) else []
        self.sampler = outward.sampling_of(sampler)
        super().compile(
            optimizer=keras.optimizers.Adam(2e-5) if _is_auto(optimizer) else optimizer,
            loss=NextTokenLoss() if _is_auto(loss) else loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )

    def compile_from_config(self, config):
        """Compiles the model as it was when it was saved; Keras leaves out models with a `compile` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config), sampler=self.sampler or "greedy")
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @classmethod
    def from_preset(cls, preset: Any, load_weights: bool = True, dtype: Any = None):
        """A model of a run directory, with its tokenizer as `model.tokenizer` and its chat template as `model.template`.

        Args:
            preset: a run directory, a model's name on the hub such as `"HuggingFaceTB/SmolLM2-135M"`, or, without weights, the
                name of a shape such as `"smolite-small"`.
            load_weights: False for random weights.
            dtype: Keras dtype or policy of the model.

        Raises:
            ValueError: a shape is asked for weights, the run has another kind of model, or is broken.
            FileNotFoundError: there is no such run, or a file in it is missing.
        """
        return outward.model_from_preset(cls, preset, load_weights=load_weights, dtype=dtype)

    def save_to_preset(self, preset_dir: Any, overwrite: bool = False) -> None:
        """Writes a run directory, as `smolite.save`, with `model.tokenizer` and `model.template`.

        Raises:
            ValueError: the model has no tokenizer, or one of another vocabulary.
            FileExistsError: there is something in the folder, and `overwrite` is false.
        """
        outward.save_run(self, preset_dir, overwrite=overwrite)

    def generate(self, inputs: Any, max_length: int | None = None, stop_token_ids: Any = "auto", strip_prompt: bool = False):
        """Goes on from prompts, by the `sampler` of `compile`; greedily without one. For chatting see `smolite.reply`.

        Args:
            inputs: a text, a list of texts, ids, or rows of ids of any lengths; of an encoder-decoder the sources.
            max_length: most ids of prompt and answer, of an encoder-decoder of the answer alone. Default: the context length.
            stop_token_ids: ids that end an answer, and are left out of it; `"auto"` for the tokenizer's `<end>`, None for none.
            strip_prompt: leave out the prompt; an encoder-decoder never repeats its source.

        Returns:
            What was given, with what follows: a text for a text, a list of ids for ids, a list of them for several.

        Raises:
            ValueError: texts or `"auto"` without `model.tokenizer`, or a prompt that leaves no room for an answer.
        """
        prompts = outward.prompts_of(self, inputs)
        stop_ids = outward.stop_ids_of(self, stop_token_ids)
        news = outward.new_ids(self, prompts, max_length=max_length or self.config.context_length, stop_ids=stop_ids)
        if not strip_prompt and not self.config.has_encoder:
            news = [row + new for row, new in zip(prompts.rows, news, strict=True)]
        answers = [self.tokenizer.decode(ids) for ids in news] if prompts.is_text else news
        return answers[0] if prompts.is_one else answers

    def enable_lora(self, rank: int, target_layer_names: Any = None) -> None:
        """Freezes the model but for LoRA of `rank` on its projections, or on those of the names given; compile it afterwards.

        Raises:
            ValueError: the rank is below 1, a name is unknown, or there is LoRA already.
        """
        enable_lora(self, rank, target_layer_names)

    @staticmethod
    def get_layout_map(device_mesh: Any, model_parallel_dim_name: str = "model", data_parallel_dim_name: str = "batch") -> Any:
        """The layouts of all matrices over a mesh of devices, for `keras.distribution.ModelParallel` on JAX.

        Raises:
            ValueError: it is no mesh, or has no such axes.
        """
        return layout_map(device_mesh, model_parallel_dim_name, data_parallel_dim_name)


def _is_auto(given: Any) -> bool:
    return isinstance(given, str) and given == "auto"


def _default_metrics() -> list[keras.metrics.Metric]:
    return [Perplexity(), keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
