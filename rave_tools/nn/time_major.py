"""Convolutions over time in the order of memory that a processor reads fastest: all channels of an instant together.

Shapes are torch's, (B, C, T); only the strides differ, and whatever follows elementwise keeps them. In this order a
window is one stretch of memory, so oneDNN's kernels need no reordering and gradients are matrix products. Elsewhere
(other devices and types, autocast, groups, exports, compilers) these functions are torch's own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NARROW = 8
"""With fewer channels at either side, matrix products leave most lanes of a vector unit idle."""

SHORT = 32
"""Kernels up to this length are worth the copying of one channel's windows."""


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """torch.nn.functional.pad over time, which keeps the order of memory: (B, C, T) -> (B, C, left + T + right)."""
    return F.pad(x.unsqueeze(2), [left, right, 0, 0], mode).squeeze(2) if left or right else x


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    left: int = 0,
    right: int = 0,
    mode: str = "constant",
) -> Tensor:
    """torch.nn.functional.pad and conv1d: (B, C, T) -> (B, C', T'). The gradient is differentiable once.

    Args:
        x, weight, bias, stride, dilation, groups: of torch.nn.functional.conv1d.
        left, right, mode: of torch.nn.functional.pad.
    """
    if groups > 1 or (stride > 1 and dilation > 1) or not suits(x, weight):
        return F.conv1d(pad(x, left, right, mode), weight, bias, stride, 0, dilation, groups)
    if learns(x, weight):
        x = pad(x, left, right, mode)
        if min(weight.shape[:2]) >= NARROW:
            return _Conv1d.apply(x, weight, bias, stride, dilation)
        return _convolve(x, weight, bias, stride, dilation)
    if weight.shape[1] == 1 and dilation == 1 and weight.shape[2] <= SHORT:
        return _one_channel(pad(x, left, right, mode), weight, bias, stride)
    extent = (weight.shape[2] - 1) * dilation
    windows = (left + x.shape[2] + right - extent - 1) // stride + 1
    head = -(-left // stride)
    tail = max(head, (x.shape[2] - extent - 1 + left) // stride + 1)
    start = tail * stride - left
    if left < right or left + right == 0 or x.shape[2] < 2 * (extent + left) or x.shape[2] - start <= right:
        return _convolve(pad(x, left, right, mode), weight, bias, stride, dilation)
    # Padded within the convolution, which saves a copy of the sound; what looks at the padding is computed again.
    y = _convolve(x, weight, bias, stride, dilation, left)[..., :windows]
    if mode != "constant":
        first = pad(x[..., : extent + left], left, 0, mode)
        y[..., :head] = _convolve(first, weight, bias, stride, dilation)[..., :head]
        if tail < windows:
            y[..., tail:] = _convolve(pad(x[..., start:], 0, right, mode), weight, bias, stride, dilation)
    return y


def conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, left: int = 0, length: int
) -> Tensor:
    """As torch.nn.functional.conv_transpose1d, of whose output `length` samples from `left` on are wanted.

    (B, C, N) -> (B, C', length). The gradient is differentiable once.
    """
    if not suits(x, weight):
        return F.conv_transpose1d(x, weight, bias, stride)[..., left : left + length]
    if learns(x, weight) and min(weight.shape[:2]) >= NARROW:
        return _ConvTranspose1d.apply(x, weight, bias, stride, left, length)
    return _transpose(x, weight, bias, stride)[..., left : left + length]


def together(weight: Tensor) -> Tensor:
    """The same weight (O, I, K) in the order that these functions read, so that no call has to bring it there."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def suits(*tensors: Tensor) -> bool:
    """Whether this order of memory is of use, and known to be exact."""
    if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return not torch.is_autocast_enabled("cpu") and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors
    )


def learns(*tensors: Tensor) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _image(x: Tensor) -> Tensor:
    """An image of height 1 with its channels last: (B, C, T) -> (B, C, 1, T)."""
    x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    # With one channel both orders are the same, and only the strides tell torch which one is meant.
    return x.as_strided(x.shape, (x.shape[3], 1, x.shape[3], 1)) if x.shape[1] == 1 else x


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int, padding: int = 0) -> Tensor:
    return F.conv2d(_image(x), _image(weight), bias, (1, stride), (0, padding), (1, dilation)).squeeze(2)


def _one_channel(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A convolution of one channel as one product of all windows, which are copied: oneDNN takes several times as long.

    (B, 1, T) -> (B, C', T').
    """
    windows = x.squeeze(1).unfold(1, weight.shape[2], stride)
    rows, matrix = windows.reshape(-1, weight.shape[2]), weight.squeeze(1).T
    y = torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix)
    return y.unflatten(0, windows.shape[:2]).transpose(1, 2)


def _transpose(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return F.conv_transpose2d(_image(x), _image(weight), bias, (1, stride)).squeeze(2)


def _unattached(view: Tensor) -> Tensor:
    """The same memory, which what follows may write over: autograd forbids that for a view made in a function."""
    return view.new_empty(0).set_(view)


def _rows(x: Tensor, frames: int, stride: int) -> Tensor:
    """Frames of all rows of a batch below each other, zeros behind the end: (B, C, T) -> (B * frames, stride * C).

    A step from a frame to the next may lead from one row of the batch into another; there one of the two factors of
    the products below is zero, or the result is cut.
    """
    missing = frames * stride - x.shape[2]
    x = x.transpose(1, 2)
    if missing > 0:
        x = F.pad(x, [0, 0, 0, missing])
    return x.reshape(x.shape[0] * frames, stride * x.shape[2])


def _taps(weight: Tensor, stride: int) -> Tensor:
    """Matrices from a frame to an instant, one for each frame of a window: (O, I, K) -> (ceil(K / s), O, s * I)."""
    wide, narrow, length = weight.shape
    taps = -(-length // stride)
    weight = F.pad(weight, [0, taps * stride - length]).unflatten(2, (taps, stride))
    return weight.permute(2, 0, 3, 1).reshape(taps, wide, stride * narrow)


def _kernel(taps: Tensor, like: Tensor, stride: int) -> Tensor:
    """The inverse of `_taps`."""
    kernel = taps.unflatten(2, (stride, like.shape[1])).permute(1, 3, 0, 2).flatten(2)
    return kernel[..., : like.shape[2]]


class _Conv1d(torch.autograd.Function):
    """A convolution; with s samples of C channels as a frame it is one matrix product per frame of its window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        return _unattached(_convolve(x, weight, bias, stride, dilation))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, _, length = x.shape
        frames = -(-length // ctx.stride)
        above = _rows(gradient, frames, 1)
        matrices = _taps(weight, ctx.stride)
        steps = [tap * ctx.dilation for tap in range(len(matrices))]
        end = len(above)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            below = torch.mm(above, matrices[0])
            for step, matrix in zip(steps[1:], matrices[1:], strict=True):
                below[step:].addmm_(above[: end - step], matrix)
            to_x = below.reshape(rows, frames * ctx.stride, -1)[:, :length].transpose(1, 2)
        if ctx.needs_input_grad[1]:
            heard = _rows(x, frames, ctx.stride)
            products = torch.stack([torch.mm(above[: end - step].T, heard[step:]) for step in steps])
            to_weight = _kernel(products, weight, ctx.stride)
        if ctx.needs_input_grad[2]:
            to_bias = above.sum(0)
        return to_x, to_weight, to_bias, None, None


class _ConvTranspose1d(torch.autograd.Function):
    """A transposed convolution, the mirror image of `_Conv1d`, and what is wanted of its output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, left: int, length: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.left = stride, left
        return _unattached(_transpose(x, weight, bias, stride)[..., left : left + length])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, _, length = x.shape
        matrices = _taps(weight, ctx.stride)
        frames = length + len(matrices) - 1
        above = _rows(pad(gradient, ctx.left, 0, "constant"), frames, ctx.stride)
        end = len(above)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            below = torch.mm(above, matrices[0].T)
            for step, matrix in enumerate(matrices[1:], 1):
                below[: end - step].addmm_(above[step:], matrix.T)
            to_x = below.unflatten(0, (rows, frames))[:, :length].transpose(1, 2)
        if ctx.needs_input_grad[1]:
            heard = _rows(x, frames, 1)
            products = [torch.mm(heard[: end - step].T, above[step:]) for step in range(len(matrices))]
            to_weight = _kernel(torch.stack(products), weight, ctx.stride)
        if ctx.needs_input_grad[2]:
            to_bias = gradient.sum((0, 2))
        return to_x, to_weight, to_bias, None, None, None
