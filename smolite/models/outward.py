"""The doors through which a model reaches what is built on models: run directories, and generation.

A wing knows only those before it, but `model.generate` and `Model.from_preset` are where a user of Keras looks for them. So the
imports stand inside of these functions, are made when a method is called, and are all that there is of this kind.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from smolite.models.config import PRESETS, ModelConfig

# keras-hub's samplers at its own settings.
_SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "random": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.1},
}


def sampling_of(sampler: Any) -> Any:
    """A `Sampling`: itself, the one that a name stands for, or one of its fields.

    Raises:
        ValueError: it is neither.
    """
    from smolite.generation import Sampling

    if isinstance(sampler, Sampling):
        return sampler
    if isinstance(sampler, dict):
        # Out of a file of JSON, where a tuple is a list.
        return Sampling(**{**sampler, "banned_ids": tuple(sampler["banned_ids"])})
    if not isinstance(sampler, str) or sampler not in _SAMPLERS:
        raise ValueError(
            f"`sampler` must be a `smolite.Sampling` or one of {', '.join(_SAMPLERS)}. Received: {sampler!r:.60}. Choose one."
        )
    return Sampling(**_SAMPLERS[sampler])


def model_from_preset(kind: type, preset: Any, *, load_weights: bool, dtype: Any) -> Any:
    """The model of `from_preset`.

    Raises:
        ValueError: a shape without weights is asked for its weights, or the run has a model of another kind.
    """
    from smolite.checkpoint import open_run
    from smolite.models.seq2seq_lm import new_language_model

    is_shape = preset in PRESETS
    if is_shape and load_weights:
        raise ValueError(
            f"A built-in preset is a shape without weights. Received: {preset!r}. Pass load_weights=False for random ones, or "
            "give a run directory or a model's name on the hub."
        )
    run = None if is_shape else open_run(preset, dtype=dtype)
    config = ModelConfig.from_preset(preset) if run is None else run.config
    model = run.model if run is not None and load_weights else new_language_model(config, dtype=dtype)
    if not isinstance(model, kind):
        raise ValueError(
            f"`{kind.__name__}.from_preset` opens models of its own kind. Received: {preset}, a {type(model).__name__}. Call "
            f"`{type(model).__name__}.from_preset`."
        )
    if run is not None:
        model.tokenizer, model.template = run.tokenizer, run.template
    return model


def save_run(model: Any, preset_dir: Any, *, overwrite: bool) -> None:
    """Writes the run directory of `save_to_preset`."""
    from smolite.checkpoint import save

    save(preset_dir, model, tokenizer_of(model, "save_to_preset"), template=model.template, overwrite=overwrite)


def tokenizer_of(model: Any, method: str) -> Any:
    """The model's tokenizer.

    Raises:
        ValueError: it has none.
    """
    if model.tokenizer is None:
        raise ValueError(
            f"`{method}` needs the model's tokenizer. Received: a model without one. Set `model.tokenizer`, or make the "
            "model with `from_preset`."
        )
    return model.tokenizer


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What `generate` was given.

    Args:
        rows: a list of ids each.
        is_text: whether text goes in and comes out.
        is_one: whether it was one prompt, not a list of one.
    """

    rows: list[list[int]]
    is_text: bool
    is_one: bool


def prompts_of(model: Any, inputs: Any) -> Prompts:
    """Reads a text, texts, ids or rows of ids: `[5, 6]` and `[[5, 6]]` are the same row, once one and once a list of one.

    Raises:
        ValueError: there are none, or texts without a tokenizer.
    """
    if len(inputs) == 0:
        raise ValueError("`inputs` must hold a text, ids, or some of them. Received: none. Give at least one.")
    is_one = isinstance(inputs, str) or np.ndim(inputs[0]) == 0 and not isinstance(inputs[0], str)
    rows = [inputs] if is_one else inputs
    is_text = isinstance(rows[0], str)
    if is_text:
        encode = tokenizer_of(model, "generate").encode
        return Prompts(rows=[encode(text) for text in rows], is_text=True, is_one=is_one)
    return Prompts(rows=[np.asarray(row, "int64").tolist() for row in rows], is_text=False, is_one=is_one)


def stop_ids_of(model: Any, stop_token_ids: Any) -> tuple[int, ...]:
    """The ids that end an answer: `"auto"` for the tokenizer's `<end>`, None for none."""
    if isinstance(stop_token_ids, str):
        return (tokenizer_of(model, 'generate(stop_token_ids="auto")').end_id,)
    return tuple(stop_token_ids or ())


def new_ids(model: Any, prompts: Prompts, *, max_length: int, stop_ids: tuple[int, ...]) -> list[list[int]]:
    """What follows each prompt. Prompt and answer share `max_length` ids, but for an encoder-decoder, whose answer has them."""
    from smolite.generation import generate

    used = [0 if model.config.has_encoder else len(row) for row in prompts.rows]
    if (longest := max(used)) >= max_length:
        raise ValueError(
            f"`max_length` must leave room after the longest prompt, of {longest} ids. Received: {max_length}. Give more, up "
            f"to the context length, {model.config.context_length}, or shorten the prompt."
        )
    sampling = sampling_of(model.sampler or "greedy")
    engine = _engine(model, batch_size=len(prompts.rows), length=max_length)
    news = generate(engine, prompts.rows, max_new_tokens=max_length - min(used), sampling=sampling, stop_ids=stop_ids)
    return [new[: max_length - count] for new, count in zip(news, used, strict=True)]


def _engine(model: Any, *, batch_size: int, length: int) -> Any:
    """The model's engine of this size: the last one, compiled already, while the model's variables are the same."""
    from smolite.generation import KerasEngine, Seq2SeqEngine

    key = batch_size, length, tuple(map(id, model.variables))
    # Beside Keras' attributes, which would be looked through whenever the model is saved.
    kept_key, engine = vars(model).get("_engine", (None, None))
    if kept_key != key:
        if model.config.has_encoder:
            start_id = tokenizer_of(model, "generate").start_id
            engine = Seq2SeqEngine(model, start_id=start_id, batch_size=batch_size, target_length=length)
        else:
            engine = KerasEngine(model, batch_size=batch_size, context_length=length)
        vars(model)["_engine"] = key, engine
    return engine
