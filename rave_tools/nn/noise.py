"""Filtered noise: a network draws band amplitudes, one filter per frame shapes white noise (DDSP, sec. 3.3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.nn.activations import leaky_relu, shifted_power_sigmoid
from rave_tools.nn.compose import Sequential
from rave_tools.nn.conv import Conv1d, Convolutions
from rave_tools.nn.residual import Activation
from rave_tools.nn.streaming import Streamable


def amplitudes_to_impulse_response(amplitudes: Tensor, length: int) -> Tensor:
    """Zero-phase windowed filters from band amplitudes.

    Args:
        amplitudes: linear, from 0 Hz to Nyquist. Shape (..., bands).
        length: of the response, in samples. Below 2 (bands - 1) the response loses its end, as RAVE's own does
            (v2_small: 62 samples cut to 8), so weights trained there sound the same here.

    Returns:
        Circular responses centred on sample 0. Shape (..., length).
    """
    response = torch.fft.irfft(torch.complex(amplitudes, torch.zeros_like(amplitudes)))
    size = response.shape[-1]
    response = torch.roll(response, size // 2, -1)
    response = response * torch.hann_window(size, dtype=response.dtype, device=response.device)
    response = F.pad(response, (0, length - size))
    return torch.roll(response, -(size // 2), -1)


def fft_convolve(signal: Tensor, kernel: Tensor) -> Tensor:
    """Linear convolution over the last dimension, cut to the signal's length.

    Args:
        signal: shape (..., T).
        kernel: shape (..., T).

    Returns:
        Shape (..., T).
    """
    length = signal.shape[-1]
    spectrum = torch.fft.rfft(F.pad(signal, (0, length))) * torch.fft.rfft(F.pad(kernel, (length, 0)))
    return torch.fft.irfft(spectrum)[..., length:]


def synthesize_noise(amplitudes: Tensor, channels: int, samples: int) -> Tensor:
    """White noise through one filter per frame.

    Args:
        amplitudes: raw network output. Shape (B, channels * bands, N).
        channels: independent noises.
        samples: per frame.

    Returns:
        Shape (B, channels, N * samples).
    """
    batch, rows, frames = amplitudes.shape
    if batch == 0:
        return torch.zeros(0, channels, frames * samples, dtype=amplitudes.dtype, device=amplitudes.device)
    if amplitudes.dtype == torch.float16 or amplitudes.dtype == torch.bfloat16:
        amplitudes = amplitudes.float()
    amplitudes = shifted_power_sigmoid(amplitudes - 5).permute(0, 2, 1)
    amplitudes = amplitudes.reshape(batch, frames, channels, rows // channels)
    response = amplitudes_to_impulse_response(amplitudes, samples)
    noise = torch.rand_like(response) * 2 - 1
    return fft_convolve(noise, response).permute(0, 2, 1, 3).reshape(batch, channels, frames * samples)


class _FilteredNoise(nn.Module, Streamable):
    """What both generators share: a strided network to amplitudes, then noise at the input's rate."""

    def __init__(self, net: Sequential, channels: int, ratios: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.channels = channels
        self.samples = math.prod(ratios)
        self.register_buffer("target_size", torch.tensor(self.samples))

    def enable_streaming(self, delay: int) -> int:
        return self.net.enable_streaming(delay) * self.samples

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, channels, T), T a multiple of the ratios' product."""
        return synthesize_noise(self.net(x), self.channels, self.samples)


class NoiseGenerator(_FilteredNoise):
    """Noise branch of RAVE v1.

    Args:
        in_channels: of the features.
        out_channels: bands times audio channels of the noise.
        ratios: strides of the amplitude network.
        noise_bands: amplitudes per filter.
        convolutions: style of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        convolutions: Convolutions,
        ratios: Sequence[int] = (4, 4, 4),
        noise_bands: int = 5,
    ) -> None:
        widths = [in_channels] * len(ratios) + [out_channels * noise_bands]
        layers: list[nn.Module] = []
        for i, ratio in enumerate(ratios):
            layers += [convolutions.plain(widths[i], widths[i + 1], 3, stride=ratio), nn.LeakyReLU(0.2)]
        super().__init__(Sequential(*layers[:-1]), out_channels, ratios)


class NoiseGeneratorV2(_FilteredNoise):
    """Noise branch of RAVE v2: windows of two strides that never look past their frame.

    Args:
        in_channels: of the features.
        out_channels: bands times audio channels of the noise.
        hidden_size: of the amplitude network.
        ratios: strides of the amplitude network.
        noise_bands: amplitudes per filter.
        convolutions: style of the convolutions; only its bias is used.
        activation: factory, called with the number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        convolutions: Convolutions,
        hidden_size: int = 64,
        ratios: Sequence[int] = (2, 2, 2),
        noise_bands: int = 32,
        activation: Activation = leaky_relu,
    ) -> None:
        widths = [in_channels] + [hidden_size] * (len(ratios) - 1) + [out_channels * noise_bands]
        layers: list[nn.Module] = []
        for i, ratio in enumerate(ratios):
            layers += [
                Conv1d(widths[i], widths[i + 1], 2 * ratio, stride=ratio, padding=(ratio, 0), bias=convolutions.bias),
                activation(widths[i + 1]),
            ]
        super().__init__(Sequential(*layers[:-1]), out_channels, ratios)
