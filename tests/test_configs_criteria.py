"""Configurations of the criteria: each parses, builds small, and trains a step of both players in both phases."""

import numpy as np
import pytest
import torch

from rave_tools import config
from rave_tools.cli.training_data import _augmentations
from rave_tools.criteria import combiners, multiresolution
from rave_tools.criteria.discriminators import descript, spectral
from rave_tools.data import transforms
from rave_tools.training import run

SMALL = ["CAPACITY = 2", "LATENT_SIZE = 4", "DISCRIMINATOR_CAPACITY = 2", "PHASE_1_DURATION = 2"]
MIXINS = ["descript_discriminator", "spectral_discriminator", "balancer", "encodec_distance", "phase_distance"]
ENCODECS = ["multi_scale_mel_paper", "multi_scale_mel_audiocraft", "multi_scale_mel_descript", "ms_stft_discriminator"]
NAMES = [*(f"{model} {mixin}" for mixin in MIXINS for model in ("v2", "v1")), "v3", "discrete_v3", "v2_with_augs"]
NAMES += [f"v2 {mixin}" for mixin in ENCODECS] + ["v1 ms_stft_discriminator multi_scale_mel_paper balancer"]
FEW_CODES = ["NUM_QUANTIZERS = 2", "CODEBOOK_SIZE = 8", "NOISE_AUGMENTATION = 2"]
ENCODEC = "{'fullband_waveform_distance': 0.1, 'fullband_spectral_distance': 1.0, 'multiband_spectral_distance': 1.0, "
ENCODEC += "'kl': 1.0, 'adversarial': 3.0, 'feature_matching': 3.0}"


def load(names, *overrides):
    words = names.split()
    more = [*(FEW_CODES if "discrete_v3" in words else []),
            *(["SPECTRAL_CAPACITY = 2"] if "spectral_discriminator" in words else [])]  # fmt: skip
    return config.load(words, [*SMALL, *more, *overrides])


def build(names, *overrides):
    torch.manual_seed(0)
    loaded = load(names, *overrides)
    loaded.check_unused(run.train, ["db_path"])
    wrapper = loaded.build_argument(run.train, "wrapper").train()
    wrapper.combiner.declare(wrapper.declared_losses())
    return wrapper


def windows(codec):
    return 0.1 * torch.randn(2, codec.channels, 2048 * codec.bands)


def generator_step(wrapper):
    """Losses of one step; afterwards the gradients are there."""
    wrapper.zero_grad(set_to_none=True)
    losses = wrapper.generator_losses(windows(wrapper.codec))
    total = wrapper.combiner(losses)
    assert torch.isfinite(total)
    total.backward()
    return losses


def moved(parameters):
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    return any(bool(g.any()) for g in gradients)


@pytest.mark.parametrize("names", NAMES)
def test_trains_in_each_phase(names):
    wrapper = build(names)
    encoder, decoder, adversary = (
        list(part.parameters()) for part in (wrapper.codec.encoder, wrapper.codec.decoder, wrapper.adversary)
    )
    assert "adversarial" not in generator_step(wrapper)
    assert moved(encoder) and moved(decoder) and not moved(adversary)
    wrapper.counters.generator_updates = 2
    losses = generator_step(wrapper)
    assert wrapper.phase.number == 2 and {"adversarial", "feature_matching"} <= losses.keys()
    assert moved(decoder) and not moved(adversary)
    assert moved(encoder) == (names == "discrete_v3"), "all but discrete freeze the encoder"
    wrapper.zero_grad(set_to_none=True)
    wrapper.discriminator_losses(windows(wrapper.codec))["discriminator"].backward()
    assert moved(adversary) and not moved(decoder)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("names", ["v3", "v2 spectral_discriminator", "v2 balancer", "v2 encodec_distance",
                                   "v2 ms_stft_discriminator multi_scale_mel_audiocraft"])  # fmt: skip
def test_more_channels(names, channels):
    wrapper = build(names, f"CHANNELS = {channels}")
    wrapper.counters.generator_updates = 2
    assert wrapper.codec.channels == channels
    generator_step(wrapper)
    assert moved(wrapper.codec.decoder.parameters())


@pytest.mark.parametrize(
    ("names", "adversary", "total"),
    [
        ("v3", 42_519_760, 74_078_368),
        ("discrete_v3", 42_519_760, 71_718_944),
        ("v2 spectral_discriminator", 17_905_997, 49_458_653),
        ("v2_with_augs", 27_130_952, 47_178_968),
    ],
)
def test_sizes_are_those_of_acids_rave(names, adversary, total):
    wrapper = config.load(names.split()).build_argument(run.train, "wrapper")
    assert sum(p.numel() for p in wrapper.adversary.parameters()) == adversary
    assert sum(p.numel() for p in wrapper.parameters()) == total


def test_who_judges():
    assert isinstance(build("v3").adversary.discriminator, descript.DescriptDiscriminator)
    critics = build("v2 spectral_discriminator").adversary.discriminator.discriminators
    assert isinstance(critics[1], spectral.MultiScaleSpectralDiscriminator) and len(critics) == 2
    first, second = build("v2 encodec_distance").judges
    assert isinstance(first.criterion, multiresolution.EncodecAudioDistance)
    assert isinstance(second.criterion, multiresolution.AudioDistanceV1)
    first, second = build("v2 phase_distance").judges
    assert not first.criterion.multiscale_stft.magnitude and second.criterion.multiscale_stft.magnitude
    assert first.criterion.multiscale_stft.scales == (2048, 1024, 512, 256, 128)


def test_ms_stft_is_encodecs_and_alone():
    adversary = config.load(["v2", "ms_stft_discriminator"]).build_argument(run.train, "wrapper").adversary
    assert sum(p.numel() for p in adversary.parameters()) == 472_330, "as in AudioCraft's configuration"
    assert {network.slope for network in adversary.discriminator.discriminators} == {0.3}
    separate = build("v2 ms_stft_discriminator", "CHANNELS = 2", "STFT_SEP_CHANNELS = True").adversary.discriminator
    verdicts = separate(torch.randn(3, 2, 4096))
    assert [features.logits.shape[0] for features in verdicts] == 5 * [6]


def test_mel_distances_are_those_of_their_names():
    """What a half as loud sound costs: powers fall by 6 dB, so a logarithm by 0.6, a square of it 0.36."""
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 16384)
    paper, audiocraft, descript = (
        build(f"v2 multi_scale_mel_{name}").judges[0].criterion for name in ("paper", "audiocraft", "descript")
    )
    assert paper.scales == (32, 64, 128, 256, 512, 1024, 2048) and paper.log_norm == "RMS"
    assert audiocraft.scales == (64, 128, 256, 512, 1024) and audiocraft.log_norm == "L2"
    # Descript's takes magnitudes and adds up its scales.
    assert descript(noise, 0.5 * noise)["spectral_distance"].item() == pytest.approx(7 * 0.30103, rel=1e-3)
    # The linear parts of the other two know the noise's power; their logarithmic parts do not, and empty bands hear
    # nothing.
    for distance, part in ((paper, 0.60206), (audiocraft, 0.60206**2)):
        distance.linear_weight = 0
        heard = [float((s.filters.amax(1) > 0).float().mean()) for s in distance.spectrograms]
        parts = [part * (h**0.5 if distance is paper else h) for h in heard]
        expected = sum(parts) / (2 * len(parts))
        assert distance(noise, 0.5 * noise)["spectral_distance"].item() == pytest.approx(expected, rel=1e-3)


def test_balanced_shares_of_v2():
    """The gradient at the decoder's output has the norm that was asked for, and each loss its share of it."""
    wrapper = build("v2 balancer", "combiners.Balancer.total_norm = 0.5")
    assert isinstance(wrapper.combiner, combiners.Balancer)
    losses = wrapper.generator_losses(windows(wrapper.codec))
    total = wrapper.combiner(losses)
    (gradient,) = torch.autograd.grad(total, losses.output)
    # Two losses pull, each with a norm of 0.25 per example: together 0.5 where they pull alike, less elsewhere.
    assert 0.1 < float(gradient.flatten(1).norm(dim=1).mean()) <= 0.5 + 1e-5
    assert set(wrapper.combiner.shares) == {"fullband_spectral_distance", "multiband_spectral_distance"}


def test_mixins_compose():
    names = "v2 encodec_distance balancer descript_discriminator"
    with pytest.raises(ValueError, match="no weight for the losses fullband_waveform_distance"):
        build(names)
    wrapper = build(names, f"combiners.Balancer.weights = {ENCODEC}")
    generator_step(wrapper)
    assert "fullband_waveform_distance" in wrapper.combiner.shares


def test_a_pure_tone_out_of_phase_is_near_in_spectrum_and_far_in_samples():
    """What the distances hear: a cosine for a sine is the same spectrum; another pitch is not."""
    time = torch.arange(16384) / 44100
    sine, cosine, other = (torch.sin(2 * torch.pi * f * time + p)[None, None] for f, p in
                           ((440.0, 0.0), (440.0, 1.57), (466.2, 0.0)))  # fmt: skip
    encodec = build("v2 encodec_distance").judges[0].criterion
    assert encodec(sine, cosine)["waveform_distance"] > 0.5
    assert encodec(sine, cosine)["spectral_distance"] < 0.1 * encodec(sine, other)["spectral_distance"]


def test_a_gain_changes_spectra_and_no_phases():
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 8192)
    distance = build("v2 phase_distance").judges[0].criterion
    softer, other = distance(noise, 0.5 * noise), distance(noise, torch.randn(1, 1, 8192))
    assert softer["spectral_distance"] > 0.5 and softer["phase_distance"] < 1e-6
    assert other["phase_distance"] > 1, "the phases of two noises have nothing to do with each other"


def test_v2_with_augs_expands_half_of_its_crops():
    loaded = load("v2_with_augs")
    (own,) = _augmentations([], loaded)
    assert own == transforms.RandomCompress(threshold=-40, amp_range=(-60, -10), prob=0.5)
    both = _augmentations(["mute"], loaded)
    assert both[0] == own and isinstance(both[1], transforms.RandomMute)
    again = config.load([], text=loaded.operative(run.train))
    assert _augmentations([], again) == [own], "a resumed run has it too"


def test_normalize_ambient_raises_what_is_soft():
    """As `--augment`, or on top of a model as in RAVE."""
    (from_flag,) = _augmentations(["normalize_ambient"], load("v2"))
    (from_model,) = _augmentations([], load("v2 normalize_ambient"))
    (instead,) = _augmentations([], load("v2_with_augs normalize_ambient"))
    assert from_flag == from_model == instead
    load("v2 normalize_ambient").check_unused(run.train, ["db_path"])
    # A square wave: its level is its amplitude at every instant.
    square = np.sign(np.sin(2 * np.pi * 500 * np.arange(44100) / 44100 + 0.1))[None].astype(np.float32)
    for before, after in ((-50, -35), (-40, -25), (-20, -11.5), (0, -5)):
        audio = (10 ** (before / 20) * square).astype(np.float32)
        out = from_flag.at(44100)(audio, np.random.default_rng(0))
        assert 20 * np.log10(np.abs(out[:, 22050:]).mean()) == pytest.approx(after, abs=0.05)
