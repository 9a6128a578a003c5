"""From named losses to the one number that is minimised."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor


class WeightedSum:
    """The sum of all losses, each times its weight, each weight applied once.

    A loss without a weight is an error, not a silent 1; `declare` finds weights that no loss will ever use.

    Args:
        weights: by name of the loss.
        applied_twice: losses whose weight counts squared. RAVE multiplies feature matching by its weight when
            collecting the losses and again when summing them, so that its 20 acts as 400: name ``feature_matching``
            here to train with the very same sum.
    """

    def __init__(self, weights: Mapping[str, float], *, applied_twice: Collection[str] = ()) -> None:
        unknown = sorted(set(applied_twice) - set(weights))
        if unknown:
            raise ValueError(f"WeightedSum.applied_twice names {', '.join(unknown)}, which {_have(weights)}")
        self.weights = {name: float(w) ** (2 if name in applied_twice else 1) for name, w in weights.items()}

    def declare(self, names: Iterable[str]) -> None:
        """Check once, before training, against every loss that any phase will give.

        Args:
            names: of all losses of all phases.

        Raises:
            ValueError: with the losses that have no weight and the weights that have no loss.
        """
        declared = set(names)
        self._refuse(declared - self.weights.keys(), self.weights.keys() - declared)

    def __call__(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named scalars -> their weighted sum."""
        if not losses.keys() <= self.weights.keys():
            self._refuse(losses.keys() - self.weights.keys(), set())
        return torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()

    def _refuse(self, unweighted: Collection[str], unused: Collection[str]) -> None:
        complaints = []
        if unweighted:
            complaints.append(f"no weight for the losses {', '.join(sorted(unweighted))}")
        if unused:
            complaints.append(f"no loss for the weights {', '.join(sorted(unused))}")
        if complaints:
            raise ValueError(f"WeightedSum.weights and the losses disagree: {'; '.join(complaints)}")


def _have(weights: Mapping[str, float]) -> str:
    return f"have no weight; weights are given for {', '.join(sorted(weights)) or 'nothing'}"
