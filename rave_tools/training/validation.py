"""The verdict on fixed segments: a reconstruction distance that no adversary can move, and what to look at."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rave_tools.contracts import Criterion, Latent, Reconstruction
from rave_tools.training.latents import FIDELITIES, LatentAnalysis, analyse, keeps_analysis, store
from rave_tools.training.parallel import gather_rows

EXAMPLES = 8


@dataclass(frozen=True)
class Verdict:
    """What one validation found.

    Attributes:
        distance: mean over the segments, the number that chooses the best checkpoint.
        named: its parts by name.
        examples: (target, estimate) pairs, each (C, T), on the CPU.
        dimensions: latent dimensions needed per fidelity, empty when latents were not analysed.
    """

    distance: float
    named: dict[str, float]
    examples: list[tuple[Tensor, Tensor]]
    dimensions: dict[float, int] = field(default_factory=dict)


class Validation:
    """Collects one validation after the other.

    Args:
        criterion: (target, estimate) -> named scalars, on whole waveforms.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.verdict: Verdict | None = None
        self.begin()

    def begin(self) -> None:
        """Forgets what an earlier validation collected."""
        self._names: list[str] = []
        self._distances: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._examples: list[tuple[Tensor, Tensor]] = []

    def add(self, reconstruction: Reconstruction, latent: Latent) -> None:
        """Judges each segment by itself, so that the verdict does not depend on the batch size."""
        for target, estimate in zip(reconstruction.target, reconstruction.estimate, strict=True):
            parts = self.criterion(target[None], estimate[None])
            self._names = list(parts)
            self._distances.append(torch.stack([value.float() for value in parts.values()]))
            if len(self._examples) < EXAMPLES:
                self._examples.append((target.cpu(), estimate.cpu()))
        self._latents.append(latent.z.float().transpose(1, 2).flatten(0, 1).cpu())

    def finish(self, codec: nn.Module, *, latents: bool) -> Verdict | None:
        """Closes this validation, over all processes.

        Args:
            codec: receives the latent analysis in its buffers.
            latents: whether to analyse them.

        Returns:
            The verdict; None when there was nothing to validate.
        """
        distances = gather_rows(torch.stack(self._distances) if self._distances else None)
        if distances is None:
            return None
        parts = distances.mean(0).tolist()
        found = self._analyse(codec) if latents and keeps_analysis(codec) else None
        self.verdict = Verdict(
            sum(parts),
            dict(zip(self._names, parts, strict=True)),
            self._examples,
            {share: found.dimensions(share) for share in FIDELITIES} if found is not None else {},
        )
        self.begin()
        return self.verdict

    def _analyse(self, codec: nn.Module) -> LatentAnalysis | None:
        rows = gather_rows(torch.cat(self._latents) if self._latents else None)
        if rows is None or not bool(torch.isfinite(rows).all()):
            return None
        found = analyse(rows)
        store(found, codec)
        return found
