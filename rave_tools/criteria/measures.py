"""Measures of a finished reconstruction, channel by channel: for people to read, not for gradients."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rave_tools.criteria.mel import MultiScaleMelDistance
from rave_tools.dsp import spectral

SILENCE = 1e-10
"""Mean square below which a channel counts as silent: -100 dB full scale, under the noise of 16 bits."""

LARGEST_SI_SDR = 100.0
"""dB; an exact copy has infinitely many, and a mean with one of them in it would tell nothing of the others."""

MEL_SCALES = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BANDS = (5, 10, 20, 40, 80, 160, 320)
STFT_SCALES = (512, 1024, 2048)
STFT_FLOOR = 1e-7
"""Least power of a bin."""


class Undefined(ValueError):
    """A measure has no value for a sound; the message says why, in a few words."""


@dataclass(frozen=True)
class Measure:
    """What a number is called, and how it is read.

    Attributes:
        name: in files and flags.
        title: in tables.
        unit: empty for plain numbers.
        higher: more is better.
        speech: made for speech; of music it says little.
        meaning: one sentence.
        compute: (reference (C, n), estimate (C, n), rate in hertz) -> number; raises `Undefined`.
    """

    name: str
    title: str
    unit: str
    higher: bool
    speech: bool
    meaning: str
    compute: Callable[[Tensor, Tensor, int], float]


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio, means removed.

    The part of the estimate that is a multiple of the reference, over the rest of it.

    Args:
        reference: shape (..., n).
        estimate: same shape.

    Returns:
        Decibels, float64, shape (...), within +-`LARGEST_SI_SDR`; NaN where the reference is silent.

    Source: Le Roux et al., "SDR - half-baked or well done?", 2019, equation 5.
    """
    _check(reference, estimate)
    x, y = reference.double(), estimate.double()
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    power = x.square().sum(-1)
    wanted = (x * y).sum(-1, keepdim=True) / power.clamp_min(1e-300)[..., None] * x
    ratio = wanted.square().sum(-1) / (y - wanted).square().sum(-1).clamp_min(1e-300)
    decibels = (10 * torch.log10(ratio.clamp_min(1e-300))).clamp(-LARGEST_SI_SDR, LARGEST_SI_SDR)
    return decibels.masked_fill(power / x.shape[-1] < SILENCE, math.nan)


def mean_si_sdr(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """`si_sdr` of each channel that is not silent, then the mean: (C, n) x 2 -> dB.

    Raises:
        Undefined: all channels are silent.
    """
    values = si_sdr(reference, estimate)
    values = values[~values.isnan()]
    if not len(values):
        raise Undefined("silent")
    return float(values.mean())


def l1(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Mean absolute difference of the samples: (C, n) x 2 -> number, full scale = 1."""
    _check(reference, estimate)
    return float((reference.double() - estimate.double()).abs().mean())


def mel_distance(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Absolute difference of log10 mel magnitudes, summed over seven windows of 32 to 2048 samples.

    The distance that Descript's codec is trained and reported with: 5 to 320 bands of unit area (Slaney), hop a
    quarter, magnitudes raised to at least 1e-5. Divide by 7 and multiply by 20 for decibels per band.

    Args:
        reference: shape (C, n).
        estimate: same shape.
        rate: in hertz.

    Raises:
        Undefined: shorter than half of the largest window.

    Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", 2023, section 3.5.
    """
    _check(reference, estimate)
    _need(reference, max(MEL_SCALES))
    distance = MultiScaleMelDistance(
        sample_rate=rate, scales=MEL_SCALES, num_mels=MEL_BANDS, power=1, normalized=False, scale="slaney",
        unit_area=True, centered=True, keep_empty=True, linear_weight=0, log_norm="L1", clamp=True, averaged=False,
    )  # fmt: skip
    return float(distance(reference.float()[None], estimate.float()[None])["spectral_distance"])


def stft_distance(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Spectral convergence plus absolute difference of log magnitudes, mean over windows of 512, 1024 and 2048 samples.

    Args:
        reference: shape (C, n); silent channels, of which the convergence is undefined, take no part.
        estimate: same shape.
        rate: unused, windows are in samples.

    Raises:
        Undefined: all channels are silent, or shorter than half of the largest window.

    Source: Yamamoto et al., "Parallel WaveGAN", 2020, section 2.2.
    """
    _check(reference, estimate)
    _need(reference, max(STFT_SCALES))
    values = []
    for x, y in zip(reference.float(), estimate.float(), strict=True):
        if x.double().square().mean() < SILENCE:
            continue
        for window in STFT_SCALES:
            a, b = (
                spectral.stft(z, window).abs().double().square_().clamp_min_(STFT_FLOOR).sqrt_() for z in (x, y)
            )
            convergence = torch.linalg.vector_norm(b - a) / torch.linalg.vector_norm(a)
            values.append(float(convergence + (b.log() - a.log()).abs().mean()))
    if not values:
        raise Undefined("silent")
    return sum(values) / len(values)


SI_SDR = Measure(
    "si_sdr", "SI-SDR", "dB", True, False,
    "signal over distortion, the level left out; hears phase, so generative codecs score low while they sound right",
    mean_si_sdr,
)  # fmt: skip
L1 = Measure("l1", "L1", "", False, False, "mean absolute difference of the samples, full scale = 1", l1)
MEL = Measure(
    "mel", "mel distance", "", False, False,
    "difference of log10 mel magnitudes, summed over 7 windows of 32 to 2048 samples", mel_distance,
)  # fmt: skip
STFT = Measure(
    "stft", "STFT distance", "", False, False,
    "spectral convergence plus difference of log magnitudes, mean over windows of 512, 1024, 2048 samples",
    stft_distance,
)  # fmt: skip
MEASURES: Sequence[Measure] = (SI_SDR, L1, MEL, STFT)
"""Those that need nothing but torch."""


def _check(reference: Tensor, estimate: Tensor) -> None:
    if reference.shape != estimate.shape:
        raise ValueError(
            f"reference {tuple(reference.shape)} and estimate {tuple(estimate.shape)} differ in shape; cut them to the "
            "length that they have in common"
        )
    if not reference.shape[-1]:
        raise Undefined("empty")


def _need(sound: Tensor, window: int) -> None:
    if sound.shape[-1] <= window // 2:
        raise Undefined(f"too short (under {window // 2 + 1} samples)")
