"""The method ``prior`` of an export."""

from dataclasses import replace

import pytest
import torch

from rave_tools.errors import UserError
from rave_tools.export import deliver
from rave_tools.export.deliver import ExportFailed, export
from rave_tools.export.prepare import ExportOptions
from rave_tools.generative.latent_prior import LatentPrior


def small_prior(latents=4):
    torch.manual_seed(1)
    prior = LatentPrior(latents, resolution=8, res_size=16, skp_size=16, n_layers=3, cycle_size=2)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(3)
    prior.standardize(torch.linspace(-1, 1, latents), torch.linspace(0.5, 2, latents))
    return prior.eval()


@pytest.fixture(scope="module")
def module(tmp_path_factory, make_codec):
    path = tmp_path_factory.mktemp("prior") / "prior.ts"
    delivered = export(make_codec(noise=True), path, options=ExportOptions(), prior=small_prior(), time_it=False)
    assert delivered.facts.has_prior and delivered.facts.latent_size == 4
    assert sum(check.name.startswith("prior: ") and check.passed for check in delivered.verification.checks) == 3
    return torch.jit.load(str(path)).eval()


def test_hosts_find_it(module):
    assert module.get_methods() == ["encode", "decode", "forward", "prior"]
    assert module.prior_params.tolist() == [1, 64, 4, 64]
    assert module.prior_input_labels == ["(signal) Temperature"]
    assert module.prior_output_labels == module.encode_output_labels == module.decode_input_labels


def test_temperature_decides_and_reset_begins_anew(module):
    def play(temperature, rows=1, frames=40):
        module.set_reset(1)
        with torch.inference_mode():
            return module.prior(torch.full((rows, 1, frames), temperature)).clone()

    assert torch.equal(play(0.0), play(0.0))
    assert not torch.equal(play(1.0), play(1.0))
    rows = play(1.0, rows=3)
    assert not torch.equal(rows[0], rows[1])
    centre, reach = torch.linspace(-1, 1, 4)[:, None], 4 * torch.linspace(0.5, 2, 4)[:, None]
    assert bool(((play(100.0, frames=400)[0] - centre).abs() <= reach + 1e-5).all())


def test_a_host_may_write_into_the_answer(module):
    """The RAVE VST scales and shifts what it was given in place."""
    module.set_reset(1)
    with torch.inference_mode():
        expected = torch.cat([module.prior(torch.zeros(1, 1, 2)).clone() for _ in range(6)], -1)
        module.set_reset(1)
        found = []
        for _ in range(6):
            answer = module.prior(torch.zeros(1, 1, 2))
            found.append(answer.clone())
            answer.fill_(1e6)
    assert torch.equal(torch.cat(found, -1), expected)


def test_its_latents_are_what_decode_takes(module):
    with torch.inference_mode():
        audio = module.decode(module.prior(torch.ones(1, 1, 8)))
    assert audio.shape == (1, 1, 8 * 64) and bool(torch.isfinite(audio).all())


def test_the_prior_decides_how_many_latents(tmp_path, make_codec):
    with pytest.raises(UserError, match="--latent_size 3: the prior draws 4 latents"):
        export(make_codec(), tmp_path / "x.ts", options=ExportOptions(latent_size=3), prior=small_prior())
    delivered = export(make_codec(), tmp_path / "x.ts", options=ExportOptions(), prior=small_prior(2), time_it=False)
    assert delivered.facts.latent_size == 2


def test_without_one_the_contract_is_as_before(tmp_path, make_codec):
    delivered = export(make_codec(), tmp_path / "x.ts", options=ExportOptions(), time_it=False)
    module = torch.jit.load(str(delivered.path))
    assert "prior" not in module.get_methods() and not hasattr(module, "prior_params")


def test_a_file_that_draws_other_latents_is_not_kept(tmp_path, make_codec, monkeypatch):
    honest = deliver.prepare

    def dishonest(codec, options, prior):
        other = small_prior()
        other.dilations[-1] *= 2
        return replace(honest(codec, options, prior), sampler=other.sampler())

    monkeypatch.setattr(deliver, "prepare", dishonest)
    with pytest.raises(ExportFailed, match="prior: blocks of 1 to 16 frames"):
        export(make_codec(), tmp_path / "x.ts", options=ExportOptions(), prior=small_prior(), time_it=False)
    assert not (tmp_path / "x.ts").exists()
