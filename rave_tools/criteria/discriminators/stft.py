"""Judging the complex spectra of a waveform at several resolutions, as EnCodec does."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rave_tools.contracts import Features
from rave_tools.dsp.spectral import stft
from rave_tools.nn.conv import Conv2d

BLOCK = 8
"""Neighbouring frequencies whose gradients are computed as channels of one convolution; see `_FewPlanes`."""


class MultiScaleSTFTDiscriminator(nn.Module):
    """One network per window of the spectrum, each seeing real and imaginary parts as planes of an image.

    The feature maps are taken after the activation. State-dict keys are AudioCraft's, but for its windows.

    Args:
        channels: of the audio.
        filters: width of the first layer.
        n_ffts: frames of the spectra in samples.
        hop_lengths: samples between frames, one per spectrum; a quarter of each frame by default.
        win_lengths: samples of a frame that are heard, one per spectrum; whole frames by default.
        out_channels: verdicts per place.
        sep_channels: judge each channel by itself, with the same networks, as EnCodec does with stereo. Otherwise the
            networks see two planes per channel and judge all channels together.
        normalized: divide by the windows' Euclidean norms.
        filters_scale: each layer's width relative to the one before.
        max_filters: greatest width.
        kernel_size: (time, frequency) of all layers but the last two.
        stride: of the dilated layers.
        dilations: along time, one layer each.
        slope: of the leaky rectifiers below zero.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        filters: int = 32,
        n_ffts: Sequence[int] = (1024, 2048, 512, 256, 128),
        hop_lengths: Sequence[int] | None = None,
        win_lengths: Sequence[int] | None = None,
        out_channels: int = 1,
        sep_channels: bool = False,
        normalized: bool = True,
        filters_scale: int = 1,
        max_filters: int = 1024,
        kernel_size: tuple[int, int] = (3, 9),
        stride: tuple[int, int] = (1, 2),
        dilations: Sequence[int] = (1, 2, 4),
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        hops = [n_fft // 4 for n_fft in n_ffts] if hop_lengths is None else list(hop_lengths)
        windows = list(n_ffts if win_lengths is None else win_lengths)
        if not len(n_ffts) == len(hops) == len(windows) > 0:
            raise ValueError(
                f"MultiScaleSTFTDiscriminator has {len(n_ffts)} n_ffts, {len(hops)} hop_lengths and {len(windows)} "
                "win_lengths; give as many of each, and at least one"
            )
        self.channels = channels
        self.sep_channels = sep_channels
        self.discriminators = nn.ModuleList(
            STFTNetwork(
                n_fft,
                channels=1 if sep_channels else channels,
                hop_length=hop,
                win_length=window,
                filters=filters,
                out_channels=out_channels,
                normalized=normalized,
                filters_scale=filters_scale,
                max_filters=max_filters,
                kernel_size=kernel_size,
                stride=stride,
                dilations=dilations,
                slope=slope,
            )
            for n_fft, hop, window in zip(n_ffts, hops, windows, strict=True)
        )

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per window, of shape (B, F', N, F) or, channel by channel, (B*C, F', N, F)."""
        if audio.shape[1] != self.channels:
            raise ValueError(
                f"MultiScaleSTFTDiscriminator was made for {self.channels} channels and heard {audio.shape[1]}; "
                "set MultiScaleSTFTDiscriminator.channels"
            )
        if self.sep_channels:
            audio = audio.flatten(0, 1).unsqueeze(1)
        return [network(audio) for network in self.discriminators]


class STFTNetwork(nn.Module):
    """Sees one complex spectrum; see `MultiScaleSTFTDiscriminator` for its arguments.

    Args:
        n_fft: frame in samples.
        hop_length: samples between frames.
        win_length: samples of a frame that are heard.
    """

    def __init__(
        self,
        n_fft: int,
        *,
        channels: int,
        hop_length: int,
        win_length: int,
        filters: int,
        out_channels: int,
        normalized: bool,
        filters_scale: int,
        max_filters: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        dilations: Sequence[int],
        slope: float,
    ) -> None:
        super().__init__()
        if slope < 0:
            raise ValueError(f"MultiScaleSTFTDiscriminator.slope is {slope}; a leaky rectifier's slope is not negative")
        if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
            raise ValueError(f"MultiScaleSTFTDiscriminator.kernel_size is {kernel_size}; both lengths must be odd")
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.normalized = normalized
        self.slope = slope
        widths = [min(filters * filters_scale**i, max_filters) for i in range(len(dilations) + 2)]
        last = (kernel_size[0], kernel_size[0])
        layers: list[nn.Module] = [_Layer(2 * channels, filters, kernel_size, weight_norm=False)]
        narrow = filters
        for wide, dilation in zip(widths[:-1], dilations, strict=False):
            layers.append(_Layer(narrow, wide, kernel_size, stride=stride, dilation=dilation))
            narrow = wide
        layers.append(_Layer(narrow, widths[-1], last))
        self.convs = nn.ModuleList(layers)
        self.conv_post = _Layer(widths[-1], out_channels, last)

    def forward(self, audio: Tensor) -> Features:
        """(B, C, T) -> Features of shape (B, C', N, F')."""
        x = self.planes(audio)
        maps = []
        for layer in self.convs:
            # In place: a convolution's gradient needs its input, and that of a rectifier the sign of its output.
            x = F.leaky_relu(layer(x), self.slope, inplace=True)
            maps.append(x)
        return Features(self.conv_post(x), maps)

    def planes(self, audio: Tensor) -> Tensor:
        """Real parts of all channels, then imaginary ones, in float32. (B, C, T) -> (B, 2 C, N, F), channels last.

        In this order of memory a convolution takes two thirds of the time, and mono needs no copy.
        """
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = stft(
                audio.float(),
                self.n_fft,
                hop=self.hop_length,
                window_length=self.win_length,
                center=False,
                normalized=self.normalized,
            )
            parts = torch.view_as_real(spectrum.transpose(-1, -2))
            return parts.permute(0, 2, 3, 4, 1).flatten(3).permute(0, 3, 1, 2)


class _Layer(nn.Module):
    """A convolution under the name that AudioCraft's checkpoints have for it; its image keeps its height in time."""

    def __init__(
        self,
        narrow: int,
        wide: int,
        kernel_size: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        dilation: int = 1,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(
            narrow,
            wide,
            kernel_size,
            stride=stride,
            dilation=(dilation, 1),
            padding=(kernel_size[0] // 2 * dilation, kernel_size[1] // 2),
            weight_norm=weight_norm,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N, F) -> (B, C', N', F')."""
        conv = self.conv
        few = x.device.type == "cpu" and conv.in_channels < BLOCK and conv.stride == conv.dilation == (1, 1)
        own = not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        if few and x.requires_grad and own:
            return _FewPlanes.apply(x, conv.kernel(), conv.bias, conv.padding)
        return conv(x)


class _FewPlanes(torch.autograd.Function):
    """A convolution of very few planes, with a gradient to them that takes a third of the time on a processor.

    The gradient at the planes is a convolution with few outputs, which leaves most lanes of a vector unit idle. Here
    `BLOCK` neighbouring frequencies become outputs of one convolution that strides over them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, 1, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        to_x = _gradient_by_blocks(gradient, weight, ctx.padding) if ctx.needs_input_grad[0] else None
        to_weight = to_bias = None
        if any(ctx.needs_input_grad[1:3]):
            _, to_weight, to_bias = torch.ops.aten.convolution_backward(
                gradient, x, weight, [weight.shape[0]], (1, 1), ctx.padding, (1, 1), False, (0, 0), 1,
                (False, True, True),
            )  # fmt: skip
        return to_x, to_weight, to_bias, None


def _gradient_by_blocks(gradient: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Gradient at the input of a convolution with stride 1 that keeps the size of its image.

    Output r of a block holds the flipped kernel r places further on, so the outputs of one block are the gradients at
    neighbouring places, and with channels last they stand in memory as an image does.

    Args:
        gradient: at the output. Shape (B, O, N, F).
        weight: shape (O, I, n, f), n and f odd.
        padding: (n // 2, f // 2).
    """
    wide, planes, height, width = weight.shape
    flipped = weight.flip(2, 3).transpose(0, 1)
    kernel = weight.new_zeros(BLOCK, planes, wide, height, width + BLOCK - 1)
    for shift in range(BLOCK):
        kernel[shift, ..., shift : shift + width] = flipped
    # A block before the first one makes room at the end, since padding is the same on both sides.
    blocks = F.conv2d(gradient, kernel.flatten(0, 1), None, (1, BLOCK), (padding[0], padding[1] + BLOCK))
    rows = blocks.permute(0, 2, 3, 1)[:, :, 1:].unflatten(3, (BLOCK, planes)).flatten(2, 3)
    return rows[:, :, : gradient.shape[3]].permute(0, 3, 1, 2)
