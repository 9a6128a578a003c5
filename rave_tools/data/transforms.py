"""What is done to a crop before a model sees it: RAVE's transforms, each drawn from the generator it is given.

A transform is a callable ``(audio, generator) -> audio`` on float32 arrays of shape (C, T). All of them keep the shape,
except that :class:`RandomPitch` reads more than it returns and says how much more. A transform may work in place: the
array belongs to it. Those that depend on the sampling rate have a field ``sampling_rate``, which the data module fills.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import scipy.signal
import soxr

from rave_tools.data.filtering import PIECE, allpass, follow
from rave_tools.errors import UserError

Generator = np.random.Generator
TransformLike = Callable[[np.ndarray, Generator], np.ndarray]
"""Anything that behaves so may be given as an augmentation."""


class TransformError(UserError):
    """A transform is set up in a way that it cannot work."""


@dataclass(frozen=True)
class Transform:
    """What the data module knows of a transform.

    Attributes:
        reach: how many times longer than its output the input must be.
    """

    reach: ClassVar[float] = 1.0

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """(C, T) float32 -> the same."""
        raise NotImplementedError

    def at(self, sampling_rate: int) -> "Transform":
        """The same transform for audio of this rate, in hertz."""
        names = {item.name for item in fields(self)}
        if "sampling_rate" in names and self.sampling_rate is None:
            filled: dict[str, Any] = {"sampling_rate": sampling_rate}
            return replace(self, **filled)
        return self


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise TransformError(f"{name} is {value}; a probability lies between 0 and 1")


def _rate(transform: Transform) -> int:
    rate = transform.sampling_rate
    if rate is None:
        raise TransformError(
            f"{type(transform).__name__} needs to know the sampling rate; set sampling_rate, or use .at(rate)"
        )
    return int(rate)


@dataclass(frozen=True)
class Compose(Transform):
    """Several transforms, one after the other."""

    transforms: Sequence[TransformLike]

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        for transform in self.transforms:
            audio = transform(audio, generator)
        return audio

    def at(self, sampling_rate: int) -> Transform:
        """See :class:`Transform`; plain functions are left as they are."""
        return Compose(tuple(item.at(sampling_rate) if hasattr(item, "at") else item for item in self.transforms))


@dataclass(frozen=True)
class RandomApply(Transform):
    """A transform applied with a probability."""

    transform: Transform
    prob: float = 0.5

    def __post_init__(self) -> None:
        _probability("RandomApply.prob", self.prob)

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        return self.transform(audio, generator) if generator.random() < self.prob else audio

    def at(self, sampling_rate: int) -> Transform:
        """See :class:`Transform`."""
        return RandomApply(self.transform.at(sampling_rate), self.prob)


@dataclass(frozen=True)
class RandomPhaseMangle(Transform):
    """Rotates phases with a random second-order all-pass filter: what is heard stays, the waveform changes.

    The poles lie at radius `amplitude` and at a frequency drawn log-uniformly; the zeros are their mirror images.

    Attributes:
        min_frequency: lower end of the range in hertz.
        max_frequency: its upper end.
        amplitude: radius of the poles, below 1.
        prob: how often it is applied.
        sampling_rate: of the audio, in hertz.
    """

    min_frequency: float = 20.0
    max_frequency: float = 2000.0
    amplitude: float = 0.99
    prob: float = 0.8
    sampling_rate: int | None = None

    def __post_init__(self) -> None:
        _probability("RandomPhaseMangle.prob", self.prob)
        if not 0 < self.amplitude < 1:
            raise TransformError(f"RandomPhaseMangle.amplitude is {self.amplitude}; poles at or beyond 1 ring for ever")

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        if generator.random() >= self.prob:
            return audio
        low, high = np.log(self.min_frequency), np.log(self.max_frequency)
        angle = 2 * np.pi * np.exp(generator.uniform(low, high)) / _rate(self)
        return allpass(audio, angle, self.amplitude)


@dataclass(frozen=True)
class Dequantize(Transform):
    """Fills the steps of quantisation with uniform noise, so that silence is not a set of exact zeros.

    The noise is one step wide, 2^-bits, and centred: acids-rave's is as wide, and shifts every signal by half a step.

    Attributes:
        bits: depth of the quantisation.
    """

    bits: int = 16

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        # 16 random bits per sample are all the resolution that such noise needs, and cost a quarter of a float32 draw.
        audio = np.ascontiguousarray(audio)
        samples = audio.reshape(-1)
        noise = np.empty(PIECE, np.float32)
        scale = np.float32(2.0 ** -(self.bits + 16))
        for first in range(0, len(samples), PIECE):
            piece = samples[first : first + PIECE]
            raw = generator.bit_generator.random_raw(-(-len(piece) // 4)).view(np.int16)[: len(piece)]
            piece += np.multiply(raw, scale, out=noise[: len(piece)])
        return audio


@dataclass(frozen=True)
class Normalize(Transform):
    """Brings the peak to full scale, with a gain of at most `max_gain_db`; silence stays silence."""

    max_gain_db: float = 30.0

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        peak = _peak(audio)
        if peak == 0:
            return audio
        return audio * np.float32(min(10 ** (self.max_gain_db / 20), 1 / peak))


def _peak(audio: np.ndarray) -> float:
    return float(max(audio.max(initial=0), -audio.min(initial=0)))


@dataclass(frozen=True)
class Derivative(Transform):
    """Half the difference of neighbouring samples: whitens music, whose energy lies at low frequencies."""

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        result = np.empty_like(audio)
        result[:, 0] = audio[:, 0] / 2
        np.subtract(audio[:, 1:], audio[:, :-1], out=result[:, 1:])
        result[:, 1:] *= np.float32(0.5)
        return result


@dataclass(frozen=True)
class Integrator(Transform):
    """Undoes :class:`Derivative` above a corner of 10 Hz, for listening; leaky, so that an offset dies away.

    Twice the filter of acids-rave, whose derivative and integrator together halve the level.

    Attributes:
        corner: in hertz.
        sampling_rate: in hertz.
    """

    corner: float = 10.0
    sampling_rate: int | None = None

    def __call__(self, audio: np.ndarray, generator: Generator | None = None) -> np.ndarray:
        """See :class:`Transform`."""
        alpha = 1 / (1 + 2 * np.pi * self.corner / _rate(self))
        square = alpha * alpha
        return scipy.signal.lfilter(
            [2 * square, -2 * square], [1, -2 * alpha, square], audio.astype(np.float64)
        ).astype(np.float32)


@dataclass(frozen=True)
class RandomPitch(Transform):
    """Plays the audio faster or slower, as a tape does: pitch and tempo change together.

    The input is longer than the output by the highest speed; the output is as much as there is at the speed drawn, at
    least what was asked for, and the caller cuts it.

    Attributes:
        speeds: lowest and highest factor of speed.
        prob: how often the speed is changed.
    """

    speeds: tuple[float, float] = (0.7, 1.3)
    prob: float = 0.5

    def __post_init__(self) -> None:
        _probability("RandomPitch.prob", self.prob)
        low, high = self.speeds
        if not 0.1 <= low <= high <= 10:
            raise TransformError(f"RandomPitch.speeds are {low} and {high}; they must rise and lie between 0.1 and 10")

    @property
    def reach(self) -> float:  # type: ignore[override]
        """See :class:`Transform`."""
        return max(1.0, self.speeds[1])

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`; the length changes by 1 / speed."""
        if generator.random() >= self.prob:
            return audio
        speed = generator.uniform(*self.speeds)
        return np.ascontiguousarray(soxr.resample(np.ascontiguousarray(audio.T), speed, 1.0, quality="MQ").T)


@dataclass(frozen=True)
class RandomMute(Transform):
    """Silences the whole crop now and then, so that a model knows silence.

    Attributes:
        prob: how often.
        per_channel: whether channels are silenced one by one.
    """

    prob: float = 0.1
    per_channel: bool = False

    def __post_init__(self) -> None:
        _probability("RandomMute.prob", self.prob)

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        muted = generator.random(audio.shape[0] if self.per_channel else 1) < self.prob
        return np.where(muted[:, None], np.float32(0), audio) if muted.any() else audio


@dataclass(frozen=True)
class RandomGain(Transform):
    """Makes the crop louder or softer.

    Attributes:
        gain_range: in dB.
        prob: how often.
        limit: whether a gain that would clip is reduced so that the peak is at full scale.
    """

    gain_range: tuple[float, float] = (-6.0, 3.0)
    prob: float = 0.5
    limit: bool = True

    def __post_init__(self) -> None:
        _probability("RandomGain.prob", self.prob)

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        if generator.random() >= self.prob:
            return audio
        gain = 10 ** (generator.uniform(*self.gain_range) / 20)
        if self.limit and (peak := _peak(audio) * gain) > 1:
            gain /= peak
        return audio * np.float32(gain)


@dataclass(frozen=True)
class FrequencyMasking(Transform):
    """Removes a random band of frequencies.

    Attributes:
        prob: how often.
        max_size: the band is narrower than so many bins of a `window` samples long spectrum.
        window: samples.
    """

    prob: float = 0.5
    max_size: int = 80
    window: int = 4096

    def __post_init__(self) -> None:
        _probability("FrequencyMasking.prob", self.prob)
        if not 2 <= self.max_size <= self.window // 2:
            raise TransformError(
                f"FrequencyMasking.max_size is {self.max_size}; it must lie between 2 and {self.window // 2}, "
                "half the window"
            )

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        if generator.random() >= self.prob:
            return audio
        window = min(self.window, audio.shape[-1])
        spectrum = scipy.signal.stft(audio, nperseg=window)[2]
        bins = spectrum.shape[-2]
        size = int(generator.integers(1, min(self.max_size, bins)))
        first = int(generator.integers(0, bins - size))
        spectrum[..., first : first + size, :] = 0
        result = scipy.signal.istft(spectrum, nperseg=window)[1]
        return np.ascontiguousarray(result[..., : audio.shape[-1]], np.float32)


@dataclass(frozen=True)
class Compress(Transform):
    """Changes dynamics with a transfer function from level in to level out, as the ``compand`` effect of sox does.

    A follower smooths the absolute value, with one time to rise and one to fall, the loudest channel leading; its level
    is looked up in the piecewise linear `points`, rounded within `knee` dB of each corner; the difference is the gain.
    Below the first point the gain stays what it is there; (0, 0) is added where no point at 0 dB is given. As there,
    the follower starts at full scale, so that no crop begins with a burst, and the result is clipped to [-1, 1]. The
    levels of music agree with those of sox itself to 0.02 dB.

    Attributes:
        points: pairs (level in, level out) in dB, level in rising.
        attack: time to rise in seconds.
        release: time to fall in seconds.
        knee: in dB.
        gain: added to the whole, in dB.
        sampling_rate: in hertz.
    """

    points: tuple[tuple[float, float], ...] = ((-70.0, -70.0), (-60.0, -20.0))
    attack: float = 0.1
    release: float = 0.1
    knee: float = 6.0
    gain: float = 0.0
    sampling_rate: int | None = None

    def __post_init__(self) -> None:
        levels = [level for level, _ in self.points]
        if (
            not levels
            or any(after <= before for before, after in zip(levels, levels[1:], strict=False))
            or levels[-1] > 0
        ):
            raise TransformError(f"Compress.points have the levels {levels}; they must rise and end at 0 dB or below")

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        loudest = np.abs(audio).max(axis=0).astype(np.float64)
        level = follow(loudest, attack=self.attack, release=self.release, sampling_rate=_rate(self), initial=1.0)
        np.maximum(level, 1e-10, out=level)
        decibels = 20 * np.log10(level)
        table_in, table_gain = self._table
        gain = np.interp(decibels, table_in, table_gain) + self.gain
        return np.clip(audio * (10 ** (gain / 20)).astype(np.float32), -1, 1)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Gain in dB over level in dB, every corner replaced by the parabola that meets both lines at its knee."""
        points = [*self.points] + ([] if self.points[-1][0] == 0 else [(0.0, 0.0)])
        levels = np.array([level for level, _ in points])
        gains = np.array([out - level for level, out in points])
        grid = np.linspace(-200.0, 0.0, 20001)
        curve = np.interp(grid, levels, gains)
        slopes = np.concatenate([[0.0], np.diff(gains) / np.diff(levels)])
        for place, corner in enumerate(levels[:-1]):
            before = 2 * self.knee if place == 0 else corner - levels[place - 1]
            radius = min(self.knee, before / 2, (levels[place + 1] - corner) / 2)
            if radius > 0:
                near = np.abs(grid - corner) < radius
                bend = (slopes[place + 1] - slopes[place]) / (4 * radius)
                distance = grid[near] - corner
                straight = gains[place] + slopes[place] * distance
                curve[near] = straight + bend * (distance + radius) ** 2
        return grid, curve


@dataclass(frozen=True)
class RandomCompress(Transform):
    """Draws a transfer function and compresses or expands with it.

    Attributes:
        threshold: level in, in dB, whose level out is drawn.
        amp_range: range of that level out, in dB.
        attack: time to rise in seconds.
        release: time to fall in seconds.
        prob: how often.
        sampling_rate: in hertz.
    """

    threshold: float = -40.0
    amp_range: tuple[float, float] = (-60.0, 0.0)
    attack: float = 0.1
    release: float = 0.1
    prob: float = 0.8
    sampling_rate: int | None = None

    def __post_init__(self) -> None:
        _probability("RandomCompress.prob", self.prob)
        if not -80 < self.threshold < 0:
            raise TransformError(f"RandomCompress.threshold is {self.threshold} dB; it must lie between -80 and 0")

    def __call__(self, audio: np.ndarray, generator: Generator) -> np.ndarray:
        """See :class:`Transform`."""
        if generator.random() >= self.prob:
            return audio
        points = ((-80.0, -80.0), (self.threshold, generator.uniform(*self.amp_range)))
        return Compress(points, self.attack, self.release, sampling_rate=_rate(self))(audio, generator)


def rave_defaults(
    *,
    phase_mangle: float = 0.8,
    normalize: bool = False,
    derivative: bool = False,
    augmentations: Sequence[TransformLike] = (),
) -> Compose:
    """The chain of RAVE's training after the crop, in RAVE's order.

    Args:
        phase_mangle: probability of the phase mangle.
        normalize: bring each crop to full scale.
        derivative: differentiate.
        augmentations: what follows.

    Returns:
        The chain.
    """
    chain: list[TransformLike] = [RandomPhaseMangle(prob=phase_mangle)] if phase_mangle > 0 else []
    chain.append(Dequantize(16))
    return Compose((*chain, *deterministic(normalize=normalize, derivative=derivative).transforms, *augmentations))


def deterministic(*, normalize: bool = False, derivative: bool = False) -> Compose:
    """What decides the domain that a model works in, and is therefore done to validation too."""
    chain: list[Transform] = [Normalize()] if normalize else []
    if derivative:
        chain.append(Derivative())
    return Compose(tuple(chain))
