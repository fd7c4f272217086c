"""What every way to quantize costs a model, measured on its .tflite files, and the smallest file that costs little enough."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolite import checkpoint
from smolite.checkpoint import export_folder, resolve_model
from smolite.data import resolve_dataset
from smolite.exporters.edge.names import choose_lengths
from smolite.exporters.exporting import export
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.exporters.litert.flatbuffer import structure_problems
from smolite.exporters.litert.quantization import quantize_tflite
from smolite.exporters.litert.target import TARGET
from smolite.exporters.litert.ways import WAYS, check_way
from smolite.exporters.quality.agreement import (
    Comparison,
    Findings,
    Sample,
    compare_traces,
    measure,
    read_sample,
    same_at_the_start,
)
from smolite.files import write_file
from smolite.models import ModelConfig

JSON_FILE, MARKDOWN_FILE = "quality.json", "quality.md"
FLOAT = "float32"
_HEAD = (
    "way",
    "size",
    "answers, bits/char",
    "same token",
    "text, bits/char",
    "same token",
    "greedy tokens until a difference",
    "",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one way costs, beside the float32 file.

    Args:
        way: `"float32"`, or a key of `WAYS`.
        num_bytes: size of the file.
        answers: on the answers of held-out dialogues; `None` for a model without a chat template.
        text: on held-out plain text.
        greedy_tokens: of a greedy answer until the first difference, or its end, on average.
        problems: what is wrong with the file, in words.
    """

    way: str
    num_bytes: int
    answers: Comparison | None
    text: Comparison
    greedy_tokens: float
    problems: Sequence[str] = ()

    @property
    def loss(self) -> float:
        """The larger one of the two shares of more bits per character."""
        return max(self.text.change, self.answers.change if self.answers else self.text.change)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The ladder of ways, and the choice.

    Args:
        rows: one per way; the first is float32.
        max_loss: the share of more bits per character that was allowed.
        chosen: the way of the smallest file within it.
        path: that file.
        conditions: what was measured on.
    """

    rows: Sequence[Row]
    max_loss: float
    chosen: str
    path: Path
    conditions: dict[str, Any]

    def table(self) -> str:
        """The rows as a table in Markdown, its columns aligned."""
        lines = [_HEAD, *(_cells(row, kept=row.way == self.chosen) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, tuple("-" * width for width in widths))
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)

    def save(self, folder: str | Path) -> None:
        """Writes `quality.json` and `quality.md` to a folder."""
        rows = [asdict(row) | {"loss": row.loss} for row in self.rows]
        content = {"chosen": self.chosen, "file": self.path.name, "max_loss": self.max_loss, "rows": rows, **self.conditions}
        write_file(Path(folder, JSON_FILE), json.dumps(content, indent=2, ensure_ascii=False).encode())
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.conditions.items())
        text = f"# {self.path.name}\n\nThe smallest file that costs at most {self.max_loss:.2%} more bits per character.\n\n"
        write_file(Path(folder, MARKDOWN_FILE), f"{text}{self.table()}\n\nMeasured on: {said}.\n".encode())


def _cells(row: Row, *, kept: bool) -> tuple[str, ...]:
    size, remark = f"{row.num_bytes / 1e6:,.2f} MB", "; ".join(row.problems) or ("kept" if kept else "")
    return (row.way, size, *_figures(row.answers), *_figures(row.text), f"{row.greedy_tokens:.1f}", remark)


def _figures(found: Comparison | None) -> tuple[str, str]:
    return (f"{found.bits:.4f} ({found.change:+.2%})", f"{found.agreement:.1%}") if found else ("", "")


def smallest(
    run: str | Path,
    *,
    max_loss: float = 0.01,
    dialogues: str | Path = "sample-heldout",
    text: str | Path | None = None,
    count: int = 100,
    out: str | Path | None = None,
    prefill_lengths: Sequence[int] | None = None,
    cache_length: int | None = None,
    overwrite: bool = False,
) -> Quality:
    """Makes a .tflite file in every way, measures each, and keeps the smallest one that costs at most `max_loss`.

    The float32 file is verified, and is what the others are measured against. The one that is kept goes the way of `export`,
    which verifies it, too; `quality.json` and `quality.md` lie beside it.

    Args:
        run: the run directory.
        max_loss: the largest share of more bits per character, on dialogues and on text alike: 0.01 for 1 %.
        dialogues: held-out dialogues: a file, or a data set's name. Not used for a run without a chat template.
        text: held-out plain text, or dialogues for what is said in them. Default: the dialogues.
        count: the most dialogues, and the most texts, to measure on.
        out: the folder to write to. Default: as in `export`.
        prefill_lengths, cache_length: as in `export`.
        overwrite: whether existing files may be replaced.

    Returns:
        The table and the choice; `quality.path` is the file.

    Raises:
        FileExistsError: a file of some way exists, and `overwrite` is false.
        ValueError: an argument is out of its range, or the model is an encoder-decoder.
        RuntimeError: a file does not say what the model says.
    """
    folder = export_folder(resolve_model(run)) if out is None else Path(out)
    ways = _checked_ways(run, folder, max_loss=max_loss, count=count, overwrite=overwrite)
    loaded = checkpoint.load(run)
    lengths: dict[str, Any] = {"prefill_lengths": prefill_lengths, "cache_length": cache_length}
    _, slots = choose_lengths(loaded.model.config, **lengths)
    known = {"dialogues": resolve_dataset(dialogues), "text": resolve_dataset(text or dialogues)}
    sample = read_sample(loaded, **known, count=count, slots=slots)
    with tempfile.TemporaryDirectory(prefix="smolite-quality-") as place:
        rows = list(measure_ways(export(run, out=place, **lengths), ways, sample, config=loaded.model.config))
    best = choose(rows, max_loss)
    path = export(run, quantize=best.way if best.way in WAYS else None, out=folder, overwrite=overwrite, **lengths)
    conditions = {"dialogues": len(sample.dialogues), "texts": len(sample.texts), "greedy_answers": len(sample.prompts)}
    quality = Quality(rows=rows, max_loss=max_loss, chosen=best.way, path=path, conditions=conditions)
    quality.save(folder)
    return quality


def measure_ways(whole: Path, ways: Sequence[str], sample: Sample, *, config: ModelConfig) -> Iterator[Row]:
    """A row for a float32 .tflite file, then one for each way to quantize it; the files of the ways do not stay.

    Args:
        whole: the file.
        ways: keys of `WAYS`.
        sample: what is measured on.
        config: of the model.
    """
    reference = _measure_file(whole, sample)
    yield _row(FLOAT, whole, reference, reference, config)
    for way in ways:
        with tempfile.TemporaryDirectory(dir=whole.parent) as place:
            path = Path(place, whole.name)
            print(f"{way}: quantizing and measuring", flush=True)
            quantize_tflite(whole, path, way)
            yield _row(way, path, _measure_file(path, sample), reference, config)


def _measure_file(path: Path, sample: Sample) -> Findings:
    engine = TFLiteEngine(path)
    try:
        return measure(engine, sample)
    finally:
        engine.close()


def _row(way: str, path: Path, found: Findings, reference: Findings, config: ModelConfig) -> Row:
    lengths = [same_at_the_start(*pair) for pair in zip(found.replies, reference.replies, strict=True)]
    answers, expected = found.dialogues, reference.dialogues
    return Row(
        way=way,
        num_bytes=path.stat().st_size,
        answers=compare_traces(answers, expected) if answers and expected else None,
        text=compare_traces(found.texts, reference.texts),
        greedy_tokens=sum(lengths) / len(lengths),
        problems=structure_problems(path, config),
    )


def choose(rows: Sequence[Row], max_loss: float) -> Row:
    """The smallest file without problems that costs at most `max_loss`; the first, float32, costs nothing.

    With rows of 40, 10 and 5 bytes that lose 0, 0.004 and 0.03: the second for 0.01, the third for 0.05.
    """
    good = [row for row in rows if row.loss <= max_loss and not row.problems]
    return min(good, key=lambda row: row.num_bytes)


def _checked_ways(run: str | Path, folder: Path, *, max_loss: float, count: int, overwrite: bool) -> list[str]:
    """The ways that fit the model, once the arguments are in order."""
    if not 0 <= max_loss < 1 or count < 1:
        raise ValueError(
            f"`max_loss` must be from 0 to below 1, and `count` at least 1. Received: {max_loss} and {count}. 0.01 is 1 %."
        )
    config = checkpoint.load_config(run)
    if config.has_encoder:
        raise ValueError(f"A model without an encoder was expected. Received: {run}. Export it, and see `verify.json`.")
    there = [name for name in TARGET.file_names.values() if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"The output must not exist yet. Received: {folder / there[0]}. Choose another `out`, or give `overwrite=True`."
        )
    return [way for way in WAYS if _fits(way, config)]


def _fits(way: str, config: ModelConfig) -> bool:
    try:
        check_way(way, config)
    except ValueError:
        return False
    return True
