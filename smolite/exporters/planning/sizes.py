"""What a model consists of, for whoever says how large a file of it will be; each target does that in its own folder."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from smolite.exporters.edge.names import cache_shapes
from smolite.models import ModelConfig

# Weights that share a scale in Q8_0 and Q4_0.
BLOCK = 32
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


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a file will take.

    Args:
        num_bytes: its size.
        read_bytes: what is read from memory for one token.
        memory: the most that its runtime takes with it; `None` where that isn't known.
    """

    num_bytes: int
    read_bytes: int
    memory: int | None = None


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


def cache_bytes(config: ModelConfig, length: int) -> int:
    """Bytes of keys and values of `length` tokens: `smolite-small`, 512 → 4 layers · 2 · 2 heads · 64 · 512 · 4 = 2,097,152."""
    return sum(4 * prod(shape) for shape in cache_shapes(config, length).values())


def weight_bytes(config: ModelConfig, written: Callable[[Matrix], int], *, table: bool = True) -> int:
    """Bytes of all weights, where `written` gives those of a matrix; all others stay float32.

    Args:
        config: the shape.
        written: matrix → bytes with its scales.
        table: whether the embedding table counts.
    """
    known = matrices(config)
    others = config.num_parameters - sum(matrix.weights for matrix in known)
    return 4 * others + sum(written(matrix) for matrix in known if table or not matrix.is_table)
