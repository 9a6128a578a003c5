"""Mel spectra as an encoder's input: what they show, and that they stream."""

import pytest
import torch

from rave_tools.codec.pretransforms.mel import MelSpectrogram, matching_hop
from rave_tools.nn.streaming import reset, stream_through


def spectra(padding="centered", hop=256):
    return MelSpectrogram(sample_rate=44100, hop_length=hop, n_fft=1024, n_mels=40, padding=padding).double()


def test_a_tone_stands_in_its_band():
    mel = spectra()
    time = torch.arange(8192, dtype=torch.float64) / 44100
    for frequency in (300.0, 2000.0, 9000.0):
        bands = mel.encode(torch.sin(2 * torch.pi * frequency * time)[None, None])
        strongest = int(bands[0, :, 16].argmax())
        weights = mel.mel_scale.fb[:, strongest]
        centre = (weights * torch.linspace(0, 22050, 513)).sum() / weights.sum()
        assert abs(float(centre) - frequency) < 0.12 * frequency + 50


def test_channels_stand_one_after_the_other():
    mel = spectra()
    x = torch.randn(2, 3, 4096, dtype=torch.float64)
    bands = mel.encode(x)
    assert bands.shape == (2, 120, 16)
    torch.testing.assert_close(bands[:, 40:80], mel.encode(x[:, 1:2]))


@pytest.mark.parametrize("padding", ["centered", "causal"])
@pytest.mark.parametrize("delay", [0, 3, -200, 256, 700])
def test_it_streams(padding, delay):
    """Delay at the input, in samples; the stream's frames are the plain ones, that many later."""
    plain, twin = spectra(padding), spectra(padding)
    late = stream_through(twin, delay)
    look_ahead = 511 if padding == "centered" else 0
    assert late == (look_ahead + delay) // 256
    x = torch.randn(2, 1, 256 * 60, dtype=torch.float64)
    shifted = torch.cat([torch.zeros(2, 1, max(0, delay), dtype=torch.float64), x[..., max(0, -delay) :]], -1)
    expected = plain.encode(x)
    for blocks in ([1] * 50, [2, 1, 16, 5, 8] * 1):
        reset(twin)
        parts, start = [], 0
        for hops in blocks:
            parts.append(twin.encode(shifted[..., start : start + hops * 256]))
            start += hops * 256
        y = torch.cat(parts, -1)
        # Past the first windows, which in the plain form hear a mirror image of the beginning.
        begin = max(8, 8 + late)
        torch.testing.assert_close(y[..., begin:], expected[..., begin - late : y.shape[-1] - late], rtol=0, atol=1e-12)
    assert twin.encode(shifted[:0, :, :512]).shape == (0, 40, 2)


def test_a_causal_frame_hears_nothing_that_comes_later():
    mel = spectra("causal")
    x = torch.randn(1, 1, 4096, dtype=torch.float64)
    before = mel.encode(x)
    x[..., 2049:] = 0
    assert mel.encode(x)[..., :9].equal(before[..., :9])


def test_hops_follow_from_the_decoder():
    assert matching_hop(16, [4, 4, 4, 2], [2, 2, 2]) == 256
    assert matching_hop(16, [4, 2, 2, 2], [2, 2, 2]) == 64
    with pytest.raises(ValueError, match="ENCODER_RATIOS .* multiply to 24"):
        matching_hop(16, [2, 2], [3, 8])
