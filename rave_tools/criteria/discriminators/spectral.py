"""Judging the complex spectra of a waveform at several resolutions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rave_tools.contracts import Features
from rave_tools.criteria.discriminators.convnet import SLOPE
from rave_tools.dsp.spectral import stft
from rave_tools.nn.conv import Conv2d


class MultiScaleSpectralDiscriminator1d(nn.Module):
    """One one-dimensional network per scale; frequency bins are its channels.

    Args:
        convnet: makes the network of one scale, called with ``in_channels``.
        scales: windows in samples; the hop is a quarter.
        channels: of the audio.
    """

    def __init__(
        self,
        convnet: Callable[..., nn.Module],
        *,
        scales: Sequence[int] = (4096, 2048, 1024, 512, 256),
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.nets = nn.ModuleList([convnet(in_channels=channels * (scale + 2)) for scale in self.scales])

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per scale."""
        return [net(spectrum(audio, n).flatten(1, 2)) for net, n in zip(self.nets, self.scales, strict=True)]


class MultiScaleSpectralDiscriminator(nn.Module):
    """One two-dimensional network per scale; real and imaginary parts are its channels.

    Args:
        convnet: makes the network of one scale, called with ``channels``.
        scales: windows in samples; the hop is a quarter.
        channels: of the audio.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4.
    """

    def __init__(
        self,
        convnet: Callable[..., nn.Module],
        *,
        scales: Sequence[int] = (4096, 2048, 1024, 512, 256),
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.nets = nn.ModuleList([convnet(channels=channels) for _ in self.scales])

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per scale."""
        return [net(spectrum(audio, n)) for net, n in zip(self.nets, self.scales, strict=True)]


class EncodecConvNet(nn.Module):
    """Two-dimensional network over (frequency, time); its feature maps are taken after the activation.

    Args:
        capacity: width of every layer.
        channels: of the audio; the network sees real and imaginary parts of each.
    """

    KERNELS = ((9, 3), (9, 3), (9, 3), (9, 3), (3, 3), (3, 3))
    STRIDES = ((1, 1), (2, 1), (2, 1), (2, 1), (1, 1), (1, 1))
    DILATIONS = ((1, 1), (1, 1), (1, 2), (1, 4), (1, 1), (1, 1))

    def __init__(self, *, capacity: int = 32, channels: int = 1) -> None:
        super().__init__()
        widths = [2 * channels, *[capacity] * (len(self.KERNELS) - 1), 1]
        layers: list[nn.Module] = []
        for i, (kernel, stride, dilation) in enumerate(zip(self.KERNELS, self.STRIDES, self.DILATIONS, strict=True)):
            padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
            conv = Conv2d(
                widths[i],
                widths[i + 1],
                kernel,
                stride=stride,
                dilation=dilation,
                padding=padding,
                weight_norm=True,
            )
            layers.append(conv if i == len(self.KERNELS) - 1 else nn.Sequential(conv, nn.LeakyReLU(SLOPE)))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Features:
        """(B, 2 C, F, N) -> Features."""
        maps = []
        for layer in self.net:
            x = layer(x)
            maps.append(x)
        return Features(maps[-1], maps[:-1])


def spectrum(audio: Tensor, n_fft: int) -> Tensor:
    """Real parts of all channels, then imaginary parts, in float32. (B, C, T) -> (B, 2 C, F, N)."""
    with torch.autocast(audio.device.type, enabled=False):
        complex_spectrum = stft(audio.float(), n_fft, center=False, normalized=True)
        return torch.cat([complex_spectrum.real, complex_spectrum.imag], 1)
