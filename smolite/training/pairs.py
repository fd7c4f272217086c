"""The recipe for an encoder-decoder: from a file of pairs to a run directory."""

from collections.abc import Sequence
from pathlib import Path

from smolite.checkpoint import Run, load
from smolite.data import FittedPairs, Pair, fit_pairs, pack_pairs, read_pairs, resolve_dataset, row_lengths
from smolite.generation import Engine, Seq2SeqEngine, generate
from smolite.models import ModelConfig
from smolite.text import Tokenizer
from smolite.training.fit import Split, train_run
from smolite.training.options import TrainingOptions
from smolite.training.samples import SAMPLES
from smolite.training.starts import check_parent, check_request, continued_model, new_model, origin
from smolite.training.workplace import Workplace


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
        resume, overwrite: as in `pretrain`.

    Returns:
        The run, as saved in `out`, with the weights of the best validation.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a file or `start` cannot be used; the message says where and why.
    """
    options = options or TrainingOptions()
    check_request(options, start=start, tokenizer=tokenizer, preset=preset, validation=validation)
    workplace = Workplace(Path(out), resume=resume, overwrite=overwrite)
    read = read_pairs(resolve_dataset(pairs))
    held_out = read_pairs(resolve_dataset(validation)) if validation else []
    if start:
        parent = load(start)
        check_parent(parent, has_encoder=True)
        pieces, model = parent.tokenizer, continued_model(parent.model, options)
    else:
        depth = encoder_depth(preset)
        pieces = workplace.tokenizer(tokenizer, [text for pair in read for text in (pair.source, pair.target)], preset=preset)
        model = new_model(preset, vocab_size=pieces.vocab_size, options=options, num_encoder_layers=depth)
    split, sources = split_of_pairs(read, held_out, tokenizer=pieces, longest=options.sequence_length)
    recipe = {"verb": "pairs", "dataset": str(pairs), "validation": str(validation or "")}
    recipe |= origin(start=start, preset=preset, tokenizer=tokenizer)
    run = Run.from_parts(out, model=model, tokenizer=pieces, recipe={**recipe, "options": options.to_dict()})
    room = split.rows.length, split.rows.sources.tokens.shape[1] if split.rows.sources else 0
    engine = Seq2SeqEngine(model, start_id=pieces.start_id, context_length=room[1], target_length=room[0])
    return train_run(run, split, workplace, options=options, sample=lambda: sample_targets(engine, run, sources))


def encoder_depth(preset: str) -> int:
    """Encoder blocks of a new model: the preset's own, or as many as it has decoder blocks."""
    config = ModelConfig.from_preset(preset)
    return ModelConfig.from_preset(preset, num_encoder_layers=config.num_encoder_layers or config.num_layers).num_encoder_layers


def split_of_pairs(
    pairs: Sequence[Pair], held_out: Sequence[Pair], *, tokenizer: Tokenizer, longest: int
) -> tuple[Split, list[str]]:
    """Encodes and packs pairs into rows of at most `longest` tokens on either side; what does not fit goes as in `fit_pairs`.

    Returns:
        The split, and a few sources to show samples for.
    """
    lengths = {"source_length": longest, "target_length": longest}
    fitted = fit_pairs(pairs, tokenizer, **lengths)
    aside = fit_pairs(held_out, tokenizer, **lengths) if held_out else FittedPairs([], [], {})
    source_length, length = row_lengths([*fitted.examples, *aside.examples], longest)
    rows = pack_pairs(fitted.examples, length, source_length=source_length)
    counts = ", ".join(f"{count:,} {case}" for case, count in fitted.counts.items() if count)
    shape = f"{len(rows):,} rows of {source_length} and {length}, {rows.fill:.0%} full"
    print(f"{counts} pairs → {shape}, {rows.num_trained:,} trained tokens")
    sources = [pair.source for pair in (aside.pairs or fitted.pairs)[:SAMPLES]]
    if not held_out:
        return Split(rows), sources
    return Split(rows, pack_pairs(aside.examples, length, source_length=source_length), aside.num_characters), sources


def sample_targets(engine: Engine, run: Run, sources: Sequence[str]) -> str:
    """What `engine` writes, greedily, for each source, as lines of `source → target`."""
    prompts = [run.tokenizer.encode(source)[: engine.context_length] for source in sources]
    targets = generate(engine, prompts, max_new_tokens=48, stop_ids=(run.tokenizer.end_id,))
    return "\n".join(f"  {source} → {run.tokenizer.decode(ids)}" for source, ids in zip(sources, targets, strict=True))
