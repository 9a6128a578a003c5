"""Time the training step of the 1-channel recipe beside the same step of audiocraft 1.3.0's modules, by turns.

Both: SEANet without quantisation, L1, mel spectra at seven scales, MS-STFT discriminator, clipped hinge, feature
matching, balancer, two Adams; the same weights and sounds. Ours is the shipped configuration. An update with the
discriminator's step and one without are timed apart; what is compared is their mean with two of the former for one of
the latter, as the recipe has them. Run with a Python that can import both `audiocraft` and `rave_tools`:

    python benchmarks/encodec_training.py [--batch 8] [--rounds 5] [--threads 2] [--floor 1.5]

Exits with 1 when ours makes fewer than `floor` times the peer's updates per second.
"""

import argparse
import ctypes
import statistics
import sys
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
from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
from torch import Tensor

from rave_tools import config
from rave_tools.contracts import Reconstruction
from rave_tools.training import run
from rave_tools.training.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

SCALES = [1024, 2048, 512, 256, 128]
WEIGHTS = {"l1": 0.1, "mel": 1.0, "adversarial": 3.0, "feature_matching": 3.0}
SEANET = {
    "channels": 1, "dimension": 128, "n_filters": 32, "n_residual_layers": 1, "ratios": [8, 5, 4, 2],
    "norm": "weight_norm", "causal": True, "pad_mode": "constant", "true_skip": False, "lstm": 2,
}  # fmt: skip
Step = Callable[[bool], None]


def theirs(audio: Tensor) -> tuple[list[torch.nn.Module], Step]:
    """The peer's modules, and an update with or without the discriminator's step."""
    encoder, decoder = SEANetEncoder(**SEANET), SEANetDecoder(**SEANET)
    judge = MultiScaleSTFTDiscriminator(
        32, n_ffts=SCALES, hop_lengths=[n // 4 for n in SCALES], win_lengths=SCALES,
        activation_params={"negative_slope": 0.3},
    )  # fmt: skip
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-4, (0.5, 0.9))
    game = AdversarialLoss(
        judge, torch.optim.Adam(judge.parameters(), 3e-4, (0.5, 0.9)), get_adv_criterion("hinge2"),
        get_real_criterion("hinge"), get_fake_criterion("hinge"), FeatureMatchingLoss(),
    )  # fmt: skip
    spectral = MultiScaleMelSpectrogramLoss(24000, range_start=5, range_end=12, f_min=0, normalized=True, alphas=False)
    balancer = Balancer(dict(WEIGHTS))

    def step(teach: bool) -> None:
        estimate = decoder(encoder(audio))
        if teach:
            game.train_adv(estimate.detach(), audio)
        deceived, features = game(estimate, audio)
        losses = {"l1": (estimate - audio).abs().mean(), "mel": spectral(estimate, audio)}
        balancer.backward(losses | {"adversarial": deceived, "feature_matching": features}, estimate)
        adam.step()
        adam.zero_grad()

    return [encoder, decoder, judge], step


def ours(audio: Tensor) -> tuple[list[torch.nn.Module], Step]:
    """The shipped recipe, as `TrainingWrapper.training_step` carries it out."""
    wrapper = config.load(["encodec_baseline_1ch"]).build_argument(run.train, "wrapper").train()
    adam, critics = wrapper.configure_optimizers()

    def teach(reconstruction: Reconstruction) -> None:
        critics.zero_grad()
        losses = wrapper.discriminator_losses(reconstruction.target, estimate=reconstruction.estimate.detach())
        losses["discriminator"].backward()
        critics.step()

    def step(learn: bool) -> None:
        adam.zero_grad()
        wrapper.combiner(wrapper.generator_losses(audio, meet=teach if learn else None)).backward()
        adam.step()
        wrapper.combiner.settle()

    return [wrapper.codec.encoder, wrapper.codec.decoder, wrapper.adversary.discriminator], step


def give_back_memory() -> None:
    """What glibc does by itself once a process has freed large blocks: the far end of its moving thresholds."""
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    library.mallopt(M_TRIM_THRESHOLD, 64 << 20)


def main() -> int:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--floor", type=float, default=1.5)
    parser.add_argument("--plain_memory", action="store_true", help="without what `rave_tools train` does to malloc")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    audio = 0.3 * torch.randn(options.batch, 1, 24000)
    (peer_parts, peer), (own_parts, own) = theirs(audio), ours(audio)
    for part, twin in zip(peer_parts, own_parts, strict=True):
        twin.load_state_dict({k: v for k, v in part.state_dict().items() if not k.endswith("window")})
    seconds: dict[tuple[str, bool], list[float]] = {}
    for turn in range(options.rounds + 1):
        for teach in (True, False):
            for name, step in (("peer", peer), ("ours", own)):
                if not options.plain_memory:
                    keep_freed_memory() if name == "ours" else give_back_memory()
                    torch.set_flush_denormal(name == "ours")
                start = time.perf_counter()
                step(teach)
                if turn:  # the first round warms up
                    seconds.setdefault((name, teach), []).append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    for teach in (True, False):
        said = ", ".join(f"{name} {medians[name, teach]:.3f} s" for name in ("peer", "ours"))
        print(f"update {'with' if teach else 'without'} the discriminator's step: {said}")
    mean = {name: (2 * medians[name, True] + medians[name, False]) / 3 for name in ("peer", "ours")}
    ratio = mean["peer"] / mean["ours"]
    print(f"batch {options.batch}, {options.threads} threads, median of {options.rounds}: peer {1 / mean['peer']:.3f}, "
          f"ours {1 / mean['ours']:.3f} updates per second: {ratio:.2f} times (floor {options.floor})")  # fmt: skip
    return 0 if ratio >= options.floor else 1


if __name__ == "__main__":
    sys.exit(main())
