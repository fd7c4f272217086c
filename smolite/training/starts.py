"""What a recipe trains: a new model or one that was trained before, and what is refused before slow work."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from smolite.checkpoint import Run, assign_weights, model_weights
from smolite.models import LanguageModel, ModelConfig, new_language_model
from smolite.text import Tokenizer
from smolite.training.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Own:
    """What a user of Keras brings to a recipe.

    Args:
        model: a model to train in place, with its own dropout and dtype: of `from_preset`, with LoRA, or made in a
            `keras.RematScope`. Its tokenizer is the recipe's `tokenizer`, or else `model.tokenizer`.
        optimizer: a Keras optimizer or its name, whose rate, schedule, decay and clipping replace those of the options.
        callbacks: Keras callbacks, called after the recipe's own; what they keep is not part of a run to resume.
    """

    model: LanguageModel | None = None
    optimizer: Any = None
    callbacks: Sequence[keras.callbacks.Callback] = ()


def check_own_model(own: Own, *, start: Any, tokenizer: Any, has_encoder: bool, options: TrainingOptions) -> None:
    """Refuses a model that the recipe cannot train, before slow work.

    Raises:
        ValueError: there is a run to start from as well, no tokenizer, the model is of the other kind, or rows are too long.
    """
    if own.model is None:
        return
    if start:
        raise ValueError("A recipe trains one model. Received: `start` and `model`. Leave out one of them.")
    if tokenizer is None and own.model.tokenizer is None:
        raise ValueError("A model of yours needs its tokenizer. Received: none. Give `tokenizer`, or set `model.tokenizer`.")
    if own.model.config.has_encoder != has_encoder:
        raise ValueError(
            f"`model` must be one {'with' if has_encoder else 'without'} an encoder. Received: a {type(own.model).__name__}. "
            f"Take `{'finetune' if has_encoder else 'train_pairs'}` for it."
        )
    checked_length(own.model.config, options)


def check_vocabulary(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Refuses another tokenizer than the model's.

    Raises:
        ValueError: their vocabularies differ in size.
    """
    if model.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"Tokenizer and `model` must have one vocabulary. Received: {tokenizer.vocab_size} and {model.config.vocab_size}. "
            "Give the tokenizer that the model was made for."
        )


def new_model(preset: str, *, vocab_size: int, options: TrainingOptions, has_encoder: bool = False) -> LanguageModel:
    """A model with random weights, drawn from the seed in `options`; with an encoder where one is asked for.

    A preset without an encoder gets one as deep as its decoder.
    """
    config = ModelConfig.from_preset(preset, vocab_size=vocab_size)
    depth = config.num_encoder_layers or config.num_layers * has_encoder
    dropout = config.dropout if options.dropout is None else options.dropout
    config = dataclasses.replace(config, dropout=dropout, num_encoder_layers=depth)
    keras.utils.set_random_seed(options.seed)
    return new_language_model(checked_length(config, options), dtype=options.dtype)


def continued_model(model: LanguageModel, options: TrainingOptions) -> LanguageModel:
    """A model with the weights of `model`, LoRA merged, and dropout and dtype from `options`."""
    dropout = model.config.dropout if options.dropout is None else options.dropout
    keras.utils.set_random_seed(options.seed)
    config = dataclasses.replace(model.config, dropout=dropout)
    continued = new_language_model(checked_length(config, options), dtype=options.dtype)
    # A new model and not the old one: dropout and dtype are fixed when layers are made.
    assign_weights(continued, model_weights(model))
    return continued


def origin(*, start: str | Path | None, preset: str, tokenizer: str | Path | Tokenizer | None) -> dict[str, str]:
    """What a model is made from, for `recipe.json`; a tokenizer only where it came as a file, which can be given again."""
    if start:
        return {"start": str(start)}
    return {"preset": preset} | ({} if tokenizer is None or isinstance(tokenizer, Tokenizer) else {"tokenizer": str(tokenizer)})


def check_request(
    options: TrainingOptions,
    *,
    preset: str,
    validation: str | Path | None,
    start: str | Path | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
) -> None:
    """Refuses what a recipe cannot do, before slow work.

    Raises:
        ValueError: a tokenizer beside a run to start from, `patience` without `validation`, or rows longer than the context.
    """
    if start and tokenizer:
        raise ValueError("A run to start from brings its tokenizer. Received: `start` and `tokenizer`. Leave out one of them.")
    if options.patience and not validation:
        raise ValueError(
            f"`patience` needs validation data to compare epochs. Received: {options.patience} and no `validation`. "
            "Give held-out data, or leave out `patience`."
        )
    if not start:
        checked_length(ModelConfig.from_preset(preset), options)


def check_parent(parent: Run, *, has_encoder: bool) -> None:
    """Refuses a run to start from that is of the other kind.

    Raises:
        ValueError: it has an encoder and should not, or the other way round.
    """
    if parent.config.has_encoder != has_encoder:
        wanted, verb = ("with", "finetune") if has_encoder else ("without", "pairs")
        raise ValueError(
            f"`start` must be a run of a model {wanted} an encoder. Received: {parent.path}. Start from another, or from none; "
            f"`smolite {verb}` goes on with this one."
        )


def checked_length(config: ModelConfig, options: TrainingOptions) -> ModelConfig:
    """The config, whose context must hold a row.

    Raises:
        ValueError: it does not.
    """
    if options.sequence_length > config.context_length:
        raise ValueError(
            f"`sequence_length` must not exceed the model's context length. Received: {options.sequence_length} and "
            f"{config.context_length}. Choose shorter rows."
        )
    return config
