"""Adaptive instance normalisation: statistics of what was heard, whatever the blocks; as in acids-rave."""

from pathlib import Path

import pytest
import torch

from rave_tools.export.step import make_step
from rave_tools.nn.activations import Snake
from rave_tools.nn.normalization import AdaptiveInstanceNormalization, set_switches
from rave_tools.nn.streaming import reset

FIXTURE = Path(__file__).parents[1] / "fixtures" / "blocks.pt"
NOTHING, SOURCE, TARGET, FORGET_SOURCE, FORGET_TARGET = torch.cat([torch.zeros(1, 4), torch.eye(4)]).unbind()


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return AdaptiveInstanceNormalization(3).eval()


def learn(layer, switches, x, blocks=(1,)):
    layer.switches = switches
    outputs, start, i = [], 0, 0
    while start < x.shape[-1]:
        outputs.append(layer(x[..., start : start + blocks[i % len(blocks)]]))
        start += blocks[i % len(blocks)]
        i += 1
    layer.switches = NOTHING
    return torch.cat(outputs, -1)


def test_transfer_equals_the_peers(layer):
    peer = torch.load(FIXTURE, weights_only=True)
    assert learn(layer, TARGET, peer["target"], (50,)).equal(peer["target"])
    learn(layer, SOURCE, peer["source"], (40,))
    torch.testing.assert_close(layer(peer["content"]), peer["adapted"], rtol=1e-5, atol=1e-5)


def test_snake_equals_the_peers():
    peer = torch.load(FIXTURE, weights_only=True)
    snake = Snake(3)
    snake.load_state_dict(peer["snake_state"])
    torch.testing.assert_close(snake(peer["content"]), peer["snake"])


def test_the_output_has_the_targets_statistics(layer):
    target, source = 2 * torch.randn(2, 3, 4000) - 1, 5 * torch.randn(2, 3, 4000) + 3
    learn(layer, TARGET, target, (64,))
    learn(layer, SOURCE, source, (64,))
    y = layer(source)
    torch.testing.assert_close(y.mean(-1), target.mean(-1), rtol=0, atol=1e-3)
    torch.testing.assert_close(y.std(-1), target.std(-1), rtol=1e-3, atol=0)


def test_blocks_change_nothing(layer):
    """Also while the source is being learned, and with one instant per block (where acids-rave is not a number)."""
    target, source = torch.randn(2, 3, 96) + 100, torch.randn(2, 3, 96) * 0.1
    outputs = []
    for blocks in ((96,), (1,), (1, 16, 2, 5)):
        reset(layer)
        learn(layer, TARGET, target, blocks)
        outputs.append(learn(layer, SOURCE, source, blocks))
    assert torch.isfinite(outputs[0]).all()
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-4)


def test_each_row_has_its_own_statistics(layer):
    target, source = torch.randn(2, 3, 200), torch.randn(2, 3, 200)
    learn(layer, TARGET, target, (8,))
    learn(layer, SOURCE, source, (8,))
    both = layer(source)
    reset(layer)
    learn(layer, TARGET, target[1:], (8,))
    learn(layer, SOURCE, source[1:], (8,))
    torch.testing.assert_close(layer(source[1:]), both[1:])


def test_nothing_happens_until_both_are_known_and_never_in_training(layer):
    x = torch.randn(2, 3, 50)
    assert layer(x).equal(x)
    learn(layer, TARGET, x + 4, (50,))
    assert layer(x).equal(x)
    learn(layer, SOURCE, x, (50,))
    assert not layer(x).equal(x)
    assert layer.train()(x).equal(x)


@pytest.mark.parametrize("switch", [FORGET_SOURCE, FORGET_TARGET])
def test_one_side_can_be_forgotten(layer, switch):
    x = torch.randn(1, 3, 50)
    learn(layer, TARGET, x + 4, (50,))
    learn(layer, SOURCE, x, (50,))
    kept = layer.target.clone() if switch is FORGET_SOURCE else layer.source.clone()
    assert learn(layer, switch, x, (50,)).equal(x)
    assert layer(x).equal(x)
    assert (layer.target if switch is FORGET_SOURCE else layer.source).equal(kept)


def test_hours_of_one_value_keep_their_precision(layer):
    """Sums of squares around zero would cancel in single precision."""
    x = 1000 + 0.01 * torch.randn(1, 3, 20000)
    learn(layer, SOURCE, x, (500,))
    count, spread = layer.source[:, :1], layer.source[:, 4:]
    torch.testing.assert_close((spread / (count - 1)).sqrt()[..., 0], x.double().std(-1).float(), rtol=0.02, atol=0)


def test_traced_switches_can_still_be_turned(layer):
    """An export turns them while it plays: the graph keeps both ways."""

    def half(x, knobs):
        layer.switches = knobs
        return layer(x)

    step = make_step(layer, half, x=torch.randn(1, 3, 8), knobs=NOTHING)
    x, y = torch.randn(2, 3, 40), 3 * torch.randn(2, 3, 30)
    state = [room.expand(2, -1, -1).clone() for room in step.silence]
    _, state = step.function(x, TARGET, state)
    _, state = step.function(y, SOURCE, state)
    adapted, _ = step.function(y, NOTHING, state)
    reset(layer)
    learn(layer, TARGET, x, (40,))
    learn(layer, SOURCE, y, (30,))
    torch.testing.assert_close(adapted, layer(y))
    assert not torch.allclose(adapted, y)


def test_one_call_turns_all_layers(layer):
    model = torch.nn.Sequential(layer, torch.nn.Identity(), AdaptiveInstanceNormalization(2))
    assert set_switches(model, TARGET)
    assert all(module.switches.equal(TARGET) for module in (model[0], model[2]))
    assert not set_switches(torch.nn.Identity(), TARGET)
