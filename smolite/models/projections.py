"""The linear maps of a model, and how XLA is made to multiply a single row by them on all cores of a processor.

XLA multiplies one row by a small matrix on one core, at half of what the memory gives, and a step of decoding is little else.
Several products side by side run on all cores. So while a step is recorded for XLA on a processor, products of a single row are
taken in parts, and in a loop of steps those of the same row are joined. Elsewhere this is `Dense` alone.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

_parts: ContextVar[int] = ContextVar("parts", default=1)
_joined: ContextVar[bool] = ContextVar("joined", default=False)


@contextmanager
def _inside(variable: ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def rows_in_parts(parts: int):
    """Inside, the product of a single row is the sum of so many products, each of a part of the inputs."""
    return _inside(_parts, parts)


def rows_joined():
    """Inside, in `rows_in_parts`, projections of the same single row are one product by their kernels side by side.

    That copies the kernels. It pays in a loop, out of which XLA takes the copy.
    """
    return _inside(_joined, True)


def projection(width: int, *, name: str, use_bias: bool = False, activation=None, dtype=None) -> keras.layers.Dense:
    """A linear map to `width` features, called through `project`.

    Its weights are drawn so that what comes out varies as much as what goes in: with a deviation of 1 / √inputs (LeCun et al.
    1998), which for the inputs of a block of SmolLM2-135M is the `initializer_range` of its `config.json`, 1 / √576. The 0.02
    of Llama is a third of that where 256 features go in, and such a model learns more slowly.
    """
    return keras.layers.Dense(
        width, activation=activation, use_bias=use_bias, kernel_initializer="lecun_normal", name=name, dtype=dtype
    )


def table_initializer(width: int):
    """For an embedding table of rows of `width` features that is the output projection, too: normal, 1 / √`width`."""
    # Not Dense's lecun_normal: of a table it would count the rows as inputs, the whole vocabulary, and not the features that
    # the output projection multiplies. With this and `projection` smolite-small is at a loss of 1.78 after 8 epochs on the
    # bundled dialogues, and at 3.73 with 0.02 for both.
    return keras.initializers.RandomNormal(stddev=width**-0.5)


def project(layer: keras.layers.Dense, inputs):
    """`layer(inputs)`, (…, inputs) → (…, units); in parts where `rows_in_parts` says so.

    Where a graph has rows of a length that is not known yet, `layer` would measure it on TensorFlow; the product here does not.
    """
    if _is_taken_in_parts(inputs, layer):
        outputs = _in_parts(inputs, layer.kernel)
    # Growing caches: T is open, and an einsum leaves it open where `Dense` would put it into a shape.
    elif len(inputs.shape) == 3 and inputs.shape[0] and not inputs.shape[1] and _is_plain(inputs, layer):
        outputs = ops.einsum("btd,dn->btn", inputs, layer.kernel)
    else:
        return layer(inputs)
    outputs = _with_bias(layer, outputs)
    return outputs if layer.activation is None else layer.activation(outputs)


def project_together(layers: Sequence[keras.layers.Dense], inputs) -> list:
    """`project` of some layers without activation and the same inputs, joined where `rows_joined` says so."""
    if not (_joined.get() and _is_taken_in_parts(inputs, *layers)):
        return [project(layer, inputs) for layer in layers]
    # Queries, keys and values read the same row. One product of all three keeps both cores busy where three small ones run
    # one after the other.
    joined = _in_parts(inputs, ops.concatenate([layer.kernel for layer in layers], axis=1))
    ends = [sum(layer.units for layer in layers[: i + 1]) for i in range(len(layers) - 1)]
    return [_with_bias(layer, part) for layer, part in zip(layers, ops.split(joined, ends, axis=-1), strict=True)]


def _with_bias(layer, outputs):
    return outputs if layer.bias is None else outputs + layer.bias


def _is_taken_in_parts(inputs, *layers) -> bool:
    parts = _parts.get()
    # More than one row is a matrix product that XLA runs on all cores by itself.
    if parts == 1 or math.prod(inputs.shape[:-1]) != 1 or inputs.shape[-1] % parts:
        return False
    return _is_plain(inputs, *layers)


def _is_plain(inputs, *layers) -> bool:
    """Not in half precision, where every part would be rounded; a quantized layer has its own product."""
    is_whole = all(layer.quantization_mode is None for layer in layers)
    return is_whole and keras.backend.standardize_dtype(inputs.dtype) == "float32"


def _in_parts(inputs, kernel):
    parts, width = _parts.get(), kernel.shape[1]
    # The inputs are cut, not the units: a part of the kernel is then a run of whole rows in memory, and reshaping copies
    # nothing.
    products = ops.matmul(ops.reshape(inputs, (parts, 1, -1)), ops.reshape(kernel, (parts, -1, width)))
    return ops.reshape(sum(ops.unstack(products, parts)), (*inputs.shape[:-1], width))  # XLA would not fuse `ops.sum`
