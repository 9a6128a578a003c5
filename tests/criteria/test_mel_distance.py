"""What mel distances, multi-resolution spectra and SI-SNR hear, and how they treat silence, short and odd sounds."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch

from rave_tools.criteria.mel import MelDistance, MelSpectrogram, MultiScaleMelDistance
from rave_tools.criteria.multiresolution import MultiResolutionSTFTDistance
from rave_tools.criteria.waveform import SISNR, si_snr

RATE = 24000
SMALL = {"sample_rate": RATE, "scales": (128, 512), "num_mels": 8}
DISTANCES = {
    "L2": MultiScaleMelDistance(**SMALL),
    "RMS": MultiScaleMelDistance(**SMALL, log_norm="RMS", alphas=True),
    "L1": MultiScaleMelDistance(**SMALL, log_norm="L1", linear_weight=0.0, power=1.0, clamp=True, centered=True),
    "linear": MultiScaleMelDistance(**SMALL, log_weight=0.0),
    "single": MelDistance(sample_rate=RATE, n_fft=512, num_mels=8),
    "resolutions": MultiResolutionSTFTDistance(n_ffts=(256, 128), hop_lengths=(30, 16), win_lengths=(150, 128)),
    "si_snr": SISNR(),
    "si_snr_segments": SISNR(sample_rate=RATE, segment=0.03),
}
every_distance = pytest.mark.parametrize("name", DISTANCES)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def value(name: str, target: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
    distance = DISTANCES[name]
    values = distance(target, estimate)
    assert tuple(values) == distance.losses
    return next(iter(values.values()))


@every_distance
def test_silence_on_either_side_gives_numbers(name: str) -> None:
    silence, sound = torch.zeros(2, 1, 1500), noise(2, 1, 1500)
    for target, estimate in ((sound, silence), (silence, sound), (silence, silence), (sound, sound)):
        leaf = estimate.clone().requires_grad_()
        distance = value(name, target, leaf)
        distance.backward()
        assert torch.isfinite(distance) and torch.isfinite(leaf.grad).all()


@every_distance
def test_nothing_is_nearer_than_the_sound_itself_and_no_gradient_reaches_it(name: str) -> None:
    target, estimate = noise(2, 1, 1500).requires_grad_(), noise(2, 1, 1500, seed=1).requires_grad_()
    itself, other = value(name, target, target.detach()), value(name, target, estimate)
    assert itself < other
    other.backward()
    assert target.grad is None and estimate.grad.any()


@pytest.mark.parametrize("name", sorted(DISTANCES.keys() - {"resolutions"}))
def test_channels_are_heard_one_by_one(name: str) -> None:
    """All but the distance whose first term is a ratio of norms of the whole batch."""
    target, estimate = noise(2, 3, 1500), noise(2, 3, 1500, seed=1)
    alone = [value(name, target[:, c : c + 1], estimate[:, c : c + 1]) for c in range(3)]
    torch.testing.assert_close(value(name, target, estimate), torch.stack(alone).mean())


@every_distance
def test_half_precision_around_it_changes_nothing(name: str) -> None:
    target, estimate = noise(2, 1, 1500), noise(2, 1, 1500, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value(name, target, estimate)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, value(name, target, estimate))


@every_distance
def test_the_shortest_sound_is_judged(name: str) -> None:
    shortest = DISTANCES[name].minimum_length
    assert torch.isfinite(value(name, noise(1, 1, shortest), noise(1, 1, shortest, seed=1)))
    if shortest > 1:
        with pytest.raises(ValueError, match=f"at least {shortest} samples, got {shortest - 1}"):
            value(name, noise(1, 1, shortest - 1), noise(1, 1, shortest - 1))


@every_distance
def test_nothing_stays_behind_on_the_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without numbers stands in for a GPU: a tensor made elsewhere would not mix with its own."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    distance = copy.deepcopy(DISTANCES[name]).to("meta")
    estimate = torch.zeros(2, 1, 1500, device="meta", requires_grad=True)
    (distance,) = distance(torch.zeros(2, 1, 1500, device="meta"), estimate).values()
    distance.backward()
    assert distance.is_meta and estimate.grad.is_meta


def test_bands_without_a_bin_are_refused_or_kept() -> None:
    with pytest.raises(
        ValueError, match="22 of 64 mel bands hold no bin of a 64-point spectrum at 24000 Hz.*keep_empty"
    ):
        MelSpectrogram(RATE, 64)
    kept = MelSpectrogram(RATE, 64, keep_empty=True)(noise(1, 1, 500))
    assert int((kept.amax((0, 1, 2)) == 0).sum()) == 22


def test_a_mel_spectrogram_has_a_frame_for_each_hop() -> None:
    """As a strided convolution has, so a codec's frames and these stand side by side."""
    for length in (1000, 1024, 1025):
        assert MelSpectrogram(RATE, 256, num_mels=8)(noise(2, 3, length)).shape == (2, 3, -(-length // 64), 8)
        assert MelSpectrogram(RATE, 256, num_mels=8, centered=True)(noise(2, 3, length)).shape[2] == length // 64 + 1


def test_a_tone_is_heard_in_its_band() -> None:
    tone = torch.sin(2 * math.pi * 3000 * torch.arange(8000) / RATE)[None, None]
    bands = MelSpectrogram(RATE, 512, num_mels=20)(tone).mean((0, 1, 2))
    mel = 2595 * math.log10(1 + 3000 / 700)
    expected = mel / (2595 * math.log10(1 + 12000 / 700)) * 21 - 1  # the centre of band i is at mel (i + 1) / 21 of all
    assert abs(int(bands.argmax()) - expected) <= 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mels": (8, 8, 8)}, "2 scales and num_mels for 3"),
        ({"log_norm": "L3"}, "log_norm is 'L3'"),
        ({"linear_weight": 0.0, "log_weight": 0.0}, "one of them is not 0"),
        ({"linear_weight": -1.0}, "neither is negative"),
    ],
)
def test_what_makes_no_distance_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiScaleMelDistance(**{**SMALL, **changes})


def test_half_as_loud_is_half_of_the_spectra_away() -> None:
    sound = noise(1, 1, 2000)
    expected = 0.1 * 0.5 + 0.1 * math.log(2)
    assert value("resolutions", sound, 0.5 * sound).item() == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="3 n_ffts, 1 hop_lengths"):
        MultiResolutionSTFTDistance(hop_lengths=(10,))


def test_si_snr_knows_the_noise_and_not_the_gain() -> None:
    time = torch.arange(24000) / RATE
    sound, other = (torch.sin(2 * math.pi * f * time)[None, None] for f in (440.0, 660.0))  # at right angles
    estimate = sound + 0.1 * other
    for gain in (0.25, 1.0, 4.0):
        assert si_snr(sound, gain * estimate).item() == pytest.approx(20, abs=0.01)
    assert value("si_snr", sound, estimate).item() == pytest.approx(-20, abs=0.01)
    assert value("si_snr", sound, estimate + 0.5).item() == pytest.approx(-20, abs=0.01), "nor a constant"
    assert value("si_snr_segments", sound, estimate).item() == pytest.approx(-20, abs=0.5)


def test_segments_need_seconds() -> None:
    for arguments, message in (
        ({"segment": 1.0}, "needs SISNR.sample_rate"),
        ({"overlap": 1.0}, "SISNR.overlap is 1.0"),
        ({"segment": 1e-5, "sample_rate": RATE}, "less than a sample"),
    ):
        with pytest.raises(ValueError, match=message):
            SISNR(**arguments)
