"""Distance between two sets of sounds, by what an embedding makes of them."""

import torch
from torch import Tensor


class Gaussian:
    """Mean and covariance of vectors that come bit by bit, in float64.

    Sums are kept about the first vector seen, which spares the covariance the digits of a large mean.

    Attributes:
        count: vectors so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin: Tensor | None = None
        self._sum = torch.zeros(0, dtype=torch.float64)
        self._products = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def dimension(self) -> int:
        """D; 0 as long as there is no vector."""
        return len(self._sum)

    def add(self, vectors: Tensor) -> None:
        """Take in (N, D).

        Raises:
            ValueError: another D than before, or numbers that are not finite.
        """
        vectors = vectors.detach().cpu().double()
        if not len(vectors):
            return
        if not vectors.isfinite().all():
            raise ValueError("the embedding gave numbers that are not finite")
        if self._origin is None:
            self._origin = vectors[0].clone()
            self._sum = torch.zeros_like(self._origin)
            self._products = torch.zeros(len(self._origin), len(self._origin), dtype=torch.float64)
        if vectors.shape[1] != self.dimension:
            raise ValueError(f"the embedding gave {vectors.shape[1]} dimensions after {self.dimension}")
        vectors = vectors - self._origin
        self.count += len(vectors)
        self._sum += vectors.sum(0)
        self._products += vectors.T @ vectors

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D).

        Raises:
            ValueError: fewer than two vectors.
        """
        if self.count < 2 or self._origin is None:
            raise ValueError(f"{self.count} vectors have no covariance; at least 2 are needed")
        mean = self._sum / self.count
        covariance = (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return self._origin + mean, (covariance + covariance.T) / 2


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Squared Frechet distance of two Gaussians: |m - m'|^2 + Tr(S + S' - 2 (S S')^(1/2)).

    The trace of the root is that of the symmetric (S^(1/2) S' S^(1/2))^(1/2), from eigenvalues in float64, those below
    zero by rounding taken as zero; nothing complex arises, and singular covariances are no exception.

    Args:
        mean, other_mean: shape (D,).
        covariance, other_covariance: shape (D, D).

    Source: Dowson and Landau, 1982; Kilgour et al., "Frechet Audio Distance", 2019, equation 1.
    """
    mean, covariance = mean.double(), covariance.double()
    other_mean, other_covariance = other_mean.double(), other_covariance.double()
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root @ other_covariance @ root
    shared = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * shared
    return max(float(distance), 0.0)
