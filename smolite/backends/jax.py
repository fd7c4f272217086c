"""JAX's answers: one jitted program of the weights, which may take the memory of the old cache."""

from collections.abc import Callable
from typing import Any

from smolite.backends.seams import ROW_PARTS, Backend, stateless


class Jax(Backend):
    """See `Backend`. XLA fuses the plain cross-entropy, gradient and all, and Keras' optimizers."""

    name = "jax"
    is_one_program = True  # `jit` compiles by shape, so that prefill may take the memory of the cache, too

    def compiled(self, model: Any, function: Callable, *, is_step: bool) -> Callable:
        """One program for all shapes alike; weights are arguments, the old cache's memory becomes the new one."""
        import jax

        of_weights, weights = stateless(model, function)
        # Argument 2 is the cache, after weights and tokens. Given away, its memory is written in place; kept, every step would
        # copy it whole.
        program = jax.jit(of_weights, donate_argnums=2 if is_step else ())
        # Weights are arguments: a program that closes over them holds them as constants, and would not see a later `fit`.
        return lambda *inputs: program(weights(), *inputs)

    def row_parts(self) -> int:
        """XLA's products of a row in parts on a processor."""
        import jax

        return ROW_PARTS if jax.default_backend() == "cpu" else 1


BACKEND = Jax()
