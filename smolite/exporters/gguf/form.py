"""Which form of model a .gguf file can hold, and how large it will be."""

from smolite.exporters.planning.sizes import BLOCK, Estimate, Matrix, TokenizerSize, weight_bytes
from smolite.exporters.request import ExportRequest
from smolite.models import ModelConfig

_BITS = {None: 32, "f16": 16, "q8_0": 8, "q4_0": 4}
_BLOCK_SCALE = 2  # bytes
_TENSOR = 70  # bytes: name, shape, where it begins, and padding


def check_config(config: ModelConfig, quantize: str | None) -> None:
    """Refuses what llama.cpp does not run as a Llama.

    Raises:
        ValueError: with the fields that no Llama has.
    """
    config.check_llama("llama.cpp")


def estimate(config: ModelConfig, request: ExportRequest, tokenizer: TokenizerSize) -> Estimate:
    """What the file of a request takes; for a token every weight is read once."""
    weights = gguf_weights(config, request.quantize)
    return Estimate(num_bytes=gguf_bytes(config, request.quantize, tokenizer), read_bytes=weights)


def gguf_weights(config: ModelConfig, quantize: str | None) -> int:
    """Bytes of the weights in a .gguf file; matrices whose columns are no multiple of 32 stay float32."""
    bits = _BITS[quantize]

    def written(matrix: Matrix) -> int:
        if bits > 16 or matrix.columns % BLOCK:
            return 4 * matrix.weights
        scales = matrix.weights // BLOCK * _BLOCK_SCALE if bits < 16 else 0
        return matrix.weights * bits // 8 + scales

    return weight_bytes(config, written)


def gguf_bytes(config: ModelConfig, quantize: str | None, tokenizer: TokenizerSize) -> int:
    """Bytes of a .gguf file with its tokenizer."""
    return gguf_weights(config, quantize) + tokenizer.gguf + _TENSOR * (9 * config.num_layers + 2)
