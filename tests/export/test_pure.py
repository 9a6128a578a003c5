"""The streaming step as a function: no memory but its argument."""

import pytest
import torch

from rave_tools.errors import UserError
from rave_tools.export.parts import NoiseSynthesis
from rave_tools.export.prepare import ExportOptions, assemble
from rave_tools.export.pure import MatrixNoise, make_steps


@pytest.fixture(scope="module")
def steps(make_codec):
    return make_steps(assemble(make_codec(noise=True, channels=2), ExportOptions(channels=3)))


@pytest.mark.parametrize(("bands", "samples"), [(5, 64), (5, 8), (32, 8)])
def test_noise_by_matrices_equals_noise_by_fourier_transforms(bands, samples):
    amplitudes = 4 * torch.randn(2, 3 * bands, 7)
    plain, matrix = NoiseSynthesis(3, samples), MatrixNoise(3, samples, bands=bands)
    for layer in (plain, matrix):
        layer.turn(torch.tensor([1.0, 0.7]))
    torch.manual_seed(2)
    expected = plain(amplitudes)
    torch.manual_seed(2)
    torch.testing.assert_close(matrix(amplitudes), expected, atol=1e-6, rtol=0)
    assert expected.abs().max() > 0.01


@torch.no_grad()
def test_a_step_is_a_function_of_its_arguments(steps):
    step = steps["forward"]
    x, state, quiet = torch.randn(2, 2, 3, 64), torch.randn(2, step.state_size), torch.zeros(2)
    before = [value.clone() for value in step.state_dict().values()]
    y, after = step(x, quiet, state)
    again, later = step(x, quiet, state)
    assert torch.equal(y, again) and torch.equal(after, later)
    assert all(torch.equal(a, b) for a, b in zip(before, step.state_dict().values(), strict=True))
    assert y.shape == (2, 3, 3, 64) and after.shape == state.shape
    other, _ = step(x, quiet, torch.zeros_like(state))
    assert (other - y).abs().max() > 1e-3


@torch.no_grad()
def test_halves_in_a_row_are_forward_and_their_states_lie_one_behind_the_other(steps):
    encode, decode, forward = steps["encode"], steps["decode"], steps["forward"]
    assert encode.state_size + decode.state_size == forward.state_size
    x, state, quiet = torch.randn(1, 2, 2, 64), torch.randn(1, forward.state_size), torch.zeros(2)
    y, after = forward(x, quiet, state)
    z, first = encode(x, quiet, state[:, : encode.state_size])
    audio, second = decode(z, quiet, state[:, encode.state_size :])
    assert torch.equal(audio, y) and torch.equal(torch.cat([first, second], 1), after)


def test_a_half_holds_no_weights_of_the_other(steps):
    def count(step):
        return sum(value.numel() for value in step.state_dict().values())

    whole = count(steps["forward"])
    assert count(steps["encode"]) < 0.6 * whole and count(steps["decode"]) < 0.6 * whole


def test_a_count_of_frames_that_is_no_tensor_is_refused(make_codec):
    assembled = assemble(make_codec(), ExportOptions())
    odd = assembled.facts.__class__(**{**vars(assembled.facts), "hop": 4})
    assembled.facts = odd
    with pytest.raises(UserError, match="SpectralFlip that counts frames"):
        make_steps(assembled)
