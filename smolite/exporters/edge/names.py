"""Names and shapes of the edge signatures, and the lengths that are possible; without a backend. See `signatures`."""

from collections.abc import Sequence
from typing import Any

from smolite.models import ModelConfig

DECODE = "decode"
FORWARD = "forward"
GROWING_PREFILL = "prefill"
_PREFILL = "prefill_"
_VERIFY = "verify_"
_WINDOW = "_in_"
_MOST_DRAFTS = 31
_LEAST_WINDOW = 128  # below, attention is a small part of a step


def prefill_name(length: int) -> str:
    """The signature that takes `length` tokens at once: 16 → `"prefill_16"`."""
    return f"{_PREFILL}{length}"


def is_prefill(name: str) -> bool:
    """Whether a signature only fills the caches: `"prefill_16_in_128"` does, `"decode"` does not."""
    return name.startswith(_PREFILL)


def prefill_lengths_of(names: Sequence[str]) -> tuple[int, ...]:
    """The lengths among signature names, ascending: `["decode", "prefill_128", "prefill_16"]` → `(16, 128)`."""
    whole = [name for name in names if _WINDOW not in name]
    return tuple(sorted(int(name.removeprefix(_PREFILL)) for name in whole if name.startswith(_PREFILL)))


def verify_name(length: int) -> str:
    """The signature that takes `length` tokens and gives the logits after each: 5 → `"verify_5"`."""
    return f"{_VERIFY}{length}"


def drafts_of(names: Sequence[str]) -> int:
    """The most drafts that signatures can check besides the token they follow: `["decode", "verify_5"]` → 4; or none, 0."""
    lengths = [int(name.removeprefix(_VERIFY)) for name in names if name.startswith(_VERIFY) and _WINDOW not in name]
    return max(lengths, default=1) - 1


def windowed_name(name: str, window: int) -> str:
    """The signature that looks at the first slots only: `("prefill_16", 128)` → `"prefill_16_in_128"`."""
    return f"{name}{_WINDOW}{window}"


def windows_of(names: Sequence[str]) -> tuple[int, ...]:
    """The windows among signature names, ascending: `["decode", "decode_in_256", "decode_in_128"]` → `(128, 256)`."""
    prefix = f"{DECODE}{_WINDOW}"
    return tuple(sorted(int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)))


def cache_name(kind: str, layer: int) -> str:
    """The name of a layer's keys (`"k"`) or values (`"v"`): `("v", 3)` → `"kv_cache_v_3"`."""
    return f"kv_cache_{kind}_{layer}"


def cache_shapes(config: ModelConfig, cache_length: Any) -> dict[str, tuple[Any, ...]]:
    """Name → shape of every cache: keys (1, K, S, H), values (1, K, H, S)."""
    heads, width = config.num_key_value_heads, config.head_dim
    shapes = {"k": (1, heads, cache_length, width), "v": (1, heads, width, cache_length)}
    return {cache_name(kind, i): shape for i in range(config.num_layers) for kind, shape in shapes.items()}


def choose_lengths(
    config: ModelConfig, *, prefill_lengths: Sequence[int] | None = None, cache_length: int | None = None
) -> tuple[tuple[int, ...], int]:
    """Prefill lengths and cache length to export, checked, with defaults for what is not given.

    Every decode step reads the whole allocated cache, so the default is the context length but at most 1,024 slots. Every
    prefill signature keeps its own copy of the weights in the runtime's memory, so there are two: 16 tokens for a short turn,
    128 for a long one. With a context of 512: `((16, 128), 512)`; of 32: `((16,), 32)`; of 8: `((8,), 8)`. An encoder-decoder
    has one, the longest source; by default as many tokens as the cache.

    Raises:
        ValueError: a length that is not possible for this model.
    """
    slots = min(config.context_length, 1024) if cache_length is None else cache_length
    most_prefill = config.context_length if config.has_encoder else slots
    if not 2 <= slots <= config.context_length:
        raise ValueError(
            f"`cache_length` must be from 2 to the context length of the model, {config.context_length}. "
            f"Received: {slots}. Choose a smaller one; decoding is faster with a smaller cache."
        )
    default = tuple(length for length in (16, 128) if length <= slots and not config.has_encoder) or (slots,)
    lengths = tuple(sorted(set(default if prefill_lengths is None else prefill_lengths)))
    if config.has_encoder and len(lengths) > 1:
        raise ValueError(
            f"An encoder reads sources of one length. Received: `prefill_lengths` {lengths}. Give the longest that you need."
        )
    if not lengths or not all(2 <= length <= most_prefill for length in lengths):
        raise ValueError(
            f"`prefill_lengths` must be one or more numbers from 2 to the cache length, {most_prefill}. "
            f"Received: {lengths}. The default here is {default}."
        )
    return lengths, slots


def choose_windows(config: ModelConfig, *, cache_length: int, windows: Sequence[int] | None = None) -> tuple[int, ...]:
    """The windows to export, checked. Default: a quarter and half of the cache, where that is 128 slots or more.

    With a cache of 1,024: `(256, 512)`; of 256: `(128,)`; of 160: `()`. An encoder-decoder has none.

    Raises:
        ValueError: a window that is not possible for this cache.
    """
    default = [part for part in (cache_length // 4, cache_length // 2) if part >= _LEAST_WINDOW]
    chosen = tuple(sorted(set(default if windows is None else windows)))
    if config.has_encoder:
        if windows:
            raise ValueError(f"An encoder-decoder has no windows. Received: `windows` {chosen}. Leave them out.")
        return ()
    if not all(2 <= window < cache_length for window in chosen):
        raise ValueError(
            f"`windows` must be numbers from 2 to less than the cache length, {cache_length}. Received: {chosen}. "
            f"The default here is {tuple(default)}."
        )
    return chosen


def check_drafts(config: ModelConfig, drafts: int, *, cache_length: int) -> None:
    """Refuses a number of drafts that is not possible: 4 is with a cache of 16, and 16 is not.

    Raises:
        ValueError: it is negative, above 31, or not less than the cache; or an encoder-decoder is asked for any.
    """
    if config.has_encoder and drafts:
        raise ValueError(f"An encoder-decoder has no drafts. Received: `drafts` {drafts}. Leave it out.")
    most = min(_MOST_DRAFTS, cache_length - 1)
    if not 0 <= drafts <= most:
        raise ValueError(f"`drafts` must be from 0, for none, to {most}. Received: {drafts}. 4 is a good start.")


def signature_shapes(
    *, prefill_lengths: Sequence[int], cache_length: int, windows: Sequence[int] = (), drafts: int = 0
) -> dict[str, tuple[int, int]]:
    """Name → tokens and slots it looks at. No window is narrower than the tokens that a signature takes.

    With lengths `(16,)`, a cache of 32 and a window of 8:
    `{"prefill_16": (16, 32), "decode": (1, 32), "decode_in_8": (1, 8)}`.
    """
    lengths = {prefill_name(length): length for length in prefill_lengths} | {DECODE: 1}
    if drafts:
        lengths[verify_name(drafts + 1)] = drafts + 1
    shapes = {name: (length, cache_length) for name, length in lengths.items()}
    for window in windows:
        fitting = {name: length for name, length in lengths.items() if length <= window}
        shapes |= {windowed_name(name, window): (length, window) for name, length in fitting.items()}
    return shapes
