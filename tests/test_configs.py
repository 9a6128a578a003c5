"""Every shipped configuration parses, builds, trains a step in each of its phases, streams exactly and exports."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rave_tools import config
from rave_tools.export.deliver import ExportOptions, export
from rave_tools.nn.conv import fold_weight_norm
from rave_tools.training import run

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ["CAPACITY = 4", "LATENT_SIZE = 8", "DISCRIMINATOR_CAPACITY = 4"]

# What a person would type: every model and recipe, and every mixin on top of a model that it is made for.
MODELS = ["v1", "v2", "v2_small", "demo", "rave_v2_musicnet_no_adversary"]
MIXED = ["v1 causal", "v2 causal", "v2_small causal", "v2 noise", "v2 no_adversary", "v2 rave_double_weighting"]
STEREO = ["v1", "v2", "v2_small"]
PARTS = {"rave", "rave_v2"}


def load(names, *overrides):
    return config.load(names.split(), [*SMALL, *overrides])


def test_every_file_is_tested_here():
    """Augmentations are tested with the data, priors with the command that trains them."""
    shipped = {path.stem for path in CONFIGS.rglob("*.gin") if path.parent.name not in ("augment", "prior")}
    assert shipped == PARTS | set(MODELS) | {word for names in MIXED for word in names.split()}


@pytest.fixture(params=[*MODELS, *MIXED])
def names(request):
    torch.manual_seed(0)
    return request.param


def windows(codec):
    """Two seconds or less, enough for the largest spectral window on the bands."""
    return 0.1 * torch.randn(2, codec.channels, 2048 * codec.bands)


def take_a_step(wrapper, kind):
    """A backward pass as training does it; returns which of the two players got gradients."""
    audio = windows(wrapper.codec)
    wrapper.zero_grad(set_to_none=True)
    if kind == "generator":
        losses = wrapper.generator_losses(audio)
        total = wrapper.combiner(losses)
    else:
        total = wrapper.discriminator_losses(audio)["discriminator"]
    assert torch.isfinite(total)
    total.backward()
    generator, *adversary = [any(p.grad is not None for p in players) for players in wrapper.learners()]
    return generator, any(adversary)


def test_trains_in_each_phase(names):
    loaded = load(names, "PHASE_1_DURATION = 2")
    wrapper = loaded.build_argument(run.train, "wrapper").train()
    wrapper.combiner.declare(wrapper.declared_losses())
    assert take_a_step(wrapper, "generator") == (True, False)
    if wrapper.adversary is None:
        return
    assert wrapper.phase.number == 1
    wrapper.counters.generator_updates = 2
    assert wrapper.phase.number == 2
    assert take_a_step(wrapper, "generator") == (True, False)
    encoder = [p.grad for p in wrapper.codec.encoder.parameters()]
    assert all(gradient is None for gradient in encoder), "the encoder is frozen in phase 2"
    assert take_a_step(wrapper, "discriminator") == (False, True)


def test_streams_exactly(names, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 0.5))  # silences the noise branch
    codec = fold_weight_norm(load(names).build("CODEC")).double().eval()
    twin, info = codec.streaming()
    silence = 2**16
    x = torch.randn(1, codec.channels, 2**15 + 2**16, dtype=torch.float64)
    late = F.pad(x, (silence + info.offset, 0))[..., : silence + x.shape[-1]]
    with torch.no_grad():
        expected = codec(late)[..., silence:]
        parts, start = [], 0
        while start < x.shape[-1]:
            size = (1, 2, 4, 1, 8)[len(parts) % 5] * codec.hop
            parts.append(twin(x[..., start : start + size]))
            start += size
    rest = info.latency - info.offset
    end = x.shape[-1] - codec.receptive_field()[1] - codec.hop
    error = (torch.cat(parts, -1)[..., rest:end] - expected[..., : end - rest]).abs().max()
    assert error < 1e-9 * expected.abs().max()


def test_exports(names, tmp_path):
    codec = load(names).build("CODEC").eval()
    delivered = export(codec, tmp_path / "model.ts", options=ExportOptions(), time_it=False)
    assert delivered.verification.passed
    again = torch.jit.load(str(tmp_path / "model.ts"))
    assert again.forward(torch.zeros(1, codec.channels, 2 * codec.hop)).shape == (1, codec.channels, 2 * codec.hop)


@pytest.mark.parametrize("names", STEREO)
def test_stereo(names, tmp_path):
    loaded = load(names, "CHANNELS = 2", "PHASE_1_DURATION = 0")
    wrapper = loaded.build_argument(run.train, "wrapper").train()
    assert wrapper.codec.channels == 2
    assert take_a_step(wrapper, "generator") == (True, False)
    assert take_a_step(wrapper, "discriminator") == (False, True)
    # Two channels that differ come back as two channels that differ.
    with torch.no_grad():
        out = wrapper.codec.eval()(windows(wrapper.codec))
    assert not torch.allclose(out[:, 0], out[:, 1])
    export(loaded.build("CODEC").eval(), tmp_path / "stereo.ts", options=ExportOptions(), time_it=False)
    method = torch.jit.load(str(tmp_path / "stereo.ts")).encode_params.tolist()
    assert method[:2] == [2, 1]


def test_the_table_of_the_musicnet_experiment():
    """CachedPQMF 16.7K, VariationalEncoder 3.9M, GeneratorV2 3.8M, CombineDiscriminators 6.8M: 14,570,888 in all."""
    wrapper = config.load(["v2_small"]).build_argument(run.train, "wrapper")
    counts = {
        type(part).__name__: sum(p.numel() for p in part.parameters())
        for part in (wrapper.codec.pqmf, wrapper.codec.encoder, wrapper.codec.decoder, wrapper.adversary.discriminator)
    }
    assert counts == {
        "CachedPQMF": 16_656,
        "VariationalEncoder": 3_945_904,
        "GeneratorV2": 3_816_608,
        "CombineDiscriminators": 6_791_720,
    }
    assert sum(counts.values()) == 14_570_888


@pytest.mark.parametrize(("name", "total"), [("v1", 25_380_644), ("v2", 58_683_608), ("v2 noise", 58_839_256)])
def test_parameter_counts_of_the_peer(name, total):
    wrapper = config.load(name.split()).build_argument(run.train, "wrapper")
    assert sum(p.numel() for p in wrapper.parameters()) == total


def test_looking_for_losses_leaves_batch_norm_alone():
    """A run asks its wrapper for the names of its losses at every start, also when it resumes."""
    wrapper = load("v1").build_argument(run.train, "wrapper").train()
    before = {name: buffer.clone() for name, buffer in wrapper.named_buffers()}
    wrapper.declared_losses()
    assert all(buffer.equal(before[name]) for name, buffer in wrapper.named_buffers())
    assert wrapper.codec.training


def test_a_resumed_run_crops_as_it_did_before():
    """The field is measured by gradients, whose fringe is zero by chance: a few samples must not change the losses."""
    measured = load("v2_small").build_argument(run.train, "wrapper").measure_receptive_field()
    earlier = [measured[0] + 16, measured[1] - 16]
    assert load("v2_small").build_argument(run.train, "wrapper").measure_receptive_field(earlier) == tuple(earlier)
    other = load("v2_small causal").build_argument(run.train, "wrapper")
    assert other.measure_receptive_field(earlier)[1] < 1000, "another padding looks elsewhere, whatever was saved"
