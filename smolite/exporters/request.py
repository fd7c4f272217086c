"""What an export needs to know, as one value: checked once, and carried to the process that converts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolite.exporters.edge.names import check_drafts, choose_lengths, choose_windows
from smolite.exporters.target import Target
from smolite.exporters.targets import TARGETS
from smolite.models import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A file to make.

    Args:
        run: the run directory.
        path: the file or folder to write.
        format: name of the target.
        quantize: how the weights are written; `None` for float32.
        prefill_lengths: how many tokens of a prompt are read at once; none where the target has no fixed lengths, or where the
            cache grows.
        cache_length: slots of the cache; `None` where the target has no fixed lengths.
        windows: slots that further signatures look at.
        drafts: tokens that a further signature checks besides the one that they follow.
        growing_cache: whether caches grow with a chat, up to `cache_length`.
    """

    run: Path
    path: Path
    format: str
    quantize: str | None = None
    prefill_lengths: tuple[int, ...] = ()
    cache_length: int | None = None
    windows: tuple[int, ...] = ()
    drafts: int = 0
    growing_cache: bool = False

    @property
    def target(self) -> Target:
        """The row of its format."""
        return TARGETS[self.format]

    @property
    def slots(self) -> int:
        """The cache length of a target that has one."""
        assert self.cache_length is not None, "a target that takes lengths"
        return self.cache_length

    def to_json(self) -> str:
        """For the process that converts."""
        return json.dumps(asdict(self) | {"run": str(self.run), "path": str(self.path)})

    @classmethod
    def from_json(cls, text: str) -> "ExportRequest":
        """What `to_json` was made from."""
        fields: dict[str, Any] = json.loads(text)
        paths = {name: Path(fields[name]) for name in ("run", "path")}
        lengths = {name: tuple(fields[name]) for name in ("prefill_lengths", "windows")}
        return cls(**{**fields, **paths, **lengths})

    def described(self) -> dict[str, Any]:
        """What a manifest says of it: `None` where the target has no such thing, windows and drafts only where it has them."""
        known = {"format": self.format, "quantize": self.quantize}
        lengths = {"prefill_lengths": self.prefill_lengths or None, "cache_length": self.cache_length}
        return known | lengths | ({"windows": self.windows, "drafts": self.drafts} if self.target.takes_windows else {})


def checked_request(
    target: Target,
    config: ModelConfig,
    *,
    run: Path,
    path: Path,
    quantize: str | None = None,
    prefill_lengths: Sequence[int] | None = None,
    cache_length: int | None = None,
    windows: Sequence[int] | None = None,
    drafts: int = 0,
    growing_cache: bool = False,
) -> ExportRequest:
    """The request for a file of a target, with defaults for the lengths that are not given; arguments as for `export`.

    Raises:
        ValueError: the target, or the form of the model, has no place for what was asked for.
    """
    target.check_config(config, quantize)
    fixed = {"prefill_lengths": prefill_lengths, "cache_length": cache_length}
    _refuse(target, fixed=fixed, windows=windows, drafts=drafts, growing_cache=growing_cache)
    known: dict[str, Any] = {"run": run, "path": path, "format": target.name, "quantize": quantize}
    if not target.takes_lengths:
        return ExportRequest(**known)
    lengths, slots = choose_lengths(config, prefill_lengths=prefill_lengths, cache_length=cache_length)
    check_drafts(config, drafts, cache_length=slots)
    return ExportRequest(
        **known,
        prefill_lengths=() if growing_cache else lengths,
        cache_length=slots,
        windows=choose_windows(config, cache_length=slots, windows=windows) if target.takes_windows else (),
        drafts=drafts,
        growing_cache=growing_cache,
    )


def _refuse(target: Target, *, fixed: dict[str, Any], windows: Sequence[int] | None, drafts: int, growing_cache: bool) -> None:
    """What the row of a target says that its files have no place for."""
    name, lengths = target.name, fixed["prefill_lengths"]
    if not target.takes_lengths and any(fixed.values()):
        raise ValueError(f"{name} has no fixed lengths. Received: `prefill_lengths` or `cache_length`. Leave them out.")
    if windows and not target.takes_windows:
        raise ValueError(f"{name} has no windows. Received: `windows` {tuple(windows)}. Leave them out.")
    if drafts and not target.takes_windows:
        raise ValueError(f"{name} has no drafts. Received: `drafts` {drafts}. Leave it out.")
    if growing_cache and not target.takes_growing_cache:
        able = ", ".join(other.name for other in TARGETS.values() if other.takes_growing_cache)
        raise ValueError(f"{name} has no growing cache. Received: `growing_cache`. Leave it out, or export to {able}.")
    if growing_cache and lengths:
        raise ValueError(
            f"With a growing cache a prompt is read at once, whatever its length. Received: `prefill_lengths` {lengths}, "
            "too. Leave one of them out."
        )
