"""What weights and latents say about a run: measured on toys whose answers are known."""

import pytest
import torch
from torch import nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.contracts import Latent
from rave_tools.training import condition
from rave_tools.training.condition import (
    chance,
    check_differences,
    check_disk,
    check_latency,
    check_latents,
    check_weights,
    check_window,
)
from rave_tools.training.posterior import measure_posterior
from tests.training.toys import ToyCodec, toy_adversary, toy_wrapper

D, HOP = 4, 8


class Known(Autoencoder):
    """Latent i is the mean of a frame times gain i, plus noise of a known scale."""

    def __init__(self, gains, stds):
        super().__init__()
        self.sample_rate, self.channels, self.hop, self.latent_dim = 8000, 1, HOP, D
        self.gains, self.stds = torch.tensor(gains).view(1, D, 1), torch.tensor(stds).view(1, D, 1)

    def to_bands(self, audio):
        return audio

    def encode_bands(self, bands, *, deterministic=False, noise=None):
        mean = self.gains * nn.functional.avg_pool1d(bands, HOP)
        if noise is None:
            noise = torch.zeros_like(mean) if deterministic else torch.randn_like(mean)
        return Latent(mean + noise * self.stds)


class Discrete(Known):
    """Two codebooks of 16 entries, of which the first uses all and the second only one."""

    num_codebooks, codebook_size = 2, 16

    def encode_bands(self, bands, *, deterministic=False, noise=None):
        frames = bands.shape[-1] // HOP
        first = torch.arange(frames) % 16
        codes = torch.stack([first, torch.zeros_like(first)]).expand(bands.shape[0], 2, frames)
        return Latent(torch.randn(bands.shape[0], D, frames), codes=codes)


@pytest.fixture
def sound():
    torch.manual_seed(0)
    frames = torch.randn(4, 1, 50).repeat_interleave(HOP, -1)
    return [frames[:2], frames[2:]]


def test_divergence_and_activity_are_those_of_the_closed_form(sound):
    found = measure_posterior(Known([1.0, 0.5, 0.0, 0.0], [0.1, 0.5, 1.0, 0.5]), sound)
    second_moment = torch.cat(sound)[..., ::HOP].square().mean()
    expected = [g * g * second_moment + s * s - 2 * torch.tensor(s).log() - 1
                for g, s in ((1, 0.1), (0.5, 0.5), (0, 1.0), (0, 0.5))]  # fmt: skip
    assert torch.allclose(found.divergence, torch.stack(expected), atol=1e-4)
    assert found.dead == [2, 3]  # one equals the prior, the other is narrow but never moves
    assert found.frames == 200 and found.analysis.dimensions(0.999) == 1


def test_dead_latents_are_a_note_and_all_dead_an_error(sound):
    alive = check_latents(Known([1.0, 1.0, 0.0, 0.0], [0.1] * 4), sound, why_none="", where="sound")
    assert alive[0].severity == "note" and alive[0].seen.startswith("2 of 4 latents carry signal, 2 are dead")
    all_alive = check_latents(Known([1.0, 1.0, 1.0, 1.0], [0.1] * 4), sound, why_none="", where="sound")
    assert all_alive[0].severity == "ok"
    collapsed = check_latents(Known([0.0] * 4, [1.0] * 4), sound, why_none="", where="sound")
    assert collapsed[0].severity == "error" and collapsed[0].subject == "posterior collapse"


def test_without_a_prior_the_scale_of_the_latents_is_their_own(sound):
    still = [0.0] * 4
    quiet = check_latents(Known([1e-3, 2e-3, 1e-3, 3e-3], still), sound, why_none="", where="sound")[0]
    assert quiet.severity == "ok" and quiet.seen.startswith("4 of 4 latents carry signal")
    some = check_latents(Known([1e-3, 1.0, 0.0, 1e-4], still), sound, why_none="", where="sound")[0]
    assert some.severity == "note" and some.seen.startswith("2 of 4") and "BETA" not in (some.mend or "")
    none = check_latents(Known([0.0] * 4, still), sound, why_none="", where="sound")[0]
    assert (none.severity, none.subject) == ("error", "dead latents") and "BETA" not in none.mend


def test_fidelity_counts_axes_of_equal_and_unequal_variance():
    torch.manual_seed(0)
    codec = ToyCodec()
    with torch.no_grad():
        codec.encoder.weight.normal_()
    noise = [torch.randn(4, 1, 64 * codec.hop)]
    found = check_latents(codec, noise, why_none="", where="noise")[1]
    counts = dict(part.split(": ") for part in found.seen.split(": ", 1)[1].split(", "))
    assert list(counts) == ["0.8", "0.9", "0.95", "0.99", "0.999"]
    assert sorted(map(int, counts.values())) == list(map(int, counts.values())) and int(counts["0.999"]) >= 5


def test_without_sound_the_saved_analysis_answers_and_says_what_it_cannot():
    codec = ToyCodec()
    unknown, fidelity = check_latents(codec, None, why_none="the database is gone", where="")
    assert unknown.seen == "cannot tell: the database is gone"
    assert fidelity.seen == "cannot tell: the latents were never analysed: no validation yet"
    codec.fidelity.copy_(torch.tensor([0.85, 0.92, 0.97, 0.995, 0.9995, 1.0]))
    fidelity = check_latents(codec, None, why_none="", where="")[1]
    assert fidelity.seen.endswith("of 6: 0.8: 1, 0.9: 2, 0.95: 3, 0.99: 4, 0.999: 5")


def test_an_encoder_that_is_not_finite_is_told(sound):
    found = check_latents(Known([float("nan")] * 4, [1.0] * 4), sound, why_none="", where="sound")
    assert len(found) == 1 and "not finite" in found[0].seen


def test_codebooks_of_which_one_is_not_used(sound):
    (found, _) = check_latents(Discrete([0.0] * 4, [0.0] * 4), sound, why_none="", where="sound")
    assert found.severity == "warning" and "entries in use of 16: 16, 1" in found.seen and "in 1 of 2" in found.seen


def test_weights_that_are_not_finite_are_named():
    state = {"codec.a": torch.ones(3), "codec.b": torch.tensor([1.0, float("inf")]), "steps": torch.tensor(3)}
    bad = check_weights(state, None, where="x.ckpt")
    assert bad[0].severity == "error" and "1 of 3 tensors are not finite: codec.b" in bad[0].seen
    assert bad[1].subject == "EMA" and bad[1].severity == "note"
    good = check_weights({"codec.a": torch.ones(3)}, {"codec.a": torch.ones(3)}, where="x.ckpt")
    assert [finding.severity for finding in good] == ["ok", "ok"]
    spoilt = check_weights({"codec.a": torch.ones(3)}, {"codec.a": torch.full((3,), float("nan"))}, where="x.ckpt")
    assert "ema of codec.a" in spoilt[0].seen


def test_guessing_costs_two_per_scale_of_a_hinge():
    assert chance(toy_adversary(), 1) == pytest.approx(4.0)  # two scales
    assert chance(None, 1) is None


def test_a_window_within_the_receptive_field_is_too_short():
    wrapper = toy_wrapper()
    assert check_window(wrapper, 64)[0].severity == "ok"
    assert "does not say its --n_signal" in check_window(wrapper, None)[0].seen
    wrapper._receptive_field = (200, 300)
    found = check_window(wrapper, 256)[0]
    assert found.severity == "warning" and "shorter than 500 samples" in found.seen


def test_a_model_that_ignores_its_input_is_an_error():
    wrapper = toy_wrapper()
    nn.init.zeros_(wrapper.codec.decoder.weight)
    found = check_window(wrapper, 64)[0]
    assert found.severity == "error" and "no input reaches the output" in found.seen


def test_a_codec_that_cannot_stream_has_no_latency():
    assert check_latency(Known([1.0] * 4, [0.1] * 4))[0].seen.startswith("cannot tell: it does not stream")


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(bytes(1000))
    assert check_disk(tmp_path, checkpoint)[0].severity == "ok"
    monkeypatch.setattr(condition.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2500}))
    found = check_disk(tmp_path, checkpoint)[0]
    assert found.severity == "error" and "(2 fit, 3 should)" in found.seen


def test_differences_from_the_shipped_files():
    assert check_differences([], ["v2"])[0].severity == "ok"
    (different,) = check_differences(["CAPACITY = 8"], ["v2", "causal"])
    assert different.severity == "note" and "1 bindings differ from v2 + causal: CAPACITY = 8" in different.seen
    assert check_differences(None, [], why_none="no command.txt")[0].seen == "cannot tell: no command.txt"
