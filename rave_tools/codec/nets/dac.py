"""Encoder and decoder of Descript's audio codec; state-dict keys are its own (``block.*`` and ``model.*``).

Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", 2023, sections 3.1 and 3.2.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.nn.activations import Snake
from rave_tools.nn.compose import Sequential
from rave_tools.nn.conv import Conv1d, ConvTranspose1d
from rave_tools.nn.streaming import Delay, Streamable, stream_through

DILATIONS = (1, 3, 9)


def normed(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dilation: int = 1) -> Conv1d:
    """A weight-normalised convolution that looks to both sides alike and keeps a length of T / stride.

    Its bias begins at zero. (The original means to draw the weights too, but what it draws is replaced by the weight
    normalisation before it is ever used.)
    """
    extent = (kernel_size - 1) * dilation
    margin = extent // 2 if stride == 1 else math.ceil(stride / 2)
    layer = Conv1d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        dilation=dilation,
        padding=(margin, margin),
        weight_norm=True,
    )
    nn.init.zeros_(layer.bias)
    return layer


class ResidualUnit(nn.Module, Streamable):
    """x + block(x): snake, dilated convolution of 7, snake, point-wise convolution.

    Args:
        channels: in and out.
        dilation: of the first convolution.
    """

    def __init__(self, channels: int, *, dilation: int) -> None:
        super().__init__()
        self.block = Sequential(
            Snake(channels, batched=True),
            normed(channels, channels, 7, dilation=dilation),
            Snake(channels, batched=True),
            normed(channels, channels, 1),
        )
        self.skip = Delay()

    def enable_streaming(self, delay: int) -> int:
        """The skip waits for what the block costs."""
        behind = stream_through(self.block, delay, "block")
        self.skip.set(behind - delay)
        return behind

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return self.block(x) + self.skip(x)


class EncoderBlock(nn.Module, Streamable):
    """Residual units, then fewer samples of more channels.

    Args:
        in_channels, out_channels: channels.
        stride: input samples per output sample.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.block = Sequential(
            *[ResidualUnit(in_channels, dilation=dilation) for dilation in DILATIONS],
            Snake(in_channels, batched=True),
            normed(in_channels, out_channels, 2 * stride, stride=stride),
        )

    def enable_streaming(self, delay: int) -> int:
        return self.block.enable_streaming(delay)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T / stride)."""
        return self.block(x)


class DecoderBlock(nn.Module, Streamable):
    """More samples of fewer channels, then residual units.

    Args:
        in_channels, out_channels: channels.
        stride: output samples per input sample.
        shortened: samples that the output of a whole sound is too short by.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortened: int = 0) -> None:
        super().__init__()
        self.block = Sequential(
            Snake(in_channels, batched=True),
            ConvTranspose1d(
                in_channels,
                out_channels,
                2 * stride,
                stride=stride,
                padding=math.ceil(stride / 2),
                weight_norm=True,
                shortened=shortened,
            ),
            *[ResidualUnit(out_channels, dilation=dilation) for dilation in DILATIONS],
        )

    def enable_streaming(self, delay: int) -> int:
        return self.block.enable_streaming(delay)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C', N * stride)."""
        return self.block(x)


class DACEncoder(nn.Module, Streamable):
    """Waveform to latents.

    Args:
        channels: of the audio.
        capacity: channels behind the first convolution; every block doubles them.
        ratios: input samples per output sample, of each block.
        latent_size: D; by default the channels behind the last block.

    Attributes:
        hop: samples per latent frame.
        in_channels, latent_size, n_out: see CompressionModel.

    Raises:
        ValueError: no ratios, or some below 1.
    """

    def __init__(
        self,
        channels: int = 1,
        capacity: int = 64,
        *,
        ratios: Sequence[int] = (2, 4, 8, 8),
        latent_size: int | None = None,
    ) -> None:
        super().__init__()
        check_ratios(ratios)
        widths = [capacity * 2**i for i in range(len(ratios) + 1)]
        self.hop = math.prod(ratios)
        self.in_channels = channels
        self.latent_size = widths[-1] if latent_size is None else latent_size
        self.n_out = 1
        self.block = Sequential(
            normed(channels, capacity, 7),
            *[
                EncoderBlock(narrow, wide, stride=stride)
                for narrow, wide, stride in zip(widths, widths[1:], ratios, strict=False)
            ],
            Snake(widths[-1], batched=True),
            normed(widths[-1], self.latent_size, 3),
        )

    def enable_streaming(self, delay: int) -> int:
        return self.block.enable_streaming(delay)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N * hop) -> (B, D, N)."""
        return self.block(x)


class DACDecoder(nn.Module, Streamable):
    """Latents to waveform in [-1, 1].

    Args:
        channels: of the audio.
        capacity: channels behind the first convolution; every block halves them.
        ratios: those of the encoder, in its order.
        latent_size: D.
        whole: every block gives as many samples as it should. Otherwise one of an odd ratio loses the last of them, as
            in the original: the end of a sound then differs, and what is missing is silence here.

    Attributes:
        hop: samples per latent frame.
        out_channels, latent_size: see CompressionModel.

    Raises:
        ValueError: no ratios, some below 1, or a capacity that cannot be halved so often.
    """

    def __init__(
        self,
        channels: int = 1,
        capacity: int = 1536,
        *,
        ratios: Sequence[int] = (2, 4, 8, 8),
        latent_size: int = 1024,
        whole: bool = True,
    ) -> None:
        super().__init__()
        check_ratios(ratios)
        if capacity % 2 ** len(ratios):
            raise ValueError(
                f"a decoder of {capacity} channels cannot halve them {len(ratios)} times; make DECODER_CAPACITY a "
                f"multiple of {2 ** len(ratios)}"
            )
        widths = [capacity // 2**i for i in range(len(ratios) + 1)]
        self.hop = math.prod(ratios)
        self.out_channels = channels
        self.latent_size = latent_size
        self.model = Sequential(
            normed(latent_size, capacity, 7),
            *[
                DecoderBlock(wide, narrow, stride=stride, shortened=0 if whole else stride % 2)
                for wide, narrow, stride in zip(widths, widths[1:], reversed(ratios), strict=False)
            ],
            Snake(widths[-1], batched=True),
            normed(widths[-1], channels, 7),
            nn.Tanh(),
        )

    def enable_streaming(self, delay: int) -> int:
        return self.model.enable_streaming(delay)

    def forward(self, z: Tensor) -> Tensor:
        """(B, D, N) -> (B, C, N * hop)."""
        audio = self.model(z)
        return F.pad(audio, (0, z.shape[-1] * self.hop - audio.shape[-1]))


def check_ratios(ratios: Sequence[int]) -> None:
    """Refuse ratios that are not whole numbers from 1 on, at least one."""
    if not ratios or min(ratios) < 1:
        raise ValueError(f"the ratios are {list(ratios)}; RATIOS needs at least one number, none below 1")
