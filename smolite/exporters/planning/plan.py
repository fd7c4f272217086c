"""What an export will give, before it is made: sizes, memory, and the speed that memory allows. No backend is loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from smolite.checkpoint import resolve_model
from smolite.exporters.edge.signatures import cache_shapes, check_drafts, choose_lengths, choose_windows, signature_shapes
from smolite.exporters.litert.quantization import WAYS, Way, check_way
from smolite.exporters.planning.sizes import (
    BLOCK,
    TokenizerSize,
    gguf_bytes,
    gguf_weights,
    litertlm_bytes,
    matrices,
    tflite_bytes,
    tflite_weights,
    tokenizer_size,
)
from smolite.exporters.targets import TARGETS
from smolite.models import PRESETS, ModelConfig

CACHE_LENGTHS = (256, 512, 1024)  # shown beside the chosen one
# Bytes that LiteRT-LM takes besides; fitted, see `runtime_memory`.
_RUNTIME = 105_000_000


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
        files: one for each format and way that `export` knows, but for SavedModel.
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
    looks = {"windows": choose_windows(config, cache_length=slots, windows=windows), "drafts": drafts}
    check_drafts(config, drafts, cache_length=slots)
    shown = sorted({*(length for length in CACHE_LENGTHS if length <= config.context_length), slots})
    reads = {"tflite": lengths, "litertlm": () if growing_cache else lengths, "gguf": ()}
    files = [
        _planned(config, format, way, tokenizer or TokenizerSize(), lengths=reads[format], slots=slots, looks=looks)
        for format, target in TARGETS.items()
        if format != "saved_model"
        for way in target.file_names
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


def cache_bytes(config: ModelConfig, length: int) -> int:
    """Bytes of keys and values of `length` tokens: `smolite-small`, 512 → 4 layers · 2 · 2 heads · 64 · 512 · 4 = 2,097,152."""
    return sum(4 * prod(shape) for shape in cache_shapes(config, length).values())


def odd_widths(config: ModelConfig) -> dict[str, int]:
    """Name → width of what matrices read and is no multiple of 32."""
    named = {
        config.hidden_dim: "hidden_dim",
        config.intermediate_dim: "intermediate_dim",
        config.num_query_heads * config.head_dim: "num_query_heads · head_dim",
    }
    widths = sorted({matrix.columns for matrix in matrices(config)})
    return {named.get(width, "hidden_dim / 2"): width for width in widths if width % BLOCK}


def runtime_memory(config: ModelConfig, way: str | None, *, prefill_lengths: Sequence[int], cache_length: int) -> int:
    """The most memory that LiteRT-LM takes on the CPU, in bytes; reached while it loads.

    It is the file, the weights as the runtime packs them anew for each signature (the output projection is in `decode` alone),
    the cache, and 105 MB for the runtime itself. That last number is fitted to 24 files of 15 to 135 M parameters, each way,
    one or two prefill lengths and caches of 512 to 1,280 tokens; every one of them took 96 % to 105 % of what this says.
    float16 weights are packed as float32, and every signature widens the table once more to look tokens up.

    Args:
        config: the shape.
        way: how the weights are written; `None` for float32.
        prefill_lengths: one signature each; none: a growing cache, whose signatures are one graph.
        cache_length: slots.
    """
    signatures, written, packed = 1 + len(prefill_lengths), _way(way), _packed(way)
    table = tflite_weights(config, None) - tflite_weights(config, None, table=False)
    # float16 alone is held in another form than it is written in.
    widened = signatures * table if packed is not written else 0
    # Each signature packs the weights for itself, and only `decode` has the output projection.
    weights = tflite_weights(config, packed) + len(prefill_lengths) * tflite_weights(config, packed, table=False)
    file = tflite_bytes(config, written, num_signatures=signatures)
    return _RUNTIME + file + weights + widened + cache_bytes(config, cache_length)


def _way(name: str | None) -> Way | None:
    return None if name is None else WAYS[name]


def _packed(name: str | None) -> Way | None:
    """How the runtime holds the weights: as they are, but float16 as float32."""
    way = _way(name)
    return None if way is not None and way.bits == 16 else way


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


def _planned(
    config: ModelConfig,
    format: str,
    way: str | None,
    tokenizer: TokenizerSize,
    *,
    lengths: Sequence[int],
    slots: int,
    looks: Mapping[str, Any],
) -> PlannedFile:
    name = TARGETS[format].file_names[way]
    try:
        _check(config, format, way)
    except ValueError as error:
        return PlannedFile(format=format, quantize=way, name=name, problem=str(error))
    if format == "gguf":
        size = gguf_bytes(config, way, tokenizer)
        return PlannedFile(format=format, quantize=way, name=name, num_bytes=size, read_bytes=gguf_weights(config, way))
    signatures = signature_shapes(prefill_lengths=lengths, cache_length=slots, **(looks if TARGETS[format].windowed else {}))
    size = tflite_bytes(config, _way(way), num_signatures=len(signatures))
    memory = runtime_memory(config, way, prefill_lengths=lengths, cache_length=slots)
    return PlannedFile(
        format=format,
        quantize=way,
        name=name,
        num_bytes=litertlm_bytes(size, tokenizer) if format == "litertlm" else size,
        # A step reads every weight and the whole allocated cache: this over the memory's bandwidth bounds its speed.
        read_bytes=tflite_weights(config, _packed(way)) + cache_bytes(config, slots),
        memory=memory,
    )


def _check(config: ModelConfig, format: str, way: str | None) -> None:
    """Refuses what `export` refuses for the form of the model."""
    if format == "gguf":
        config.check_llama("llama.cpp")
        return
    if format == "litertlm" and config.has_encoder:
        raise ValueError("LiteRT-LM runs no encoder-decoder.")
    if way is not None:
        check_way(way, config)


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
