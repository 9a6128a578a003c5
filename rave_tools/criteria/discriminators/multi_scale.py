"""Judging a waveform at several sample rates."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.contracts import Features


class MultiScaleDiscriminator(nn.Module):
    """One network per scale, each listening to half the sample rate of the one before.

    Args:
        convnet: makes the network of one scale, called with ``in_channels``.
        n_discriminators: scales.
        channels: of the audio.

    Source: Kumar et al., "MelGAN", 2019, section 2.2.
    """

    def __init__(self, convnet: Callable[..., nn.Module], *, n_discriminators: int = 3, channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList([convnet(in_channels=channels) for _ in range(n_discriminators)])

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per scale."""
        features = []
        for index, layer in enumerate(self.layers):
            audio = F.avg_pool1d(audio, 2) if index else audio
            features.append(layer(audio))
        return features
