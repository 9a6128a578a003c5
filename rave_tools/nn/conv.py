"""Convolutions that stream, with weight normalisation inside; the only module that touches cached_conv.

cached-conv (CC BY-NC 4.0) gives the padding convention and the plain layers' constructors; the streaming forms are
ours: they need no global switch, keep state-dict keys and take the least delay that whole blocks allow.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from cached_conv import convs as cached
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.nn.streaming import Memory, Stateful, Streamable

PADDINGS = ("centered", "causal", "anticausal")
NORMALIZATIONS = ("identity", "weight_norm")


class WeightNormed:
    """Mixin of convolutions that may store their weight as w = g v / |v|, with a norm per row of dimension 0.

    Source: Salimans and Kingma, "Weight Normalization", 2016. Parameters are named ``weight_g`` and ``weight_v`` as
    torch's first implementation and the checkpoints of the field have them; unlike that one, no hook, so a model can be
    copied and compiled.
    """

    def init_weight_norm(self, enabled: bool) -> None:
        """To be called once, after the layer's own constructor."""
        self.register_parameter("weight_g", None)
        self.register_parameter("weight_v", None)
        if enabled:
            direction = self.weight.detach()
            self.weight_g = nn.Parameter(torch.norm_except_dim(direction, 2, 0))
            self.weight_v = nn.Parameter(direction.clone())
            self.register_parameter("weight", None)

    def kernel(self) -> Tensor:
        """The weight in use."""
        # No annotation of weight_g: TorchScript must see None, and then it never compiles the second return.
        if self.weight_g is None:
            return self.weight
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def fold_weight_norm(self) -> None:
        """Store the weight itself from now on."""
        if self.weight_g is not None:
            self.weight = nn.Parameter(self.kernel().detach().clone(), requires_grad=self.weight_g.requires_grad)
            self.register_parameter("weight_g", None)
            self.register_parameter("weight_v", None)


def fold_weight_norm(model: nn.Module) -> nn.Module:
    """Fold every weight-normalised layer of a model in place and return the model; its outputs do not change."""
    for module in model.modules():
        if isinstance(module, WeightNormed):
            module.fold_weight_norm()
    return model


class Conv1d(WeightNormed, cached.Conv1d, Streamable):
    """One-dimensional convolution with zero padding outside, streaming with exactly the history that its grid needs.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: as torch.nn.Conv1d.
        padding: zeros (left, right).
        weight_norm: store the weight as direction and length.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        weight_norm: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.margins = [padding[0], padding[1]]
        self.streaming = False
        self.memory = Memory()
        self.init_weight_norm(weight_norm)

    def enable_streaming(self, delay: int) -> int:
        """Window n of the plain layer ends at n s + lookahead: complete in the block of frame n + floor(...)."""
        stride = self.stride[0]
        extent = (self.kernel_size[0] - 1) * self.dilation[0]
        ahead = extent - self.margins[0] + delay
        self.streaming = True
        self.memory.length = extent - ahead % stride
        return ahead // stride

    def convolve(self, x: Tensor) -> Tensor:
        """The layer itself, for subclasses (TorchScript knows no super)."""
        margin = 0
        if self.streaming:
            x = self.memory(x)
        elif self.margins[0] == self.margins[1]:
            margin = self.margins[0]  # the convolution's own padding saves a copy of the signal
        else:
            x = F.pad(x, self.margins)
        return F.conv1d(x, self.kernel(), self.bias, self.stride, margin, self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T / stride)."""
        return self.convolve(x)


class ConvTranspose1d(WeightNormed, cached.ConvTranspose1d, Streamable, Stateful):
    """Transposed convolution whose output is exactly stride times as long as its input; streams by overlap-add.

    Args:
        in_channels, out_channels, kernel_size, stride, bias: as torch.nn.ConvTranspose1d; kernel_size >= stride.
        padding: samples cut from the left of the full output.
        weight_norm: store the weight as direction and length (per input channel, as the field's checkpoints do).
        shortened: samples that the plain layer's output is too short by at its end, as some of the field's are.
    """

    state_names = ("tail",)
    tail: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        weight_norm: bool = False,
        shortened: int = 0,
    ) -> None:
        if kernel_size < stride or padding > kernel_size - stride:
            raise ValueError(
                f"a transposed convolution with stride {stride} needs a kernel of at least {stride} samples and a "
                f"padding of at most kernel - stride, got kernel {kernel_size} and padding {padding}"
            )
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.streaming = False
        self.shortened = shortened
        self.register_buffer("tail", torch.zeros(0, 0, 0), persistent=False)
        self.init_weight_norm(weight_norm)

    def enable_streaming(self, delay: int) -> int:
        """The full output is complete one stride past the newest frame; the plain layer starts it at ``padding``."""
        self.streaming = True
        return delay * self.stride[0] + self.padding[0]

    def forget(self) -> None:
        self.tail = torch.zeros_like(self.tail[:0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T * stride)."""
        length = x.shape[-1] * self.stride[0]
        if not self.streaming:
            missing = max(0, length + self.padding[0] - (length - self.stride[0] + self.kernel_size[0]))
            full = F.conv_transpose1d(x, self.kernel(), self.bias, self.stride, 0, missing)
            return full[..., self.padding[0] : self.padding[0] + length - self.shortened]
        full = F.conv_transpose1d(x, self.kernel(), None, self.stride)
        overlap = full.shape[-1] - length
        if overlap > 0:
            if self.tail.shape[0] != x.shape[0]:
                self.tail = torch.zeros(x.shape[0], full.shape[1], overlap, dtype=x.dtype, device=x.device)
            full = torch.cat([full[..., :overlap] + self.tail, full[..., overlap:]], -1)
            self.tail = full[..., length:].clone()
        y = full[..., :length]
        if self.bias is not None:
            y = y + self.bias.unsqueeze(-1)
        return y


class PlainConv1d(WeightNormed, nn.Conv1d):
    """torch.nn.Conv1d with weight normalisation inside, for networks that never stream (discriminators)."""

    def __init__(self, *args: Any, weight_norm: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_weight_norm(weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        return F.conv1d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(WeightNormed, nn.Conv2d):
    """torch.nn.Conv2d with weight normalisation inside, for networks that never stream (discriminators)."""

    def __init__(self, *args: Any, weight_norm: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_weight_norm(weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, T) -> (B, C', F', T')."""
        return F.conv2d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class Convolutions:
    """How the convolutions of a network are made: one object, given to every block of it.

    Args:
        bias: add one.
        padding: ``centered`` (half of the window looks ahead), ``causal`` (none does) or ``anticausal``.
        normalization: ``identity`` or ``weight_norm``, for the layers that a network wants normalised.
    """

    bias: bool = True
    padding: Literal["centered", "causal", "anticausal"] = "centered"
    normalization: Literal["identity", "weight_norm"] = "identity"

    def __post_init__(self) -> None:
        if self.padding not in PADDINGS:
            raise ValueError(f"Convolutions.padding is {self.padding!r}; it is one of {', '.join(PADDINGS)}")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"Convolutions.normalization is {self.normalization!r}; it is one of {', '.join(NORMALIZATIONS)}"
            )

    def same(self, kernel_size: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
        """Zeros (left, right) that keep a length of T / stride."""
        left, right = cached.get_padding(kernel_size, stride, dilation, self.padding)
        return left, right

    def plain(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> Conv1d:
        """A convolution with 'same' padding, never normalised."""
        padding = self.same(kernel_size, stride)
        return Conv1d(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, padding=padding, bias=self.bias
        )

    def normalized(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dilation: int = 1
    ) -> Conv1d:
        """A convolution with 'same' padding and the network's normalisation."""
        return Conv1d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            padding=self.same(kernel_size, stride, dilation),
            bias=self.bias,
            weight_norm=self.normalization == "weight_norm",
        )

    def upsampling(self, in_channels: int, out_channels: int, ratio: int) -> ConvTranspose1d:
        """A transposed convolution with a window of two strides, half a stride of it cut at the left."""
        return ConvTranspose1d(
            in_channels,
            out_channels,
            2 * ratio,
            stride=ratio,
            padding=ratio // 2,
            bias=self.bias,
            weight_norm=self.normalization == "weight_norm",
        )
