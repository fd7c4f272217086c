"""How large a .tflite file will be, and what LiteRT-LM takes with it, by arithmetic on the shape of the model.

Weights and their scales are counted exactly. What describes the graph is a fit to exported files, about 9.5 kB a layer and
signature of a Llama: half of a toy, 0.1 % of 135 M parameters.
"""

from collections.abc import Callable, Sequence

from smolite.exporters.edge.names import signature_shapes
from smolite.exporters.litert.ways import WAYS, Way
from smolite.exporters.planning.sizes import Estimate, Matrix, TokenizerSize, cache_bytes, weight_bytes
from smolite.exporters.request import ExportRequest
from smolite.models import ModelConfig

# Bytes of what describes a file without layers.
_GRAPH = 4_000
# Bytes: a float32 scale and an int64 zero point.
_ROW_SCALE = 12
_BLOCK_SCALE = 2
# Bytes that LiteRT-LM takes besides; fitted, see `runtime_memory`.
_RUNTIME = 105_000_000


def estimate(config: ModelConfig, request: ExportRequest, tokenizer: TokenizerSize) -> Estimate:
    """What the file of a request takes: every weight is read once for a token, and in LiteRT the whole cache."""
    lengths, slots = request.prefill_lengths, request.slots
    signatures = signature_shapes(prefill_lengths=lengths, cache_length=slots, windows=request.windows, drafts=request.drafts)
    return Estimate(
        num_bytes=tflite_bytes(config, _way(request.quantize), num_signatures=len(signatures)),
        # A step reads every weight and the whole allocated cache: this over the memory's bandwidth bounds its speed.
        read_bytes=tflite_weights(config, _packed(request.quantize)) + cache_bytes(config, slots),
        memory=runtime_memory(config, request.quantize, prefill_lengths=lengths, cache_length=slots),
    )


def tflite_weights(config: ModelConfig, way: Way | None, *, table: bool = True) -> int:
    """Bytes of the weights and scales in a .tflite file.

    Example: of `smollm2-135m` in int8 134,479,872 weights, 12 bytes for each of 204,672 rows, and 35,136 norms of 4 bytes:
    137,076,480.

    Args:
        config: the shape.
        way: how the weights are written; `None` for float32.
        table: whether the embedding table counts.
    """
    return weight_bytes(config, _written(way), table=table)


def tflite_bytes(config: ModelConfig, way: Way | None, *, num_signatures: int) -> int:
    """Bytes of a .tflite file.

    Args:
        config: the shape.
        way: how the weights are written; `None` for float32.
        num_signatures: `decode` and one for each prefill length, and those again for windows that they fit into.
    """
    return tflite_weights(config, way) + _graph_bytes(config, way, num_signatures)


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
