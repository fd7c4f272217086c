"""torch's answers: steps recorded once as a graph, caches written in place, the loss by chunks, updates in one pass."""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from smolite.backends.seams import Backend, stateless

_CHUNK = 1 << 22  # logits taken at a time: their memory is small enough to be used again


class TorchUpdates:
    """See `OnePass`. Clipping and AdamW of 134.5 M parameters take 0.08 s instead of the 0.93 s of Keras' operations."""

    def clip_by_global_norm(self, gradients: list[Any], limit: float) -> None:
        """See `OnePass`."""
        import torch

        with torch.no_grad():
            # One fused pass for the norm and one for the scaling. Keras' clipping makes a new array for each gradient.
            norm = torch.nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, torch.clamp(limit / norm, max=1.0))

    def add(self, sums: list[Any], gradients: list[Any]) -> None:
        """See `OnePass`."""
        import torch

        with torch.no_grad():
            torch._foreach_add_(sums, gradients)

    def clear(self, sums: list[Any]) -> None:
        """See `OnePass`."""
        import torch

        with torch.no_grad():
            torch._foreach_zero_(sums)

    def adamw(self, weights: list[Any], gradients: list[Any], moments: tuple[list[Any], list[Any]], **settings: float) -> None:
        """See `OnePass`."""
        import torch
        from torch.optim.adamw import adamw

        # `fused`, without which torch on a processor walks over the weights one by one, wants the count beside each weight.
        # torch counts up in place before it corrects; Keras' counter is its own and must not move, hence new tensors.
        counts = [torch.tensor(float(settings["count"]), device=weight.device) for weight in weights]
        # Keras adds `epsilon` before the correction of the second moment, torch after it, hence the quotient.
        epsilon = settings["epsilon"] / math.sqrt(1 - settings["beta_2"] ** (settings["count"] + 1))
        with torch.no_grad():
            adamw(
                weights,
                gradients,
                *moments,
                [],
                counts,
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=settings["beta_1"],
                beta2=settings["beta_2"],
                lr=settings["learning_rate"],
                weight_decay=settings["weight_decay"],
                eps=epsilon,
            )


class Torch(Backend):
    """See `Backend`."""

    name = "torch"
    one_pass = TorchUpdates()
    remat_keeps_state = True
    has_loops = False  # its `while_loop` would be one of Python

    def compiled(self, model: Any, function: Callable, *, is_step: bool) -> Callable:
        """A step is recorded once as a graph of torch operations, free of Keras' work per layer call; a prompt is just run."""
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        of_weights, weights = stateless(model, function)
        recorded: list[Callable] = []

        @torch.no_grad()
        def run(*inputs):
            if not is_step:
                return function(model, *inputs)
            if not recorded:
                # make_fx, not torch.compile: recording takes one forward and needs no C++ compiler on the user's machine.
                recorded.append(make_fx(of_weights)(weights(), *inputs))
            return recorded[0](weights(), *inputs)

        return run

    def write_slice(self, part: Any, starts: tuple, new: Any) -> Any:
        """In the memory of `part`; of the `starts` only the slot is a tensor.

        Keras' `slice_update` copies the part and builds an index of every number to write: 52 of the 143 operations of a layer,
        and 14.0 to 18.3 ms of a step of 20 M parameters, where `index_copy_` makes it 10.0 to 11.4.
        """
        ((axis, slot),) = ((axis, start) for axis, start in enumerate(starts) if not isinstance(start, int))
        return part.index_copy_(axis, slot.reshape(1).long(), new)

    def token_nll(self, logits: Any, targets: Any) -> Any:
        """By chunks: 0.23 s instead of 1.4 to 2.1 for 4,096 tokens of 32,768 ids on two cores."""
        return _in_chunks(logits, targets)


@ops.custom_gradient
def _in_chunks(logits, targets):
    """A few rows at a time, so that torch asks for no new memory of the logits' size but for the gradient itself."""
    # gather and scatter on torch take int64 alone.
    flat, columns = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1, 1).long()
    size = max(1, _CHUNK // flat.shape[1])
    # The plain form asks for new memory of the size of the logits at every operation.
    log_sum = ops.concatenate([ops.logsumexp(rows, axis=-1) for rows in flat.split(size)])

    def gradient(*_, upstream):
        slope = upstream.reshape(-1, 1)
        # The one large array: all that follows is written into it.
        out = logits.new_empty(flat.shape)
        for place, rows, part, total in zip(*(x.split(size) for x in (out, flat, slope, log_sum[:, None])), strict=True):
            place.copy_(rows).sub_(total).exp_().mul_(part)
        # softmax(x) - 1 at the target, and softmax(x) elsewhere.
        out.scatter_add_(1, columns, -slope)
        return out.reshape(logits.shape), None

    return (log_sum - flat.gather(1, columns)[:, 0]).reshape(targets.shape), gradient


BACKEND = Torch()
