import numpy as np
import pytest

from rave_tools.dsp import synthesis


@pytest.mark.parametrize("frequency", [110.0, 220.0, 440.0])
def test_a_string_has_its_pitch(frequency):
    string = synthesis.pluck(frequency, 2.0, 44100, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(string * np.hanning(string.size)))
    found = np.fft.rfftfreq(string.size, 1 / 44100)[spectrum.argmax()]
    harmonic = round(found / frequency)
    assert harmonic >= 1
    assert found / harmonic == pytest.approx(frequency, rel=0.01)


def test_a_string_dies_away():
    string = synthesis.pluck(220.0, 2.0, 44100, np.random.default_rng(0))
    assert np.abs(string[-4410:]).max() < 0.02 * np.abs(string[:4410]).max()


def test_tunes():
    tune = synthesis.tune(3.0, 22050, seed=1)
    assert tune.shape == (2, 66150) and tune.dtype == np.float32
    assert np.abs(tune).max() == pytest.approx(0.9)
    assert np.array_equal(tune, synthesis.tune(3.0, 22050, seed=1))
    assert not np.array_equal(tune, synthesis.tune(3.0, 22050, seed=2))
    # Somebody plays all the time, and not the same on both sides.
    assert np.abs(tune.reshape(2, 6, -1)).max(-1).min() > 0.05
    assert np.abs(tune[0] - tune[1]).max() > 0.05
