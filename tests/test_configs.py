"""Every shipped configuration parses, builds, trains a step in each of its phases, streams exactly and exports.

Models are small and loud (tests/loud.py), built once per configuration. What concerns the criteria stands in
tests/test_configs_criteria.py; a file that is in neither fails here.
"""

import ast
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rave_tools import config
from rave_tools.codec.bottlenecks.discrete import DiscreteEncoder
from rave_tools.codec.bottlenecks.spherical import SphericalEncoder
from rave_tools.codec.rave import RAVE
from rave_tools.export.deliver import ExportOptions, export
from rave_tools.nn.conv import fold_weight_norm
from rave_tools.nn.normalization import AdaptiveInstanceNormalization
from rave_tools.nn.recurrent import GRU
from rave_tools.training import run
from rave_tools.training.autoencoder import AutoencoderTrainingWrapper
from tests.loud import make_loud

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SMALL = ["CAPACITY = 2", "LATENT_SIZE = 4", "DISCRIMINATOR_CAPACITY = 2", "PHASE_1_DURATION = 1"]
SMALL_IF_THERE = {"NUM_QUANTIZERS": 3, "CODEBOOK_SIZE": 16, "NOISE_AUGMENTATION": 3, "N_MELS": 16}

# What a person would type: every model and recipe, every mixin on top of a model that it is made for, and mixins
# together.
MODELS = ["v1", "v2", "v2_small", "v2_nopqmf", "v2_nopqmf_small", "v3", "discrete", "discrete_v3"]
MODELS += ["onnx", "raspberry", "brave"]
RECIPES = ["demo", "rave_v2_musicnet_no_adversary"]
MIXED = [
    "v1 causal", "v2 causal", "v2_small causal", "v2_nopqmf causal", "v3 causal", "discrete causal", "raspberry causal",
    "v2 noise", "v2 noise causal", "v2 hybrid", "v2 hybrid causal", "v2 adain", "v2 snake", "v2 adain snake",
    "v2 wasserstein", "v2 wasserstein causal", "v2 spherical", "v2 spherical causal",
    "v2_small hybrid noise wasserstein adain snake causal", "v2 no_adversary", "v2 rave_double_weighting",
]  # fmt: skip
STEREO = [
    "v1", "v2", "v2_small", "v2_nopqmf", "v3", "discrete", "brave", "raspberry causal", "v2 noise causal", "v2 hybrid",
    "v2 wasserstein", "v2 spherical causal",
]  # fmt: skip
THREE_CHANNELS = ["v2_small"]
PARTS = {"rave", "rave_v2", "dac", "encodec", "audiocraft_codec"}

# Not frozen in phase 2, as in acids-rave.
LEARNING_ENCODERS = {"discrete", "discrete_v3", "spherical"}

# Behind these, silence is something: biases, codes, the middle of a sphere, another's mean.
ANSWERING_SILENCE = (torch.nn.BatchNorm1d, GRU, AdaptiveInstanceNormalization, DiscreteEncoder, SphericalEncoder)

BLOCKS = (1, 2, 16, 1, 4, 3, 8, 1, 5)
"""Hops."""


def load(names: str, *overrides: str) -> config.Config:
    loaded = config.load(names.split(), [*SMALL, *overrides])
    small = [f"{name} = {value}" for name, value in SMALL_IF_THERE.items() if loaded.has_macro(name)]
    return config.load(names.split(), [*SMALL, *small, *overrides])


def strings_in(path: Path) -> set[str]:
    """Every word that stands in a string of a Python file."""
    constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    return {word for text in constants if isinstance(text, str) for word in text.split()}


def test_every_file_is_tested_here() -> None:
    """Augmentations are tested with the data, priors with the command that trains them."""
    shipped = {path.stem for path in CONFIGS.rglob("*.gin") if path.parent.name not in ("augment", "prior")}
    here = PARTS | {word for names in [*MODELS, *RECIPES, *MIXED] for word in names.split()}
    assert here <= shipped
    beside = [Path(__file__).with_name(f"test_configs_{topic}.py") for topic in ("criteria", "compression")]
    assert not shipped - here - {word for path in beside if path.exists() for word in strings_in(path)}


@dataclass
class Case:
    """A configuration as built.

    Attributes:
        names: of its files.
        channels: of the audio.
        wrapper: of the training, whose codec is loud.
        field: samples to the left and to the right of an output sample that change it.
    """

    names: str
    channels: int
    wrapper: AutoencoderTrainingWrapper
    field: tuple[int, int]

    @property
    def codec(self) -> RAVE:
        return self.wrapper.codec

    def audio(self, samples: int) -> torch.Tensor:
        return 0.3 * torch.randn(2, self.channels, samples)


CASES = [(names, 1) for names in [*MODELS, *RECIPES, *MIXED]]
CASES += [(names, 2) for names in STEREO] + [(names, 3) for names in THREE_CHANNELS]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} x{case[1]}" if case[1] > 1 else case[0])
def case(request: pytest.FixtureRequest) -> Case:
    names, channels = request.param
    torch.manual_seed(0)
    wrapper = load(names, f"CHANNELS = {channels}").build_argument(run.train, "wrapper").eval()
    make_loud(wrapper.codec)
    return Case(names, channels, wrapper, wrapper.codec.receptive_field(recurrence=False))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


def moved(players: list[list[torch.nn.Parameter]], before: list[list[torch.Tensor]]) -> list[bool]:
    return [
        any(not now.equal(then) for now, then in zip(*pair, strict=True))
        for pair in zip(players, before, strict=True)
    ]


def take_a_step(wrapper: AutoencoderTrainingWrapper, audio: torch.Tensor) -> tuple[list[bool], dict[str, Any]]:
    """An update as training makes it; returns which players' weights moved, and the losses."""
    turn = int(wrapper.discriminator_turn)
    optimizer = wrapper.configure_optimizers()[turn]
    wrapper.zero_grad(set_to_none=True)
    losses = wrapper.discriminator_losses(audio) if turn else wrapper.generator_losses(audio)
    total = losses["discriminator"] if turn else wrapper.combiner(losses)
    total.backward()
    players = wrapper.learners()
    before = [[parameter.detach().clone() for parameter in player] for player in players]
    optimizer.step()
    wrapper._count(turn, finite=True, norm=0.0)
    assert torch.isfinite(total)
    assert all(torch.isfinite(parameter).all() for player in players for parameter in player)
    return moved(players, before), losses


def without_gradient(module: torch.nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]


@torch.no_grad()
def test_forward(case: Case) -> None:
    codec, audio = case.codec.eval(), case.audio(8 * case.codec.hop)
    latent = codec.encode(audio)
    assert latent.z.shape == (2, codec.latent_dim, 8)
    y = codec.decode(latent.z)
    assert y.shape == audio.shape and torch.isfinite(y).all()
    assert y.std() > 1e-3, "a model that says nothing is equal to any other"
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert case.channels <= other or not torch.allclose(y[:, one], y[:, other]), "channels of their own"
    assert torch.isfinite(codec(torch.zeros_like(audio))).all(), "silence is a sound too"
    if codec.num_codebooks:
        assert latent.codes is not None
        assert all(len(codebook.unique()) > 2 for codebook in latent.codes.unbind(1)), "codes that say nothing"


def test_trains_in_each_phase(case: Case) -> None:
    wrapper, adversarial = case.wrapper.train(), "no_adversary" not in case.names
    wrapper.combiner.declare(wrapper.declared_losses())
    wrapper.counters.generator_updates = wrapper.counters.discriminator_updates = 0
    audio = case.audio(2048 * wrapper.codec.bands)  # the largest spectral window on the bands
    who, losses = take_a_step(wrapper, audio)
    assert who == [True, False][: 1 + adversarial] and "adversarial" not in losses
    assert not without_gradient(wrapper.codec.encoder)
    assert (wrapper.adversary is not None) == adversarial
    if not adversarial:
        return
    assert wrapper.phase.number == 2 and wrapper.discriminator_turn
    assert take_a_step(wrapper, audio)[0] == [False, True]
    assert not without_gradient(wrapper.adversary)
    who, losses = take_a_step(wrapper, audio)
    assert who == [True, False] and {"adversarial", "feature_matching"} <= losses.keys()
    assert not without_gradient(wrapper.codec.decoder)
    frozen = len(without_gradient(wrapper.codec.encoder)) == len(list(wrapper.codec.encoder.parameters()))
    assert frozen != bool(LEARNING_ENCODERS & set(case.names.split()))


def test_silence_trains_too(case: Case) -> None:
    wrapper = case.wrapper.train()
    for updates in (0, 1):
        wrapper.counters.generator_updates, wrapper.counters.discriminator_updates = updates, updates
        wrapper.zero_grad(set_to_none=True)
        losses = wrapper.generator_losses(torch.zeros(2, case.channels, 2048 * wrapper.codec.bands))
        wrapper.combiner(losses).backward()
        for name, parameter in wrapper.codec.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def dress(codec: RAVE, twin: RAVE) -> None:
    """Put something into the adaptive normalisations that makes a difference: statistics that were learned."""
    for plain, live in zip(codec.modules(), twin.modules(), strict=True):
        if isinstance(plain, AdaptiveInstanceNormalization):
            for name in plain.state_names:
                heard = torch.cat([torch.full((2, 1, 1), 9.0), torch.rand(2, 2 * plain.dim, 1) + 0.5], 1).double()
                setattr(plain, name, heard)
                setattr(live, name, heard.clone())


@torch.no_grad()
def test_streams_exactly(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # The noise branch draws the same everywhere: what its network says is compared too.
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    codec = fold_weight_norm(copy.deepcopy(case.codec)).double().eval()
    twin, info = codec.streaming()
    left, right = case.field
    settle = -(-(left + info.latency) // (2 * codec.hop)) * 2 * codec.hop
    length = sum(BLOCKS) * codec.hop
    whole = length + (-(-right // codec.hop) + 1) * codec.hop  # measured at the first sample of a frame
    x = 0.3 * torch.randn(2, codec.channels, whole, dtype=torch.float64)
    dress(codec, twin)
    if any(isinstance(module, ANSWERING_SILENCE) for module in codec.modules()):
        # A fresh stream has heard nothing, not even silence: it must hear as much of that as the plain model.
        if any(isinstance(module, GRU) for module in codec.modules()):
            settle = max(settle, 128 * codec.hop)  # what it remembers of how it began fades, and has no end
        twin(torch.zeros(2, codec.channels, settle, dtype=torch.float64))
    expected = codec(F.pad(x, (settle + info.offset, 0))[..., : settle + whole])[..., settle:]
    parts, start = [], 0
    for hops in BLOCKS:
        parts.append(twin(x[..., start : start + hops * codec.hop]))
        start += hops * codec.hop
    rest = info.latency - info.offset
    y, expected = torch.cat(parts, -1)[..., rest:], expected[..., : length - rest]
    assert y.shape[-1] > 20 * codec.hop, "too short to show anything"
    assert (y - expected).abs().max() < 1e-9 * expected.abs().max()


def test_exports(case: Case, tmp_path: Path) -> None:
    codec = copy.deepcopy(case.codec).eval()
    _, info = codec.streaming()
    delivered = export(codec, tmp_path / "model.ts", options=ExportOptions(), time_it=False)
    assert delivered.verification.passed
    assert delivered.facts.latency == info.latency
    module = torch.jit.load(str(delivered.path))
    assert module.forward_params.tolist() == [case.channels, 1, case.channels, 1]
    assert module.encode_params.tolist()[:2] == [case.channels, 1]
    y = module.forward(case.audio(32 * codec.hop))
    assert y.shape == (2, case.channels, 32 * codec.hop)
    assert y.std() > 1e-3, "verified on nothing"
    if codec.num_codebooks:
        codes = module.encode(case.audio(32 * codec.hop))
        assert codes.equal(codes.round()) and len(codes.unique()) > 2


# ------------------------------------------------------------------------------------------- what is written down

# acids-rave 2.3.1 at 44.1 kHz, mono: encoder, decoder, discriminator.
PEER = {
    "v1": (4_834_176, 12_778_193, 7_751_619),
    "v2": (16_056_928, 15_479_072, 27_130_952),
    "v2_small": (3_945_904, 3_816_608, 6_791_720),
    "v3": (16_059_904, 15_482_048, None),
    "discrete": (14_287_328, 14_889_248, 27_130_952),
    "discrete_v3": (14_290_304, 14_892_224, None),
    "v2 wasserstein": (14_950_768, 15_552_800, 27_130_952),
    "v2 spherical": (14_950_768, 14_962_976, 27_130_952),
    "raspberry": (426_720, 971_201, 486_387),
    "onnx": (1_374_656, 3_417_969, 1_940_451),
    "v2 hybrid": (3_001_312, 15_677_216, 27_130_952),
    "v2 noise": (16_056_928, 15_634_720, 27_130_952),
    "v2_nopqmf": (7_403_328, 10_477_954, 12_066_184),
}
DESCRIPT = 42_519_760
"""Parameters of its discriminator in v3 and discrete_v3, which tests/test_configs_criteria.py counts."""

TOTALS = {
    "v1": 25_380_644, "v2": 58_683_608, "v2_small": 14_570_888, "discrete": 56_324_184, "v2 wasserstein": 57_651_176,
    "v2 spherical": 57_061_352, "raspberry": 1_900_964, "onnx": 6_749_732, "v2 hybrid": 45_826_136,
    "v2 noise": 58_839_256, "v2_nopqmf": 29_964_122,
}  # fmt: skip


def latencies() -> list[tuple[str, ...]]:
    """(configuration, hop, samples, milliseconds) of the table in docs/streaming.md."""
    lines = [line.split("|") for line in (ROOT / "docs" / "streaming.md").read_text().splitlines()]
    cells = [[cell.strip() for cell in line[1:5]] for line in lines if len(line) == 7]
    return [tuple(line) for line in cells if line[1].isdigit()]


def test_the_table_of_latencies_has_every_model() -> None:
    written = {row[0] for row in latencies()}
    assert len(written) >= 30 and set(MODELS) <= written


@pytest.mark.parametrize(("names", "hop", "samples", "milliseconds"), latencies(), ids=lambda cell: cell)
def test_latencies_are_what_the_documentation_says(names: str, hop: str, samples: str, milliseconds: str) -> None:
    codec = load(names).build("CODEC").eval()
    latency = codec.streaming()[1].latency
    assert (str(codec.hop), f"{latency:,}", f"{1000 * latency / codec.sample_rate:.1f}") == (hop, samples, milliseconds)


@pytest.mark.parametrize("names", PEER)
def test_parameter_counts_of_the_peer(names: str) -> None:
    wrapper = config.load(names.split()).build_argument(run.train, "wrapper")
    codec, discriminator = wrapper.codec, wrapper.adversary.discriminator
    pqmf, *counts = [
        sum(p.numel() for p in part.parameters()) for part in (codec.pqmf, codec.encoder, codec.decoder, discriminator)
    ]
    assert pqmf == 16_656
    for count, expected in zip(counts, PEER[names], strict=True):
        assert expected in (None, count)
    if names in TOTALS:
        assert sum(p.numel() for p in wrapper.parameters()) == TOTALS[names]


def test_the_table_of_the_musicnet_experiment() -> None:
    """CachedPQMF 16.7K, VariationalEncoder 3.9M, GeneratorV2 3.8M, CombineDiscriminators 6.8M: 14,570,888 in all."""
    wrapper = config.load(["v2_small"]).build_argument(run.train, "wrapper")
    parts = (wrapper.codec.pqmf, wrapper.codec.encoder, wrapper.codec.decoder, wrapper.adversary.discriminator)
    names = [type(part).__name__ for part in parts]
    assert names == ["CachedPQMF", "VariationalEncoder", "GeneratorV2", "CombineDiscriminators"]


def test_looking_for_losses_leaves_batch_norm_alone() -> None:
    """A run asks its wrapper for the names of its losses at every start, also when it resumes."""
    wrapper = load("v1").build_argument(run.train, "wrapper").train()
    before = {name: buffer.clone() for name, buffer in wrapper.named_buffers()}
    wrapper.declared_losses()
    assert all(buffer.equal(before[name]) for name, buffer in wrapper.named_buffers())
    assert wrapper.codec.training


def test_a_resumed_run_crops_as_it_did_before() -> None:
    """The field is measured by gradients, whose fringe is zero by chance: a few samples must not change the losses."""
    measured = load("v2_small").build_argument(run.train, "wrapper").measure_receptive_field()
    earlier = [measured[0] + 16, measured[1] - 16]
    assert load("v2_small").build_argument(run.train, "wrapper").measure_receptive_field(earlier) == tuple(earlier)
    other = load("v2_small causal").build_argument(run.train, "wrapper")
    assert other.measure_receptive_field(earlier)[1] < 1000, "another padding looks elsewhere, whatever was saved"
