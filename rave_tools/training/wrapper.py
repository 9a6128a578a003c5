"""Parts that training wrappers share: judges, counters, the step's randomness, optimisers and the gradient guard."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rave_tools.contracts import Criterion, Reconstruction, View
from rave_tools.errors import UserError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Factor = Callable[[int], float]


class Judge(nn.Module):
    """One opinion about a reconstruction: a criterion and the view of it that it looks at.

    Its losses are called ``{name}_{key}``, with the keys of the criterion.

    Args:
        name: prefix of its losses, such as ``fullband``.
        view: picks (target, estimate) out of a Reconstruction.
        criterion: (target, estimate) -> named scalars.
    """

    def __init__(self, name: str, view: View, criterion: Criterion) -> None:
        super().__init__()
        self.name = name
        self.view = view
        self.criterion = criterion

    def forward(self, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """Named, unweighted scalars."""
        target, estimate = self.view(reconstruction)
        return {f"{self.name}_{key}": value for key, value in self.criterion(target, estimate).items()}


@dataclass
class Counters:
    """Where a run stands; the schedules are functions of these, and a checkpoint holds them.

    Attributes:
        generator_updates: what `--max_steps`, the phases and the schedules count.
        discriminator_updates: turns that the discriminator has taken.
        batches: micro-batches consumed, the position in the stream of training data.
        skipped: updates left out because a gradient was not finite.
    """

    generator_updates: int = 0
    discriminator_updates: int = 0
    batches: int = 0
    skipped: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain numbers for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, saved: Mapping[str, Any]) -> "Counters":
        """Counters out of a checkpoint's facts, in which other facts may stand beside them."""
        return cls(**{name: int(saved.get(name, 0)) for name in cls.__dataclass_fields__})


def step_seed(seed: int, batch: int, rank: int) -> int:
    """Seed of one micro-batch's noise, so that the noise of a run is a function of its position alone.

    Nothing needs saving for an exact resume, and validation cannot disturb the training. The mixing is the finaliser
    of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + batch * 0xD1B54A32D192ED03 + (rank + 1) * 0x8CB92BA72F3D8DD7) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return (state ^ (state >> 31)) >> 1


@dataclass
class GradientGuard:
    """Lets an update through when its gradient is finite, counts the others, and stops a run that is lost.

    Attributes:
        consecutive: updates skipped in a row that stop the run.
        fraction: share of the last `window` updates whose skipping stops the run.
        window: see `fraction`.
    """

    consecutive: int = 20
    fraction: float = 0.5
    window: int = 200
    _recent: list[bool] = field(default_factory=list, repr=False)

    def admit(self, norm: float, losses: Mapping[str, Tensor]) -> bool:
        """Whether to make the update.

        Args:
            norm: norm of the gradient.
            losses: what was differentiated, asked by name only when the gradient is not finite.

        Raises:
            UserError: too many updates had to be skipped; the message names the losses that were not finite.
        """
        finite = norm == norm and abs(norm) != float("inf")
        self._recent = [*self._recent[-self.window + 1 :], finite]
        if finite:
            return True
        run = next((i for i, good in enumerate(reversed(self._recent)) if good), len(self._recent))
        bad = self._recent.count(False)
        if run >= self.consecutive or (len(self._recent) == self.window and bad >= self.fraction * self.window):
            raise UserError(self._verdict(run, bad, losses))
        return False

    def _verdict(self, run: int, bad: int, losses: Mapping[str, Tensor]) -> str:
        culprits = [name for name, value in losses.items() if not bool(torch.isfinite(value.detach()).all())]
        blame = f"not finite in the last one: {', '.join(culprits)}" if culprits else "every loss itself was finite"
        return (
            f"training stopped: {run} updates in a row ({bad} of the last {len(self._recent)}) had a gradient that was "
            f"not finite; {blame}. Lower the learning rate, train with --precision 32, or resume from an earlier "
            "checkpoint"
        )


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, one tensor on their device; zero without gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies all gradients in place."""
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """An optimiser's settings without its parameters: what a resumed run takes from its config, not from the past."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


class ScalarMeans:
    """Running means of named scalars that never wait for the device until somebody reads them."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        """Counts one observation of each scalar."""
        names = tuple(values)
        row = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        total, count = self._sums.get(names, (torch.zeros_like(row), 0))
        self._sums[names] = (total + row, count + 1)

    def read(self) -> dict[str, float]:
        """Means since the last reading, which starts afresh."""
        totals: dict[str, tuple[float, int]] = {}
        for names, (total, count) in self._sums.items():
            for name, value in zip(names, total.tolist(), strict=True):
                before, seen = totals.get(name, (0.0, 0))
                totals[name] = (before + value, seen + count)
        self._sums = {}
        return {name: value / count for name, (value, count) in totals.items()}
