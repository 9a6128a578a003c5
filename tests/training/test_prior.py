"""Whole runs of a prior on a toy codec: it learns, the codec does not, and everything a codec's run can do it can."""

import pytest
import torch
from lightning.pytorch import Callback

from rave_tools.errors import UserError
from rave_tools.generative.latent_prior import LatentPrior
from rave_tools.runs import RunDirectory, load_checkpoint, open_run
from rave_tools.training import summary
from rave_tools.training.prior import PriorTrainingWrapper
from rave_tools.training.run import train
from tests.generative.codes import CodeCodec

from .toys import HOP, ToyCodec, ToyData, adam, toy_wrapper

LATENTS = 2


def prior_wrapper(**changes):
    torch.manual_seed(3)
    codec = ToyCodec()
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    codec.latent_pca.copy_(rotation)
    prior = LatentPrior(LATENTS, resolution=8, res_size=16, skp_size=8, n_layers=2, cycle_size=2)
    arguments = dict(optimizer=adam(1e-2), seconds=0.02)
    wrapper = PriorTrainingWrapper(codec, prior, **{**arguments, **changes})
    wrapper.seed = 7
    return wrapper


class Losses(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, wrapper, *_):
        assert not wrapper.codec.training
        self.rows.append(wrapper.means.read())


def go(folder, *, wrapper=None, resume=None, **changes):
    wrapper = wrapper or prior_wrapper()
    run = RunDirectory(folder).create()
    arguments = dict(max_steps=12, val_every=5, save_every=4, accelerator="cpu", progress=False, estimate=False)
    losses = Losses()
    outcome = train(
        wrapper=wrapper,
        data=ToyData(),
        run=run,
        config_text="# toy",
        resume=load_checkpoint(run.checkpoint_path(resume)) if resume else None,
        report=changes.pop("report", lambda line: None),
        callbacks=[losses],
        **{**arguments, **changes},
    )
    return wrapper, losses.rows, outcome


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_the_prior_learns_and_the_codec_stays(tmp_path):
    wrapper = prior_wrapper(posterior=False)  # the means of the toy's posterior are sines, its draws mostly noise
    before = {name: value.clone() for name, value in wrapper.codec.state_dict().items()}
    wrapper, rows, outcome = go(tmp_path, wrapper=wrapper, max_steps=80)
    assert same(wrapper.codec.state_dict(), before)
    assert outcome.step == 80 and wrapper.counters.discriminator_updates == 0
    first, last = (sum(row["cross_entropy"] for row in part) / 8 for part in (rows[:8], rows[-8:]))
    assert last < first - 0.15
    assert outcome.best == pytest.approx(wrapper.validation.verdict.distance, abs=0.2)


@pytest.mark.parametrize("stop", [2, 7])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    whole, rows, _ = go(tmp_path / "whole", ema=0.9)
    _, before, _ = go(tmp_path / "split", max_steps=stop, ema=0.9)
    torch.manual_seed(99)  # whatever the global generator does elsewhere
    second, after, _ = go(tmp_path / "split", resume="last", ema=0.9)
    assert before + after == rows
    assert same(whole.state_dict(), second.state_dict())
    ends = [open_run(tmp_path / name) for name in ("whole", "split")]
    assert same(ends[0].extra["ema"], ends[1].extra["ema"])
    assert all(name.startswith("prior.") for name in ends[0].extra["ema"])


def test_validation_and_estimate_do_not_disturb_the_training(tmp_path):
    first, rows, _ = go(tmp_path / "often", val_every=1)
    second, others, _ = go(tmp_path / "seldom", val_every=11, estimate=True)
    assert rows == others and same(first.state_dict(), second.state_dict())


def test_the_verdict_is_the_likelihood_of_fixed_segments_with_something_to_hear(tmp_path):
    wrapper, _, outcome = go(tmp_path)
    verdict = wrapper.validation.verdict
    assert list(verdict.named) == ["cross_entropy_latent_1", "cross_entropy_latent_2"]
    assert verdict.distance == pytest.approx(sum(verdict.named.values()) / 2)
    assert not verdict.examples and verdict.generated[0].shape == (1, round(0.02 * 8000 / HOP) * HOP)
    torch.manual_seed(0)
    batches = list(ToyData().val_dataloader())
    slow = torch.stack([wrapper.prior.log_likelihood(wrapper.encode(batch.audio)).mean() for batch in batches])
    assert verdict.distance == pytest.approx(float(-slow.mean().detach()), abs=0.05)
    assert outcome.best <= verdict.distance + 1e-6


def test_the_latents_are_measured_once_before_training(tmp_path):
    wrapper, _, _ = go(tmp_path, max_steps=2)
    latents = (
        torch.cat([wrapper.encode(batch.audio) for batch in ToyData().val_dataloader()]).transpose(0, 1).flatten(1)
    )
    torch.testing.assert_close(wrapper.prior.latent_shift, latents.mean(1), rtol=0, atol=0.2)
    torch.testing.assert_close(wrapper.prior.latent_scale, latents.std(1), rtol=0.2, atol=0)
    raw, _, _ = go(tmp_path / "raw", max_steps=2, wrapper=prior_wrapper(standardize=False))
    assert raw.prior.latent_shift.tolist() == [0, 0] and raw.prior.latent_scale.tolist() == [1, 1]


def test_means_of_the_posterior_instead_of_draws():
    wrapper = prior_wrapper(posterior=False)
    audio = ToyData().audio(0)
    assert torch.equal(wrapper.encode(audio), wrapper.encode(audio))
    assert not torch.equal(prior_wrapper().encode(audio), prior_wrapper().encode(audio * 0.5))


def test_the_run_says_what_it_trains(tmp_path):
    lines = []
    go(tmp_path, max_steps=2, estimate=True, report=lines.append)
    text = "\n".join(lines)
    assert "Prior" in text and "LatentPrior" in text and "Phase 1 (prior)" in text
    wrapper = prior_wrapper()
    assert wrapper.measure_receptive_field() == (wrapper.prior.receptive_field * HOP, 0)
    title = dict(summary.components(wrapper))
    assert list(title) == ["PQMF", "Encoder", "Decoder", "Prior"]


def test_codec_weights_come_from_outside(tmp_path):
    other = ToyCodec()
    wrapper, _, _ = go(tmp_path, max_steps=1, codec=other.state_dict())
    assert same(wrapper.codec.state_dict(), other.state_dict())
    assert same(open_run(tmp_path).part("codec"), other.state_dict())
    with pytest.raises(UserError, match="do not fit its configuration"):
        prior_wrapper().load_codec({"encoder.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="trains its codec itself"):
        toy_wrapper().load_codec(other.state_dict())


def test_half_precision_leaves_the_codec_whole(tmp_path):
    wrapper, rows, _ = go(tmp_path, max_steps=3, precision="bf16-mixed")
    assert all(row["cross_entropy"] == pytest.approx(2.08, abs=0.3) for row in rows)
    seen = []
    wrapper.codec.encoder.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert wrapper.encode(ToyData().audio(0)).dtype == torch.float32
    assert seen == [torch.float32]


def code_wrapper(codec=None, **changes):
    torch.manual_seed(3)
    sizes = dict(resolution=8, discrete=True, res_size=24, skp_size=12, n_layers=2, cycle_size=2)
    prior = LatentPrior(3, **{**sizes, **changes})
    wrapper = PriorTrainingWrapper(codec or CodeCodec(), prior, optimizer=adam(1e-2), seconds=0.02)
    wrapper.seed = 7
    return wrapper


def test_codes_of_a_discrete_codec(tmp_path):
    wrapper, rows, _ = go(tmp_path, wrapper=code_wrapper(), max_steps=60)
    first, last = (sum(row["cross_entropy"] for row in part) / 8 for part in (rows[:8], rows[-8:]))
    assert last < first - 0.15
    assert wrapper.prior.latent_scale.tolist() == [1, 1, 1], "codes are not measured"
    drawn, _ = wrapper.prior.sampler()(torch.ones(1, 1, 50), torch.rand(1, 3, 50), wrapper.prior.sampler().silence(1))
    assert set(drawn.unique().tolist()) <= set(range(8)) and len(drawn.unique()) > 2
    assert wrapper.validation.verdict.generated[0].shape == (1, 160)


def test_a_prior_of_another_kind_than_its_codec_is_refused():
    with pytest.raises(ValueError, match="made for 16 codes per codebook and the codec has 8 .* RESOLUTION = 8"):
        code_wrapper(resolution=16)
    with pytest.raises(ValueError, match="made for continuous latents and the codec has 8 codes .* DISCRETE = True"):
        code_wrapper(discrete=False)
    with pytest.raises(ValueError, match="made for 8 codes per codebook and the codec has continuous latents"):
        code_wrapper(ToyCodec())
    with pytest.raises(UserError, match="never placed"):
        code_wrapper(CodeCodec(placed=False)).check_window(64)


def test_windows_shorter_than_the_diagonal_are_refused():
    wrapper = prior_wrapper()
    wrapper.check_window(3 * HOP)
    with pytest.raises(UserError, match=f"2 latent frames, and the prior spreads its 2 latents .* at least {4 * HOP}"):
        wrapper.check_window(2 * HOP)
