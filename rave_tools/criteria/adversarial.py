"""The game between a generator and its critic: each side's loss, and the distance between what the critic saw."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from torch import Tensor
from torch.nn import functional as F

from rave_tools.contracts import Features
from rave_tools.criteria.distances import Norm, mean_differences

Loss = TypeVar("Loss")
Kind = Literal["hinge", "hinge_clipped", "least_squares", "nonsaturating"]
Reduction = Literal["mean", "sum"]


def discriminator_loss(kind: Kind = "hinge") -> Callable[[Tensor, Tensor], Tensor]:
    """What the critic minimises: (real logits, fake logits) -> scalar.

    The two hinges are one here; they differ in what the generator minimises.

    Source: hinge: Lim and Ye, "Geometric GAN", 2017; least squares: Mao et al., 2017; nonsaturating: Goodfellow et al.,
    2014.
    """
    return _pick(kind, _DISCRIMINATOR_LOSSES)


def generator_loss(kind: Kind = "hinge") -> Callable[[Tensor], Tensor]:
    """What the generator minimises: (fake logits) -> scalar.

    ``hinge`` is -mean(D), as in RAVE, AudioCraft's trainings and the hinge's first paper: its pull never ends.
    ``hinge_clipped`` is mean(max(0, 1 - D)), as EnCodec's paper has it and AudioCraft calls hinge2: a sound that is
    taken for real beyond doubt pulls no more.
    """
    return _pick(kind, _GENERATOR_LOSSES)


class FeatureMatching:
    """Distance between the critic's feature maps of real and generated sound.

    Averaged over the maps of a scale, then over the scales, or summed over all.

    EnCodec's paper divides by the size of the real maps, AudioCraft does not (it computes that size and drops it);
    neither counts the verdict of an MS-STFT discriminator, but AudioCraft counts that of its waveform discriminators.
    Descript's codec sums plain differences of maps, the verdict not among them.

    Args:
        norm: ``L1`` or ``L2``.
        relative: divide each map's distance by the real map's own mean size.
        skip: feature maps left out at the start of each scale; the first is close to the waveform and insists on its
            phase.
        include_logits: count the verdict as the last map, as RAVE does.
        reduction: ``mean`` or ``sum``.

    Source: Kumar et al., "MelGAN", 2019, section 2.3.
    """

    losses = ("feature_matching",)

    def __init__(
        self,
        *,
        norm: Norm = "L1",
        relative: bool = True,
        skip: int = 1,
        include_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"FeatureMatching.reduction is {reduction!r}; it is 'mean' or 'sum'")
        self.reduction = reduction
        self.norm = norm
        self.relative = relative
        self.skip = skip
        self.include_logits = include_logits

    def __call__(self, real: Sequence[Features], fake: Sequence[Features]) -> Tensor:
        """One Features per scale, twice -> scalar."""
        reals, fakes = [self._maps(f) for f in real], [self._maps(f) for f in fake]
        distances = mean_differences(
            [m.detach() for maps in reals for m in maps],
            [m for maps in fakes for m in maps],
            norm=self.norm,
            relative=self.relative,
        )
        if self.reduction == "sum":
            return distances.sum()
        by_scale = distances.split([len(maps) for maps in reals])
        return sum(scale.mean() for scale in by_scale) / len(by_scale)

    def _maps(self, features: Features) -> list[Tensor]:
        maps = [*features.maps, *([features.logits] if self.include_logits else [])][self.skip :]
        if not maps:
            raise ValueError(
                f"FeatureMatching.skip is {self.skip}, but a scale has only {len(features.maps)} feature maps"
            )
        return maps


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _hinge_generator(fake: Tensor) -> Tensor:
    return -fake.mean()


def _clipped_hinge_generator(fake: Tensor) -> Tensor:
    return F.relu(1 - fake).mean()


def _squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return (real - 1).square().mean() + fake.square().mean()


def _squares_generator(fake: Tensor) -> Tensor:
    return (fake - 1).square().mean()


def _logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _logistic_generator(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


_DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": _hinge_discriminator,
    "hinge_clipped": _hinge_discriminator,
    "least_squares": _squares_discriminator,
    "nonsaturating": _logistic_discriminator,
}
_GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": _hinge_generator,
    "hinge_clipped": _clipped_hinge_generator,
    "least_squares": _squares_generator,
    "nonsaturating": _logistic_generator,
}


def _pick(kind: str, table: dict[str, Loss]) -> Loss:
    if kind not in table:
        raise ValueError(f"kind of adversarial loss is {kind!r}; it is one of {', '.join(table)}")
    return table[kind]
