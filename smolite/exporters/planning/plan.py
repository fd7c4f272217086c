"""What an export will give, before it is made: sizes, memory, and the speed that memory allows. No backend is loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from smolite.checkpoint import resolve_model
from smolite.exporters.edge.names import check_drafts, choose_lengths, choose_windows
from smolite.exporters.planning.sizes import BLOCK, TokenizerSize, cache_bytes, matrices, tokenizer_size
from smolite.exporters.request import ExportRequest
from smolite.exporters.targets import TargetFile, target_files
from smolite.models import PRESETS, ModelConfig

CACHE_LENGTHS = (256, 512, 1024)  # shown beside the chosen one


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file that an export would write.

    Args:
        format: a key of `TARGETS`.
        quantize: the way to quantize; `None` for float32.
        name: of the file.
        num_bytes: its size; `None` where the form of the model can't go to it.
        read_bytes: what is read from memory for one token: every weight once, and in LiteRT the whole cache.
        memory: the most that LiteRT-LM takes with it, in bytes; `None` where another runtime runs it.
        problem: why it can't be written; empty where it can.
    """

    format: str
    quantize: str | None
    name: str
    num_bytes: int | None = None
    read_bytes: int | None = None
    memory: int | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What exports of a model would give.

    Args:
        config: the shape of the model.
        cache_length: tokens that a chat can hold.
        prefill_lengths: how many tokens of a prompt are read at once.
        growing_cache: whether .litertlm files read prompts of any length instead.
        files: one for each way of each target that can say how large its files get.
        cache_bytes: tokens that a chat can hold → bytes of keys and values in float32.
        odd_widths: name → width of what is no multiple of 32, so that blocks of 32 can't be cut from it.
        tokenizer: what the tokenizer takes; `None` where it isn't known, and sizes are without it.
    """

    config: ModelConfig
    cache_length: int
    prefill_lengths: tuple[int, ...]
    growing_cache: bool
    files: tuple[PlannedFile, ...]
    cache_bytes: Mapping[int, int]
    odd_widths: Mapping[str, int]
    tokenizer: TokenizerSize | None

    def file(self, name: str) -> PlannedFile:
        """The file of this name, such as `"model_int8.tflite"`.

        Raises:
            KeyError: there is none.
        """
        return next(file for file in self.files if file.name == name)


def plan(
    model: str | Path | ModelConfig,
    *,
    cache_length: int | None = None,
    prefill_lengths: Sequence[int] | None = None,
    windows: Sequence[int] | None = None,
    drafts: int = 0,
    growing_cache: bool = False,
) -> Plan:
    """Sizes, memory and limits of every file that could be exported, from the shape of the model alone.

    Args:
        model: a config, the name of a preset, a run directory or Hugging Face folder, or a model's name on the hub.
        cache_length: as for `export`.
        prefill_lengths: as for `export`.
        windows, drafts: as for `export`, of .tflite files.
        growing_cache: as for `export`, of .litertlm files; memory is that of a chat that has filled its cache.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
        ValueError: a length that is not possible, or a config that is not implemented.
    """
    config, tokenizer = _read(model)
    lengths, slots = choose_lengths(config, prefill_lengths=prefill_lengths, cache_length=cache_length)
    chosen = choose_windows(config, cache_length=slots, windows=windows)
    check_drafts(config, drafts, cache_length=slots)
    shown = sorted({*(length for length in CACHE_LENGTHS if length <= config.context_length), slots})

    def request_for(file: TargetFile) -> ExportRequest:
        """What each target takes of what was asked for: a plan shows all of them beside each other."""
        row = file.target
        known = ExportRequest(run=Path(str(model)), path=Path(file.name), format=row.name, quantize=file.quantize)
        if not row.takes_lengths:
            return known
        grows = growing_cache and row.takes_growing_cache
        known = replace(known, prefill_lengths=() if grows else lengths, cache_length=slots, growing_cache=grows)
        return replace(known, windows=chosen, drafts=drafts) if row.takes_windows else known

    files = [
        _planned(config, request_for(file), file, tokenizer or TokenizerSize())
        for file in target_files().values()
        if file.target.estimate
    ]
    return Plan(
        config=config,
        cache_length=slots,
        prefill_lengths=lengths,
        growing_cache=growing_cache,
        files=tuple(files),
        cache_bytes={length: cache_bytes(config, length) for length in shown},
        odd_widths=odd_widths(config),
        tokenizer=tokenizer,
    )


def odd_widths(config: ModelConfig) -> dict[str, int]:
    """Name → width of what matrices read and is no multiple of 32."""
    named = {
        config.hidden_dim: "hidden_dim",
        config.intermediate_dim: "intermediate_dim",
        config.num_query_heads * config.head_dim: "num_query_heads · head_dim",
    }
    widths = sorted({matrix.columns for matrix in matrices(config)})
    return {named.get(width, "hidden_dim / 2"): width for width in widths if width % BLOCK}


def _read(model: str | Path | ModelConfig) -> tuple[ModelConfig, TokenizerSize | None]:
    if isinstance(model, ModelConfig):
        return model, None
    if model in PRESETS:
        return PRESETS[str(model)], None
    folder = resolve_model(model)
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"A preset ({', '.join(PRESETS)}) or a folder with a config.json was expected. Received: {model}. Check the name."
        )
    try:
        hf: dict[str, Any] = json.loads(file.read_text("utf-8"))
        # Of a run in fewer bits, whose exports are as large as any.
        hf.pop("quantization_config", None)
        return ModelConfig.from_hf(hf), tokenizer_size(folder)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _planned(config: ModelConfig, request: ExportRequest, file: TargetFile, tokenizer: TokenizerSize) -> PlannedFile:
    """What the target says of a file, or why it can't be written."""
    known: dict[str, Any] = {"format": request.format, "quantize": request.quantize, "name": file.name}
    try:
        file.target.check_config(config, request.quantize)
    except ValueError as error:
        return PlannedFile(**known, problem=str(error))
    return PlannedFile(**known, **asdict(file.target.call("estimate", config, request, tokenizer)))


def print_plan(*, model: str, bandwidth: float, **settings: Any) -> None:
    """Prints the tables of a plan; see `plan`."""
    print(show_plan(plan(model, **settings), bandwidth=bandwidth))


def show_plan(planned: Plan, *, bandwidth: float) -> str:
    """The plan as Markdown.

    Args:
        planned: the plan.
        bandwidth: of the memory, in GB/s; what is read for a token bounds the tokens per second.

    Raises:
        ValueError: the bandwidth is not positive.
    """
    if not bandwidth > 0:
        raise ValueError(f"`bandwidth` must be a positive number of GB/s. Received: {bandwidth}. Phones have 10 to 80.")
    lengths = ", ".join(map(str, planned.prefill_lengths))
    reads = f"prompts read {lengths} at a time{', in .litertlm files at once' * planned.growing_cache}"
    lines = [
        f"{planned.config.num_parameters:,} parameters; a cache of {planned.cache_length:,} tokens, {reads}; "
        f"{'with' if planned.tokenizer else 'without'} the tokenizer",
        "",
        f"| file | MB | MB of memory | MB read a token | tokens/s at {bandwidth:g} GB/s, at most |",
        "|---|---|---|---|---|",
        *(_row(file, bandwidth) for file in planned.files if file.num_bytes is not None),
        "",
        "| cache, tokens | MB of keys and values |",
        "|---|---|",
        *(f"| {length:,} | {_megabytes(size)} |" for length, size in planned.cache_bytes.items()),
    ]
    return "\n".join([*lines, *_notes(planned)])


def _row(file: PlannedFile, bandwidth: float) -> str:
    assert file.read_bytes is not None
    speed = f"{bandwidth * 1e9 / file.read_bytes:,.0f}"
    cells = [file.name, _megabytes(file.num_bytes), _megabytes(file.memory), _megabytes(file.read_bytes), speed]
    return "| " + " | ".join(cells) + " |"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.4g}" if size < 1e9 else f"{size / 1e6:,.0f}"


def _notes(planned: Plan) -> list[str]:
    notes = []
    if planned.odd_widths and planned.config.is_llama:
        widths = ", ".join(f"`{name}` {width}" for name, width in planned.odd_widths.items())
        notes.append(f"In q8_0 and q4_0 matrices that read {widths} stay float32: no multiple of {BLOCK}.")
    reasons: dict[str, list[str]] = {}
    for file in planned.files:
        if file.problem:
            reasons.setdefault(file.problem, []).append(file.name)
    notes += [f"Not possible: {', '.join(names)}. {reason}" for reason, names in reasons.items()]
    return ["", *notes] if notes else []
