"""Distances between waveforms, sample by sample."""

from torch import Tensor, nn

from rave_tools.criteria.distances import Norm, mean_difference


class WaveformDistance(nn.Module):
    """Mean difference of the samples: sensitive to phase, blind to pitch.

    Args:
        norm: ``L1`` or ``L2``.
    """

    losses = ("waveform_distance",)
    minimum_length = 1

    def __init__(self, norm: Norm = "L1") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """(B, C, T) x 2 -> {"waveform_distance": scalar}."""
        return {"waveform_distance": mean_difference(target, estimate, norm=self.norm)}
