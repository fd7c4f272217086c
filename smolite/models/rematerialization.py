"""`keras.RematScope` around the making of a model: its blocks are computed again in the backward pass, not kept.

A block is the right piece: it keeps its input alone, (B, T, D), of some twenty tensors of that size or more inside. Keras would
wrap every layer of a model, the model itself and the layers inside of layers, so that each is computed again many times; and it
cannot wrap those whose arguments are flags, or that draw dropout.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

from smolite.backends import backend


class Rematerialized(keras.layers.Layer):
    """A layer that `keras.RematScope` can have computed again, whatever arguments it takes, dropout included."""

    def rematerialized_call(self, layer_call, *args, **kwargs):
        """The call as Keras makes it, or one that keeps only its inputs; without training there is no backward pass."""
        wanted = super().rematerialized_call(layer_call, *args, **kwargs) is not layer_call
        return partial(_kept_by_inputs, self, layer_call) if wanted and kwargs.get("training") else layer_call


def leave_remat_to_blocks(model: keras.Model) -> None:
    """Takes the scope off what is not a block, but for single layers that it names and for activations."""
    layers = list(model._flatten_layers())
    for operation in [*model.operations, *layers]:
        mode = operation._remat_mode
        if mode and mode.mode in ("full", "larger_than") and not isinstance(operation, Rematerialized):
            operation._remat_mode = None
    for block in layers:
        if isinstance(block, Rematerialized) and block._remat_mode and block.name in block._remat_mode.layer_names:
            # What is named inside of a block that is named too is computed again with it. On TensorFlow, once more around it
            # would cut the gradient off from the block's weights, which are no variables there.
            for layer in block._flatten_layers(include_self=False):
                layer._remat_mode = None
    model._remat_mode = None


def _kept_by_inputs(layer: Rematerialized, call: Callable, *args: Any, **kwargs: Any) -> Any:
    flat = keras.tree.flatten((args, kwargs))
    # What has a gradient is an argument of the function; the rest, whole numbers and flags, is part of it.
    places = [place for place, each in enumerate(flat) if _is_float(each)]

    def again(*floats):
        inputs = dict(enumerate(flat)) | dict(zip(places, floats, strict=True))
        args_again, kwargs_again = keras.tree.pack_sequence_as((args, kwargs), list(inputs.values()))
        return call(*args_again, **kwargs_again)

    floats = [flat[place] for place in places]
    if backend().remat_keeps_state:
        return keras.remat(again)(*floats)
    return _with_state_outside(layer, again, floats)


def _with_state_outside(layer: Rematerialized, again: Callable, floats: list[Any]) -> Any:
    """For pure functions: weights come in as arguments, and the seeds of dropout that were drawn on go out as results.

    A seed that changed inside would be drawn anew in the backward pass on TensorFlow, and on JAX belong to a finished trace.
    """
    weights = [variable for variable in layer.variables if keras.backend.is_float_dtype(variable.dtype)]
    seeds = [variable for variable in layer.variables if not keras.backend.is_float_dtype(variable.dtype)]
    before = [_read(seed) for seed in seeds]

    def pure(*inputs):
        values = [*zip(weights, inputs, strict=False), *zip(seeds, before, strict=True)]
        with keras.StatelessScope(state_mapping=values) as scope:
            outputs = again(*inputs[len(weights) :])
        return outputs, [scope.get_current_value(seed) for seed in seeds]

    outputs, after = keras.remat(pure)(*map(_read, weights), *floats)
    for seed, value in zip(seeds, after, strict=True):
        seed.assign(value)
    return outputs


def _read(variable: keras.Variable) -> Any:
    """The value as a tensor of its own: `ops.convert_to_tensor` gives TensorFlow's variable itself, which changes later."""
    return ops.reshape(variable, variable.shape)


def _is_float(value: Any) -> bool:
    return ops.is_tensor(value) and keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))
