"""Recipes: straight lines from a file of text to a run directory, through `model.fit`."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from smolite.checkpoint import Run, load, save
from smolite.data import (
    ChatDataset,
    ChatTemplate,
    Conversation,
    Message,
    PackedRows,
    fit_context,
    pack,
    read_conversations,
    read_documents,
    resolve_dataset,
    text_rows,
)
from smolite.evaluation import count_characters, count_text_characters
from smolite.models import LanguageModel
from smolite.text import Tokenizer
from smolite.training import callbacks, progress
from smolite.training.compilation import compile_for_training
from smolite.training.options import TrainingOptions
from smolite.training.samples import SAMPLES, sample_engine, sample_replies, sample_texts
from smolite.training.starts import check_parent, check_request, continued_model, new_model, origin
from smolite.training.workplace import Workplace


@dataclass(frozen=True)
class Split:
    """Rows to train on and to validate on, and what their trained tokens stand for.

    Args:
        rows: training rows.
        validation: validation rows, or None.
        validation_characters: characters of the validation's trained text.
        questions: beginnings of dialogues, up to a user turn, that sample replies are shown for.
    """

    rows: PackedRows
    validation: PackedRows | None = None
    validation_characters: int = 0
    questions: Sequence[Sequence[Message]] = ()


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

    Returns:
        The run, as saved in `out`, with the weights of the best validation.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a file cannot be used, or `start` and `tokenizer` are both given; the message says where and why.
    """
    options = options or TrainingOptions()
    check_request(options, start=start, tokenizer=tokenizer, preset=preset, validation=validation)
    workplace = Workplace(Path(out), resume=resume, overwrite=overwrite)
    names = [texts] if isinstance(texts, str | Path) else list(texts)
    documents = [text for name in names for text in read_documents(resolve_dataset(name))]
    held_out = read_documents(resolve_dataset(validation)) if validation else []
    if start:
        model, known, template = _continued(start, options)
    else:
        known, template = workplace.tokenizer(tokenizer, documents, preset=preset), ChatTemplate()
        model = new_model(preset, vocab_size=known.vocab_size, options=options)
    split = Split(text_rows(documents, known, length=options.sequence_length))
    if held_out:
        rows = text_rows(held_out, known, length=options.sequence_length)
        split = Split(split.rows, rows, count_text_characters(held_out, known))
    recipe = {"verb": "pretrain", "dataset": [str(name) for name in names], "validation": str(validation or "")}
    recipe |= origin(start=start, preset=preset, tokenizer=tokenizer)
    made = {**recipe, "options": options.to_dict()}
    run = Run.from_parts(out, model=model, tokenizer=known, template=template, recipe=made)
    engine = sample_engine(model, sequence_length=options.sequence_length)
    return train_run(
        run, split, workplace, options=options, sample=lambda: sample_texts(engine, run, (held_out or documents)[:SAMPLES])
    )


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
) -> Run:
    """Trains a model on dialogues; only the answers and their `<end>` are learnt.

    Args:
        dialogues: a file for `read_conversations`, or the name of a data set on the hub (`owner/name`).
        out: the run directory to make.
        validation: held-out dialogues of the same form.
        start: a run directory to start from, for example of `pretrain`. Default: a new model.
        tokenizer: of a new model: a tokenizer or its `.model` file. Default: one is trained on the dialogues.
        preset: shape of a new model.
        options, resume, overwrite: as in `pretrain`.

    Returns:
        The run, as saved in `out`, with the weights of the best validation.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a file cannot be used, or `start` and `tokenizer` are both given; the message says where and why.
    """
    options = options or TrainingOptions()
    check_request(options, start=start, tokenizer=tokenizer, preset=preset, validation=validation)
    workplace = Workplace(Path(out), resume=resume, overwrite=overwrite)
    conversations = _read(dialogues)
    held_out = _read(validation) if validation else []
    if start:
        model, known, template = _continued(start, options)
    else:
        texts = [message.content for conversation in conversations for message in conversation.messages]
        known, template = workplace.tokenizer(tokenizer, texts, preset=preset), ChatTemplate()
        model = new_model(preset, vocab_size=known.vocab_size, options=options)
    # A hub's base model has no template of its own.
    template = template or ChatTemplate()
    split = split_of_dialogues(conversations, held_out, tokenizer=known, template=template, length=options.sequence_length)
    recipe = {"verb": "finetune", "dataset": str(dialogues), "validation": str(validation or "")}
    recipe |= origin(start=start, preset=preset, tokenizer=tokenizer)
    made = {**recipe, "options": options.to_dict()}
    run = Run.from_parts(out, model=model, tokenizer=known, template=template, recipe=made)
    engine = sample_engine(model, sequence_length=options.sequence_length)
    return train_run(run, split, workplace, options=options, sample=lambda: sample_replies(engine, run, split.questions))


def _continued(start: str | Path, options: TrainingOptions) -> tuple[LanguageModel, Tokenizer, ChatTemplate | None]:
    """The model of a run to start from, with its tokenizer and template."""
    parent = load(start)
    check_parent(parent, has_encoder=False)
    return continued_model(parent.model, options), parent.tokenizer, parent.template


def split_of_dialogues(
    conversations: Sequence[Conversation],
    held_out: Sequence[Conversation],
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    length: int,
) -> Split:
    """Renders and packs dialogues into rows of `length` tokens; what does not fit is cut as in `fit_context`."""
    fitted = fit_context(conversations, tokenizer, context_length=length, template=template)
    rows = pack(fitted.examples, length)
    counts = ", ".join(f"{count:,} {case}" for case, count in fitted.counts.items() if count)
    print(f"{counts} dialogues → {len(rows):,} rows of {length}, {rows.fill:.0%} full, {rows.num_trained:,} trained tokens")
    if not held_out:
        return Split(rows, questions=_questions(fitted.conversations))
    fitted = fit_context(held_out, tokenizer, context_length=length, template=template)
    return Split(rows, pack(fitted.examples, length), count_characters(fitted), _questions(fitted.conversations))


def _questions(conversations: Sequence[Conversation]) -> list[Sequence[Message]]:
    """The first user turn of the first few conversations, with the system turn before it."""
    messages = [conversation.messages for conversation in conversations[:SAMPLES]]
    return [turns[: 1 + [turn.role for turn in turns].index("user")] for turns in messages]


def _read(dialogues: str | Path) -> list[Conversation]:
    result = read_conversations(resolve_dataset(dialogues))
    print(result.summary())
    return result.conversations


def train_run(run: Run, split: Split, workplace: Workplace, *, options: TrainingOptions, sample: Callable[[], str]) -> Run:
    """`model.fit` with everything around it, then the run directory."""
    workplace.begin()
    run = run.replace(recipe={**run.recipe, "backend": keras.backend.backend()})
    dataset = ChatDataset(
        split.rows,
        options.batch_size,
        seed=options.seed,
        steps_per_epoch=_epoch_length(len(split.rows), options),
        token_noise=options.token_noise,
        spared_ids=run.tokenizer.markers.values(),
    )
    # The schedule goes by updates, and an epoch is a whole number of them.
    compile_for_training(run.model, options, total_steps=len(dataset) * options.epochs // options.gradient_accumulation_steps)
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
        callbacks=[*_reports(split, dataset, options, sample), journal, state, progress.TimeLeft()],
        verbose=_verbosity(),
    )
    if options.restore_best_weights:
        state.put_best(run.model)
    recipe = {**run.recipe, "log": journal.rows, "best_epoch": state.best_epoch if options.restore_best_weights else 0}
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
