"""Which form of model a .litertlm file can hold, and how large it will be."""

from dataclasses import replace

from smolite.exporters.litert import sizes as litert
from smolite.exporters.litert import ways
from smolite.exporters.planning.sizes import Estimate, TokenizerSize
from smolite.exporters.request import ExportRequest
from smolite.models import ModelConfig

# Sections of a .litertlm file begin at multiples.
_PAGE = 16 * 1024


def check_config(config: ModelConfig, quantize: str | None) -> None:
    """Refuses what LiteRT-LM does not run.

    Raises:
        ValueError: the model is an encoder-decoder, or a width can't be cut into blocks.
    """
    if config.has_encoder:
        raise ValueError(
            "LiteRT-LM runs no encoder-decoder. Received: a model with `num_encoder_layers` "
            f"{config.num_encoder_layers}. Export it as tflite or saved_model."
        )
    ways.check_config(config, quantize)


def estimate(config: ModelConfig, request: ExportRequest, tokenizer: TokenizerSize) -> Estimate:
    """What the file of a request takes: its .tflite file, and what stands around it."""
    inner = litert.estimate(config, request, tokenizer)
    return replace(inner, num_bytes=litertlm_bytes(inner.num_bytes, tokenizer))


def litertlm_bytes(tflite: int, tokenizer: TokenizerSize) -> int:
    """Bytes of a .litertlm file around a .tflite file of `tflite` bytes, its last part: 100,000 → three pages more, 149,152."""
    # The header, what the runtime is told of model and caches, the tokenizer.
    parts = (1, 1, 1, tokenizer.litertlm)
    return sum(-(-part // _PAGE) for part in parts) * _PAGE + tflite
