"""Judging the periods of a waveform, and the bands of its complex spectra, as the Descript audio codec does."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.contracts import Features
from rave_tools.criteria.discriminators.convnet import along_time
from rave_tools.dsp.spectral import stft
from rave_tools.nn.conv import Conv2d

SLOPE = 0.1
PEAK = 0.8
SMALLEST_PEAK = 1e-9
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
"""Shares of the spectrum, from silence at 0 to half the sample rate at 1."""


class DescriptDiscriminator(nn.Module):
    """One network per period of the waveform and one per window of its spectrum.

    Each channel is freed of its mean and brought to a peak of 0.8 first, so that loudness is not judged. The feature
    maps are taken after the activation.

    Args:
        periods: in samples; primes share least.
        fft_sizes: windows of the spectra, in samples.
        bands: shares (from, to) of the spectrum, each seen by convolutions of its own.
        capacity: width of the first layers; the periods' networks end at 32 times of it.
        channels: of the audio.
        match_stride: place the frames of the spectra as the codec's strides do, ceil(T / hop) of them, as Descript's
            trainings do; otherwise around every hop-th sample, as acids-rave does.

    Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", 2023, section 3.4.
    """

    def __init__(
        self,
        *,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        fft_sizes: Sequence[int] = (2048, 1024, 512),
        bands: Sequence[tuple[float, float]] = BANDS,
        capacity: int = 32,
        channels: int = 1,
        match_stride: bool = False,
    ) -> None:
        super().__init__()
        networks: list[nn.Module] = [PeriodNetwork(p, capacity=capacity, channels=channels) for p in periods]
        networks += [
            BandedSpectrumNetwork(n, bands=bands, capacity=capacity, channels=channels, match_stride=match_stride)
            for n in fft_sizes
        ]
        if not networks:
            raise ValueError("DescriptDiscriminator has neither periods nor fft_sizes; give it some to judge by")
        self.discriminators = nn.ModuleList(networks)

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per period, then one per window."""
        audio = level(audio)
        return [network(audio) for network in self.discriminators]


def level(audio: Tensor) -> Tensor:
    """Each channel without its mean and with a peak of 0.8, in float32; silence stays silence. (..., T) -> the same."""
    audio = audio.float()
    centred = audio - audio.mean(-1, keepdim=True)
    return PEAK * centred / (centred.abs().amax(-1, keepdim=True) + SMALLEST_PEAK)


class PeriodNetwork(nn.Module):
    """Sees the waveform folded into rows of every p-th sample.

    Args:
        period: p, in samples.
        capacity: width of the first layer.
        channels: of the audio.
    """

    GROWTH = (1, 4, 16, 32, 32)
    STRIDES = (3, 3, 3, 3, 1)

    def __init__(self, period: int, *, capacity: int = 32, channels: int = 1) -> None:
        super().__init__()
        self.period = period
        widths = [channels, *(capacity * growth for growth in self.GROWTH)]
        self.convs = nn.ModuleList(
            _activated(narrow, wide, (5, 1), stride=(stride, 1))
            for narrow, wide, stride in zip(widths, widths[1:], self.STRIDES, strict=False)
        )
        self.conv_post = _convolution(widths[-1], 1, (3, 1))

    def forward(self, audio: Tensor) -> Features:
        """(B, C, T) -> Features of shape (B, C', T', p)."""
        x = fold_mirrored(audio, self.period).permute(0, 3, 1, 2).flatten(0, 1)
        maps = []
        for conv, activation in self.convs:
            x = activation(along_time(conv, x))
            maps.append(self._as_rows(x))
        return Features(self._as_rows(along_time(self.conv_post, x)), maps)

    def _as_rows(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.period)).permute(0, 2, 3, 1)


class BandedSpectrumNetwork(nn.Module):
    """Sees a complex spectrum, each band of frequencies through convolutions of its own, joined for the verdict.

    Args:
        window_length: of the spectrum in samples; the hop is a quarter.
        bands: shares (from, to) of the spectrum.
        capacity: width of every layer.
        channels: of the audio; the network sees real and imaginary part of each.
        match_stride: see `DescriptDiscriminator`.

    Raises:
        ValueError: a band holds no bin of the spectrum.
    """

    KERNELS = ((3, 9), (3, 9), (3, 9), (3, 9), (3, 3))
    STRIDES = ((1, 1), (1, 2), (1, 2), (1, 2), (1, 1))

    def __init__(
        self,
        window_length: int,
        *,
        bands: Sequence[tuple[float, float]] = BANDS,
        capacity: int = 32,
        channels: int = 1,
        match_stride: bool = False,
    ) -> None:
        super().__init__()
        self.window_length = window_length
        self.match_stride = match_stride
        bins = window_length // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in bands]
        if empty := [band for band, (low, high) in zip(bands, self.bands, strict=True) if not low < high]:
            raise ValueError(
                f"a spectrum of {window_length} samples has no bin in the bands {empty}; "
                "mend DescriptDiscriminator.bands or use larger fft_sizes"
            )
        widths = [2 * channels, *[capacity] * len(self.KERNELS)]
        self.band_convs = nn.ModuleList(
            nn.ModuleList(
                _activated(narrow, wide, kernel, stride=stride)
                for narrow, wide, kernel, stride in zip(widths, widths[1:], self.KERNELS, self.STRIDES, strict=False)
            )
            for _ in self.bands
        )
        self.conv_post = _convolution(capacity, 1, (3, 3))

    def forward(self, audio: Tensor) -> Features:
        """(B, C, T) -> Features of shape (B, C', N, F')."""
        spectrum = spectrum_by_frames(audio, self.window_length, match_stride=self.match_stride)
        maps, tops = [], []
        for (low, high), layers in zip(self.bands, self.band_convs, strict=True):
            band = spectrum[..., low:high]
            for layer in layers:
                band = layer(band)
                maps.append(band)
            tops.append(band)
        return Features(self.conv_post(torch.cat(tops, -1)), maps)


def fold_mirrored(audio: Tensor, period: int) -> Tensor:
    """(B, C, T) -> (B, C, T // p + 1, p); the end is filled with its mirror image, a whole row where T fits."""
    return F.pad(audio, (0, period - audio.shape[-1] % period), mode="reflect").unflatten(-1, (-1, period))


def spectrum_by_frames(audio: Tensor, n_fft: int, *, match_stride: bool = False) -> Tensor:
    """Real and imaginary part of each channel in turn, in float32. (B, C, T) -> (B, 2 C, N, F)."""
    with torch.autocast(audio.device.type, enabled=False):
        audio = audio.float()
        if match_stride:
            hop = n_fft // 4
            margin = (n_fft - hop) // 2
            audio = F.pad(audio, (margin, margin - audio.shape[-1] % -hop), mode="reflect")
        parts = torch.view_as_real(stft(audio, n_fft, center=not match_stride))
        return parts.permute(0, 1, 4, 3, 2).flatten(1, 2)


def _activated(narrow: int, wide: int, kernel: tuple[int, int], *, stride: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(_convolution(narrow, wide, kernel, stride=stride), nn.LeakyReLU(SLOPE))


def _convolution(narrow: int, wide: int, kernel: tuple[int, int], *, stride: tuple[int, int] = (1, 1)) -> Conv2d:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return Conv2d(narrow, wide, kernel, stride=stride, padding=padding, weight_norm=True)
