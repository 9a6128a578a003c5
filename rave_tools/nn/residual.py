"""Residual blocks of dilated convolutions, and the upsampling layer that stands between them."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from rave_tools.nn.activations import leaky_relu
from rave_tools.nn.compose import Residual, Sequential, Sum
from rave_tools.nn.conv import Convolutions
from rave_tools.nn.streaming import Streamable

Activation = Callable[[int], nn.Module]


class Chain(nn.Module, Streamable):
    """A block whose whole is one chain, kept under the name ``net``."""

    def __init__(self, net: Streamable) -> None:
        super().__init__()
        self.net = net

    def enable_streaming(self, delay: int) -> int:
        return self.net.enable_streaming(delay)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        return self.net(x)


class DilatedUnit(Chain):
    """Activation, dilated convolution, activation, point-wise convolution; inside a Residual (SoundStream, III-A).

    Args:
        channels: in and out.
        kernel_size: of the dilated convolution.
        dilation: of the dilated convolution.
        convolutions: style of the convolutions.
        activation: factory, called with the number of channels.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        dilation: int,
        convolutions: Convolutions,
        activation: Activation = leaky_relu,
    ) -> None:
        super().__init__(
            Sequential(
                activation(channels),
                convolutions.normalized(channels, channels, kernel_size, dilation=dilation),
                activation(channels),
                convolutions.normalized(channels, channels, 1),
            )
        )


class ResidualLayer(Chain):
    """Residual chain of activation and dilated convolution, one pair per dilation (HiFi-GAN, sec. 2.2).

    Args:
        channels: in and out.
        kernel_size: of each convolution.
        dilations: one per convolution.
        convolutions: style of the convolutions.
        activation: factory, called with the number of channels.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        dilations: Sequence[int],
        convolutions: Convolutions,
        activation: Activation = leaky_relu,
    ) -> None:
        layers: list[nn.Module] = []
        for dilation in dilations:
            layers += [
                activation(channels),
                convolutions.normalized(channels, channels, kernel_size, dilation=dilation),
            ]
        super().__init__(Residual(Sequential(*layers)))


class ResidualBlock(Chain):
    """Residual layers in a row.

    Args:
        channels: in and out.
        kernel_size: of each convolution.
        dilations: one list per layer.
        convolutions: style of the convolutions.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, dilations: Sequence[Sequence[int]], convolutions: Convolutions
    ) -> None:
        super().__init__(
            Sequential(
                *[ResidualLayer(channels, kernel_size, dilations=d, convolutions=convolutions) for d in dilations]
            )
        )


class ResidualStack(Sum):
    """Sum of residual blocks with different kernels: receptive fields side by side (HiFi-GAN, sec. 2.2).

    Args:
        channels: in and out.
        kernel_sizes: one per block.
        dilations: shared by the blocks, one list per layer.
        convolutions: style of the convolutions.
    """

    def __init__(
        self,
        channels: int,
        *,
        convolutions: Convolutions,
        kernel_sizes: Sequence[int] = (3,),
        dilations: Sequence[Sequence[int]] = ((1, 1), (3, 1), (5, 1)),
    ) -> None:
        super().__init__(
            *[ResidualBlock(channels, size, dilations=dilations, convolutions=convolutions) for size in kernel_sizes]
        )


class UpsampleLayer(Chain):
    """Activation and transposed convolution; a ratio of one is a plain convolution of three samples.

    Args:
        in_channels, out_channels: channels.
        ratio: output samples per input sample.
        convolutions: style of the convolutions.
        activation: factory, called with the number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        ratio: int,
        convolutions: Convolutions,
        activation: Activation = leaky_relu,
    ) -> None:
        if ratio > 1:
            layer: nn.Module = convolutions.upsampling(in_channels, out_channels, ratio)
        else:
            layer = convolutions.normalized(in_channels, out_channels, 3)
        super().__init__(Sequential(activation(in_channels), layer))
