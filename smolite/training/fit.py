"""Recipes: straight lines from a file of text to a run directory, through `model.fit`."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from smolite.backends import backend
from smolite.checkpoint import Run, load, save
from smolite.data import ChatDataset, ChatTemplate
from smolite.text import Tokenizer
from smolite.training import callbacks, progress
from smolite.training.compilation import compile_for_training
from smolite.training.materials import Dialogues, Form, Material, Pairs, Split, Texts
from smolite.training.options import TrainingOptions
from smolite.training.starts import (
    Own,
    check_own_model,
    check_parent,
    check_request,
    check_vocabulary,
    continued_model,
    new_model,
    origin,
)
from smolite.training.workplace import Workplace


def pretrain(
    texts: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    validation: str | Path | None = None,
    start: str | Path | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    preset: str = "smolite-small",
    options: TrainingOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **own: Any,
) -> Run:
    """Trains a model on plain text: a new one, or one that was trained before.

    Args:
        texts: one or several files of text or dialogues, see `read_documents`, or `owner/name:file` on the hub. Of
            dialogues every turn is a text, the questions too.
        out: the run directory to make.
        validation: held-out text of the same form.
        start: a run directory to start from, or a model's name on the hub. Default: a new model.
        tokenizer: of a new model: a tokenizer or its `.model` file. Default: one is trained on `texts`.
        preset: shape of a new model.
        options: settings of the training.
        resume: go on with an interrupted run into `out`.
        overwrite: replace an existing `out`.
        own: a `model` of yours to train, in place of a new one, an `optimizer`, `callbacks` beside the recipe's; see `Own`.

    Returns:
        The run, as saved in `out`, with the weights of the best validation.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a file cannot be used, or `start` and `tokenizer` are both given; the message says where and why.
    """
    names = [texts] if isinstance(texts, str | Path) else list(texts)
    given: dict[str, Any] = {"validation": validation, "start": start, "tokenizer": tokenizer, "preset": preset}
    return train(Texts(), names, out, **given, options=options, resume=resume, overwrite=overwrite, **own)


def finetune(
    dialogues: str | Path,
    out: str | Path,
    *,
    validation: str | Path | None = None,
    start: str | Path | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    preset: str = "smolite-small",
    options: TrainingOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **own: Any,
) -> Run:
    """Trains a model on dialogues; only the answers and their `<end>` are learnt.

    Args:
        dialogues: a file for `read_conversations`, or the name of a data set on the hub (`owner/name`).
        out: the run directory to make.
        validation: held-out dialogues of the same form.
        start: a run directory to start from, for example of `pretrain`. Default: a new model.
        tokenizer: of a new model: a tokenizer or its `.model` file. Default: one is trained on the dialogues.
        preset: shape of a new model.
        options, resume, overwrite, own: as in `pretrain`.

    Returns:
        The run, as saved in `out`, with the weights of the best validation.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a file cannot be used, or `start` and `tokenizer` are both given; the message says where and why.
    """
    given: dict[str, Any] = {"validation": validation, "start": start, "tokenizer": tokenizer, "preset": preset}
    return train(Dialogues(), dialogues, out, **given, options=options, resume=resume, overwrite=overwrite, **own)


def train_pairs(
    pairs: str | Path,
    out: str | Path,
    *,
    validation: str | Path | None = None,
    start: str | Path | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    preset: str = "smolite-small",
    options: TrainingOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **own: Any,
) -> Run:
    """Trains an encoder-decoder to write the target of each source: a translation, a summary, an answer, a reply.

    Args:
        pairs: a file for `read_pairs`, `sample-pairs`, or `owner/name:file` on the hub.
        out: the run directory to make.
        validation: held-out pairs of the same form.
        start: a run of this recipe to start from. Default: a new model.
        tokenizer: of a new model: a tokenizer or its `.model` file. Default: one is trained on sources and targets.
        preset: shape of a new model; one without an encoder gets one as deep as its decoder.
        options: settings of the training. Sources and targets share rows of up to `sequence_length` tokens on either side.
        resume, overwrite, own: as in `pretrain`.

    Returns:
        The run, as saved in `out`, with the weights of the best validation.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a file or `start` cannot be used; the message says where and why.
    """
    given: dict[str, Any] = {"validation": validation, "start": start, "tokenizer": tokenizer, "preset": preset}
    return train(Pairs(), pairs, out, **given, options=options, resume=resume, overwrite=overwrite, **own)


def train(
    material: Material,
    dataset: Any,
    out: str | Path,
    *,
    validation: str | Path | None = None,
    start: str | Path | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    preset: str = "smolite-small",
    options: TrainingOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **own: Any,
) -> Run:
    """Trains a model on any material; arguments and errors as in `finetune`."""
    options, mine = options or TrainingOptions(), Own(**own)
    check_own_model(mine, start=start, tokenizer=tokenizer, has_encoder=material.has_encoder, options=options)
    check_request(options, start=start, tokenizer=tokenizer, preset=preset, validation=validation)
    workplace = Workplace(Path(out), resume=resume, overwrite=overwrite)
    items = material.read(dataset)
    held_out = material.read(validation) if validation else []
    if mine.model is not None:
        model, template = mine.model, mine.model.template
        known = workplace.tokenizer(tokenizer or model.tokenizer, (), preset=preset)
        check_vocabulary(model, known)
    elif start:
        parent = load(start)
        check_parent(parent, has_encoder=material.has_encoder)
        model, known, template = continued_model(parent.model, options), parent.tokenizer, parent.template
    else:
        known, template = workplace.tokenizer(tokenizer, material.texts(items), preset=preset), ChatTemplate()
        model = new_model(preset, vocab_size=known.vocab_size, options=options, has_encoder=material.has_encoder)
    template = material.template(template)
    split = material.split(items, held_out, Form(known, template, options.sequence_length))
    names = [str(name) for name in dataset] if isinstance(dataset, list) else str(dataset)
    recipe: dict[str, Any] = {"verb": material.verb, "dataset": names, "validation": str(validation or "")}
    recipe |= {**origin(start=start, preset=preset, tokenizer=tokenizer), "options": options.to_dict()}
    run = Run.from_parts(out, model=model, tokenizer=known, template=template, recipe=recipe)
    return train_run(run, split, workplace, options=options, sample=material.sampler(run, split, options), own=mine)


def train_run(
    run: Run,
    split: Split,
    workplace: Workplace,
    *,
    options: TrainingOptions,
    sample: Callable[[], str],
    own: Own | None = None,
) -> Run:
    """`model.fit` with everything around it, then the run directory."""
    workplace.begin()
    own = own or Own()
    run = run.replace(recipe={**run.recipe, "backend": backend().name})
    dataset = ChatDataset(
        split.rows,
        options.batch_size,
        seed=options.seed,
        steps_per_epoch=_epoch_length(len(split.rows), options),
        token_noise=options.token_noise,
        spared_ids=run.tokenizer.markers.values(),
    )
    # The schedule goes by updates, and an epoch is a whole number of them.
    total_steps = len(dataset) * options.epochs // options.gradient_accumulation_steps
    compile_for_training(run.model, options, total_steps=total_steps, optimizer=own.optimizer)
    # Before `fit` would do it: a state to go on from is put into the optimizer's variables below.
    run.model.optimizer.build(run.model.trainable_variables)
    journal = callbacks.Journal(workplace.folder)
    settings = {**run.recipe, "config": run.model.config.to_dict(), "rows_checksum": split.rows.checksum}
    settings["validation_checksum"] = split.validation.checksum if split.validation else ""
    state = callbacks.TrainingState(workplace.folder, journal, settings=settings, patience=options.patience)
    done = state.restore(run.model) if workplace.interrupted else 0
    # Where the interrupted run stopped; the batch of a step depends on the seed and the step alone.
    dataset.seek(done * len(dataset))
    run.model.fit(
        dataset,
        initial_epoch=options.epochs if state.stopped else done,
        epochs=options.epochs,
        # Keras would shuffle batches by Python's global random state, which no resumed run has.
        shuffle=False,
        validation_data=_validation(split, options),
        callbacks=[*_reports(split, dataset, options, sample), journal, state, progress.TimeLeft(), *own.callbacks],
        verbose=_verbosity(),
    )
    saved_epoch = state.put_best(run.model) if options.restore_best_weights else state.epoch
    recipe = {**run.recipe, "log": journal.rows, "saved_epoch": saved_epoch}
    save(workplace.out, run.model, run.tokenizer, template=run.template, recipe=recipe, overwrite=True)
    workplace.finish()
    return run.replace(recipe=recipe)


def _epoch_length(num_rows: int, options: TrainingOptions) -> int:
    """Batches in an epoch, enough for whole steps."""
    steps = options.steps_per_epoch or math.ceil(num_rows / (options.batch_size * options.gradient_accumulation_steps))
    return steps * options.gradient_accumulation_steps


def _verbosity() -> int:
    """A progress bar where somebody watches, else a line per epoch."""
    return 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2


def _validation(split: Split, options: TrainingOptions) -> ChatDataset | None:
    if split.validation is None:
        return None
    # A batch of more rows than there are would be padding for the most part.
    return ChatDataset(split.validation, min(options.batch_size, len(split.validation)), shuffle=False)


def _reports(
    split: Split, dataset: ChatDataset, options: TrainingOptions, sample: Callable[[], str]
) -> list[keras.callbacks.Callback]:
    share = len(dataset) / dataset.batches_per_pass
    tokens = split.rows.fill * split.rows.tokens.size
    speed = progress.Speed(tokens * share, split.rows.num_trained * share)
    reports: list[keras.callbacks.Callback] = [callbacks.FiniteLoss(), callbacks.EpochSeed(options.seed), speed]
    if split.validation is not None:
        reports.append(callbacks.BitsPerCharacter(split.validation.num_trained, split.validation_characters))
    every = options.sample_steps * options.gradient_accumulation_steps or max(options.epochs // 5, 1) * len(dataset)
    return [*reports, progress.Pulse(), progress.Samples(sample, every, epoch_length=len(dataset))]
