"""The adversarial game, and discriminators' shapes and refusals."""

from functools import partial

import pytest
import torch

from rave_tools.contracts import Features
from rave_tools.criteria import adversarial
from rave_tools.criteria.discriminators.combine import CombineDiscriminators
from rave_tools.criteria.discriminators.convnet import ConvNet
from rave_tools.criteria.discriminators.multi_period import MultiPeriodDiscriminator, fold
from rave_tools.criteria.discriminators.multi_scale import MultiScaleDiscriminator


@pytest.mark.parametrize("kind", ["hinge", "least_squares", "nonsaturating"])
def test_each_side_wants_the_opposite(kind: str) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    critic = adversarial.discriminator_loss(kind)(real, fake)
    of_real, of_fake = torch.autograd.grad(critic, [real, fake], allow_unused=True)
    assert (of_real < 0).all(), "the critic's loss falls when real sounds score higher"
    assert of_fake is None or (of_fake >= 0).all()
    (of_fake,) = torch.autograd.grad(adversarial.generator_loss(kind)(fake), fake)
    assert (of_fake < 0).all(), "the generator's falls when its own sounds score higher"


def test_extreme_scores_keep_their_gradient() -> None:
    fake = torch.tensor([-60.0], requires_grad=True)
    adversarial.generator_loss("nonsaturating")(fake).backward()
    torch.testing.assert_close(fake.grad, torch.tensor([-1.0]))


def test_an_unknown_game_is_named() -> None:
    with pytest.raises(ValueError, match="'wgan'; it is one of hinge"):
        adversarial.generator_loss("wgan")


def test_feature_matching_skips_and_counts_what_it_is_told() -> None:
    real = [Features(torch.ones(1), [torch.ones(2), torch.full((2,), 2.0)])]
    fake = [Features(torch.zeros(1), [torch.full((2,), 9.0), torch.full((2,), 1.0)])]
    assert adversarial.FeatureMatching(relative=False)(real, fake) == 1.0
    assert adversarial.FeatureMatching(relative=True)(real, fake) == 0.75
    assert adversarial.FeatureMatching(relative=False, skip=0)(real, fake) == pytest.approx(10 / 3)
    assert adversarial.FeatureMatching(relative=True, include_logits=False)(real, fake) == 0.5
    with pytest.raises(ValueError, match="skip is 3"):
        adversarial.FeatureMatching(skip=3)(real, fake)


def test_folding_puts_every_pth_sample_in_a_row() -> None:
    folded = fold(torch.arange(10.0).reshape(1, 1, 10), 3)
    assert folded.shape == (1, 1, 4, 3)
    assert folded[0, 0, :, 1].tolist() == [1, 4, 7, 0]


def test_every_scale_is_named_features_and_no_weight_is_shared() -> None:
    model = CombineDiscriminators(
        [
            partial(MultiPeriodDiscriminator, partial(ConvNet, capacity=2, kernel_size=(5, 1)), periods=(2, 3)),
            partial(MultiScaleDiscriminator, partial(ConvNet, capacity=2)),
        ],
        channels=32,
    )
    features = model(torch.randn(2, 32, 4096))
    assert len(features) == 5
    assert all(len(f.maps) == 4 and f.logits.shape[1] == 1 for f in features)
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))


def test_wrong_shapes_of_kernels_and_strides_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(5, 1\)"):
        ConvNet(kernel_size=(5, 3))
    with pytest.raises(ValueError, match="2 entries for 4 layers"):
        ConvNet(stride=(2, 2))


def test_the_discriminators_of_v2_have_the_published_size() -> None:
    model = CombineDiscriminators(
        [
            partial(MultiPeriodDiscriminator, partial(ConvNet, capacity=96, kernel_size=(5, 1))),
            partial(MultiScaleDiscriminator, partial(ConvNet, capacity=96)),
        ]
    )
    assert sum(p.numel() for p in model.parameters()) == 27_130_952
