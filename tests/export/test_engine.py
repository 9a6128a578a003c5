"""The flat program of matrix products equals the streaming modules that it was made from, whatever the blocks."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from rave_tools.codec.bottlenecks.factorized import FactorizedResidualVQ
from rave_tools.codec.bottlenecks.latent import Unquantized
from rave_tools.codec.bottlenecks.residual import ResidualVectorQuantizer
from rave_tools.codec.bottlenecks.variational import VariationalEncoder
from rave_tools.codec.bottlenecks.wasserstein import WasserteinEncoder
from rave_tools.codec.controls import PrincipalControls
from rave_tools.codec.nets.dac import DACDecoder, DACEncoder
from rave_tools.codec.nets.rave import EncoderV2, GeneratorV1, GeneratorV2
from rave_tools.codec.nets.seanet import SEANetDecoder, SEANetEncoder
from rave_tools.codec.pretransforms.pqmf import CachedPQMF
from rave_tools.export import engine
from rave_tools.export.deliver import ExportOptions, export
from rave_tools.export.engine import Engine
from rave_tools.export.lowering import Builder, lower
from rave_tools.export.parts import Analysis, NoiseSynthesis, Posterior, Synthesis, scale_noise
from rave_tools.export.products import PackedProducts, PlainProducts
from rave_tools.export.step import FIRST_SWITCH, NOISE, TEMPERATURE, run_chain, still_knobs
from rave_tools.nn.activations import Snake
from rave_tools.nn.compose import Residual, Sequential, Sum
from rave_tools.nn.conv import Conv1d, Convolutions, ConvTranspose1d
from rave_tools.nn.noise import NoiseGenerator, NoiseGeneratorV2
from rave_tools.nn.normalization import SWITCHES, AdaptiveInstanceNormalization
from rave_tools.nn.padded_conv import StreamableConv1d, StreamableConvTranspose1d
from rave_tools.nn.recurrent import GRU, LSTM
from rave_tools.nn.residual import ResidualStack, UpsampleLayer
from rave_tools.nn.streaming import Streamable, streaming

WIDTH = 6
X86 = "fbgemm" in torch.backends.quantized.supported_engines

CENTERED = Convolutions(padding="centered")
CAUSAL = Convolutions(padding="causal")
NOISE_V1 = partial(NoiseGenerator, convolutions=CENTERED, ratios=[4, 2], noise_bands=5)
NOISE_V2 = partial(NoiseGeneratorV2, convolutions=CENTERED, ratios=[2, 2])


def batch_norm():
    norm = nn.BatchNorm1d(WIDTH)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


class Bank(nn.Module, Streamable):
    """One half of a filter bank, switched to streaming as a codec does."""

    def __init__(self, half, bands=4):
        super().__init__()
        self.net = Sequential(half(CachedPQMF(attenuation=60, n_band=bands)))

    def enable_streaming(self, delay):
        pqmf = self.net[0].pqmf
        if isinstance(self.net[0], Analysis):
            return pqmf.enable_analysis_streaming(delay)
        return pqmf.enable_synthesis_streaming(delay)

    def forward(self, x):
        return self.net(x)


def generator(kind, style, **parts):
    shape = {"data_size": 4, "latent_size": WIDTH, "capacity": 4, "ratios": [4, 2], "convolutions": style}
    if kind is GeneratorV2:
        shape |= {"kernel_size": 3, "dilations": [1, 3], "amplitude_modulation": True}
    return kind(**shape, **parts)


def encoder(style, **parts):
    shape = {"data_size": WIDTH, "latent_size": 3, "n_out": 2, "capacity": 4, "ratios": [2, 4]}
    return EncoderV2(**shape, kernel_size=3, dilations=[1, 3], convolutions=style, **parts)


def without_shape(layer):
    """A kind of module that has no lowering, and memory: traced and called."""
    return Sequential(CENTERED.plain(WIDTH, WIDTH, 3), layer, nn.GELU(), CENTERED.plain(WIDTH, WIDTH, 5))


def seanet(kind, **options):
    shape = {"n_filters": 2, "ratios": [3, 2], "lstm": 2, "norm": "weight_norm", "pad_mode": "constant"}
    return kind(WIDTH, 5, **shape | options) if kind is SEANetEncoder else kind(2, WIDTH, **shape | options)


# Name: module, input frames per hop. SEANet's and Descript's networks are below, since nothing of them is left traced.
BLOCKS = {
    "point": (lambda: Conv1d(WIDTH, 5, 1), 1),
    "centered": (lambda: CENTERED.plain(WIDTH, 5, 7), 1),
    "causal, strided": (lambda: CAUSAL.plain(WIDTH, 5, 9, stride=4), 4),
    "centered, strided": (lambda: CENTERED.plain(WIDTH, 5, 9, stride=4), 4),
    "a window shorter than its stride": (lambda: Conv1d(WIDTH, 5, 2, stride=4), 4),
    "padding on one side": (lambda: Conv1d(WIDTH, 5, 4, padding=(0, 3), bias=False), 1),
    "dilated": (lambda: CENTERED.normalized(WIDTH, 4, 3, dilation=9), 2),
    "groups": (lambda: CENTERED.plain(WIDTH, 9, 3, groups=3), 2),
    "upsampling": (lambda: CENTERED.upsampling(WIDTH, 5, 4), 1),
    "upsampling, no overlap": (lambda: ConvTranspose1d(WIDTH, 3, 2, stride=2), 1),
    "upsampling, long kernel": (lambda: ConvTranspose1d(WIDTH, 3, 11, stride=3, padding=5, bias=False), 1),
    "up, then down": (lambda: Sequential(CENTERED.upsampling(WIDTH, 4, 4), CENTERED.plain(4, 5, 8, stride=2)), 1),
    "residual": (lambda: Residual(CENTERED.plain(WIDTH, WIDTH, 9)), 1),
    "residuals in residuals": (
        lambda: Residual(Sequential(Residual(CENTERED.plain(WIDTH, WIDTH, 5)), CENTERED.plain(WIDTH, WIDTH, 3))),
        2,
    ),
    "sum": (lambda: Sum(CENTERED.plain(WIDTH, 4, 11), CAUSAL.plain(WIDTH, 4, 3), CENTERED.plain(WIDTH, 4, 5)), 1),
    "stack": (
        lambda: ResidualStack(WIDTH, convolutions=CENTERED, kernel_sizes=[3, 5], dilations=[[1, 1], [3, 1]]),
        1,
    ),
    "upsampling layer": (lambda: UpsampleLayer(WIDTH, 4, ratio=1, convolutions=CENTERED), 1),
    "pointwise": (lambda: Sequential(nn.LeakyReLU(0.2), Snake(WIDTH), nn.Tanh(), nn.Sigmoid(), nn.Dropout()), 1),
    "batch norm": (batch_norm, 1),
    "recurrent": (lambda: Sequential(CENTERED.plain(WIDTH, WIDTH, 3), GRU(WIDTH, 2)), 1),
    "without a lowering": (lambda: without_shape(nn.Softplus()), 2),
    "filter bank": (lambda: Bank(Analysis), 16),
    "filter bank, odd frames": (lambda: Bank(Analysis), 12),
    "filter bank, one band": (lambda: Bank(Analysis, bands=1), 4),
    "synthesis": (lambda: Sequential(CENTERED.plain(WIDTH, 8, 3), Bank(Synthesis)), 2),
    "synthesis, odd frames": (lambda: Sequential(CENTERED.plain(WIDTH, 8, 3), Bank(Synthesis)), 3),
    "encoder": (lambda: encoder(CENTERED), 8),
    "encoder, snake and adaptive": (
        lambda: encoder(CAUSAL, activation=Snake, adain=AdaptiveInstanceNormalization),
        8,
    ),
    "decoder v1": (lambda: generator(GeneratorV1, CENTERED), 1),
    "decoder v2": (lambda: generator(GeneratorV2, CENTERED), 1),
    "decoder v2, causal": (lambda: generator(GeneratorV2, CAUSAL), 1),
    "decoder v1, noise": (lambda: generator(GeneratorV1, CENTERED, noise_module=NOISE_V1), 1),
    "decoder v2, noise": (lambda: generator(GeneratorV2, CENTERED, noise_module=NOISE_V2), 1),
}


WAVEFORM_BLOCKS = {
    "padded": (lambda: StreamableConv1d(WIDTH, 5, 4, dilation=3), 2),
    "padded, strided, causal": (lambda: StreamableConv1d(WIDTH, 5, 7, stride=3, causal=True, norm="weight_norm"), 3),
    "padded, groups, no bias": (lambda: StreamableConv1d(WIDTH, 9, 3, groups=3, bias=False), 1),
    "padded, spectral norm": (lambda: StreamableConv1d(WIDTH, 4, 5, norm="spectral_norm"), 1),
    "padded upsampling": (lambda: StreamableConvTranspose1d(WIDTH, 4, 10, stride=5), 1),
    "padded upsampling, causal": (lambda: StreamableConvTranspose1d(WIDTH, 4, 7, stride=3, causal=True), 2),
    "elu": (lambda: Sequential(nn.ELU(0.7), nn.ELU(inplace=True)), 1),
    "lstm": (lambda: LSTM(WIDTH, 2), 1),
    "lstm, no skip, several frames per hop": (lambda: LSTM(WIDTH, 3, skip=False), 4),
    "seanet encoder": (lambda: seanet(SEANetEncoder), 6),
    "seanet encoder, causal": (lambda: seanet(SEANetEncoder, causal=True, true_skip=False, n_residual_layers=2), 6),
    "seanet decoder": (lambda: seanet(SEANetDecoder, true_skip=False), 1),
    "seanet decoder, causal": (lambda: seanet(SEANetDecoder, causal=True, final_activation="Tanh"), 1),
    "seanet decoder, trimmed": (lambda: seanet(SEANetDecoder, causal=True, trim_right_ratio=0.4), 1),
    "dac encoder": (lambda: DACEncoder(WIDTH, 2, ratios=[2, 3], latent_size=5), 6),
    "dac decoder": (lambda: DACDecoder(2, 8, ratios=[2, 3], latent_size=WIDTH), 1),
}
BLOCKS |= WAVEFORM_BLOCKS


def compile_(module, rate, width, *, knobs, products=None, **precision):
    """An engine for a streaming module."""
    if isinstance(module, Bank):
        module = module.net
    elif isinstance(module, Sequential):
        module = Sequential(*[part.net if isinstance(part, Bank) else part for part in module])
    settings = {"loudest": 100.0, "storage": torch.float32, "half": False, "knobs": knobs} | precision
    builder = Builder(rate, width, **settings)
    return Engine(builder.finish(lower(module, builder.input, builder)), products or PlainProducts()).eval()


def play(run, x, rate, sizes, knobs):
    """Blocks of so many hops."""
    outputs, start = [], 0
    for hops in sizes:
        outputs.append(run(x[..., start : start + hops * rate], knobs))
        start += hops * rate
    return torch.cat(outputs, -1)


@pytest.fixture(scope="module", params=BLOCKS)
def pair(request):
    """A streaming module, and the input that it gets."""
    torch.manual_seed(3)
    make, rate = BLOCKS[request.param]
    module = make()
    for parameter in module.parameters():
        parameter.data.mul_(1.5)
    twin, _ = streaming(module, rate)
    scale_noise(twin)
    return twin.requires_grad_(False), rate


SIZES = (1, 3, 16, 2, 1, 1, 4, 7, 5)


def check_equal(pair, *, scripted, rows, tolerance, **how):
    module, rate = pair
    module = copy.deepcopy(module)
    adaptive = any(isinstance(part, AdaptiveInstanceNormalization) for part in module.modules())
    knobs = torch.zeros_like(still_knobs(adaptive))
    machine = compile_(copy.deepcopy(module), rate, WIDTH, knobs=knobs, **how)
    machine = torch.jit.script(machine) if scripted else machine
    for count in rows:
        x = torch.randn(count, WIDTH, rate * sum(SIZES))
        expected = play(lambda block, knobs: run_chain([module], block, knobs), x, rate, SIZES, knobs)
        y = play(machine, x, rate, SIZES, knobs)
        assert y.shape == expected.shape
        scale = expected.abs().max()
        assert scale > 1e-3, "nothing to compare"
        assert (y - expected).abs().max() <= tolerance * scale


@torch.no_grad()
def test_equals_the_modules(pair):
    """Blocks in any order; three rows, then another number, which forgets."""
    check_equal(pair, scripted=False, rows=(1, 3, 1), tolerance=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("pair", WAVEFORM_BLOCKS, indirect=True)
def test_nothing_of_a_codec_on_the_waveform_is_left_to_be_traced(pair):
    assert not len(compile_(*pair, WIDTH, knobs=torch.zeros(2)).stages)


@torch.no_grad()
@pytest.mark.skipif(not X86, reason="these kernels exist for x86 only")
def test_packed_products_keep_single_precision(pair):
    check_equal(pair, scripted=False, rows=(1, 2), tolerance=1e-5, products=PackedProducts(split=True))


@torch.inference_mode()
@pytest.mark.parametrize(
    "pair", ["encoder, snake and adaptive", "decoder v2, noise", "recurrent", "seanet encoder"], indirect=True
)
def test_scripted_it_plays_the_same(pair):
    check_equal(pair, scripted=True, rows=(1, 3), tolerance=2e-6)


@torch.no_grad()
def test_forget_and_another_number_of_rows_begin_anew():
    module, _ = streaming(CENTERED.plain(WIDTH, 5, 9))
    machine = compile_(module, 1, WIDTH, knobs=torch.zeros(2))
    x = torch.randn(1, WIDTH, 12)
    first = machine(x, torch.zeros(2))
    assert not torch.equal(machine(x, torch.zeros(2)), first)
    machine.forget()
    assert torch.equal(machine(x, torch.zeros(2)), first)
    machine(torch.randn(2, WIDTH, 12), torch.zeros(2))
    assert torch.equal(machine(x, torch.zeros(2)), first)


@torch.no_grad()
def test_garbage_is_forgotten_as_soon_as_the_window_has_passed():
    module, _ = streaming(CENTERED.plain(WIDTH, 5, 9))
    machine = compile_(module, 1, WIDTH, knobs=torch.zeros(2))
    x = torch.zeros(1, WIDTH, 24)
    quiet = machine(x, torch.zeros(2))[..., -1:]
    x[..., :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30])
    y = machine(x, torch.zeros(2))
    assert torch.isfinite(y).all() and torch.equal(y[..., 12:], quiet.expand(1, 5, 12))


@torch.no_grad()
def test_blocks_of_one_size_use_the_same_memory_and_answers_are_their_own():
    module, _ = streaming(encoder(CENTERED), 8)
    machine = compile_(module, 8, WIDTH, knobs=torch.zeros(2))
    first = machine(torch.randn(1, WIDTH, 16), torch.zeros(2))
    kept, place = first.clone(), machine.outlet.data_ptr()
    second = machine(torch.randn(1, WIDTH, 16), torch.zeros(2))
    assert machine.outlet.data_ptr() == place, "the workspace was made anew"
    assert torch.equal(first, kept) and first.data_ptr() != second.data_ptr()


@torch.no_grad()
def test_two_numbers_of_hops_in_turns_keep_a_workspace_each_and_what_was_heard():
    module, _ = streaming(seanet(SEANetEncoder), 6)
    machine = compile_(copy.deepcopy(module), 6, WIDTH, knobs=torch.zeros(2))
    places = set()
    for hops in (2, 1, 2, 2, 1, 2, 1, 1, 2):
        x = torch.randn(1, WIDTH, 6 * hops)
        torch.testing.assert_close(machine(x, torch.zeros(2)), module(x), atol=1e-5, rtol=0)
        places.add(machine.outlet.data_ptr())
    assert len(places) == 2, "a workspace was made anew"
    machine(torch.randn(3, WIDTH, 6), torch.zeros(2))
    x = torch.randn(1, WIDTH, 12)
    first = machine(x, torch.zeros(2))
    machine.forget()
    assert torch.equal(machine(x, torch.zeros(2)), first), "another number of rows was not forgotten"


@torch.no_grad()
@pytest.mark.parametrize(("bands", "samples"), [(5, 64), (5, 8), (32, 8)])
def test_noise_is_that_of_the_module_for_the_same_random_numbers(bands, samples):
    synthesis = NoiseSynthesis(3, samples)
    knobs = torch.tensor([1.0, 0.7])
    machine = compile_(synthesis, 1, 3 * bands, knobs=knobs)
    x = 4 * torch.randn(1, 3 * bands, 7) + 3
    torch.manual_seed(1)
    # A frame a block: where more lie in a block, they are drawn in another order.
    expected = play(lambda block, knobs: run_chain([synthesis], block, knobs), x, 1, [1] * 7, knobs)
    torch.manual_seed(1)
    y = play(machine, x, 1, [1] * 7, knobs)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_noise_of_long_blocks_and_many_rows_is_as_loud_as_the_modules_and_its_own_everywhere():
    synthesis = NoiseSynthesis(2, 8)
    knobs = torch.tensor([1.0, 1.0])
    machine = compile_(synthesis, 1, 2 * 5, knobs=knobs)
    x = (2 * torch.randn(1, 10, 1)).expand(3, 10, 4000) + 3
    expected, y = run_chain([synthesis], x, knobs), machine(x, knobs)
    frames, theirs = (each.reshape(3, 2, 4000, 8) for each in (y, expected))
    # Every sample of a frame has a deviation of its own: the filter's beginning.
    torch.testing.assert_close(frames.std((0, 2)), theirs.std((0, 2)), rtol=0.05, atol=0)
    correlation = torch.corrcoef(y.flatten(0, 1))
    assert (correlation - torch.eye(6)).abs().max() < 0.05
    neighbours = torch.corrcoef(torch.stack([frames[0, 0, :-1, 7], frames[0, 0, 1:, 7]]))
    assert neighbours[0, 1].abs() < 0.06


class Still(nn.Module):
    """A network of a bottleneck that is not played here."""

    latent_size = 8

    def forward(self, x):
        return x


def posterior(kind):
    bottleneck = kind.__new__(kind)
    nn.Module.__init__(bottleneck)
    bottleneck.minimum_std = 1e-4
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    return Posterior(bottleneck, PrincipalControls(rotation, torch.randn(8), 5))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "width"), [(VariationalEncoder, 16), (WasserteinEncoder, 8), (Unquantized, 8)])
def test_a_draw_from_the_posterior_is_that_of_the_module(kind, width):
    module = posterior(kind)
    knobs = torch.tensor([0.8, 1.0])
    machine = compile_(module, 1, width, knobs=knobs)
    assert not len(machine.stages), "it was not lowered"
    for temperature in (0.0, 0.8):
        knobs[TEMPERATURE] = temperature
        x = torch.randn(1, width, 6)
        torch.manual_seed(1)
        expected = play(lambda block, knobs: run_chain([module], block, knobs), x, 1, [1] * 6, knobs)
        torch.manual_seed(1)
        torch.testing.assert_close(play(machine, x, 1, [1] * 6, knobs), expected, atol=2e-6, rtol=0)


def quantizer(kind):
    """Placed at random."""
    if kind == "factorized":
        return FactorizedResidualVQ(WIDTH, 3, codebook_size=16, codebook_dim=2)
    made = ResidualVectorQuantizer(WIDTH, 3, bins=16, codebook_dim=4 if kind == "projected" else None)
    for layer in made.vq.layers:
        layer.codebook.embed.normal_()
        layer.codebook.inited.fill_(True)
    return made


@torch.no_grad()
@pytest.mark.parametrize("kind", ["residual", "projected", "factorized"])
@pytest.mark.parametrize("size", [3, 2])
def test_codes_are_those_of_the_module(kind, size):
    bottleneck = quantizer(kind).eval()
    nothing = torch.zeros(WIDTH)
    module = Posterior(bottleneck, bottleneck.controls(nothing, nothing, nothing, share=0.9, size=size))
    machine = compile_(module, 2, WIDTH, knobs=torch.zeros(2))
    assert not len(machine.stages), "it was not lowered"
    x = torch.randn(3, WIDTH, 40)
    codes = machine(x, torch.zeros(2))
    assert torch.equal(codes, module(x)) and len(codes.unique()) > 8


@torch.no_grad()
def test_a_table_of_codes_is_in_the_file_once():
    bottleneck = quantizer("residual").eval()
    nothing = torch.zeros(WIDTH)
    module = Posterior(bottleneck, bottleneck.controls(nothing, nothing, nothing, share=0.9, size=3))
    constants = compile_(module, 1, WIDTH, knobs=torch.zeros(2)).constants
    assert sum(constant.numel() >= 16 * WIDTH for constant in constants) == 3


@torch.no_grad()
def test_adaptive_normalisation_learns_and_transfers_as_the_module_does():
    module, _ = streaming(AdaptiveInstanceNormalization(WIDTH))
    knobs = still_knobs(True)
    machine = compile_(copy.deepcopy(module), 1, WIDTH, knobs=knobs)
    assert engine.ADAPT in machine.program_codes

    def both(x):
        expected = run_chain([module], x, knobs)
        y = machine(x, knobs)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
        return y

    def turn(name, value):
        knobs[FIRST_SWITCH + SWITCHES.index(name)] = value

    x = torch.randn(1, WIDTH, 20)
    assert torch.equal(both(x), x)
    turn("learn_target", 1)
    assert torch.equal(both(3 * torch.randn(1, WIDTH, 50) + 5), machine.outlet)
    turn("learn_target", 0)
    turn("learn_source", 1)
    both(torch.randn(1, WIDTH, 50))
    turn("learn_source", 0)
    dressed = both(x)
    assert 4 < dressed.mean() < 6
    turn("reset_target", 1)
    both(x)
    turn("reset_target", 0)
    assert torch.equal(both(x), x)
    # After a reset nothing costs anything.
    machine.forget()
    machine(x, knobs)
    assert not machine.adapting


def test_noise_and_temperature_have_the_places_that_the_engine_is_told():
    assert still_knobs(False).tolist() == [1, 1] and still_knobs(True).tolist() == [1, 1, 0, 0, 0, 0]
    assert {TEMPERATURE, NOISE} == {0, 1} and FIRST_SWITCH == 2


@pytest.mark.parametrize(
    ("precision", "processor"), [("bf16", "any"), ("fp32", "x86"), ("bf16", "x86"), ("fp16", "x86")]
)
def test_every_precision_verifies_itself(precision, processor, tmp_path, make_codec):
    if processor == "x86" and not X86:
        pytest.skip("these kernels exist for x86 only")
    codec = make_codec(channels=2, noise=True)
    options = ExportOptions(precision=precision, processor=processor)
    delivered = export(codec, tmp_path / "model.ts", options=options, time_it=False)
    assert delivered.verification.passed
    assert (delivered.facts.precision, delivered.facts.processor) == (precision, processor)
