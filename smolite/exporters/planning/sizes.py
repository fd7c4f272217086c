"""How large an exported file will be, by arithmetic on the shape of the model.

Weights and their scales are counted exactly. What describes the graph is a fit to exported files, about 9.5 kB a layer and
signature of a Llama in a .tflite file: half of a toy, 0.1 % of 135 M parameters.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smolite.exporters.litert.quantization import Way
from smolite.models import ModelConfig

# Weights that share a scale in Q8_0 and Q4_0.
BLOCK = 32
# Bytes of what describes a file without layers.
_GRAPH = 4_000
# Bytes: a float32 scale and an int64 zero point.
_ROW_SCALE = 12
_BLOCK_SCALE = 2
# Sections of a .litertlm file begin at multiples.
_PAGE = 16 * 1024
_GGUF_TENSOR = 70  # name, shape, place and padding
_GGUF_BITS = {None: 32, "f16": 16, "q8_0": 8, "q4_0": 4}
_GGUF_TOKEN = 16  # length, score and type of a piece


@dataclass(frozen=True)
class Matrix:
    """Matrices of one shape, as the runtime multiplies with them.

    Args:
        rows: what one gives.
        columns: what one reads.
        times: how many there are.
        is_table: whether it is the embedding table, which is the output projection too.
    """

    rows: int
    columns: int
    times: int = 1
    is_table: bool = False

    @property
    def weights(self) -> int:
        """Weights in all of them: 3 of 2 x 5 have 30."""
        return self.rows * self.columns * self.times


@dataclass(frozen=True)
class TokenizerSize:
    """Bytes that a tokenizer takes.

    Args:
        litertlm: in a .litertlm file.
        gguf: in a .gguf file.
    """

    litertlm: int = 0
    gguf: int = 0


def matrices(config: ModelConfig) -> list[Matrix]:
    """The matrices of a model. Its other parameters, norms, biases and learned positions, stay float32 everywhere."""
    width, inside, blocks = config.hidden_dim, config.intermediate_dim, config.num_layers + config.num_encoder_layers
    queries, keys = config.num_query_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    # A decoder block that reads a source attends twice.
    attentions = blocks + (config.num_layers if config.has_encoder else 0)
    half = width if config.form == "llama" else width // 2
    return [
        Matrix(config.vocab_size, width, is_table=True),
        Matrix(queries, width, attentions),
        Matrix(keys, width, 2 * attentions),
        Matrix(width, queries, attentions),
        *([] if config.form == "llama" else [Matrix(half, width, blocks)]),
        Matrix(inside, half, 2 * blocks),
        Matrix(width, inside, blocks),
    ]


def tflite_weights(config: ModelConfig, way: Way | None, *, table: bool = True) -> int:
    """Bytes of the weights and scales in a .tflite file.

    Example: of `smollm2-135m` in int8 134,479,872 weights, 12 bytes for each of 204,672 rows, and 35,136 norms of 4 bytes:
    137,076,480.

    Args:
        config: the shape.
        way: how the weights are written; `None` for float32.
        table: whether the embedding table counts.
    """
    return _weights(config, _written(way), table=table)


def tflite_bytes(config: ModelConfig, way: Way | None, *, num_signatures: int) -> int:
    """Bytes of a .tflite file.

    Args:
        config: the shape.
        way: how the weights are written; `None` for float32.
        num_signatures: `decode` and one for each prefill length, and those again for windows that they fit into.
    """
    return tflite_weights(config, way) + _graph_bytes(config, way, num_signatures)


def litertlm_bytes(tflite: int, tokenizer: TokenizerSize) -> int:
    """Bytes of a .litertlm file around a .tflite file of `tflite` bytes, its last part: 100,000 → three pages more, 149,152."""
    # The header, what the runtime is told of model and caches, the tokenizer.
    parts = (1, 1, 1, tokenizer.litertlm)
    return sum(-(-part // _PAGE) for part in parts) * _PAGE + tflite


def gguf_weights(config: ModelConfig, quantize: str | None) -> int:
    """Bytes of the weights in a .gguf file; matrices whose columns are no multiple of 32 stay float32."""
    bits = _GGUF_BITS[quantize]

    def written(matrix: Matrix) -> int:
        if bits > 16 or matrix.columns % BLOCK:
            return 4 * matrix.weights
        scales = matrix.weights // BLOCK * _BLOCK_SCALE if bits < 16 else 0
        return matrix.weights * bits // 8 + scales

    return _weights(config, written)


def gguf_bytes(config: ModelConfig, quantize: str | None, tokenizer: TokenizerSize) -> int:
    """Bytes of a .gguf file with its tokenizer."""
    return gguf_weights(config, quantize) + tokenizer.gguf + _GGUF_TENSOR * (9 * config.num_layers + 2)


def tokenizer_size(folder: Path) -> TokenizerSize | None:
    """What the tokenizer in a folder takes in the files that hold it; `None` where there is none."""
    if (path := folder / "tokenizer.model").is_file():
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        text = sum(len(model.id_to_piece(index).encode()) for index in range(model.vocab_size()))
        return TokenizerSize(path.stat().st_size, text + _GGUF_TOKEN * model.vocab_size())
    if (path := folder / "tokenizer.json").is_file():
        content = path.read_bytes()
        model = json.loads(content)["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        text = sum(len(token.encode()) + 12 for token in model["vocab"]) + sum(len(merge.encode()) + 8 for merge in merges)
        # The builder compresses a tokenizer.json, and leaves a .model as it is.
        return TokenizerSize(len(zlib.compress(content)), text)
    return None


def _graph_bytes(config: ModelConfig, way: Way | None, num_signatures: int) -> int:
    """Bytes of operators, names and shapes: a fit, by form. Where rows have scales, it is packed anew and shorter."""
    layers = config.num_layers * num_signatures
    if config.has_encoder:
        layers, each = config.num_layers + config.num_encoder_layers, 12_300
    elif config.form != "llama":
        each = 16_000
    else:
        each = 9_500 if config.positions == "rotary" else 7_000
    rows_have_scales = way is not None and way.bits < 16 and not way.block
    return _GRAPH + each * layers * (92 if rows_have_scales else 100) // 100


def _weights(config: ModelConfig, written: Callable[[Matrix], int], *, table: bool = True) -> int:
    known = matrices(config)
    others = config.num_parameters - sum(matrix.weights for matrix in known)
    return 4 * others + sum(written(matrix) for matrix in known if table or not matrix.is_table)


def _written(way: Way | None) -> Callable[[Matrix], int]:
    """Bytes of a matrix with its scales."""

    def written(matrix: Matrix) -> int:
        if way is None:
            return 4 * matrix.weights
        bits = way.table_bits if matrix.is_table else way.bits
        if bits == 16:
            return 2 * matrix.weights
        scales = matrix.rows * matrix.times * _ROW_SCALE
        if way.block and bits == 4:
            scales = matrix.weights // way.block * _BLOCK_SCALE
        return matrix.weights * bits // 8 + scales

    return written
