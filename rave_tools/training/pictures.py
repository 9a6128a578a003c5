"""Spectrogram pictures for TensorBoard, drawn without a plotting library."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Dark violet to pale yellow through red: seven anchors, interpolated linearly; brightness rises all the way.
ANCHORS = torch.tensor(
    [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [252, 255, 164]]
).float()


def log_spectrogram(audio: Tensor, *, window: int = 1024, floor_db: float = -80.0) -> Tensor:
    """Level of each bin in decibels below the loudest, mapped to [0, 1].

    Args:
        audio: one channel. Shape (T,).
        window: of the transform, in samples; the hop is a quarter of it.
        floor_db: level shown as 0.

    Returns:
        Shape (F, frames), low frequencies first.
    """
    audio = F.pad(audio.float(), (0, max(0, window - audio.shape[-1])))
    spectrum = torch.stft(audio, window, window // 4, window=torch.hann_window(window), return_complex=True).abs()
    level = 20 * torch.log10(spectrum.clamp(min=1e-7) / window * 4)
    return (1 - level / floor_db).clamp(0, 1)


def colour(values: Tensor) -> Tensor:
    """Maps [0, 1] to RGB. Shape (...) -> (3, ...), in [0, 1]."""
    position = values.clamp(0, 1) * (len(ANCHORS) - 1)
    below = position.floor().long().clamp(max=len(ANCHORS) - 2)
    share = (position - below).unsqueeze(-1)
    return ((ANCHORS[below] * (1 - share) + ANCHORS[below + 1] * share) / 255).movedim(-1, 0)


def comparison(target: Tensor, estimate: Tensor, *, height: int = 256, width: int = 768) -> Tensor:
    """Spectrogram of the estimate above that of the target, on the same scale.

    Args:
        target: shape (C, T); the first channel is shown.
        estimate: shape (C, T).
        height: of each of the two, in pixels.
        width: in pixels.

    Returns:
        An RGB picture. Shape (3, 2 * height + 4, width), in [0, 1].
    """
    panes = []
    for audio in (estimate[0], target[0]):
        levels = log_spectrogram(audio).flip(0)[None, None]
        panes.append(colour(F.interpolate(levels, (height, width), mode="bilinear", align_corners=False)[0, 0]))
    return torch.cat([panes[0], torch.ones(3, 4, width), panes[1]], 1)
