"""Which latents carry the signal: principal axes of the encoder's means over the validation set."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

FIDELITIES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class LatentAnalysis:
    """Principal axes of a cloud of latents.

    Attributes:
        mean: shape (D,).
        components: an orthogonal basis, rows sorted by the variance they carry. Shape (D, D).
        fidelity: share of the variance carried by the first 1, 2, ... D axes. Shape (D,).
    """

    mean: Tensor
    components: Tensor
    fidelity: Tensor

    def dimensions(self, fidelity: float) -> int:
        """Fewest axes that carry at least this share of the variance."""
        return int((self.fidelity < fidelity).sum().clamp(max=len(self.fidelity) - 1)) + 1


def analyse(rows: Tensor) -> LatentAnalysis:
    """Principal component analysis by the eigenvectors of the covariance.

    The basis is complete whatever the number of rows: axes without variance are filled in orthogonally. Each axis is
    oriented so that its largest entry is positive, which makes the analysis of the same latents the same every time.

    Args:
        rows: one latent frame each. Shape (rows, D).

    Raises:
        ValueError: no rows, or rows that are not finite.
    """
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise ValueError(f"latent analysis needs rows of shape (rows, D), not {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("latent analysis met latents that are not finite; the encoder has diverged")
    cloud = rows.detach().cpu().double()
    mean = cloud.mean(0)
    centred = cloud - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / max(len(cloud) - 1, 1))
    variances, components = variances.flip(0).clamp(min=0), vectors.flip(1).T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    total = variances.sum()
    fidelity = variances.cumsum(0) / total if total > 0 else torch.ones_like(variances)
    return LatentAnalysis(mean.float(), components.float(), fidelity.float())


def store(analysis: LatentAnalysis, codec: nn.Module) -> None:
    """Writes an analysis into the buffers from which an export takes its controls."""
    codec.latent_mean.copy_(analysis.mean)
    codec.latent_pca.copy_(analysis.components)
    codec.fidelity.copy_(analysis.fidelity)


def keeps_analysis(codec: nn.Module) -> bool:
    """Whether this codec has the buffers of an analysis."""
    return all(hasattr(codec, name) for name in ("latent_mean", "latent_pca", "fidelity"))
