"""The verdict on fixed segments: a reconstruction distance that no adversary can move, and what to look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rave_tools.contracts import Criterion, Latent, Reconstruction
from rave_tools.training.latents import FIDELITIES, LatentAnalysis, analyse, keeps_analysis, store
from rave_tools.training.parallel import gather, world_size

EXAMPLES = 4


@dataclass(frozen=True)
class Verdict:
    """What one validation found.

    Attributes:
        distance: mean over the segments, the number that chooses the best checkpoint.
        named: its parts by name.
        examples: (target, estimate) pairs, each (C, T), on the CPU.
        dimensions: latent dimensions needed per fidelity, empty when latents were not analysed.
        generated: sound that was made of nothing, each (C, T), on the CPU.
    """

    distance: float
    named: dict[str, float]
    examples: list[tuple[Tensor, Tensor]]
    dimensions: dict[float, int] = field(default_factory=dict)
    generated: list[Tensor] = field(default_factory=list)


class Validation:
    """Collects one validation after the other.

    Every segment is judged by itself, so that the verdict depends neither on the batch size nor on the number of
    processes. With several processes all of them judge all segments in step, because a criterion may exchange its
    denominators between them.

    Args:
        criterion: (target, estimate) -> named scalars, on whole waveforms.
        weights: of each of these in the distance; without any, their sum. One that is left out is only shown.
    """

    def __init__(self, criterion: Criterion, weights: Mapping[str, float] | None = None) -> None:
        self.criterion = criterion
        self.weights = weights
        self.verdict: Verdict | None = None
        self.begin()

    def begin(self) -> None:
        """Forgets what an earlier validation collected."""
        self._names: list[str] = []
        self._distances: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, reconstruction: Reconstruction, latent: Latent) -> None:
        """Takes the segments of a batch."""
        together = world_size() > 1
        for target, estimate in zip(reconstruction.target, reconstruction.estimate, strict=True):
            if not together:
                self._judge(target, estimate)
            if together or len(self._pairs) < EXAMPLES:
                self._pairs.append((target.cpu(), estimate.cpu()))
        self._latents.append(latent.z.float().transpose(1, 2).flatten(0, 1).cpu())

    def _judge(self, target: Tensor, estimate: Tensor) -> None:
        parts = self.criterion(target[None], estimate[None])
        self._names = list(parts)
        self._distances.append(torch.stack([value.float() for value in parts.values()]))

    def finish(self, codec: nn.Module) -> Verdict | None:
        """Closes this validation, over all processes.

        Args:
            codec: receives the latent analysis in its buffers. With a frozen encoder it stays what it was, so it is
                made in every phase: a short first phase does not leave a model without it.

        Returns:
            The verdict; None when there was nothing to validate.
        """
        if world_size() > 1:
            self._pairs = gather(self._pairs)
            device = next(codec.parameters()).device
            for target, estimate in self._pairs:
                self._judge(target.to(device), estimate.to(device))
        if not self._distances:
            return None
        parts = torch.stack(self._distances).mean(0).tolist()
        found = self._analyse(codec) if keeps_analysis(codec) else None
        self.verdict = Verdict(
            sum(self._weight(name) * part for name, part in zip(self._names, parts, strict=True)),
            dict(zip(self._names, parts, strict=True)),
            self._pairs[:EXAMPLES],
            {share: found.dimensions(share) for share in FIDELITIES} if found is not None else {},
        )
        self.begin()
        return self.verdict

    def _weight(self, name: str) -> float:
        return 1.0 if self.weights is None else self.weights.get(name, 0.0)

    def _analyse(self, codec: nn.Module) -> LatentAnalysis | None:
        rows = torch.cat(gather(self._latents))
        if not bool(torch.isfinite(rows).all()):
            return None
        found = analyse(rows)
        store(found, codec)
        return found
