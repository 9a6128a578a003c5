"""The resampler in front of and behind an exported model: a filter with a stated delay."""

import math

import pytest
import torch

from rave_tools.errors import UserError
from rave_tools.export.resampler import ZERO_CROSSINGS, Decimator, Interpolator, rate_ratio


def sine(frequency, rate, samples):
    return torch.sin(2 * math.pi * frequency / rate * torch.arange(samples, dtype=torch.float64))[None, None].float()


def stream(module, x, block):
    return torch.cat([module(part) for part in x.split(block, -1)], -1)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_blocks_equal_the_whole_at_the_stated_delay(ratio):
    x = torch.randn(2, 2, 3072)
    for module, delay in ((Decimator(ratio), ZERO_CROSSINGS), (Interpolator(ratio), ZERO_CROSSINGS * ratio)):
        whole = module.offline(x)
        blocks = stream(module, x, 3 * 64)
        assert blocks.shape == whole.shape
        torch.testing.assert_close(blocks[..., delay:], whole[..., :-delay], atol=1e-6, rtol=0)


def test_a_tone_below_the_slower_nyquist_stays_and_one_above_vanishes():
    decimator = Decimator(2)
    kept = decimator.offline(sine(5000, 88200, 20000))[..., 500:-500]
    assert abs(kept.square().mean().sqrt() - math.sqrt(0.5)) < 1e-3
    gone = decimator.offline(sine(30000, 88200, 20000))[..., 500:-500]
    assert gone.abs().max() < 10 ** (-80 / 20)


def test_interpolated_tone_is_the_same_tone():
    y = Interpolator(2).offline(sine(5000, 44100, 10000))
    assert y.shape[-1] == 20000
    torch.testing.assert_close(y[..., 500:-500], sine(5000, 88200, 20000)[..., 500:-500], atol=2e-4, rtol=0)


def test_rates_that_are_no_multiples_are_refused_with_both_numbers():
    assert rate_ratio(44100, 88200) == rate_ratio(44100, 22050) == 2
    with pytest.raises(UserError, match="44100 Hz cannot be exported at 48000 Hz"):
        rate_ratio(44100, 48000)
