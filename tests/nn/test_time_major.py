"""Convolutions in the order of memory that a processor likes: torch's values, torch's gradients."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rave_tools.nn import time_major
from rave_tools.nn.padded_conv import StreamableConv1d, StreamableConvTranspose1d, fold_to_play

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def last(x: Tensor) -> Tensor:
    """The same, all channels of an instant together."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def instants_together(x: Tensor) -> bool:
    return x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_padding_and_all(mode: str, channels: int) -> None:
    torch.manual_seed(0)
    cases = itertools.product((1, 3, 4, 7), (1, 2, 4), (1, 2), (9, 20, 41), (1, 2), (0, 2, 3, 6), (0, 1, 3, 6))
    for kernel, stride, dilation, length, rows, left, right in cases:
        if (stride > 1 and dilation > 1) or max(left, right) >= length or left + length + right <= (kernel - 1) * 2:
            continue
        x, weight, bias = torch.randn(rows, channels, length), torch.randn(12, channels, kernel), torch.randn(12)
        expected = F.conv1d(F.pad(x, (left, right), mode), weight, bias, stride, 0, dilation)
        options = {"stride": stride, "dilation": dilation, "left": left, "right": right, "mode": mode}
        for given in (x, last(x)):
            y = time_major.conv1d(given, weight, bias, **options)
            torch.testing.assert_close(y, expected, **CLOSE)
            assert instants_together(y) or channels > 1 or dilation > 1
            without = time_major.conv1d(given, weight, None, **options) + bias[:, None]
            torch.testing.assert_close(without, expected, **CLOSE)


@pytest.mark.parametrize("channels", [(8, 16), (1, 32), (32, 1)])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(7, 1, 1), (3, 1, 4), (1, 1, 1), (8, 4, 1), (7, 3, 1)])
def test_gradients_are_torch_s(channels: tuple[int, int], kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(3, channels[0], 61, requires_grad=True), torch.randn(channels[1], requires_grad=True)
    weight = torch.randn(channels[1], channels[0], kernel, requires_grad=True)
    expected = F.conv1d(F.pad(x, (5, 2)), weight, bias, stride, 0, dilation)
    got = time_major.conv1d(x, weight, bias, stride=stride, dilation=dilation, left=5, right=2)
    torch.testing.assert_close(got, expected, **CLOSE)
    direction = torch.randn_like(expected)
    same_gradients(got, expected, direction, (x, weight, bias))


@pytest.mark.parametrize("channels", [(8, 16), (1, 32), (32, 1)])
@pytest.mark.parametrize(("kernel", "stride", "left"), [(8, 4, 0), (8, 4, 2), (7, 3, 4), (3, 3, 0), (9, 2, 5)])
def test_transposed_gradients_are_torch_s(channels: tuple[int, int], kernel: int, stride: int, left: int) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(3, channels[0], 17, requires_grad=True), torch.randn(channels[1], requires_grad=True)
    weight = torch.randn(*channels, kernel, requires_grad=True)
    length = 17 * stride
    expected = F.conv_transpose1d(x, weight, bias, stride)[..., left : left + length]
    length = expected.shape[2]
    got = time_major.conv_transpose1d(x, weight, bias, stride=stride, left=left, length=length)
    torch.testing.assert_close(got, expected, **CLOSE)
    same_gradients(got, expected, torch.randn_like(expected), (x, weight, bias))


def same_gradients(got: Tensor, expected: Tensor, direction: Tensor, inputs: tuple[Tensor, ...]) -> None:
    gradients = torch.autograd.grad(got, inputs, direction)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_what_stands_still_gets_no_gradient() -> None:
    x, weight = torch.randn(2, 8, 20), torch.randn(8, 8, 3, requires_grad=True)
    time_major.conv1d(x, weight, None).sum().backward()
    expected = torch.autograd.grad(F.conv1d(x, weight).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, **CLOSE)
    frozen = weight.detach()
    x.requires_grad_()
    time_major.conv_transpose1d(x, frozen, None, length=20).sum().backward()
    expected = torch.autograd.grad(F.conv_transpose1d(x, frozen)[..., :20].sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, **CLOSE)


@torch.no_grad()
def test_layers_hand_on_the_order_of_memory() -> None:
    """An activation in between keeps it, and writing over a layer's output is allowed."""
    torch.manual_seed(0)
    down = StreamableConv1d(1, 8, 4, stride=2, causal=True, pad_mode="constant")
    up = StreamableConvTranspose1d(8, 4, 4, stride=2, causal=True)
    h = down(torch.randn(1, 1, 64))
    assert h.shape == (1, 8, 32) and instants_together(h)
    assert instants_together(F.elu(h, inplace=True)) and instants_together(up(h))


def test_layers_may_be_written_over_in_training() -> None:
    torch.manual_seed(0)
    layer = StreamableConv1d(8, 8, 3, causal=True)
    x = torch.randn(2, 8, 30)
    F.elu(layer(x), inplace=True).sum().backward()
    expected = F.elu(F.conv1d(F.pad(x, (2, 0), "reflect"), layer.conv.conv.weight, layer.conv.conv.bias)).sum()
    torch.testing.assert_close(
        layer.conv.conv.weight.grad, torch.autograd.grad(expected, layer.conv.conv.weight)[0], **CLOSE
    )


def test_elsewhere_it_is_torch_s_own() -> None:
    x, weight = torch.randn(1, 8, 20), torch.randn(8, 8, 3)
    assert time_major.suits(x, weight)
    assert not time_major.suits(x.double(), weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not time_major.suits(x, weight)
        assert time_major.conv1d(x, weight, None).dtype == torch.bfloat16
    narrow = torch.randn(8, 4, 3)
    torch.testing.assert_close(time_major.conv1d(x, narrow, None, groups=2), F.conv1d(x, narrow, groups=2))
    traced = torch.jit.trace(lambda x: time_major.conv1d(x, weight, None, left=2), x)
    torch.testing.assert_close(traced(torch.ones(1, 8, 50)), F.conv1d(F.pad(torch.ones(1, 8, 50), (2, 0)), weight))


@pytest.mark.slow
def test_compilers_see_torch_s_own() -> None:
    torch.manual_seed(0)
    layer = StreamableConv1d(8, 8, 3, causal=True)
    compiled = torch.compile(lambda x: F.elu(layer(x), inplace=True), backend="aot_eager")
    x = torch.randn(2, 8, 30, requires_grad=True)
    gradients = [torch.autograd.grad(run(x).sum(), x)[0] for run in (compiled, lambda x: F.elu(layer(x)))]
    torch.testing.assert_close(*gradients, **CLOSE)


@pytest.mark.parametrize("kind", [StreamableConv1d, StreamableConvTranspose1d])
def test_folded_weights_lie_as_they_are_read(kind: type) -> None:
    torch.manual_seed(0)
    layer, x = kind(8, 12, 6, stride=3, norm="weight_norm"), torch.randn(2, 8, 30)
    before = layer(x)
    fold_to_play(layer)
    (weight,) = (value for name, value in layer.named_parameters() if name.endswith("weight"))
    assert instants_together(weight)
    torch.testing.assert_close(layer(x), before)
