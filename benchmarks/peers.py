"""The shapes that are measured, and the peers' models of the same shape: Llama, tied embeddings, random weights."""

import argparse
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from smolite.models.config import ModelConfig

PACKAGES = MappingProxyType({"keras-hub": "keras_hub", "transformers": "transformers"})
LITERT = MappingProxyType({"ai-edge-litert": "ai_edge_litert", "ai-edge-quantizer": "ai_edge_quantizer"})
BACKENDS = ("tensorflow", "jax", "torch")


@dataclass(frozen=True)
class Size:
    """A shape, and what a training step of it is.

    Args:
        config: the shape.
        batch_size: rows in a step.
        sequence_length: tokens in a row.
        steps: training steps in a turn.
    """

    config: ModelConfig
    batch_size: int = 32
    sequence_length: int = 128
    steps: int = 2


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "20m": Size(
            ModelConfig(
                vocab_size=32_768,
                num_layers=12,
                num_query_heads=8,
                num_key_value_heads=8,
                hidden_dim=256,
                intermediate_dim=1024,
            )
        ),
        "135m": Size(ModelConfig.from_preset("smollm2-135m"), batch_size=4, sequence_length=256),
        "small": Size(ModelConfig.from_preset("smolite-small"), steps=4),
        "toy": Size(
            ModelConfig(
                vocab_size=2048,
                num_layers=2,
                num_query_heads=4,
                num_key_value_heads=2,
                hidden_dim=64,
                intermediate_dim=128,
            ),
            batch_size=4,
        ),
    }
)


def shape_of(config: ModelConfig) -> str:
    """The shape in words."""
    encoder = f"{config.num_encoder_layers} and " if config.num_encoder_layers else ""
    return (
        f"{config.num_parameters / 1e6:.1f} M parameters: {encoder}{config.num_layers} layers, width {config.hidden_dim}, "
        f"{config.num_query_heads} query and {config.num_key_value_heads} key/value heads, feed-forward "
        f"{config.intermediate_dim}, vocabulary {config.vocab_size:,}"
    )


def count(text: str) -> int:
    """A number of the command line that must be at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, received {text!r}")
    return int(text)


def check_installed(packages: Iterable[str], names: Mapping[str, str]) -> None:
    """Ends with what to install, where a package is missing.

    Args:
        packages: those needed, keys of `names`.
        names: package → import name.
    """
    missing = [package for package in packages if importlib.util.find_spec(names[package]) is None]
    if missing:
        raise SystemExit(
            f"The comparison needs {' and '.join(missing)}. Received: not installed. Run: pip install {' '.join(missing)}, "
            "or leave them out (`--peers` with the names of those to keep, or none; `--no-tflite`)."
        )


def keras_hub_model(config: ModelConfig, *, preprocessor: Any = None) -> Any:
    """keras-hub's `LlamaCausalLM` with random weights."""
    import keras_hub

    from smolite.exporters.neighbours.keras_hub import empty_backbone

    return keras_hub.models.LlamaCausalLM(empty_backbone(config), preprocessor=preprocessor)


def bart_width(config: ModelConfig) -> int:
    """The feed-forward width that gives BART, which has two matrices there, as many weights as our three."""
    return config.intermediate_dim * 3 // 2


def transformers_model(config: ModelConfig) -> Any:
    """transformers' `LlamaForCausalLM`, without stop tokens."""
    import transformers

    fields = {key: value for key, value in config.to_hf().items() if key != "smolite"}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, **ends))
