"""Short-time spectra and mel filters, equal to torchaudio's and librosa's without needing either."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def stft(
    signal: Tensor,
    n_fft: int,
    *,
    hop: int | None = None,
    window_length: int | None = None,
    center: bool = True,
    normalized: bool = False,
) -> Tensor:
    """Complex spectra of overlapping frames under a periodic Hann window.

    The same numbers as torchaudio's ``Spectrogram(n_fft, hop_length=hop, power=None)``. The gradient is the adjoint
    itself, a real inverse transform and an overlap-add, where that of `torch.stft` takes a complex transform of twice
    the size and scatters sample by sample.

    Args:
        signal: waveforms, at least n_fft / 2 + 1 samples when centred, else n_fft. Shape (..., T).
        n_fft: samples in a frame.
        hop: samples between frames; a quarter of the frame by default.
        window_length: samples of a frame that are heard, in its middle; the whole frame by default.
        center: mirror half a frame at both ends, so that frame n is centred on sample n * hop.
        normalized: divide by the window's Euclidean norm, so that white noise has unit power whatever the frame.

    Returns:
        Shape (..., n_fft // 2 + 1, N), N = T // hop + 1 when centred, else (T - n_fft) // hop + 1.

    Raises:
        ValueError: the signal is too short for one frame, or the window is longer than the frame.
    """
    hop = hop or n_fft // 4
    window_length = window_length or n_fft
    if window_length > n_fft:
        raise ValueError(f"a window of {window_length} samples does not fit a {n_fft}-point spectrum; enlarge n_fft")
    shortest = n_fft // 2 + 1 if center else n_fft
    if signal.shape[-1] < shortest:
        raise ValueError(
            f"a {n_fft}-point spectrum needs at least {shortest} samples, got {signal.shape[-1]}; "
            "use longer signals or smaller scales"
        )
    flat = signal.reshape(-1, signal.shape[-1])
    if center:
        flat = F.pad(flat[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    window = torch.hann_window(window_length, dtype=signal.dtype, device=signal.device)
    if normalized:
        window = window / math.sqrt(0.375 * window_length)  # the sum of a periodic Hann window's squares
    left = (n_fft - window_length) // 2
    window = F.pad(window, (left, n_fft - window_length - left))
    spectrum = _FramedTransform.apply(flat, window, hop)
    return spectrum.transpose(-1, -2).reshape(*signal.shape[:-1], n_fft // 2 + 1, -1)


class _FramedTransform(torch.autograd.Function):
    """Windowed frames of (R, T) and their real transforms, (R, N, F), with the adjoint as its gradient."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, window: Tensor, hop: int) -> Tensor:
        ctx.save_for_backward(window)
        ctx.hop, ctx.length = hop, signal.shape[-1]
        return torch.fft.rfft(frames(signal, window.shape[-1], hop=hop) * window)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (window,) = ctx.saved_tensors
        n_fft = window.shape[-1]
        # irfft counts the bins between the ends twice, for their mirror images; rfft produced them once
        once = torch.full((gradient.shape[-1],), 0.5, dtype=window.dtype, device=window.device)
        once[0] = 1
        if n_fft % 2 == 0:
            once[-1] = 1
        windowed = torch.fft.irfft(gradient * once, n=n_fft, norm="forward") * window
        return overlap_add(windowed, ctx.length, hop=ctx.hop), None, None


def frames(signal: Tensor, length: int, *, hop: int) -> Tensor:
    """Overlapping windows of a signal.

    Args:
        signal: shape (..., T), T >= length.
        length: samples in a frame.
        hop: samples between frames.

    Returns:
        Shape (..., N, length), N = (T - length) // hop + 1.
    """
    if length % hop:
        return signal.unfold(-1, length, hop)
    count = (signal.shape[-1] - length) // hop + 1
    overlap = length // hop
    hops = signal[..., : (count + overlap - 1) * hop].unflatten(-1, (count + overlap - 1, hop))
    return torch.cat([hops[..., i : i + count, :] for i in range(overlap)], -1)


def overlap_add(windows: Tensor, length: int, *, hop: int) -> Tensor:
    """The adjoint of `frames`: add windows at their places.

    Args:
        windows: shape (..., N, n).
        length: samples of the signal, at least (N - 1) * hop + n; what no window reaches is zero.
        hop: samples between windows.

    Returns:
        Shape (..., length).
    """
    count, width = windows.shape[-2:]
    pieces = -(-width // hop)
    blocks = max(-(-length // hop), count + pieces - 1)
    total = windows.new_zeros(*windows.shape[:-2], blocks, hop)
    for piece in range(pieces):
        part = windows[..., piece * hop : (piece + 1) * hop]
        total[..., piece : piece + count, : part.shape[-1]] += part
    return total.flatten(-2)[..., :length]


def mel_filters(
    sample_rate: int,
    n_fft: int,
    num_mels: int,
    *,
    low: float = 0.0,
    high: float | None = None,
    scale: Literal["slaney", "htk"] = "slaney",
    normalized: bool = True,
) -> Tensor:
    """Triangular filters at equal distances on the mel scale.

    The defaults are librosa's; torchaudio's own are ``scale="htk", normalized=False``.

    Args:
        sample_rate: in hertz.
        n_fft: samples in a frame of the spectra that will be filtered.
        num_mels: filters.
        low: lower edge of the first filter in hertz.
        high: upper edge of the last one in hertz, half the sample rate by default.
        scale: Slaney's (linear below 1 kHz, logarithmic above) or HTK's (logarithmic throughout).
        normalized: give every filter unit area in hertz.

    Returns:
        Float32, shape (num_mels, n_fft // 2 + 1).

    Source: Slaney, "Auditory Toolbox", 1998; Young et al., "The HTK Book", section 5.4.
    """
    high = sample_rate / 2 if high is None else high
    if not 0 <= low < high <= sample_rate / 2:
        raise ValueError(f"mel filters from {low} to {high} Hz do not fit a sample rate of {sample_rate} Hz")
    to_mel, to_hertz = (_slaney_mel, _slaney_hertz) if scale == "slaney" else (_htk_mel, _htk_hertz)
    ends = to_mel(np.array([low, high]))
    edges = to_hertz(np.linspace(ends[0], ends[1], num_mels + 2))
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    width = np.diff(edges)[:, None]
    rising = (bins - edges[:-2, None]) / width[:-1]
    falling = (edges[2:, None] - bins) / width[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    if normalized:
        triangles *= (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles.astype(np.float32))


_KNEE_HERTZ = 1000.0
_HERTZ_PER_MEL = 200.0 / 3
_LOG_STEP = math.log(6.4) / 27


def _slaney_mel(hertz: np.ndarray) -> np.ndarray:
    above = np.log(np.maximum(hertz, _KNEE_HERTZ) / _KNEE_HERTZ) / _LOG_STEP
    return np.minimum(hertz, _KNEE_HERTZ) / _HERTZ_PER_MEL + above


def _slaney_hertz(mel: np.ndarray) -> np.ndarray:
    knee = _KNEE_HERTZ / _HERTZ_PER_MEL
    return np.where(mel < knee, mel * _HERTZ_PER_MEL, _KNEE_HERTZ * np.exp(_LOG_STEP * (mel - knee)))


def _htk_mel(hertz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + hertz / 700)


def _htk_hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)
