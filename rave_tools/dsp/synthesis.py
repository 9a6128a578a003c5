"""A few seconds of sound made from nothing: plucked strings and drums, for demonstrations and tests."""

import numpy as np
from scipy.signal import lfilter

PENTATONIC = (0, 3, 5, 7, 10)


def pluck(frequency: float, seconds: float, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A plucked string (Karplus and Strong, Computer Music Journal 1983): noise through a comb that loses its highs.

    Args:
        frequency: in hertz, at most a tenth of the sampling rate.
        seconds: length.
        sampling_rate: in hertz.
        rng: draws the pluck.

    Returns:
        Samples with a peak of one. Shape (T,), float32.
    """
    period = round(sampling_rate / frequency - 0.5)
    excitation = np.zeros(round(seconds * sampling_rate))
    excitation[:period] = rng.uniform(-1, 1, period)
    excitation[:period] -= excitation[:period].mean()
    # 60 dB in about a second and a half, whatever the pitch.
    gain = 10 ** (-3 / (1.5 * frequency))
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period], feedback[period + 1] = 1, -gain / 2, -gain / 2
    string = lfilter([1.0], feedback, excitation)
    return (string / np.abs(string).max()).astype(np.float32)


def drum(seconds: float, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A short noise burst over a falling tone: shape (T,), float32, peak of one."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    tone = np.sin(2 * np.pi * (60 * time + 6 * (1 - np.exp(-time * 30)))) * np.exp(-time * 12)
    hit = tone + 0.4 * rng.standard_normal(time.size) * np.exp(-time * 40)
    return (hit / np.abs(hit).max()).astype(np.float32)


def tune(seconds: float, sampling_rate: int, seed: int, *, beats_per_minute: float = 110) -> np.ndarray:
    """A stereo tune on plucked strings with a drum on every other beat.

    Args:
        seconds: length.
        sampling_rate: in hertz.
        seed: another seed, another tune.
        beats_per_minute: tempo; a note every half beat.

    Returns:
        Samples with a peak of 0.9. Shape (2, T), float32.
    """
    rng = np.random.default_rng(seed)
    audio = np.zeros((2, round(seconds * sampling_rate)), np.float32)
    step = 30 / beats_per_minute
    for index in range(int(seconds / step)):
        start = round(index * step * sampling_rate)
        degree = int(rng.integers(0, 15))
        note = 110 * 2 ** ((12 * (degree // 5) + PENTATONIC[degree % 5]) / 12)
        voices = [(pluck(note, 1.5, sampling_rate, rng), rng.uniform(0.2, 0.8), 0.6)]
        if index % 4 == 0:
            voices.append((drum(0.4, sampling_rate, rng), 0.5, 0.8))
        for sound, place, level in voices:
            end = min(start + sound.size, audio.shape[1])
            audio[:, start:end] += level * np.outer((1 - place, place), sound[: end - start]).astype(np.float32)
    return audio * (0.9 / np.abs(audio).max())
