"""Mel spectra as an encoder's input, which stream."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.dsp.spectral import mel_filters
from rave_tools.nn.streaming import Memory, Streamable


def matching_hop(n_band: int, ratios: list[int], encoder_ratios: list[int]) -> int:
    """Samples between spectra with which an encoder has as many latent frames as a decoder of bands wants.

    Args:
        n_band: bands of the decoder's filter bank.
        ratios: of the decoder.
        encoder_ratios: of the encoder, behind the spectra.
    """
    hop, below = n_band, 1
    for ratio in ratios:
        hop *= ratio
    for ratio in encoder_ratios:
        below *= ratio
    if hop % below:
        raise ValueError(
            f"a decoder with {hop} samples per latent frame needs an encoder whose ratios divide that; ENCODER_RATIOS "
            f"{list(encoder_ratios)} multiply to {below}"
        )
    return hop // below


class MelSpectrogram(nn.Module, Streamable):
    """log(1 + power) of Hann-windowed spectra in bands of equal width on HTK's mel scale.

    Window and filters are buffers under the names that torchaudio gives them.

    Args:
        sample_rate: in hertz.
        n_fft: samples in a frame.
        hop_length: samples between frames.
        n_mels: bands per audio channel.
        padding: ``centered``, as in acids-rave: frame n is centred on sample n * hop and looks half a frame ahead;
            ``causal``: it ends with that sample.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        hop_length: int,
        n_fft: int = 2048,
        n_mels: int = 128,
        padding: Literal["centered", "causal"] = "centered",
    ) -> None:
        super().__init__()
        if padding not in ("centered", "causal"):
            raise ValueError(f"MelSpectrogram.padding is {padding!r}; it is one of centered, causal")
        self.ratio = hop_length
        self.n_fft = n_fft
        self.n_mels = n_mels
        self.past = n_fft // 2 if padding == "centered" else n_fft - 1
        self.streaming = False
        self.memory = Memory()
        window = torch.hann_window(n_fft)
        self.spectrogram = nn.Module()
        self.spectrogram.register_buffer("window", window)
        self.mel_scale = nn.Module()
        self.mel_scale.register_buffer(
            "fb", mel_filters(sample_rate, n_fft, n_mels, scale="htk", normalized=False).T.contiguous()
        )
        self.gain = float(window.square().sum()) ** -0.5

    def enable_streaming(self, delay: int) -> int:
        """Delay in samples -> delay in frames; the windows are those of a strided convolution."""
        extent = self.n_fft - 1
        ahead = extent - self.past + delay
        self.streaming = True
        self.memory.length = extent - ahead % self.ratio
        return ahead // self.ratio

    def forward(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C * n_mels, T / hop)."""
        return self.encode(audio)

    def encode(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C * n_mels, T / hop)."""
        batch, channels, samples = audio.shape
        if self.streaming:
            x = self.memory(audio)
            if batch == 0:
                return torch.zeros(0, channels * self.n_mels, samples // self.ratio, dtype=x.dtype, device=x.device)
        else:
            x = self._pad(audio)
        windows = x.unfold(-1, self.n_fft, self.ratio) * (self.spectrogram.window * self.gain)
        spectrum = torch.view_as_real(torch.fft.rfft(windows))
        mels = torch.matmul(spectrum.square().sum(-1), self.mel_scale.fb)
        return torch.log1p(mels).transpose(2, 3).reshape(batch, channels * self.n_mels, mels.shape[2])

    def _pad(self, audio: Tensor) -> Tensor:
        """Room for whole frames at both ends: a mirror image in the centred form where there is enough to mirror."""
        ahead = max(0, self.n_fft - self.past - self.ratio)
        mirror = self.past == self.n_fft // 2 and audio.shape[-1] > self.past
        return F.pad(audio, (self.past, ahead), mode="reflect" if mirror else "constant")
