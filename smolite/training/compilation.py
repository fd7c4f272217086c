"""What training needs beside `model.fit`: optimizer and schedule, and how a model is compiled for it."""

from typing import Any

import keras

from smolite.backends import backend
from smolite.models import CausalLM, NextTokenLoss, Perplexity
from smolite.training.optimizers import FusedAdamW, LayerwiseAdamW, PerUpdate
from smolite.training.options import TrainingOptions


def compile_for_training(model: CausalLM, options: TrainingOptions, *, total_steps: int, optimizer: Any = None) -> None:
    """Compiles `model` with AdamW, warm-up and cosine decay, clipping, and masked metrics.

    Args:
        model: a model of float32 variables; compiled in place.
        options: see `TrainingOptions`.
        total_steps: updates of the whole run; the schedule ends there.
        optimizer: one in place of AdamW, or its name; then rate, schedule, decay and clipping are its own.
    """
    model.compile(
        adamw(options, total_steps=total_steps) if optimizer is None else optimizer,
        loss=NextTokenLoss(options.label_smoothing),
        weighted_metrics=[Perplexity(), keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        jit_compile=backend().jit_compile(),
    )


def adamw(options: TrainingOptions, *, total_steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of `compile_for_training`. Rate, weight decay and clipping go by updates, not by batches."""
    schedule = learning_rate_schedule(options, total_steps=total_steps)
    several = options.gradient_accumulation_steps > 1
    settings: dict[str, Any] = {
        "learning_rate": PerUpdate(schedule, options.gradient_accumulation_steps) if several else schedule,
        "weight_decay": options.weight_decay,
        "beta_2": options.beta_2,
        "global_clipnorm": options.global_clipnorm or None,
        # Keras refuses 1, and keeps a sum of gradients for any other number.
        "gradient_accumulation_steps": options.gradient_accumulation_steps if several else None,
    }
    if options.layer_decay < 1:
        return LayerwiseAdamW(**settings, layer_decay=options.layer_decay)
    optimizer = (FusedAdamW if backend().one_pass else keras.optimizers.AdamW)(**settings)
    # Decay pulls towards 0, which is no neutral value for the scale of a norm.
    optimizer.exclude_from_weight_decay(var_names=["scale", "gamma", "beta", "bias"])
    return optimizer


def learning_rate_schedule(options: TrainingOptions, *, total_steps: int):
    """Linear warm-up from 0 to `learning_rate`, then a half cosine to `min_lr_ratio` of it (Loshchilov and Hutter 2017)."""
    # The cosine needs a step to fall in, however short the run.
    warmup = min(round(total_steps * options.warmup_ratio), total_steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        # Keras' schedule begins the warm-up from here.
        0.0 if warmup else options.learning_rate,
        decay_steps=total_steps - warmup,
        alpha=options.min_lr_ratio,
        warmup_target=options.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
