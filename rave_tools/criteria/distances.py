"""How far two tensors are apart."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Norm = Literal["L1", "L2"]

SMALLEST_MEAN = 1e-8
"""Least denominator of a relative distance: silence as a target must give a large number, not an infinite one."""


def mean_difference(target: Tensor, value: Tensor, *, norm: Norm = "L1", relative: bool = False) -> Tensor:
    """Mean absolute (L1) or squared (L2) difference.

    Args:
        target: what was wanted; no gradient reaches it through the denominator of a relative distance.
        value: what came, same shape.
        norm: ``L1`` or ``L2``.
        relative: divide by the same mean of the target itself, taken over all processes of a data-parallel run, so that
            splitting a batch changes nothing.

    Returns:
        A scalar in float32.
    """
    return mean_differences([target], [value], norm=norm, relative=relative)[0]


def mean_differences(
    targets: Sequence[Tensor], values: Sequence[Tensor], *, norm: Norm = "L1", relative: bool = False
) -> Tensor:
    """`mean_difference` of each pair, with one exchange between processes for all of them.

    Returns:
        Shape (number of pairs,).
    """
    if norm not in ("L1", "L2"):
        raise ValueError(f"norm is {norm!r}; it is 'L1' or 'L2'")
    difference = _MeanAbsoluteDifference.apply if norm == "L1" else F.mse_loss
    differences = torch.stack([difference(v.float(), t.float()) for t, v in zip(targets, values, strict=True)])
    if not relative:
        return differences
    with torch.no_grad():
        size = mean_over_processes(torch.stack([_mean_size(t.float(), norm) for t in targets]))
    return differences / size.clamp_min(SMALLEST_MEAN)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes of a data-parallel run, without gradients."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class _MeanAbsoluteDifference(torch.autograd.Function):
    """Mean of |value - target|; walks over large feature maps half as often as a chain of operations would."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, target: Tensor) -> Tensor:
        difference = value - target
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(difference.sign())
        return difference.abs_().mean()  # not a vector norm: that adds float32 naively, 1 % off at 10 million elements

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        (sign,) = ctx.saved_tensors
        towards = sign * (gradient / sign.numel())
        return towards, -towards if ctx.needs_input_grad[1] else None


def _mean_size(x: Tensor, norm: Norm) -> Tensor:
    return x.abs().mean() if norm == "L1" else x.square().mean()
