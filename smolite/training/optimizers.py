"""What Keras' optimizers lack here: a schedule by updates, rates that fall from block to block, a fast step on torch."""

import re
from typing import Any

import keras
from keras import ops

from smolite.backends import OnePass, backend


@keras.saving.register_keras_serializable("smolite")
class PerUpdate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that moves on once per update, where an update takes the gradients of several batches.

    Keras counts `gradient_accumulation_steps` batches as one in the corrections of Adam, but hands schedules every batch.

    Args:
        schedule: by updates.
        gradient_accumulation_steps: batches per update.
    """

    def __init__(self, schedule: Any, gradient_accumulation_steps: int):
        super().__init__()
        self.schedule, self.gradient_accumulation_steps = schedule, gradient_accumulation_steps

    def __call__(self, step):
        """The rate of the update that batch number `step`, from 0, belongs to: with 4 batches per update, 11 is in update 2."""
        return self.schedule(step // self.gradient_accumulation_steps)

    def get_config(self):
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "gradient_accumulation_steps": self.gradient_accumulation_steps}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["gradient_accumulation_steps"])


class _OnePass:
    """Adam's step in one pass over weights, gradients and moments, on a backend that has `one_pass`; elsewhere Keras' own.

    Keras' takes some fifteen operations over all of them. Clipping by the global norm changes the gradients in place, and those
    of several batches are added up in place.
    """

    amsgrad: bool
    use_ema: bool

    def _share_and_decay(self, variable: Any) -> tuple[float, float]:
        """The share of the learning rate, and the weight decay, of a variable."""
        raise NotImplementedError

    def _one_pass(self) -> OnePass | None:
        return None if self.amsgrad or self.use_ema else backend().one_pass

    def _clip_gradients(self, grads):
        one_pass = self._one_pass()
        # `clipnorm`, of each gradient by itself, wins in Keras where both are set.
        if one_pass is None or not self.global_clipnorm or self.clipnorm:
            return super()._clip_gradients(grads)
        one_pass.clip_by_global_norm(grads, self.global_clipnorm)
        return grads

    def _backend_increment_gradient_accumulators(self, grads, acc_grads):
        if (one_pass := self._one_pass()) is None:
            return super()._backend_increment_gradient_accumulators(grads, acc_grads)
        one_pass.add([sums.value for sums in acc_grads], grads)

    def _backend_reset_gradient_accumulators(self):
        if (one_pass := self._one_pass()) is None:
            return super()._backend_reset_gradient_accumulators()
        one_pass.clear([sums.value for sums in self._accumulated_gradients if sums is not None])

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if (one_pass := self._one_pass()) is None:
            return super()._backend_update_step(grads, trainable_variables, learning_rate)
        # Variables of one rate and decay go into one call: two groups without `layer_decay`, some per block with it.
        groups = {}
        for pair in zip(grads, trainable_variables, strict=True):
            groups.setdefault(self._share_and_decay(pair[1]), []).append(pair)
        for (share, decay), pairs in groups.items():
            indices = [self._get_variable_index(variable) for _, variable in pairs]
            one_pass.adamw(
                [variable.value for _, variable in pairs],
                [gradient for gradient, _ in pairs],
                ([self._momentums[index].value for index in indices], [self._velocities[index].value for index in indices]),
                count=int(self.iterations),
                learning_rate=float(learning_rate) * share,
                weight_decay=decay,
                beta_1=self.beta_1,
                beta_2=self.beta_2,
                epsilon=self.epsilon,
            )


@keras.saving.register_keras_serializable("smolite")
class FusedAdamW(_OnePass, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` for a backend that has `one_pass`: torch. Weights, gradients and moments are walked once.

    `amsgrad` and an average of the weights (`use_ema`) are left to `keras.optimizers.AdamW`.

    Args:
        kwargs: of `keras.optimizers.AdamW`.

    Raises:
        ValueError: `amsgrad` or `use_ema` is asked for.
    """

    def __init__(self, learning_rate: Any = 1e-3, **kwargs: Any):
        if kwargs.get("amsgrad") or kwargs.get("use_ema"):
            raise ValueError(
                f"`FusedAdamW` has neither `amsgrad` nor `use_ema`. Received: {kwargs}. Take keras.optimizers.AdamW."
            )
        super().__init__(learning_rate, **kwargs)

    def _apply_weight_decay(self, variables):
        """Nothing here; it is part of the update."""

    def _share_and_decay(self, variable):
        return 1.0, self.weight_decay if self._use_weight_decay(variable) else 0.0

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """On another backend than torch, Keras' own with the same settings and state."""
        if backend().one_pass:
            return super().from_config(config, custom_objects)
        return keras.optimizers.AdamW.from_config(config, custom_objects)


@keras.saving.register_keras_serializable("smolite")
class LayerwiseAdamW(_OnePass, keras.optimizers.Adam):
    """AdamW with a learning rate that falls from the last block to the first (Howard and Ruder 2018; Clark et al. 2020).

    Block i of n learns at `learning_rate` · `layer_decay` ^ (n - 1 - i), the final norm at `learning_rate`, and what comes
    before the blocks at `learning_rate` · `layer_decay` ^ n. The tied table comes before them, although it is the output
    projection as well: it learns most slowly. An encoder's blocks and norm come before the decoder's. The weight decay of a
    variable follows its rate. Variables of one dimension, norm scales and biases, have none.

    Args:
        learning_rate: a number or a schedule.
        layer_decay: above 0, at most 1, which makes it plain AdamW.
        weight_decay: as in AdamW, on matrices.
        kwargs: of `keras.optimizers.Adam`.
    """

    def __init__(self, learning_rate: Any = 1e-3, *, layer_decay: float = 1.0, weight_decay: float = 0.004, **kwargs: Any):
        # Keras would apply `weight_decay` by itself, at the full rate, besides what `update_step` does.
        super().__init__(learning_rate, weight_decay=None, **kwargs)
        self.layer_decay, self.matrix_decay = layer_decay, weight_decay
        self._shares: list[float] = []

    def build(self, variables):
        super().build(variables)
        self._shares = rate_shares([variable.path for variable in variables], self.layer_decay)

    def _share_and_decay(self, variable):
        return self._shares[self._get_variable_index(variable)], self.matrix_decay if len(variable.shape) > 1 else 0.0

    def update_step(self, gradient, variable, learning_rate):
        """Keras' step, at the rate of the variable's layer, after its weight decay."""
        rate = ops.cast(learning_rate, variable.dtype) * self._shares[self._get_variable_index(variable)]
        if self.matrix_decay and len(variable.shape) > 1:
            # As in AdamW the decay comes before the step and follows the rate; Keras' own decay knows one rate for all.
            self.assign(variable, variable * (1.0 - self.matrix_decay * rate))
        super().update_step(gradient, variable, rate)

    def get_config(self):
        return {**super().get_config(), "layer_decay": self.layer_decay, "weight_decay": self.matrix_decay}


def rate_shares(paths: list[str], layer_decay: float) -> list[float]:
    """The share of the learning rate for each of a model's variables.

    Example: `["token_embedding/embeddings", "block_0/mlp/up/kernel", "block_1/mlp/up/kernel", "final_norm/scale"]` at 0.5
    → `[0.25, 0.5, 1.0, 1.0]`. With an encoder of one block the decoder's stand behind it:
    `["token_embedding/embeddings", "encoder_0/mlp/up/kernel", "memory_0/key/kernel", "block_0/mlp/up/kernel"]` →
    `[0.25, 0.5, 1.0, 1.0]`.

    Args:
        paths: of the variables; a block's have `block_<i>/` in it, those of an encoder `encoder_<i>/`.
        layer_decay: share that is left from a block to the one before it.
    """
    matches = [re.search(r"(?:^|/)(block|memory|encoder)_(\d+)/", path) for path in paths]
    blocks = [(match[1] == "encoder", int(match[2])) for match in matches if match]
    encoder = 1 + max((number for is_encoder, number in blocks if is_encoder), default=-1)
    last = encoder + 1 + max((number for is_encoder, number in blocks if not is_encoder), default=-1)
    return [layer_decay ** (last - _depth(path, match, encoder, last)) for path, match in zip(paths, matches, strict=True)]


def _depth(path: str, match: re.Match[str] | None, encoder: int, last: int) -> int:
    """Blocks up to and with that of a variable, along `encoder` blocks and then the decoder's; 0 before all of them."""
    if match:
        # The keys and values that a decoder block reads of a source are that block's, although they are a layer beside it.
        return int(match[2]) + 1 + (0 if match[1] == "encoder" else encoder)
    # What is in no block and no norm behind one comes before the blocks.
    return last if "final_norm/" in path else encoder if "encoder_norm/" in path else 0
