import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rave_tools.codec.pretransforms.pqmf import CachedPQMF
from rave_tools.dsp import filterbank


def decibels(ratio):
    return 20 * np.log10(max(float(ratio), 1e-12))


@pytest.mark.parametrize("attenuation", [40, 60, 100])
@pytest.mark.parametrize("bands", [4, 16])
def test_prototype_rejects_what_it_promises(attenuation, bands):
    prototype = filterbank.design_prototype(attenuation, bands)
    assert len(prototype) % 2 == 1
    response = np.abs(np.fft.rfft(prototype, 2**16))
    frequencies = np.linspace(0, np.pi, len(response))
    stop = response[frequencies > 1.05 * np.pi / bands]
    assert decibels(stop.max() / response[0]) < -attenuation + 3


@pytest.mark.parametrize(("attenuation", "floor"), [(40, -29), (60, -47), (100, -60)])
@pytest.mark.parametrize("padding", ["centered", "causal"])
def test_reconstruction(attenuation, floor, padding):
    torch.manual_seed(0)
    pqmf = CachedPQMF(attenuation, 16, padding)
    audio = torch.randn(2, 2, 16 * 512)
    again = pqmf.decode(pqmf.encode(audio))
    # The polyphase split costs one frame; causal filters leave their own delay in the plain model, half a filter each
    # way.
    delay = 16 if padding == "centered" else 16 + 2 * (pqmf.forward_conv.kernel_size[0] // 2)
    error = again[..., 1024 + delay : -1024] - audio[..., 1024 : audio.shape[-1] - 1024 - delay]
    assert decibels(error.norm() / audio[..., 1024 : -1024 - delay].norm()) < floor


def test_polyphase_equals_the_definition():
    """Band k is the input filtered by h_k, every M-th sample of it; the inverse is the matched sum."""
    torch.manual_seed(0)
    bands, pqmf = 8, CachedPQMF(60, 8)
    filters = pqmf.hk
    audio = torch.randn(1, 1, 8 * 128)
    half = filters.shape[-1] // 2
    naive = F.conv1d(audio, filters.unsqueeze(1), stride=bands, padding=half)[..., :-1].clone()
    naive[:, 1::2, ::2] *= -1
    encoded = pqmf.encode(audio)
    torch.testing.assert_close(encoded, naive, rtol=0, atol=1e-5)

    spread = torch.zeros(1, bands, audio.shape[-1])
    flipped = encoded.clone()
    flipped[:, 1::2, ::2] *= -1
    spread[..., ::bands] = flipped * bands
    naive = F.conv1d(spread, filters.flip(-1).unsqueeze(0), padding=half)[..., 1:]
    torch.testing.assert_close(pqmf.decode(encoded)[..., bands:], naive[..., :-bands], rtol=0, atol=1e-5)


@pytest.mark.parametrize("band", [0, 1, 6, 15])
def test_a_tone_stands_in_its_band(band):
    pqmf = CachedPQMF(100, 16)
    frequency = (band + 0.5) / 32  # cycles per sample: the middle of the band
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(16 * 256))[None, None]
    energy = pqmf.encode(tone)[0, :, 64:-64].pow(2).sum(-1)
    assert energy.argmax() == band
    assert energy[band] / energy.sum() > 0.9999


def test_frequency_rises_with_frequency_in_odd_bands():
    """The sign changes mirror odd bands back: a tone low in its band is low in the band's own spectrum."""
    pqmf = CachedPQMF(100, 16)
    low, high = ((3 + place) / 32 for place in (0.3, 0.7))
    peaks = []
    for frequency in (low, high):
        tone = torch.sin(2 * torch.pi * frequency * torch.arange(16 * 256))[None, None]
        spectrum = torch.fft.rfft(pqmf.encode(tone)[0, 3, 64:-64] * torch.hann_window(128)).abs()
        peaks.append(int(spectrum.argmax()))
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("bands", [0, 3, 12])
def test_bands_are_a_power_of_two(bands):
    with pytest.raises(ValueError, match=rf"power of two.*{bands}.*n_band"):
        CachedPQMF(100, bands)


def test_one_band_is_the_waveform():
    audio = torch.randn(1, 2, 100)
    pqmf = CachedPQMF(100, 1)
    assert pqmf.decode(pqmf.encode(audio)).equal(audio)
