"""Sounds and spectrograms small enough to lie inside a page."""

import base64
import io
import math

import numpy as np
import soundfile
import torch
from torch import Tensor

from rave_tools.dsp import spectral

WINDOW, BANDS, COLUMNS = 2048, 160, 480
LOWEST = 30.0
"""Lower edge of the picture in hertz."""

RANGE = 80.0
"""Decibels between the brightest and the darkest colour."""

FAINTEST = 0.0
"""Decibels that the brightest colour stands for at least, some 54 below a sine at full scale: silence stays dark."""

PALETTE = "magma"


def mel_decibels(sound: Tensor, rate: int) -> np.ndarray:
    """The mean of the channels as a mel spectrogram: (C, n) -> (BANDS, N) in decibels, lowest band first."""
    mono = sound.float().mean(0)
    if len(mono) < WINDOW:
        mono = torch.nn.functional.pad(mono, (0, WINDOW - len(mono)))
    hop = max(1, math.ceil(len(mono) / COLUMNS))
    filters = spectral.mel_filters(rate, WINDOW, BANDS, low=LOWEST, scale="htk", normalized=False)
    magnitude = filters @ spectral.stft(mono, WINDOW, hop=hop).abs()
    return (20 * magnitude.clamp_min(1e-7).log10()).numpy()


def picture(decibels: np.ndarray, loudest: float) -> str:
    """A spectrogram as a PNG in a data URI, brightest at ``loudest`` dB, darkest `RANGE` below."""
    from matplotlib import image

    file = io.BytesIO()
    image.imsave(
        file, decibels, format="png", origin="lower", cmap=PALETTE, vmin=loudest - RANGE, vmax=loudest
    )
    return _uri("image/png", file.getvalue())


def scale_bar() -> str:
    """The colours from darkest to brightest, left to right, as a PNG in a data URI."""
    return picture(np.linspace(-RANGE, 0, 256)[None].repeat(8, 0), 0.0)


def frequency_marks(rate: int) -> list[tuple[str, float]]:
    """Labels for the vertical axis, and their heights as shares of the picture."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    low, high = mel(LOWEST), mel(rate / 2)
    marks = [(hertz, (mel(hertz) - low) / (high - low)) for hertz in (200, 1000, 3000, 8000, 16000)]
    names = {200: "200 Hz", 1000: "1 k", 3000: "3 k", 8000: "8 k", 16000: "16 k"}
    return [(names[hertz], height) for hertz, height in marks if height < 0.97]


def player(sound: Tensor, rate: int) -> str:
    """(C, n) as 16-bit FLAC (of more than 8 channels, their mean) in a data URI; what is over full scale is clipped."""
    if len(sound) > 8:
        sound = sound.mean(0, keepdim=True)
    file = io.BytesIO()
    soundfile.write(file, sound.clamp(-1, 1).numpy().T, rate, format="FLAC", subtype="PCM_16")
    return _uri("audio/flac", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
