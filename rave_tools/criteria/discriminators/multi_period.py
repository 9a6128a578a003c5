"""Judging every p-th sample of a waveform."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.contracts import Features


class MultiPeriodDiscriminator(nn.Module):
    """One network per period p, which sees the waveform folded into p rows of every p-th sample.

    Args:
        convnet: makes the network of one period, called with ``in_channels``; its kernels are (k, 1).
        periods: in samples; primes share least.
        channels: of the audio.

    Source: Kong et al., "HiFi-GAN", 2020, section 2.3.
    """

    def __init__(
        self, convnet: Callable[..., nn.Module], *, periods: Sequence[int] = (2, 3, 5, 7, 11), channels: int = 1
    ) -> None:
        super().__init__()
        self.periods = tuple(periods)
        self.layers = nn.ModuleList([convnet(in_channels=channels) for _ in self.periods])

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per period."""
        return [layer(fold(audio, period)) for layer, period in zip(self.layers, self.periods, strict=True)]


def fold(audio: Tensor, period: int) -> Tensor:
    """(B, C, T) -> (B, C, ceil(T / p), p); the end is filled with zeros."""
    return F.pad(audio, (0, -audio.shape[-1] % period)).unflatten(-1, (-1, period))
