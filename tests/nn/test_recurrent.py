"""A recurrent layer goes on where the last block ended."""

import pytest
import torch

from rave_tools.export.step import make_step
from rave_tools.nn.compose import Sequential
from rave_tools.nn.conv import Convolutions
from rave_tools.nn.recurrent import GRU
from rave_tools.nn.streaming import reset, streaming


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return GRU(4, num_layers=2).double().eval()


@pytest.mark.parametrize("blocks", [[30], [1] * 30, [1, 7, 2, 16, 4]])
def test_blocks_change_nothing(layer, blocks):
    twin, info = streaming(layer)
    assert info.latency == 0
    x = torch.randn(3, 4, 30, dtype=torch.float64)
    with torch.no_grad():
        y = torch.cat([twin(part) for part in x.split(blocks, -1)], -1)
        torch.testing.assert_close(y, layer(x), rtol=0, atol=1e-12)
        reset(twin)
        torch.testing.assert_close(twin(x[..., :1]), y[..., :1])
        assert twin(x[:0]).shape[0] == 0
        torch.testing.assert_close(twin(x[..., :1]), y[..., :1])


def test_between_convolutions_it_waits_for_them(layer):
    convolutions = Convolutions(bias=False)
    model = Sequential(convolutions.plain(4, 4, 5), layer, convolutions.plain(4, 4, 3)).double().eval()
    twin, info = streaming(model)
    assert info.latency == 3
    x = torch.randn(2, 4, 120, dtype=torch.float64)
    with torch.no_grad():
        y = torch.cat([twin(part) for part in x.split([1, 2, 16, 5] * 5, -1)], -1)
        # The stream's state heard two zeros more in the beginning, which fade.
        torch.testing.assert_close(y[..., 63:], model(x)[..., 60:-3], rtol=0, atol=1e-8)


def test_traced_state_goes_in_and_out(layer):
    twin, _ = streaming(layer.float().requires_grad_(False))
    step = make_step(twin, lambda x, knobs: twin(x), x=torch.randn(1, 4, 2), knobs=torch.ones(1))
    x = torch.randn(3, 4, 12)
    state = [torch.zeros(3, 8, 1)]
    outputs = []
    for part in x.split([1, 8, 3], -1):
        y, state = step.function(part, torch.ones(1), state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, -1), layer(x), rtol=0, atol=1e-6)
