"""Time what judges a codec in one training step, beside the same step of audiocraft 1.3.0, in one process by turns.

The step of EnCodec's training without the codec: the discriminator's update (loss, gradients of its weights), then the
generator's losses (L1, multi-scale mel, adversarial, feature matching), each differentiated down to the waveform by the
balancer. Both sides get the same weights and sounds, and their gradients are compared: they differ by thousandths where
rounding puts one of millions of activations on the other side of a rectifier's bend. Run with a Python that can import
both `audiocraft` and `rave_tools`:

    python benchmarks/criteria.py [--batch 8] [--channels 1] [--samples 24000] [--rounds 5] [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from audiocraft.adversarial import (
    AdversarialLoss,
    FeatureMatchingLoss,
    get_adv_criterion,
    get_fake_criterion,
    get_real_criterion,
)
from audiocraft.adversarial.discriminators.msstftd import MultiScaleSTFTDiscriminator
from audiocraft.losses import Balancer, MultiScaleMelSpectrogramLoss
from torch import Tensor

from rave_tools.contracts import Losses
from rave_tools.criteria import adversarial, combiners, mel, waveform
from rave_tools.criteria.discriminators import stft
from rave_tools.training.adversary import Adversary

SCALES = [1024, 2048, 512, 256, 128]
WEIGHTS = {"l1": 0.1, "mel": 1.0, "adversarial": 3.0, "feature_matching": 3.0}
Parts = dict[str, Callable[[], Tensor | None]]


def theirs(target: Tensor, estimate: Tensor) -> tuple[torch.nn.Module, Parts]:
    """The peer's discriminator and its two halves of a step."""
    judge = MultiScaleSTFTDiscriminator(
        32,
        in_channels=target.shape[1],
        n_ffts=SCALES,
        hop_lengths=[n // 4 for n in SCALES],
        win_lengths=SCALES,
        activation_params={"negative_slope": 0.3},
    )
    game = AdversarialLoss(
        judge,
        torch.optim.SGD(judge.parameters(), lr=0.0),
        get_adv_criterion("hinge"),
        get_real_criterion("hinge"),
        get_fake_criterion("hinge"),
        FeatureMatchingLoss(),
    )
    spectral = MultiScaleMelSpectrogramLoss(24000, f_min=64, normalized=True, alphas=False)
    balancer = Balancer(dict(WEIGHTS))

    def discriminator() -> None:
        game.train_adv(estimate, target)

    def generator() -> Tensor:
        leaf = estimate.clone().requires_grad_()
        deceived, features = game(leaf, target)
        losses = {
            "l1": (leaf - target).abs().mean(),
            "mel": spectral(leaf, target),
            "adversarial": deceived,
            "feature_matching": features,
        }
        balancer.backward(losses, leaf)
        return leaf.grad

    return judge, {"discriminator": discriminator, "generator": generator}


def ours(target: Tensor, estimate: Tensor) -> tuple[torch.nn.Module, Parts]:
    """Ours."""
    judge = stft.MultiScaleSTFTDiscriminator(channels=target.shape[1], n_ffts=SCALES, slope=0.3)
    game = Adversary(
        judge,
        discriminator_loss=adversarial.discriminator_loss("hinge"),
        generator_loss=adversarial.generator_loss("hinge"),
        feature_matching=adversarial.FeatureMatching(relative=False, skip=0, include_logits=False),
        averaged=True,
    )
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.0)
    sample = waveform.WaveformDistance()
    spectral = mel.MultiScaleMelDistance(sample_rate=24000, low=64.0, keep_empty=True)
    balancer = combiners.Balancer(WEIGHTS)

    def discriminator() -> None:
        optimizer.zero_grad()
        game.discriminator_losses(target, estimate)["discriminator"].backward()
        optimizer.step()

    def generator() -> Tensor:
        leaf = estimate.clone().requires_grad_()
        losses = {"l1": sample(target, leaf)["waveform_distance"], "mel": spectral(target, leaf)["spectral_distance"]}
        balancer(Losses(losses | game.generator_losses(target, leaf), output=leaf)).backward()
        balancer.settle()
        return leaf.grad

    return judge, {"discriminator": discriminator, "generator": generator}


def main() -> None:
    """Print the median of each half, theirs and ours, and the ratio of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--samples", type=int, default=24000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    target = 0.3 * torch.randn(options.batch, options.channels, options.samples)
    estimate = 0.8 * target + 0.05 * torch.randn_like(target)
    judge, peer = theirs(target, estimate)
    own_judge, own = ours(target, estimate)
    own_judge.load_state_dict({k: v for k, v in judge.state_dict().items() if not k.endswith("window")})
    expected, came = peer["generator"](), own["generator"]()
    print(f"gradients at the waveform differ by {float((came - expected).abs().max() / expected.abs().max()):.1e}")
    totals = {"peer": 0.0, "ours": 0.0}
    for part, share in (("discriminator", 2 / 3), ("generator", 1.0)):
        seconds: dict[str, list[float]] = {"peer": [], "ours": []}
        for _ in range(options.rounds):
            for name, parts in (("peer", peer), ("ours", own)):
                start = time.perf_counter()
                parts[part]()
                seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        totals = {name: totals[name] + share * medians[name] for name in totals}
        say(part, medians)
    say("2/3 of the first and the second", totals)


def say(what: str, seconds: dict[str, float]) -> None:
    """One line."""
    ratio = seconds["peer"] / seconds["ours"]
    print(f"{what}: peer {seconds['peer']:.3f} s, ours {seconds['ours']:.3f} s: {ratio:.2f}")


if __name__ == "__main__":
    main()
