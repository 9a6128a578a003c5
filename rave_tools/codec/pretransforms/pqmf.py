"""Pseudo-quadrature mirror filter bank as a pretransform: M bands at 1/M of the rate, almost perfectly invertible."""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.dsp.filterbank import pqmf_bank
from rave_tools.nn.conv import Convolutions
from rave_tools.nn.streaming import Stateful, Streamable


class SpectralFlip(nn.Module, Streamable, Stateful):
    """Change the sign of even frames of odd bands, so that frequency rises with frequency in every band.

    Decimation mirrors the odd bands; a modulation by half the band's rate mirrors them back. The sign belongs to a
    frame of the plain signal: a stream that is late by an odd number of frames must start with the other sign, or
    neighbouring bands no longer cancel their aliasing.

    Args:
        bands: M.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        signs = torch.ones(bands, 2)
        signs[1::2, 0] = -1
        self.register_buffer("signs", signs, persistent=False)
        self.streaming = False
        self.start = 0
        self.position = 0

    def enable_streaming(self, delay: int) -> int:
        self.streaming = True
        self.start = delay % 2
        self.position = self.start
        return delay

    def forget(self) -> None:
        self.position = self.start

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, N) -> (B, M, N)."""
        frames = x.shape[-1]
        signs = self.signs.repeat(1, frames // 2 + 1)[:, self.position : self.position + frames]
        if frames % 2 == 1 and self.streaming:
            self.position = 1 - self.position
        return x * signs


class CachedPQMF(nn.Module):
    """Cosine-modulated filter bank in polyphase form, which streams.

    Args:
        attenuation: of rejected bands in dB; 100 is clean, 40 is short (BRAVE).
        n_band: M, a power of two; 1 passes the waveform through.
        padding: ``centered`` has bands aligned with their input and a waveform one frame late; ``causal``, as RAVE's
            causal models have it, moves the filters' own delay (half a filter each way) into the plain model.

    The filters are parameters, as in the checkpoints of the field, but they are not trained. Source: see
    rave_tools.dsp.filterbank.
    """

    def __init__(
        self, attenuation: float = 100, n_band: int = 16, padding: Literal["centered", "causal"] = "centered"
    ) -> None:
        super().__init__()
        convolutions = Convolutions(bias=False, padding=padding)
        prototype, bank = pqmf_bank(attenuation, n_band)
        self.ratio = n_band
        self.register_buffer("hk", bank)
        self.register_buffer("h", prototype)
        analysis = F.pad(bank, (0, 1)).unsqueeze(1)
        synthesis = rearrange(bank.flip(-1), "c (t m) -> m c t", m=n_band)
        if synthesis.shape[-1] % 2 == 0:
            synthesis = F.pad(synthesis, (0, 1))
        self.forward_conv = convolutions.plain(1, n_band, analysis.shape[-1], stride=n_band)
        self.inverse_conv = convolutions.plain(n_band, n_band, synthesis.shape[-1])
        for layer, weight in ((self.forward_conv, analysis), (self.inverse_conv, synthesis)):
            layer.weight.data.copy_(weight)
            layer.requires_grad_(False)
        self.forward_flip = SpectralFlip(n_band)
        self.inverse_flip = SpectralFlip(n_band)

    def enable_analysis_streaming(self, delay: int) -> int:
        """Delay in samples -> delay in frames."""
        if self.ratio == 1:
            return delay
        return self.forward_flip.enable_streaming(self.forward_conv.enable_streaming(delay))

    def enable_synthesis_streaming(self, delay: int) -> int:
        """Delay in frames -> delay in samples."""
        if self.ratio == 1:
            return delay
        return self.inverse_conv.enable_streaming(self.inverse_flip.enable_streaming(delay)) * self.ratio

    def encode(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C*M, T / M)."""
        if self.ratio == 1:
            return audio
        # Explicit sizes: a block without rows (which resets a stream) leaves no room for a -1.
        batch, channels, samples = audio.shape
        bands = self.forward_flip(self.forward_conv(audio.reshape(batch * channels, 1, samples)))
        return bands.reshape(batch, channels * self.ratio, bands.shape[-1])

    def decode(self, bands: Tensor) -> Tensor:
        """(B, C*M, N) -> (B, C, N * M)."""
        if self.ratio == 1:
            return bands
        batch, rows, frames = bands.shape
        channels = rows // self.ratio
        x = bands.reshape(batch * channels, self.ratio, frames)
        x = self.inverse_conv(self.inverse_flip(x)) * self.ratio
        # Phase p of the output stands in row M - 1 - p: the polyphase split reversed time within a frame.
        x = x.flip(1).transpose(1, 2)
        return x.reshape(batch, channels, frames * self.ratio)
