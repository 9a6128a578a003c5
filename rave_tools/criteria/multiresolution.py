"""Distances between spectra at several resolutions: a large window hears pitch, a small one hears attacks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rave_tools.criteria.distances import (
    SMALLEST_MEAN,
    Norm,
    mean_difference,
    mean_differences,
    mean_over_processes,
)
from rave_tools.criteria.waveform import WaveformDistance
from rave_tools.dsp import spectral

FAINTEST = 1e-20
"""Magnitudes below this count as silence when a gradient needs the direction of a spectrum."""


class MultiScaleSTFT(nn.Module):
    """Spectra at several scales, hop a quarter of the window.

    Args:
        scales: window lengths in samples.
        normalized: divide by the windows' Euclidean norms.
        magnitude: return magnitudes, else complex values.
        num_mels: filter the complex spectra with that many mel bands.
        sample_rate: in hertz, needed with num_mels.
    """

    def __init__(
        self,
        scales: Sequence[int] = (2048, 1024, 512, 256, 128),
        *,
        normalized: bool = False,
        magnitude: bool = True,
        num_mels: int | None = None,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.normalized = normalized
        self.magnitude = magnitude
        self.minimum_length = max(self.scales)
        self.num_mels = num_mels
        if num_mels is not None:
            if sample_rate is None:
                raise ValueError("MultiScaleSTFT.num_mels needs MultiScaleSTFT.sample_rate in hertz")
            for scale in self.scales:
                filters = spectral.mel_filters(sample_rate, scale, num_mels)
                self.register_buffer(f"mel_{scale}", filters, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, T) -> one (B*C, F, N) per scale, float32 or complex64."""
        spectra = self.complex_spectra(x)
        return [spectrum.abs() for spectrum in spectra] if self.magnitude else spectra

    def complex_spectra(self, x: Tensor) -> list[Tensor]:
        """(B, C, T) -> one (B*C, F, N) per scale, complex64."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().flatten(0, -2)
            return [self._at(x, scale) for scale in self.scales]

    def _at(self, x: Tensor, scale: int) -> Tensor:
        spectrum = spectral.stft(x, scale, normalized=self.normalized)
        if self.num_mels is not None:
            spectrum = getattr(self, f"mel_{scale}").to(spectrum.dtype) @ spectrum
        return spectrum


class AudioDistanceV1(nn.Module):
    """RAVE's spectral distance.

    At each scale: squared differences relative to the target's power, plus absolute differences of logarithms.

    Args:
        multiscale_stft: gives the spectra; an instance, or a function that makes one.
        log_epsilon: added to magnitudes before the logarithm.

    Source: Caillon and Esling, "RAVE: A variational autoencoder for fast and high-quality neural audio synthesis",
    2021, section 3.1.1.
    """

    losses = ("spectral_distance",)

    def __init__(
        self, multiscale_stft: MultiScaleSTFT | Callable[[], MultiScaleSTFT], *, log_epsilon: float = 1e-7
    ) -> None:
        super().__init__()
        self.multiscale_stft = _instance(multiscale_stft)
        self.log_epsilon = log_epsilon

    @property
    def minimum_length(self) -> int:
        """Samples that the largest window needs."""
        return self.multiscale_stft.minimum_length

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"spectral_distance": scalar}. No gradient reaches the target."""
        with torch.autocast(target.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.multiscale_stft(target)
                powers = mean_over_processes(torch.stack([x.square().mean() for x in wanted]))
            came = self.multiscale_stft.complex_spectra(estimate)
            distances = [
                _MagnitudeDistance.apply(y, x, power, self.log_epsilon)
                for y, x, power in zip(came, wanted, powers.clamp_min(SMALLEST_MEAN), strict=True)
            ]
        return {"spectral_distance": torch.stack(distances).sum()}


class _MagnitudeDistance(torch.autograd.Function):
    """Relative squared difference of magnitudes plus absolute difference of their logarithms, at one scale.

    A chain of elementary operations walks over the spectra some twenty times, forth and back; this one computes the
    gradient beside the value, in half the time, and keeps one real number per bin.
    """

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, wanted: Tensor, power: Tensor, log_epsilon: float) -> Tensor:
        magnitude = spectrum.abs()
        difference = magnitude - wanted
        log_difference = torch.log((magnitude + log_epsilon) / (wanted + log_epsilon))
        distance = difference.square().mean() / power + log_difference.abs().mean()
        if ctx.needs_input_grad[0]:
            slope = difference.mul_(2 / power).add_(log_difference.sign_().div_(magnitude + log_epsilon))
            # the direction of a spectrum is itself over its magnitude; where that is zero, so is the product
            slope.div_(magnitude.clamp_min_(FAINTEST)).div_(magnitude.numel())
            ctx.save_for_backward(spectrum, slope)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        spectrum, slope = ctx.saved_tensors
        scaled = torch.view_as_real(spectrum) * (gradient * slope).unsqueeze(-1)
        return torch.view_as_complex(scaled), None, None, None


class WeightedInstantaneousSpectralDistance(nn.Module):
    """Distance of magnitudes, and of instantaneous frequencies: the phases' advance from frame to frame.

    Args:
        multiscale_stft: gives complex spectra (``magnitude = False``); an instance, or a function that makes one.
        weighted: let quiet bins of the target count less, since their phase is noise.
    """

    losses = ("spectral_distance", "phase_distance")

    def __init__(
        self, multiscale_stft: MultiScaleSTFT | Callable[[], MultiScaleSTFT], *, weighted: bool = False
    ) -> None:
        super().__init__()
        self.multiscale_stft = _instance(multiscale_stft)
        if self.multiscale_stft.magnitude:
            raise ValueError("a phase distance needs complex spectra; bind MultiScaleSTFT.magnitude = False")
        self.weighted = weighted

    @property
    def minimum_length(self) -> int:
        """Samples that the largest window needs."""
        return self.multiscale_stft.minimum_length

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"spectral_distance": scalar, "phase_distance": scalar}."""
        with torch.autocast(target.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.multiscale_stft(target)
            came = self.multiscale_stft(estimate)
            wanted_magnitudes = [x.abs() for x in wanted]
            came_magnitudes = [y.abs() for y in came]
            distance = mean_differences(wanted_magnitudes, came_magnitudes, norm="L2", relative=True).sum()
            logs = [[torch.log1p(m) for m in magnitudes] for magnitudes in (wanted_magnitudes, came_magnitudes)]
            distance = distance + mean_differences(*logs).sum()
            phases = [self._phase_distance(x, y) for x, y in zip(wanted, came, strict=True)]
        return {"spectral_distance": distance, "phase_distance": torch.stack(phases).sum()}

    def _phase_distance(self, wanted: Tensor, came: Tensor) -> Tensor:
        wanted_frequency, came_frequency = _instantaneous_frequency(wanted), _instantaneous_frequency(came)
        if self.weighted:
            weight = torch.log1p(wanted.abs()[..., 2:]).clamp(0, 1)
            wanted_frequency, came_frequency = wanted_frequency * weight, came_frequency * weight
        return mean_difference(wanted_frequency, came_frequency, norm="L2")


class SpectralDistance(nn.Module):
    """Mean differences of one spectrogram, uncentred, as in EnCodec's losses.

    Args:
        n_fft: window in samples.
        sample_rate: in hertz.
        norm: ``L1``, ``L2`` or several to be added.
        power: exponent of the magnitudes.
        normalized: divide by the window's Euclidean norm.
        mel: mel bands (HTK scale, filters of unit height), or None for the spectrum itself.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4.
    """

    filters: Tensor | None
    losses = ("spectral_distance",)

    def __init__(
        self,
        n_fft: int,
        *,
        sample_rate: int,
        norm: Norm | Sequence[Norm] = "L1",
        power: float = 1.0,
        normalized: bool = False,
        mel: int | None = None,
    ) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.norms = (norm,) if isinstance(norm, str) else tuple(norm)
        self.power = power
        self.normalized = normalized
        self.minimum_length = n_fft
        filters = spectral.mel_filters(sample_rate, n_fft, mel, scale="htk", normalized=False) if mel else None
        self.register_buffer("filters", filters, persistent=False)

    def spectrogram(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, F, N)."""
        magnitude = spectral.stft(x.float(), self.n_fft, center=False, normalized=self.normalized).abs() ** self.power
        return magnitude if self.filters is None else self.filters @ magnitude

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"spectral_distance": scalar}."""
        with torch.autocast(target.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.spectrogram(target)
            came = self.spectrogram(estimate)
            distances = [mean_difference(wanted, came, norm=norm) for norm in self.norms]
            return {"spectral_distance": torch.stack(distances).sum()}


class EncodecAudioDistance(nn.Module):
    """Absolute difference of the samples, and spectral distances at several scales.

    Args:
        scales: windows in samples.
        spectral_distance: makes the distance of one scale.
    """

    losses = ("waveform_distance", "spectral_distance")

    def __init__(self, scales: Sequence[int], *, spectral_distance: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.waveform_distance = WaveformDistance("L1")
        self.spectral_distances = nn.ModuleList([spectral_distance(scale) for scale in scales])
        self.minimum_length = max(scales)

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"waveform_distance": scalar, "spectral_distance": scalar}."""
        by_scale = [distance(target, estimate)["spectral_distance"] for distance in self.spectral_distances]
        return {**self.waveform_distance(target, estimate), "spectral_distance": torch.stack(by_scale).sum()}


class MultiResolutionSTFTDistance(nn.Module):
    """Spectral convergence and absolute difference of log magnitudes, averaged over resolutions.

    convergence_weight * |X - Y| / |X| + log_weight * mean |log X - log Y|, where |.| is the Euclidean norm of all
    spectra of the batch at hand.

    Args:
        n_ffts: frames of the spectra in samples.
        hop_lengths: samples between frames, one per spectrum.
        win_lengths: samples of a frame that are heard, one per spectrum.
        convergence_weight: of the first term.
        log_weight: of the second.
        smallest_power: least squared magnitude.

    Source: Yamamoto et al., "Parallel WaveGAN", 2020, section 2.2.
    """

    losses = ("spectral_distance",)

    def __init__(
        self,
        *,
        n_ffts: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (120, 240, 50),
        win_lengths: Sequence[int] = (600, 1200, 240),
        convergence_weight: float = 0.1,
        log_weight: float = 0.1,
        smallest_power: float = 1e-7,
    ) -> None:
        super().__init__()
        if not len(n_ffts) == len(hop_lengths) == len(win_lengths) > 0:
            raise ValueError(
                f"MultiResolutionSTFTDistance has {len(n_ffts)} n_ffts, {len(hop_lengths)} hop_lengths and "
                f"{len(win_lengths)} win_lengths; give as many of each, and at least one"
            )
        self.resolutions = list(zip(n_ffts, hop_lengths, win_lengths, strict=True))
        self.convergence_weight = convergence_weight
        self.log_weight = log_weight
        self.smallest_power = smallest_power
        self.minimum_length = max(n_ffts) // 2 + 1

    def magnitudes(self, audio: Tensor, n_fft: int, hop: int, window_length: int) -> Tensor:
        """(B, C, T) -> (B, C, F, N)."""
        spectrum = spectral.stft(audio.float(), n_fft, hop=hop, window_length=window_length)
        return torch.view_as_real(spectrum).square().sum(-1).clamp_min(self.smallest_power).sqrt()

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"spectral_distance": scalar}. No gradient reaches the target."""
        with torch.autocast(target.device.type, enabled=False):
            terms = []
            for resolution in self.resolutions:
                with torch.no_grad():
                    wanted = self.magnitudes(target, *resolution)
                    size = torch.linalg.vector_norm(wanted)
                    log_wanted = wanted.log()
                came = self.magnitudes(estimate, *resolution)
                terms.append(self.convergence_weight * torch.linalg.vector_norm(came - wanted) / size)
                terms.append(self.log_weight * mean_difference(log_wanted, came.log()))
            return {"spectral_distance": torch.stack(terms).sum() / len(self.resolutions)}


def _instance(made_or_maker: MultiScaleSTFT | Callable[[], MultiScaleSTFT]) -> MultiScaleSTFT:
    return made_or_maker if isinstance(made_or_maker, MultiScaleSTFT) else made_or_maker()


def _instantaneous_frequency(spectrum: Tensor) -> Tensor:
    """Phase advance from frame to frame, radians in [-pi, pi). Shape (..., F, N) -> (..., F, N - 2)."""
    advance = spectrum.angle().diff(dim=-1)[..., 1:]
    return torch.remainder(advance + math.pi, 2 * math.pi) - math.pi
