"""A bottleneck's latents as knobs of a plug-in: few, ordered, named; scriptable."""

import math

import torch
from torch import Tensor, nn


class PrincipalControls(nn.Module):
    """Latents turned into their principal axes, the most telling first; the rest is drawn at random on the way back.

    Args:
        components: rows are axes. Shape (D, D).
        mean: of the latents. Shape (D,).
        size: how many axes are shown.

    Attributes:
        temperature: scale of the random axes that are not shown; 0 keeps them at their mean.
    """

    def __init__(self, components: Tensor, mean: Tensor, size: int) -> None:
        super().__init__()
        full = components.shape[0]
        if not 1 <= size <= full:
            raise ValueError(f"{size} latents were asked for and the model has {full}; choose between 1 and {full}")
        self.size = size
        self.full_size = full
        self.temperature = 1.0
        self.register_buffer("components", components.clone())
        self.register_buffer("mean", mean.clone())

    def labels(self) -> list[str]:
        """One label per control."""
        return [f"(signal) Latent dimension {i + 1}" for i in range(self.size)]

    def shown(self, z: Tensor) -> Tensor:
        """Latents to controls: (B, D, N) -> (B, size, N)."""
        return torch.matmul(self.components[: self.size], z - self.mean.unsqueeze(-1))

    def hidden(self, controls: Tensor) -> Tensor:
        """Controls to latents: (B, L, N) -> (B, D, N), for any 1 <= L <= D."""
        shown = torch.matmul(self.components[: controls.shape[1]].t(), controls)
        if controls.shape[1] < self.full_size and self.temperature > 0:
            rest = torch.randn(
                controls.shape[0],
                self.full_size - controls.shape[1],
                controls.shape[2],
                dtype=controls.dtype,
                device=controls.device,
            )
            shown = shown + torch.matmul(self.components[controls.shape[1] :].t(), rest * self.temperature)
        return shown + self.mean.unsqueeze(-1)


def size_for_fidelity(fidelity: Tensor, share: float) -> int:
    """How many axes carry a share of the variance, rounded up to a power of two as RAVE does.

    Args:
        fidelity: cumulative share of variance per axis. Shape (D,).
        share: between 0 and 1.

    Returns:
        Between 1 and D; D when nothing was analysed yet (all zeros).
    """
    enough = torch.nonzero(fidelity > share).flatten()
    if enough.numel() == 0:
        return fidelity.shape[0]
    return min(2 ** math.ceil(math.log2(max(int(enough[0]), 1))), fidelity.shape[0])
