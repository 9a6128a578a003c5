"""The adversary: a discriminator with the two games played against it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rave_tools.contracts import Features

FeatureDistance = Callable[[Sequence[Features], Sequence[Features]], Tensor]


class Adversary(nn.Module):
    """A discriminator and both sides of its game, each side computing only what it needs.

    A generator step needs no gradient for the discriminator's weights and none through the real branch; a
    discriminator step needs none through the generator. Leaving these out halves the cost of a step.

    Args:
        discriminator: (B, C, T) -> one Features per scale, the batch first in each tensor.
        discriminator_loss: (real logits, fake logits) -> scalar, of each scale.
        generator_loss: (fake logits) -> scalar, of each scale.
        feature_matching: (real features, fake features) -> scalar; None leaves that loss out.
        averaged: take the mean over the scales, as EnCodec does; otherwise their sum, as RAVE does.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        discriminator_loss: Callable[[Tensor, Tensor], Tensor],
        generator_loss: Callable[[Tensor], Tensor],
        feature_matching: FeatureDistance | None = None,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.discriminator_loss = discriminator_loss
        self.generator_loss = generator_loss
        self.feature_matching = feature_matching
        self.averaged = averaged

    def discriminator_losses(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """What the discriminator minimises, and its mean verdicts.

        Real and generated audio pass as one batch: the weights are prepared once, and the gradient written once.

        Args:
            target: real audio. Shape (B, C, T).
            estimate: generated audio, detached here whatever the caller did. Shape (B, C, T).

        Returns:
            `discriminator` (the loss), `score_real` and `score_fake` (detached, to be watched).
        """
        scales = self.discriminator(torch.cat([target, estimate.detach()]))
        verdicts = [scale.logits.float().chunk(2) for scale in scales]
        return {
            "discriminator": self._total(self.discriminator_loss(real, fake) for real, fake in verdicts),
            "score_real": self._total(real.detach().mean() for real, _ in verdicts),
            "score_fake": self._total(fake.detach().mean() for _, fake in verdicts),
        }

    def generator_losses(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """What the generator minimises because of the adversary: `adversarial` and `feature_matching`.

        Args:
            target: real audio. Shape (B, C, T).
            estimate: generated audio, with its graph. Shape (B, C, T).
        """
        with _frozen(self.discriminator):
            fake = _in_float32(self.discriminator(estimate))
            losses = {"adversarial": self._total(self.generator_loss(f.logits) for f in fake)}
            if self.feature_matching is not None:
                with torch.no_grad():
                    real = _in_float32(self.discriminator(target))
                losses["feature_matching"] = self.feature_matching(real, fake)
        return losses

    def _total(self, scales: Iterable[Tensor]) -> Tensor:
        values = torch.stack(list(scales))
        return values.mean() if self.averaged else values.sum()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Lets gradients pass through `module` without reaching its weights."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _in_float32(features: Sequence[Features]) -> list[Features]:
    """Losses are computed in float32 whatever the precision of the networks."""
    return [Features(f.logits.float(), [m.float() for m in f.maps]) for f in features]
