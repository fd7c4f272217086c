"""The ways to write the weights of a .tflite file in fewer bits, and what each may cost; see `quantization`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from smolite.exporters.target import Limits
from smolite.models import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the weights of a file are written, and what that may cost on held-out dialogues.

    Args:
        bits: of a weight in the blocks; 16 is float16.
        table_bits: of a weight in the embedding table.
        block: weights of a row that share a scale; 0: all.
        algorithm: of ai-edge-quantizer, for the scales of weights of 4 bits.
        limits: what that may cost on held-out dialogues.
    """

    bits: int
    table_bits: int
    block: int = 0
    algorithm: str = "MIN_MAX_UNIFORM_QUANT"
    limits: Limits


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "f16": Way(bits=16, table_bits=16, limits=Limits(most_bits=0.002, least_agreement=0.95)),
        "int8": Way(bits=8, table_bits=8, limits=Limits(most_bits=0.01, least_agreement=0.75)),
        "int4_int8": Way(bits=4, table_bits=8, algorithm="OCTAV", limits=Limits(most_bits=0.1, least_agreement=0.5)),
        "int4_block32": Way(
            bits=4, table_bits=4, block=32, algorithm="OCTAV", limits=Limits(most_bits=0.1, least_agreement=0.5)
        ),
        "int4": Way(bits=4, table_bits=4, algorithm="OCTAV", limits=Limits(most_bits=0.15, least_agreement=0.5)),
    }
)
LIMITS: Mapping[str, Limits] = MappingProxyType({name: way.limits for name, way in WAYS.items()})


def check_way(way: str, config: ModelConfig | None = None) -> None:
    """Refuses a way that does not exist, or does not fit a model.

    Args:
        way: a key of `WAYS`.
        config: of the model.

    Raises:
        ValueError: with the names that exist, or the width that cannot be cut into blocks.
    """
    if way not in WAYS:
        raise ValueError(f"Unknown way to quantize. Received: {way!r}. Choose one of: {', '.join(WAYS)}.")
    block = WAYS[way].block
    if config is None or not block:
        return
    widths = {
        "hidden_dim": config.hidden_dim,
        "intermediate_dim": config.intermediate_dim,
        "num_query_heads · head_dim": config.num_query_heads * config.head_dim,
    }
    odd = {name: width for name, width in widths.items() if width % block}
    if odd:
        received = ", ".join(f"`{name}` {width}" for name, width in odd.items())
        raise ValueError(
            f"{way} needs widths that are multiples of {block}. Received: {received}. Choose another way: "
            f"{', '.join(name for name, other in WAYS.items() if not other.block)}."
        )


def check_config(config: ModelConfig, quantize: str | None) -> None:
    """`check_way` of a file that is quantized."""
    if quantize is not None:
        check_way(quantize, config)
