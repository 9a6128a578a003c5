"""Each transform does to a signal what its name says, keeps its shape, and is decided by its generator alone."""

import pickle

import numpy as np
import pytest
import scipy.signal

from rave_tools.data import transforms as T
from rave_tools.data.filtering import allpass, follow

RATE = 44100


def generator(seed=0):
    return np.random.Generator(np.random.SFC64(seed))


def noise(channels=2, samples=8192, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


def tone(frequency, *, seconds=1.0, level=1.0):
    time = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * frequency * time))[None].astype(np.float32)


EVERY = [
    T.RandomPhaseMangle(prob=1),
    T.Dequantize(),
    T.Normalize(),
    T.Derivative(),
    T.RandomMute(prob=0.5, per_channel=True),
    T.RandomGain(prob=1),
    T.FrequencyMasking(prob=1),
    T.Compress(),
    T.RandomCompress(prob=1),
    T.RandomApply(T.Normalize(), 0.5),
    T.Compose((T.Normalize(), T.Derivative())),
]


@pytest.mark.parametrize("transform", EVERY, ids=lambda transform: type(transform).__name__)
def test_shape_type_and_repeatability(transform):
    transform = pickle.loads(pickle.dumps(transform.at(RATE)))
    for channels, samples in ((1, 4096), (3, 5001)):
        one = transform(noise(channels, samples), generator(3))
        two = transform(noise(channels, samples), generator(3))
        assert one.shape == (channels, samples) and one.dtype == np.float32
        assert np.array_equal(one, two)


@pytest.mark.parametrize("frequency", [20, 200, 2000, 20000])
@pytest.mark.parametrize("shape", [(1, 4096), (2, 4099), (3, 31), (1, 1)])
def test_the_blocked_allpass_is_the_recursive_filter(frequency, shape):
    audio = noise(*shape)
    angle, radius = 2 * np.pi * frequency / RATE, 0.99
    b = [radius**2, -2 * radius * np.cos(angle), 1]
    expected = scipy.signal.lfilter(b, b[::-1], audio.astype(np.float64))
    assert np.abs(allpass(audio, angle, radius) - expected).max() < 3e-6 * max(np.abs(expected).max(), 1e-9)


def test_the_phase_mangle_keeps_every_magnitude():
    pulse = np.zeros((1, 16384), np.float32)
    pulse[0, 0] = 1
    mangled = T.RandomPhaseMangle(prob=1, sampling_rate=RATE)(pulse.copy(), generator())
    assert not np.allclose(mangled, pulse, atol=0.01)
    assert np.abs(np.abs(np.fft.rfft(mangled[0])) - 1).max() < 1e-3


def test_the_phase_mangle_is_applied_as_often_as_said_and_within_its_range():
    transform = T.RandomPhaseMangle(sampling_rate=RATE)
    audio = noise(1, 64)
    applied = sum(not np.array_equal(transform(audio.copy(), generator(seed)), audio) for seed in range(500))
    assert 0.74 < applied / 500 < 0.86


def test_dequantisation_is_one_step_wide_and_centred():
    added = T.Dequantize(16)(np.zeros((2, 100_000), np.float32), generator())
    step = 2.0**-16
    assert np.abs(added).max() <= step / 2
    assert abs(added.mean()) < step / 100
    assert added.var() == pytest.approx(step**2 / 12, rel=0.02)
    lag = (added[0, 1:] * added[0, :-1]).mean() / added.var()
    assert abs(lag) < 0.02, "white"


def test_normalisation_reaches_full_scale_within_its_gain():
    assert np.abs(T.Normalize()(noise(level=0.1), generator())).max() == pytest.approx(1, abs=1e-6)
    faint = noise(level=1e-5)
    assert np.abs(T.Normalize()(faint, generator())).max() == pytest.approx(np.abs(faint).max() * 10**1.5, rel=1e-5)
    assert not T.Normalize()(np.zeros((1, 9), np.float32), generator()).any()


def test_integration_undoes_differentiation_above_its_corner():
    audio = tone(200) + tone(3000)
    back = T.Integrator(sampling_rate=RATE)(T.Derivative()(audio.copy(), generator()), None)
    late = slice(RATE // 2, None)
    assert np.abs(back - audio)[:, late].max() < 0.15
    assert np.sqrt(np.mean((back - audio)[:, late] ** 2)) < 0.1


def test_pitch_and_tempo_change_together():
    transform = T.RandomPitch((1.25, 1.25), prob=1)
    audio = tone(1000)
    faster = transform(audio, generator())
    assert faster.shape[1] == pytest.approx(audio.shape[1] / 1.25, abs=2)
    spectrum = np.abs(np.fft.rfft(faster[0] * np.hanning(faster.shape[1])))
    assert np.argmax(spectrum) * RATE / faster.shape[1] == pytest.approx(1250, abs=2)
    assert transform.reach == 1.25 and T.RandomPitch((0.5, 0.8)).reach == 1.0
    assert np.array_equal(T.RandomPitch(prob=0)(audio, generator()), audio)


def test_mute_silences_whole_crops_as_often_as_said():
    muted = [not T.RandomMute(0.3)(noise(2, 16), generator(seed)).any() for seed in range(600)]
    assert 0.25 < np.mean(muted) < 0.35
    partly = T.RandomMute(0.5, per_channel=True)(noise(64, 16), generator())
    assert 10 < sum(not row.any() for row in partly) < 54


def test_gain_changes_the_level_within_its_range_and_does_not_clip():
    audio = noise(1, 4096, level=0.1)
    gains = [
        20 * np.log10(np.abs(T.RandomGain(prob=1)(audio.copy(), generator(seed))).max() / np.abs(audio).max())
        for seed in range(200)
    ]
    assert -6.01 <= min(gains) < -5 and 2 < max(gains) <= 3.01
    loud = T.RandomGain((20, 20), prob=1)(audio.copy(), generator())
    assert np.abs(loud).max() == pytest.approx(1)
    assert np.abs(T.RandomGain((20, 20), prob=1, limit=False)(audio.copy(), generator())).max() > 1


def test_frequency_masking_removes_a_band_and_nothing_else():
    audio = noise(1, RATE)
    for seed in range(5):
        masked = T.FrequencyMasking(prob=1)(audio.copy(), generator(seed))
        before, after = (scipy.signal.welch(item[0], RATE, nperseg=4096)[1] for item in (audio, masked))
        removed = after < 0.1 * before
        assert 0 < removed.sum() <= 80
        places = np.flatnonzero(removed)
        assert places[-1] - places[0] + 1 == len(places), "one band"
        kept = np.ones(len(before), bool)
        kept[max(places[0] - 3, 0) : places[-1] + 4] = False
        assert np.abs(10 * np.log10(after[kept] / before[kept])).max() < 1


def test_the_compressor_follows_its_transfer_function():
    compress = T.Compress(
        points=((-60.0, -60.0), (-30.0, -10.0)), attack=0.005, release=0.005, knee=1.0, sampling_rate=RATE
    )
    for level_in, level_out in ((-50.0, -50 + 10 * 20 / 30), (-30.0, -10.0), (-15.0, -5.0), (-70.0, -70.0), (0.0, 0.0)):
        constant = np.full((1, RATE // 4), 10 ** (level_in / 20), np.float32)
        result = 20 * np.log10(compress(constant, generator())[0, -1])
        assert result == pytest.approx(level_out, abs=0.5)


def test_the_follower_rises_and_falls_with_its_times():
    step = np.concatenate([np.zeros(100), np.ones(RATE), np.zeros(RATE)])
    for attack, release in ((0.05, 0.05), (0.02, 0.2)):
        level = follow(step, attack=attack, release=release, sampling_rate=RATE)
        assert level[99 + round(attack * RATE)] == pytest.approx(1 - np.exp(-1), abs=0.01)
        assert level[99 + RATE + round(release * RATE)] == pytest.approx(np.exp(-1), abs=0.01)


def test_defaults_are_those_of_rave():
    chain = T.rave_defaults().transforms
    assert chain == (T.RandomPhaseMangle(20.0, 2000.0, 0.99, 0.8), T.Dequantize(16))
    full = T.rave_defaults(normalize=True, derivative=True, augmentations=[T.RandomMute()]).transforms
    assert [type(item) for item in full[1:]] == [T.Dequantize, T.Normalize, T.Derivative, T.RandomMute]


@pytest.mark.parametrize(
    "make",
    [
        lambda: T.RandomMute(1.2),
        lambda: T.RandomPitch((1.3, 0.7)),
        lambda: T.FrequencyMasking(max_size=5000),
        lambda: T.RandomPhaseMangle(amplitude=1.0),
        lambda: T.Compress(points=((-20.0, -20.0), (-30.0, -10.0))),
        lambda: T.RandomCompress(threshold=3.0),
        lambda: T.RandomPhaseMangle(prob=1)(noise(), generator()),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(T.TransformError):
        make()


def test_plain_functions_serve_as_augmentations():
    chain = T.rave_defaults(phase_mangle=0, augmentations=[lambda audio, _: -audio]).at(RATE)
    audio = noise()
    assert np.abs(chain(audio.copy(), generator()) + audio).max() <= 2.0**-16
