"""Distances between mel spectrograms, which hear as an ear does: finely below, coarsely above."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.criteria.distances import mean_difference
from rave_tools.dsp import spectral

LogNorm = Literal["L1", "L2", "RMS"]

FAINTEST_SQUARE = 1e-12
"""Below this a mean square counts as this, so that its root has a slope where two spectrograms agree."""


class MelSpectrogram(nn.Module):
    """Powers of a spectrum, gathered in bands of equal width on the mel scale.

    Args:
        sample_rate: in hertz.
        n_fft: frame in samples.
        hop: samples between frames; a quarter of the frame by default.
        num_mels: bands.
        low: lower edge of the first band in hertz.
        high: upper edge of the last one in hertz, half the sample rate by default.
        power: exponent of the magnitudes.
        normalized: divide by the window's Euclidean norm.
        scale: ``htk`` or ``slaney``; see `spectral.mel_filters`.
        unit_area: give every filter unit area instead of unit height.
        centered: place frame n around sample n * hop, T // hop + 1 frames, as librosa does. Otherwise the mirror image
            outside is only as long as a convolution needs to give ceil(T / hop) whole frames, as AudioCraft does.
        keep_empty: let bands narrower than the distance of two bins stand. They hear nothing, in the target as in the
            estimate, add nothing to a distance, and make its mean smaller.

    Raises:
        ValueError: bands without a bin, unless they are kept.
    """

    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        *,
        hop: int | None = None,
        num_mels: int = 64,
        low: float = 0.0,
        high: float | None = None,
        power: float = 2.0,
        normalized: bool = False,
        scale: Literal["slaney", "htk"] = "htk",
        unit_area: bool = False,
        centered: bool = False,
        keep_empty: bool = False,
    ) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop = hop or n_fft // 4
        self.power = power
        self.normalized = normalized
        self.centered = centered
        self.margin = n_fft // 2 if centered else (n_fft - self.hop) // 2
        self.minimum_length = self.margin + 1
        filters = spectral.mel_filters(
            sample_rate, n_fft, num_mels, low=low, high=high, scale=scale, normalized=unit_area
        )
        empty = int((filters.amax(1) == 0).sum())
        if empty and not keep_empty:
            raise ValueError(
                f"{empty} of {num_mels} mel bands hold no bin of a {n_fft}-point spectrum at {sample_rate} Hz; "
                "use fewer num_mels or larger scales, or set keep_empty = True to let them count as silence"
            )
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, N, M), in float32."""
        with torch.autocast(audio.device.type, enabled=False):
            rows = audio.float().flatten(0, -2)
            if not self.centered:
                if rows.shape[-1] <= self.margin:
                    raise ValueError(
                        f"a {self.n_fft}-point mel spectrogram needs at least {self.minimum_length} samples, got "
                        f"{rows.shape[-1]}; use longer signals or smaller scales"
                    )
                rows = F.pad(rows, (self.margin, self.margin), mode="reflect")
                rows = F.pad(rows, (0, -(rows.shape[-1] - self.n_fft) % self.hop))
            spectrum = spectral.stft(
                rows, self.n_fft, hop=self.hop, center=self.centered, normalized=self.normalized
            ).transpose(-1, -2)  # in this order its bins stand side by side in memory
            mels = F.linear(self._powers(spectrum), self.filters)
            return mels.unflatten(0, audio.shape[:-1])

    def _powers(self, spectrum: Tensor) -> Tensor:
        if self.power == 2:
            return torch.view_as_real(spectrum).square().sum(-1)
        return spectrum.abs() if self.power == 1 else spectrum.abs() ** self.power


class MultiScaleMelDistance(nn.Module):
    """Mean differences of mel spectrograms and of their logarithms, at several scales.

    At scale s, with mel spectrograms X and Y: linear_weight * mean |X - Y| + a_s * |log10 X - log10 Y|, where a_s is
    `log_weight`, times sqrt(s - 1) with `alphas`. The target's spectrograms take part without gradients, and both terms
    share the same ones. Every channel is heard by itself.

    EnCodec's paper is scales 32 to 2048, ``log_norm = "RMS"``; AudioCraft's trainings are 64 to 1024, ``"L2"``, from
    64 Hz. The paper does not print the logarithm; its authors' code has it, as has the distance that the paper starts
    from (Gritsenko et al., "A Spectral Energy Distance for Parallel Speech Synthesis", 2020). Descript's codec has no
    linear term, ``log_norm = "L1"``, and filters, frames and floor of its own.

    Args:
        sample_rate: in hertz.
        scales: windows in samples; the hop is a quarter.
        num_mels: bands, one number for all scales or one per scale.
        low, high, power, normalized, scale, unit_area, centered, keep_empty: see `MelSpectrogram`.
        linear_weight: of the mean absolute difference; 0 leaves it out.
        log_weight: of the difference of logarithms; 0 leaves it out.
        alphas: multiply `log_weight` by sqrt(s - 1).
        log_norm: ``L1`` mean absolute, ``L2`` mean square, or ``RMS``, the root of the mean square of each channel of
            each example, then the mean.
        floor: least number of which a logarithm is taken.
        clamp: raise to the floor what is below; otherwise the floor is added.
        averaged: divide by the sum of all weights, so that the number of scales does not matter.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4; Kumar et al., "High-Fidelity
    Audio Compression with Improved RVQGAN", 2023, section 3.5.
    """

    losses = ("spectral_distance",)

    def __init__(
        self,
        *,
        sample_rate: int,
        scales: Sequence[int] = (64, 128, 256, 512, 1024),
        num_mels: int | Sequence[int] = 64,
        low: float = 0.0,
        high: float | None = None,
        power: float = 2.0,
        normalized: bool = True,
        scale: Literal["slaney", "htk"] = "htk",
        unit_area: bool = False,
        centered: bool = False,
        keep_empty: bool = False,
        linear_weight: float = 1.0,
        log_weight: float = 1.0,
        alphas: bool = False,
        log_norm: LogNorm = "L2",
        floor: float = 1e-5,
        clamp: bool = False,
        averaged: bool = True,
    ) -> None:
        super().__init__()
        bands = [num_mels] * len(scales) if isinstance(num_mels, int) else list(num_mels)
        if len(bands) != len(scales) or not scales:
            raise ValueError(
                f"MultiScaleMelDistance has {len(scales)} scales and num_mels for {len(bands)}; give one number of "
                "bands, or one for each of at least one scale"
            )
        if log_norm not in ("L1", "L2", "RMS"):
            raise ValueError(f"MultiScaleMelDistance.log_norm is {log_norm!r}; it is 'L1', 'L2' or 'RMS'")
        if min(linear_weight, log_weight) < 0 or linear_weight + log_weight == 0:
            raise ValueError(
                f"MultiScaleMelDistance.linear_weight is {linear_weight} and log_weight {log_weight}; neither is "
                "negative, and one of them is not 0"
            )
        self.scales = tuple(scales)
        self.linear_weight = linear_weight
        self.log_weights = [log_weight * (math.sqrt(s - 1) if alphas else 1.0) for s in scales]
        self.log_norm = log_norm
        self.floor = floor
        self.clamp = clamp
        self.divisor = linear_weight * len(self.scales) + sum(self.log_weights) if averaged else 1.0
        spectrograms = [
            MelSpectrogram(
                sample_rate,
                n_fft,
                num_mels=count,
                low=low,
                high=high,
                power=power,
                normalized=normalized,
                scale=scale,
                unit_area=unit_area,
                centered=centered,
                keep_empty=keep_empty,
            )
            for n_fft, count in zip(self.scales, bands, strict=True)
        ]
        self.spectrograms = nn.ModuleList(spectrograms)
        self.minimum_length = max(spectrogram.minimum_length for spectrogram in spectrograms)

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"spectral_distance": scalar}. No gradient reaches the target."""
        with torch.autocast(target.device.type, enabled=False):
            terms = []
            for spectrogram, log_weight in zip(self.spectrograms, self.log_weights, strict=True):
                with torch.no_grad():
                    wanted = spectrogram(target)
                came = spectrogram(estimate)
                if self.linear_weight:
                    terms.append(self.linear_weight * mean_difference(wanted, came))
                if log_weight:
                    terms.append(log_weight * self._log_difference(wanted, came))
            return {"spectral_distance": torch.stack(terms).sum() / self.divisor}

    def _log_difference(self, wanted: Tensor, came: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._logarithm(wanted)
        came = self._logarithm(came)
        if self.log_norm == "RMS":
            return (came - wanted).square().mean((-2, -1)).clamp_min(FAINTEST_SQUARE).sqrt().mean()
        return mean_difference(wanted, came, norm=self.log_norm)

    def _logarithm(self, mels: Tensor) -> Tensor:
        return torch.log10(mels.clamp_min(self.floor) if self.clamp else mels + self.floor)


class MelDistance(MultiScaleMelDistance):
    """Mean absolute difference of one logarithmic mel spectrogram.

    Args:
        sample_rate: in hertz.
        n_fft: window in samples; the hop is a quarter.
        num_mels: bands.
        log: compare logarithms; otherwise the mel spectrograms themselves.
        low, high, power, normalized, scale, unit_area, centered, keep_empty: see `MelSpectrogram`.
        floor: added before the logarithm.

    Source: Kong et al., "HiFi-GAN", 2020, section 2.4.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int = 1024,
        num_mels: int = 64,
        log: bool = True,
        low: float = 0.0,
        high: float | None = None,
        power: float = 2.0,
        normalized: bool = False,
        scale: Literal["slaney", "htk"] = "htk",
        unit_area: bool = False,
        centered: bool = False,
        keep_empty: bool = False,
        floor: float = 1e-5,
    ) -> None:
        super().__init__(
            sample_rate=sample_rate,
            scales=(n_fft,),
            num_mels=num_mels,
            low=low,
            high=high,
            power=power,
            normalized=normalized,
            scale=scale,
            unit_area=unit_area,
            centered=centered,
            keep_empty=keep_empty,
            linear_weight=0.0 if log else 1.0,
            log_weight=1.0 if log else 0.0,
            log_norm="L1",
            floor=floor,
        )
