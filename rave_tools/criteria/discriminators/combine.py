"""Several discriminators as one."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from rave_tools.contracts import Features


class CombineDiscriminators(nn.Module):
    """All scales of all its discriminators, in their order.

    Args:
        discriminators: each makes one, called with ``channels``.
        channels: of the audio.
    """

    def __init__(self, discriminators: Sequence[Callable[..., nn.Module]], *, channels: int = 1) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList([make(channels=channels) for make in discriminators])

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per scale."""
        return [features for discriminator in self.discriminators for features in discriminator(audio)]
