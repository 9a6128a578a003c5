"""Streamed output equals the plain model's, late as announced: kernel x stride x dilation x block size."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rave_tools.nn.compose import Residual, Sequential, Sum
from rave_tools.nn.conv import Conv1d, Convolutions, ConvTranspose1d, fold_weight_norm
from rave_tools.nn.residual import DilatedUnit, ResidualStack, UpsampleLayer
from rave_tools.nn.streaming import NotStreamable, reset, stream_through, streaming

SILENCE = 512
TAIL = 256


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plain_after_silence(model, x, offset, hop):
    """The plain model's output for a signal that was silent before, delayed by offset."""
    silence = SILENCE // hop * hop
    late = F.pad(x, (silence + offset, 0))[..., : silence + x.shape[-1]]
    y = model(late)
    return y[..., silence * y.shape[-1] // late.shape[-1] :]


def check(model, channels, hop, chunks, *, ratio=1.0):
    """ratio: output samples per input sample."""
    model = model.double().eval()
    twin, info = streaming(model, hop)
    x = torch.randn(2, channels, math.lcm(hop, 4) * 96, dtype=torch.float64)
    with torch.no_grad():
        expected = plain_after_silence(model, x, info.offset, hop)
        for chunk in chunks:
            reset(twin)
            y = torch.cat([twin(part) for part in x.split(chunk * hop, -1)], -1)
            assert y.shape == expected.shape
            rest = info.latency - info.offset
            late, early = y[..., rest:], expected[..., : expected.shape[-1] - rest]
            stop = early.shape[-1] - int(TAIL * ratio)
            torch.testing.assert_close(late[..., :stop], early[..., :stop], rtol=0, atol=1e-10)
    return info


@pytest.mark.parametrize("kernel", [1, 2, 3, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("padding", ["centered", "causal", "anticausal"])
def test_convolution_inside_a_codec(kernel, stride, dilation, padding):
    """Down, something, up again: the whole has a sample-accurate latency."""
    if kernel == 1 and stride > 1:
        kernel = 2 * stride
    convolutions = Convolutions(bias=False, padding=padding)
    down = Conv1d(
        2, 3, kernel, stride=stride, dilation=dilation, bias=False, padding=convolutions.same(kernel, stride, dilation)
    )
    middle = convolutions.normalized(3, 3, 3, dilation=dilation)
    model = Sequential(down, nn.LeakyReLU(0.2), middle, UpsampleLayer(3, 2, ratio=stride, convolutions=convolutions))
    if down(torch.zeros(1, 2, 12 * stride)).shape[-1] != 12:
        pytest.fail("'same' padding did not keep the length")
    check(model, 2, stride, [1, 2, 5])


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 1, 0), (4, 2, 1), (6, 3, 1), (8, 4, 2), (4, 4, 0), (7, 4, 3)]
)
def test_transposed_convolution(kernel, stride, padding):
    layer = ConvTranspose1d(2, 3, kernel, stride=stride, padding=padding, bias=True)
    assert layer(torch.zeros(1, 2, 5)).shape[-1] == 5 * stride
    info = check(layer, 2, 1, [1, 2, 7], ratio=stride)
    assert info.latency == padding


def test_residual_blocks_side_by_side_wait_for_the_slowest():
    convolutions = Convolutions(bias=False, normalization="weight_norm")
    stack = ResidualStack(4, convolutions=convolutions, kernel_sizes=[3, 7], dilations=[[1, 1], [3, 1]])
    info = check(stack, 4, 1, [1, 3, 16])
    assert info.latency == (7 - 1) // 2 * (1 + 1 + 3 + 1)


def test_causal_networks_have_no_latency():
    convolutions = Convolutions(padding="causal", bias=False)
    units = [Residual(DilatedUnit(4, 3, dilation=d, convolutions=convolutions)) for d in (1, 3, 9)]
    assert check(Sequential(*units), 4, 1, [1, 4]).latency == 0


def test_random_codecs():
    """Random ratios, kernels and dilations, nested residuals around strides' neighbours."""
    generator = torch.Generator().manual_seed(3)

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    for _ in range(6):
        convolutions = Convolutions(bias=False, padding=draw("centered", "causal"), normalization="weight_norm")
        ratios = [draw(1, 2, 3, 4) for _ in range(draw(1, 2, 3))]
        layers = [convolutions.normalized(1, 4, draw(3, 7))]
        for ratio in ratios:
            layers.append(Residual(DilatedUnit(4, 3, dilation=draw(1, 3, 9), convolutions=convolutions)))
            layers.append(convolutions.normalized(4, 4, 2 * ratio, stride=ratio))
        for ratio in ratios[::-1]:
            layers.append(UpsampleLayer(4, 4, ratio=ratio, convolutions=convolutions))
            layers.append(Sum(*[Residual(DilatedUnit(4, k, dilation=2, convolutions=convolutions)) for k in (3, 5)]))
        check(Sequential(*layers), 1, math.prod(ratios), [1, 4])


def test_offset_makes_the_latency_least():
    """A window that ends one sample behind the grid costs one sample, not a whole frame."""
    down = Conv1d(1, 1, 16, stride=8, padding=(7, 8), bias=False)
    up = ConvTranspose1d(1, 1, 8, stride=8, padding=0, bias=False)
    info = check(Sequential(down, up), 1, 8, [1, 3])
    latencies = []
    for offset, rest in itertools.product(range(8), range(0, 64, 8)):
        # Frame n of the shifted input ends at sample 8 n + 8 - offset and must have arrived by the end of block n +
        # rest / 8.
        if 8 - offset <= rest + 7:
            latencies.append(offset + rest)
    assert info.latency == min(latencies)


@pytest.mark.parametrize("ratios", [(8, 1), (4, 2, 8), (3, 5), (1,)])
@pytest.mark.parametrize("padding", ["centered", "causal", "anticausal"])
def test_no_offset_has_less_latency_than_the_one_found(ratios, padding):
    convolutions = Convolutions(bias=False, padding=padding)
    layers = [Residual(DilatedUnit(2, 3, dilation=3, convolutions=convolutions))]
    layers += [convolutions.normalized(2, 2, 2 * ratio + 1, stride=ratio) for ratio in ratios]
    layers += [UpsampleLayer(2, 2, ratio=ratio, convolutions=convolutions) for ratio in ratios[::-1]]
    model, hop = Sequential(*layers), math.prod(ratios)
    rests = [stream_through(model, -offset) for offset in range(hop)]
    least = min((offset + rest, offset) for offset, rest in enumerate(rests) if rest >= 0)
    _, info = streaming(model, hop)
    assert (info.latency, info.offset) == least


def test_state_follows_the_batch_and_forgets():
    layer = Conv1d(1, 1, 5, padding=(2, 2), bias=False)
    twin, _ = streaming(layer)
    x = torch.randn(3, 1, 8)
    first = twin(x)
    assert not twin(x).equal(first)
    twin(x[:0])
    assert twin(x).equal(first)
    assert twin(x[:2]).equal(first[:2])
    reset(twin)
    assert twin(x).equal(first)


def test_state_is_no_view_of_the_input():
    """Hosts reuse their buffers."""
    layer = Conv1d(1, 1, 5, padding=(2, 2), bias=False)
    twin, _ = streaming(layer)
    other, _ = streaming(layer)
    x, y = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    twin(x)
    other(x.clone())
    x.fill_(float("nan"))
    assert twin(y).equal(other(y))


def test_the_model_itself_is_left_alone():
    layer = Conv1d(1, 1, 5, padding=(2, 2))
    before = layer(torch.ones(1, 1, 8))
    twin, _ = streaming(layer)
    assert layer.training and not twin.training
    assert layer(torch.ones(1, 1, 8)).equal(before)
    assert set(twin.state_dict()) == set(layer.state_dict())


def test_unknown_modules_are_named():
    model = Sequential(Conv1d(1, 1, 3, padding=(1, 1)), nn.AvgPool1d(2))
    with pytest.raises(NotStreamable, match="1 is a torch.nn.modules.pooling.AvgPool1d"):
        streaming(model)


def test_folding_weight_norm_changes_nothing():
    layer = Convolutions(normalization="weight_norm").normalized(3, 4, 5)
    layer.weight_g.data.mul_(1.7)
    x = torch.randn(1, 3, 20)
    before = layer(x)
    assert {"weight_g", "weight_v"} <= set(layer.state_dict())
    fold_weight_norm(layer)
    assert set(layer.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(layer(x), before)


def test_streaming_layers_script_and_save(tmp_path):
    convolutions = Convolutions(bias=False)
    model = Sequential(
        Residual(DilatedUnit(2, 3, dilation=3, convolutions=convolutions)),
        convolutions.normalized(2, 4, 4, stride=2),
        UpsampleLayer(4, 2, ratio=2, convolutions=convolutions),
    ).eval()
    twin, _ = streaming(model, 2)
    scripted = torch.jit.script(twin)
    scripted.save(str(tmp_path / "model.ts"))
    again = torch.jit.load(str(tmp_path / "model.ts"))
    for length in (2, 8, 4):
        x = torch.randn(1, 2, length)
        torch.testing.assert_close(again(x), twin(x))


def test_impossible_transposed_convolution():
    with pytest.raises(ValueError, match="stride 4.*kernel 3"):
        ConvTranspose1d(1, 1, 3, stride=4)


@pytest.mark.parametrize("field", ["padding", "normalization"])
def test_unknown_style(field):
    with pytest.raises(ValueError, match=f"{field}.*'casual'.*one of"):
        Convolutions(**{field: "casual"})
