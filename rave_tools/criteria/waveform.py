"""Distances between waveforms, sample by sample."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.criteria.distances import Norm, mean_difference

SMALLEST_POWER = torch.finfo(torch.float32).eps
"""Mean square that is added to both sides of a ratio, so that silence gives a number."""


class WaveformDistance(nn.Module):
    """Mean difference of the samples: sensitive to phase, blind to pitch.

    Args:
        norm: ``L1`` or ``L2``.
    """

    losses = ("waveform_distance",)
    minimum_length = 1

    def __init__(self, norm: Norm = "L1") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"waveform_distance": scalar}."""
        return {"waveform_distance": mean_difference(target, estimate, norm=self.norm)}


class SISNR(nn.Module):
    """Minus the scale-invariant signal-to-noise ratio, in decibels: the less the better.

    The estimate is split into what points along the target and the rest; their ratio does not know the estimate's
    gain. Averaged over channels and segments.

    Args:
        sample_rate: in hertz, needed with segments.
        segment: seconds that are judged at a time, or None for the whole. What is missing in the last one is silence.
        overlap: share of a segment that the next one judges again.

    Raises:
        ValueError: segments without a sample rate, or an overlap that never gets further.

    Source: Le Roux et al., "SDR - half-baked or well done?", 2019, section 3.
    """

    losses = ("negative_si_snr",)
    minimum_length = 1

    def __init__(self, *, sample_rate: int | None = None, segment: float | None = None, overlap: float = 0.5) -> None:
        super().__init__()
        if segment is not None and sample_rate is None:
            raise ValueError("SISNR.segment is in seconds and needs SISNR.sample_rate in hertz")
        if not 0 <= overlap < 1:
            raise ValueError(f"SISNR.overlap is {overlap}; it lies between 0 and 1, 1 not included")
        self.frame = None if segment is None else int(segment * sample_rate)
        self.hop = None if self.frame is None else int(self.frame * (1 - overlap))
        if self.hop is not None and self.hop < 1:
            raise ValueError(f"SISNR.segment is {segment} seconds, of which less than a sample is new; make it longer")

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"negative_si_snr": scalar}. No gradient reaches the target."""
        with torch.autocast(target.device.type, enabled=False):
            ratio = si_snr(self._segments(target.detach().float()), self._segments(estimate.float()))
        return {"negative_si_snr": -ratio.mean()}

    def _segments(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, segments, samples), as many as begin within the sound."""
        if self.frame is None:
            return audio.unsqueeze(-2)
        count = -(-audio.shape[-1] // self.hop)
        whole = (count - 1) * self.hop + self.frame
        return F.pad(audio, (0, whole - audio.shape[-1])).unfold(-1, self.frame, self.hop)


def si_snr(target: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant signal-to-noise ratio in decibels, without means. Shape (..., T) x 2 -> (...)."""
    smallest = SMALLEST_POWER * target.shape[-1]
    target = target - target.mean(-1, keepdim=True)
    estimate = estimate - estimate.mean(-1, keepdim=True)
    gain = (target * estimate).sum(-1, keepdim=True) / (smallest + target.square().sum(-1, keepdim=True))
    signal = gain * target
    noise = estimate - signal
    return 10 * (torch.log10(smallest + signal.square().sum(-1)) - torch.log10(smallest + noise.square().sum(-1)))
