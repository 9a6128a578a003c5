"""From named losses to the one number that is minimised."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rave_tools.contracts import Losses
from rave_tools.criteria.distances import mean_over_processes

SMALLEST_NORM = 1e-12


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
        _agree("WeightedSum", self.weights, set(names))

    def __call__(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named scalars -> their weighted sum."""
        _all_weighted("WeightedSum", self.weights, losses)
        return torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()


class Balancer(nn.Module):
    """Gives each loss a fixed share of the gradient that reaches the decoder's output, whatever the loss's own scale.

    The gradient of loss k at the output is divided by a running average of its norm and multiplied by its share of all
    weights: where losses pull alike, w_k / sum(w) of the pull is that of loss k, and the norm of the whole is
    `total_norm` per example. Losses that do not depend on the output, such as the KL divergence, are added beside with
    their weight as it is.

    The norms are those of the gradient of the whole update: averaged over processes and over accumulated batches, and
    entered into the running average once per update. So an update made of parts leaves the very average that one large
    batch leaves; its gradient differs only by what the first parts cannot know of the norms of the later ones.

    The averages are buffers, so a checkpoint holds them and a resumed run goes on with them.

    Args:
        weights: by name of the loss; one of weight 0 is only watched, and costs no gradient.
        total_norm: norm of the balanced gradient at the output.
        decay: weight of the past in the running average of the norms.
        per_item: average the norms of the examples' gradients; otherwise the norm of the batch's gradient counts.
        balance_grads: False weights the gradients as a weighted sum does, and only measures them.

    Attributes:
        shares: of the last call, by loss: what part of the norms was its own before balancing. For being watched.
        factors: of the last call, by loss: what it was multiplied by.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        total_norm: float = 1.0,
        decay: float = 0.999,
        per_item: bool = True,
        balance_grads: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"Balancer.decay is {decay}; it lies between 0 and 1, 1 not included")
        if negative := sorted(name for name, weight in weights.items() if weight < 0):
            raise ValueError(f"Balancer.weights are shares of a gradient; negative are {', '.join(negative)}")
        if weights and not any(weights.values()):
            raise ValueError("Balancer.weights are all 0; give at least one loss a weight")
        self.weights = {name: float(weight) for name, weight in weights.items()}
        self.total_norm = total_norm
        self.decay = decay
        self.per_item = per_item
        self.balance_grads = balance_grads
        self.shares: dict[str, Tensor] = {}
        self.factors: dict[str, Tensor] = {}
        for name in self.weights:
            # (sum, count) of the norms so far, older ones fading; and of those seen since the last update.
            self.register_buffer(f"norm_{name}", torch.zeros(2))
            self.register_buffer(f"pending_{name}", torch.zeros(2), persistent=False)

    def declare(self, names: Iterable[str]) -> None:
        """As `WeightedSum.declare`."""
        _agree("Balancer", self.weights, set(names))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named scalars -> a scalar whose gradient at the output is the balanced one.

        The graphs of the judges are walked here, once per loss; a backward pass of the result starts at the output.

        Args:
            losses: of one batch, with the output that they judge.

        Returns:
            Sum of the losses, each times the factor that balances it.

        Raises:
            ValueError: a loss without a weight, or losses that do not say what they judge.
        """
        _all_weighted("Balancer", self.weights, losses)
        output = losses.output if isinstance(losses, Losses) else None
        if output is None or not output.requires_grad:
            raise ValueError(
                "Balancer balances gradients at the output of a decoder that learns, and these losses name none; "
                "use WeightedSum for this training"
            )
        gradients = self._gradients(losses, output)
        aside = [w * losses[name] for name, w in self.weights.items() if w and name in losses.keys() - gradients.keys()]
        beside = torch.stack(aside).sum() if aside else output.new_zeros(())
        if not gradients:
            return beside
        factors = self._factors(gradients, losses.parts)
        value = torch.stack([factor * losses[name].detach() for name, factor in factors.items()]).sum()
        balanced = sum(factor * gradients[name] for name, factor in factors.items())
        return _WithGradient.apply(output, balanced, value) + beside

    @torch.no_grad()
    def settle(self) -> None:
        """The update is made: the norms seen since the last one enter the averages; those not finite never do."""
        for name in self.weights:
            pending, norm = self._pending(name), self._norm(name)
            seen = (pending[1] > 0) & pending.isfinite().all()
            observed = torch.stack([self._whole(pending), torch.ones_like(pending[1])])
            norm.copy_(torch.where(seen, self.decay * norm + observed, norm))
            pending.zero_()

    def _gradients(self, losses: Losses, output: Tensor) -> dict[str, Tensor]:
        """Of each loss at the output, for those that depend on it; magnified while half precision may be on the way."""
        gradients = {}
        for name, value in losses.items():
            if not value.requires_grad or not self.weights[name]:
                continue
            magnified = value * losses.scale if losses.scale != 1 else value
            (gradient,) = torch.autograd.grad(magnified, [output], retain_graph=True, allow_unused=True)
            if gradient is not None:
                gradients[name] = gradient / losses.scale if losses.scale != 1 else gradient
        return gradients

    @torch.no_grad()
    def _factors(self, gradients: Mapping[str, Tensor], parts: int) -> dict[str, Tensor]:
        """What each loss is multiplied by."""
        rows = torch.stack([self._size(gradient, parts) for gradient in gradients.values()])
        observed = mean_over_processes(rows)
        weight = sum(self.weights[name] for name in gradients)
        averages = {}
        for name, size in zip(gradients, observed, strict=True):
            pending = self._pending(name)
            pending += torch.stack([size, torch.ones_like(size)])
            total, count = self.decay * self._norm(name)
            averages[name] = (total + self._whole(pending)) / (count + 1)
        everything = torch.stack(list(averages.values())).sum()
        self.shares = {name: average / (everything + SMALLEST_NORM) for name, average in averages.items()}
        if not self.balance_grads:
            self.factors = {name: observed.new_tensor(self.weights[name]) for name in gradients}
            return self.factors
        self.factors = {
            name: self.total_norm * self.weights[name] / max(weight, SMALLEST_NORM) / (average + SMALLEST_NORM)
            for name, average in averages.items()
        }
        return self.factors

    def _size(self, gradient: Tensor, parts: int) -> Tensor:
        """What one part says of the update's norm: a norm of its examples, or a square of which the root is due."""
        if self.per_item:
            return torch.linalg.vector_norm(gradient.flatten(1), dim=1).mean() / parts
        return gradient.square().sum() / parts  # (|g| / parts)^2, of which the update's has as many as there are parts

    def _whole(self, pending: Tensor) -> Tensor:
        """Norm of the update's gradient, as the parts seen so far make it."""
        mean = pending[0] / pending[1].clamp_min(1)
        return mean if self.per_item else mean.sqrt()

    def _norm(self, name: str) -> Tensor:
        return self.get_buffer(f"norm_{name}")

    def _pending(self, name: str) -> Tensor:
        return self.get_buffer(f"pending_{name}")


class _WithGradient(torch.autograd.Function):
    """A given value whose gradient at the output is a given one."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return factor * gradient, None, None


def _all_weighted(owner: str, weights: Mapping[str, float], losses: Mapping[str, Tensor]) -> None:
    if not losses.keys() <= weights.keys():
        _agree(owner, weights, losses.keys() | weights.keys())


def _agree(owner: str, weights: Mapping[str, float], declared: Collection[str]) -> None:
    unweighted, unused = set(declared) - weights.keys(), weights.keys() - set(declared)
    complaints = []
    if unweighted:
        complaints.append(f"no weight for the losses {', '.join(sorted(unweighted))}")
    if unused:
        complaints.append(f"no loss for the weights {', '.join(sorted(unused))}")
    if complaints:
        raise ValueError(f"{owner}.weights and the losses disagree: {'; '.join(complaints)}")


def _have(weights: Mapping[str, float]) -> str:
    return f"have no weight; weights are given for {', '.join(sorted(weights)) or 'nothing'}"
