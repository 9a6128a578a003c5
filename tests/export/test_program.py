"""Programs of torch.export: loaded anew, played block by block."""

import json

import pytest
import torch

from rave_tools.errors import UserError
from rave_tools.export import program, stateless
from rave_tools.export.deliver import ExportFailed
from rave_tools.export.nn_tilde import FACTS_FILE
from rave_tools.export.prepare import ExportOptions
from rave_tools.export.program import export_program, load_program
from rave_tools.export.stateless import describe_written, play_step
from tests.export.small import make_noise_loud


@pytest.fixture(scope="module")
def written(tmp_path_factory, make_codec):
    """Any number of hops and rows."""
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    return export_program(make_noise_loud(make_codec(noise=True)), path, options=ExportOptions(), time_it=False)


@pytest.mark.slow
def test_files_lie_side_by_side_and_know_their_facts(written):
    folder = written.paths["forward"].parent
    assert sorted(path.name for path in folder.iterdir()) == ["model.pt2", "model_decode.pt2", "model_encode.pt2"]
    assert written.verification.passed and len(written.verification.checks) == 4
    extra = {FACTS_FILE: ""}
    torch.export.load(str(written.paths["encode"]), extra_files=extra)
    facts = json.loads(extra[FACTS_FILE])
    assert facts["method"] == "encode" and facts["state_size"] == written.state_sizes["encode"]
    assert facts["latency"] == written.facts.latency and facts["labels"][0] == "(signal) Latent dimension 1"
    assert any("any number of hops" in line for line in describe_written(written))


@pytest.mark.slow
def test_rows_have_their_own_state_and_knobs_are_heard(written):
    run = load_program(written.paths["forward"])
    x = 0.3 * torch.randn(3, 1, 640)
    size = written.state_sizes["forward"]
    together = play_step(run, x, [64, 192], state=torch.zeros(3, size))
    alone = play_step(run, x[1:2], [64, 192], state=torch.zeros(1, size))
    torch.testing.assert_close(alone, together[1:2], atol=1e-6, rtol=0)
    noisy = play_step(run, x, [64], state=torch.zeros(3, size), knobs=(0.0, 1.0))
    assert (noisy[..., :640] - play_step(run, x, [64], state=torch.zeros(3, size))).abs().max() > 1e-4


@pytest.mark.slow
def test_a_state_of_other_rows_is_refused(written):
    run = load_program(written.paths["forward"])
    with pytest.raises((AssertionError, RuntimeError)):
        run(torch.zeros(2, 1, 64), torch.zeros(2), torch.zeros(1, written.state_sizes["forward"]))


@pytest.mark.slow
def test_a_fixed_block_takes_that_block_only(tmp_path, make_codec):
    codec = make_codec(channels=2, padding="causal")
    fixed = export_program(codec, tmp_path / "model.pt2", options=ExportOptions(), block=128, time_it=False)
    assert fixed.verification.passed
    run = load_program(fixed.paths["forward"])
    state = torch.zeros(1, fixed.state_sizes["forward"])
    assert run(torch.zeros(1, 2, 128), torch.zeros(2), state)[0].shape == (1, 2, 128)
    with pytest.raises((AssertionError, RuntimeError)):
        run(torch.zeros(1, 2, 192), torch.zeros(2), state)


@pytest.mark.parametrize(
    ("options", "block", "message"),
    [
        ({"streaming": False}, None, "--nostreaming means nothing to --format pt2"),
        ({"buffered": True}, None, "--buffered means nothing to --format pt2: the queue"),
        ({"precision": "bf16"}, None, "--precision bf16 means nothing to --format pt2: it is written in fp32"),
        ({}, 100, "--block 100: a block is a whole number of hops of 64"),
    ],
)
def test_what_the_format_cannot_honour_is_refused(tmp_path, make_codec, options, block, message):
    with pytest.raises(UserError, match=message):
        export_program(make_codec(), tmp_path / "model.pt2", options=ExportOptions(**options), block=block)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_files_that_fail_are_not_left_behind_and_older_ones_stay(tmp_path, make_codec, monkeypatch):
    (tmp_path / "model.pt2").write_bytes(b"an older file")
    real = program.assemble

    def wrong(codec, options):
        assembled = real(codec, options)
        reference = assembled.reference
        assembled.reference = lambda audio: reference(audio).roll(1, -1)
        return assembled

    monkeypatch.setattr(program, "assemble", wrong)
    with pytest.raises(ExportFailed, match="equal the plain model: max error"):
        export_program(make_codec(), tmp_path / "model.pt2", options=ExportOptions(), block=64, time_it=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"an older file"


@pytest.mark.slow
def test_speed_is_measured_in_a_fresh_process(written):
    size = written.state_sizes["forward"]
    speed = stateless.measure_run(load_program, written.paths["forward"], written.facts, state_size=size, seconds=0.05)
    assert [times.hops for times in speed.times] == [1, 2, 4]
    assert all(times.median > 0 and times.worst >= times.median for times in speed.times)
