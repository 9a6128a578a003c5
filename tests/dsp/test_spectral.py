"""Short-time spectra: what they must satisfy whatever computes them."""

import math

import pytest
import torch

from rave_tools.dsp import spectral


@pytest.mark.parametrize("n_fft, hop", [(64, 16), (64, 64), (64, 24), (2048, 512)])
@pytest.mark.parametrize("center", [True, False])
def test_equals_the_transform_of_each_frame(n_fft: int, hop: int, center: bool) -> None:
    torch.manual_seed(0)
    signal = torch.randn(2, 3, 4001, dtype=torch.float64)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    flat = signal.reshape(6, -1)
    expected = torch.stft(flat, n_fft, hop, n_fft, window, center=center, return_complex=True)
    ours = spectral.stft(signal, n_fft, hop=hop, center=center)
    torch.testing.assert_close(ours, expected.reshape(2, 3, *expected.shape[1:]))


def test_normalised_white_noise_has_unit_power() -> None:
    torch.manual_seed(0)
    for n_fft in (128, 1024):
        power = spectral.stft(torch.randn(1, 2**17), n_fft, normalized=True)[:, 1:-1].abs().square().mean()
        assert abs(float(power) - 1) < 0.02


def test_a_tone_stands_in_its_bin() -> None:
    time = torch.arange(8192)
    spectrum = spectral.stft(torch.sin(2 * math.pi * 20 / 512 * time), 512, center=False).abs()
    assert (spectrum.argmax(0) == 20).all()
    assert (spectrum[30:] < 1e-3 * spectrum[20]).all()


def test_gradient_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    signal = torch.randn(1, 1000, dtype=torch.float64, requires_grad=True)
    window = torch.hann_window(128, dtype=torch.float64)
    expected = torch.stft(signal, 128, 32, 128, window, return_complex=True).abs().square().sum()
    ours = spectral.stft(signal, 128).abs().square().sum()
    torch.testing.assert_close(*(torch.autograd.grad(loss, signal)[0] for loss in (ours, expected)))


@pytest.mark.parametrize("n_fft, hop, center", [(64, 16, True), (63, 21, False), (64, 24, False), (64, 64, True)])
def test_gradient_is_the_derivative(n_fft: int, hop: int, center: bool) -> None:
    torch.manual_seed(0)
    signal = torch.randn(2, 200, dtype=torch.float64, requires_grad=True)

    def parts(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(spectral.stft(x, n_fft, hop=hop, center=center).contiguous())

    assert torch.autograd.gradcheck(parts, signal)


def test_overlap_add_is_the_adjoint_of_frames() -> None:
    torch.manual_seed(0)
    signal = torch.randn(3, 100)
    windows = torch.randn(3, (100 - 20) // 8 + 1, 20)
    there = (spectral.frames(signal, 20, hop=8) * windows).sum()
    back = (signal * spectral.overlap_add(windows, 100, hop=8)).sum()
    torch.testing.assert_close(there, back)


def test_a_short_signal_is_named() -> None:
    with pytest.raises(ValueError, match="at least 1025 samples, got 750"):
        spectral.stft(torch.zeros(1, 750), 2048)


def test_unit_height_mel_filters_peak_at_most_at_one_and_cover_the_band() -> None:
    filters = spectral.mel_filters(16000, 1024, 40, scale="htk", normalized=False)
    assert filters.shape == (40, 513)
    assert float(filters.max()) <= 1
    inside = filters.sum(0)[3:470]
    torch.testing.assert_close(inside, torch.ones_like(inside), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="9000"):
        spectral.mel_filters(16000, 1024, 40, high=9000)


@pytest.mark.parametrize(("n_fft", "window_length", "hop"), [(64, 50, 16), (64, 33, 10), (50, 20, 7)])
def test_a_shorter_window_stands_in_the_middle_of_its_frame(n_fft: int, window_length: int, hop: int) -> None:
    """As torch.stft places it, with its gradient."""
    x = torch.randn(2, 300, requires_grad=True)
    ours = spectral.stft(x, n_fft, hop=hop, window_length=window_length)
    window = torch.hann_window(window_length)
    theirs = torch.stft(x, n_fft, hop, window_length, window, pad_mode="reflect", return_complex=True)
    torch.testing.assert_close(ours, theirs)
    towards = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, x, towards), torch.autograd.grad(theirs, x, towards), strict=True
    ):
        torch.testing.assert_close(mine, other)
    with pytest.raises(ValueError, match="window of 65 samples does not fit a 64-point"):
        spectral.stft(x, 64, window_length=65)
