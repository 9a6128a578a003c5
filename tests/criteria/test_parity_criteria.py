"""The criteria equal acids-rave's, from fixtures: values, gradients, feature maps and state-dict keys."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rave_tools.criteria import adversarial, distances, multiresolution
from rave_tools.criteria.discriminators.combine import CombineDiscriminators
from rave_tools.criteria.discriminators.convnet import ConvNet
from rave_tools.criteria.discriminators.descript import DescriptDiscriminator
from rave_tools.criteria.discriminators.multi_period import MultiPeriodDiscriminator
from rave_tools.criteria.discriminators.multi_scale import MultiScaleDiscriminator
from rave_tools.criteria.discriminators.spectral import (
    EncodecConvNet,
    MultiScaleSpectralDiscriminator,
    MultiScaleSpectralDiscriminator1d,
)
from rave_tools.dsp import spectral

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCALES = (2048, 1024, 512, 256, 128)


@pytest.fixture(scope="module")
def losses() -> dict:
    return torch.load(FIXTURES / "losses.pt", weights_only=True)


@pytest.fixture(scope="module")
def discriminators() -> dict:
    return torch.load(FIXTURES / "discriminators.pt", weights_only=True)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal within a tolerance relative to the largest value."""
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)
    assert error < tolerance, f"relative error {error:.2e}"


def check(losses: dict, name: str, function, tolerance: float = 1e-5) -> None:
    estimate = losses["estimate"].clone().requires_grad_()
    values = function(losses["target"], estimate)
    values = values if isinstance(values, dict) else {"value": values}
    assert values.keys() == losses[name]["values"].keys()
    for key, value in values.items():
        close(value.detach(), losses[name]["values"][key])
    sum(values.values()).backward()
    close(estimate.grad, losses[name]["gradient"], tolerance)


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("relative", [False, True])
def test_mean_difference(losses: dict, norm: str, relative: bool) -> None:
    name = f"mean_difference_{norm}_{'relative' if relative else 'absolute'}"
    check(losses, name, partial(distances.mean_difference, norm=norm, relative=relative))


def test_audio_distance(losses: dict) -> None:
    # The gradient of a logarithm magnifies rounding in near-silent bins, and processors round their transforms
    # differently: the values are equal, some hundred of 10,000 gradients differ by thousandths.
    distance = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT(SCALES))
    check(losses, "audio_distance", distance, tolerance=5e-3)
    # Here the window is scaled before the transform, there after it.
    stft = partial(multiresolution.MultiScaleSTFT, SCALES, normalized=True)
    check(losses, "audio_distance_normalized", multiresolution.AudioDistanceV1(stft, log_epsilon=1e-5), tolerance=2e-3)


def test_phase_distance(losses: dict) -> None:
    stft = multiresolution.MultiScaleSTFT(SCALES, magnitude=False)
    distance = multiresolution.WeightedInstantaneousSpectralDistance(stft, weighted=True)
    check(losses, "phase_distance", distance, tolerance=1e-3)


def test_encodec_distance(losses: dict) -> None:
    def one(n_fft: int) -> multiresolution.SpectralDistance:
        return multiresolution.SpectralDistance(n_fft, sample_rate=44100, norm=("L1", "L2"), normalized=True, mel=32)

    check(losses, "encodec_distance", multiresolution.EncodecAudioDistance((2048, 512), spectral_distance=one))


def test_mel_filters(losses: dict) -> None:
    close(spectral.mel_filters(44100, 1024, 80), losses["mel_44100_1024_80"])


@pytest.mark.parametrize("kind", ["hinge", "least_squares", "nonsaturating"])
def test_adversarial_losses(losses: dict, kind: str) -> None:
    real, fake = (losses[f"score_{k}"].clone().requires_grad_() for k in ("real", "fake"))
    expected = losses["adversarial"][kind]
    critic = adversarial.discriminator_loss(kind)(real, fake)
    close(critic.detach(), expected["discriminator"])
    for ours, theirs in zip(
        torch.autograd.grad(critic, [real, fake]), expected["discriminator_gradients"], strict=True
    ):
        close(ours, theirs)
    generator = adversarial.generator_loss(kind)(fake)
    close(generator.detach(), expected["generator"])
    close(torch.autograd.grad(generator, fake)[0], expected["generator_gradient"])


def build(name: str, facts: dict):
    scales = partial(ConvNet, capacity=4)
    periods = partial(ConvNet, capacity=4, kernel_size=(5, 1))
    bins = partial(ConvNet, capacity=4, kernel_size=5, stride=2)
    by_scale = partial(MultiScaleDiscriminator, scales)
    by_period = partial(MultiPeriodDiscriminator, periods, periods=facts["periods"])
    return {
        "multi_scale": by_scale,
        "multi_scale_stereo": partial(by_scale, channels=2),
        "multi_period": by_period,
        "multi_period_stereo": partial(by_period, channels=2),
        "spectral_1d": partial(MultiScaleSpectralDiscriminator1d, bins, scales=facts["spectral_1d_scales"]),
        "spectral_2d": partial(
            MultiScaleSpectralDiscriminator, partial(EncodecConvNet, capacity=4), scales=facts["spectral_2d_scales"]
        ),
        "combined": partial(CombineDiscriminators, [by_period, by_scale]),
    }[name]()


@pytest.mark.parametrize(
    "name",
    [
        "multi_scale",
        "multi_scale_stereo",
        "multi_period",
        "multi_period_stereo",
        "spectral_1d",
        "spectral_2d",
        "combined",
    ],
)
def test_discriminators(discriminators: dict, name: str) -> None:
    case = discriminators[name]
    ours = build(name, discriminators)
    learnt = {key: value for key, value in case["state"].items() if not key.endswith(".window")}
    ours.load_state_dict(learnt, strict=True)
    scales = ours(case["x"])
    assert len(scales) == len(case["features"])
    for features, theirs in zip(scales, case["features"], strict=True):
        for mine, other in zip([*features.maps, features.logits], theirs, strict=True):
            close(mine.detach(), other)


def by_rule(shapes: dict) -> dict:
    """The weights that the fixture's README describes."""
    weights = {}
    for index, (key, shape) in enumerate(shapes.items()):
        drawn = torch.from_numpy(np.random.RandomState(index).uniform(-1, 1, shape)).float()
        weights[key] = 1.2 + 0.4 * drawn if key.endswith("weight_g") else 0.1 * drawn if "bias" in key else drawn
    return weights


@pytest.mark.parametrize(("name", "channels"), [("mono", 1), ("stereo", 2), ("three", 3)])
def test_descript(name: str, channels: int) -> None:
    facts = torch.load(FIXTURES / "descript.pt", weights_only=True)
    case = facts[name]
    ours = DescriptDiscriminator(periods=facts["periods"], fft_sizes=facts["fft_sizes"], channels=channels)
    assert {key: list(value.shape) for key, value in ours.state_dict().items()} == case["shapes"]
    ours.load_state_dict(by_rule(case["shapes"]), strict=True)
    with torch.no_grad():
        scales = ours(case["x"])
    assert len(scales) == len(case["features"]) == 5
    for features, theirs in zip(scales, case["features"], strict=True):
        for mine, other in zip([*features.maps, features.logits], theirs, strict=True):
            assert list(mine.shape) == other["shape"]
            # A kept map may be a single small sum of large terms; processors round it 1.4e-5 apart.
            close(mine.flatten()[:: facts["every"]], other["values"], 5e-5)


def test_descript_has_the_size_of_the_peers() -> None:
    with torch.device("meta"):
        ours = DescriptDiscriminator()
    assert sum(p.numel() for p in ours.parameters()) == 42_519_760


def test_descript_judges_each_example_alone() -> None:
    """Loudness and offset of one are nothing to it, nor to its neighbours in the batch."""
    torch.manual_seed(0)
    ours = DescriptDiscriminator(periods=[2, 3], fft_sizes=[64], capacity=2)
    first, second = torch.randn(2, 1, 1, 500)
    together = ours(torch.cat([first, 0.01 * second + 0.3]))
    alone = ours(second)
    for both, one in zip(together, alone, strict=True):
        close(both.logits[1:].detach(), one.logits.detach(), 1e-4)
    assert all(torch.isfinite(scale.logits).all() for scale in ours(torch.zeros(1, 1, 500)))


def test_a_band_without_bins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"spectrum of 8 samples has no bin in the bands \[\(0.0, 0.1\)\]"):
        DescriptDiscriminator(fft_sizes=[8], capacity=2)


def test_feature_matching_is_the_mean_of_the_means(discriminators: dict) -> None:
    case = discriminators["combined"]
    model = build("combined", discriminators)
    expected = 0.0
    for scale in case["features"]:
        relative = [(f[:1] - f[1:]).abs().mean() / f[:1].abs().mean() for f in scale[1:]]
        expected = expected + sum(relative) / len(relative) / len(case["features"])
    model.load_state_dict(case["state"])
    real, fake = model(case["x"][:1]), model(case["x"][1:])
    close(adversarial.FeatureMatching()(real, fake).detach(), torch.as_tensor(expected))
