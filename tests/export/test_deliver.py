"""Files as hosts load them: exact, complete, and never left behind when they are not."""

import json

import pytest
import torch

from rave_tools import config
from rave_tools.errors import UserError
from rave_tools.export import deliver
from rave_tools.export.deliver import ExportFailed, describe, export, too_slow
from rave_tools.export.nn_tilde import FACTS_FILE, LABELS, NUMBERS
from rave_tools.export.prepare import ExportOptions, prepare
from rave_tools.export.speed import BlockTimes, Speed
from rave_tools.export.verify import make_quiet, play
from rave_tools.nn.normalization import SWITCHES
from tests.loud import make_loud


def make_file(tmp_path, codec, **options):
    return export(codec, tmp_path / "model.ts", options=ExportOptions(**options), time_it=False)


CASES = {
    "mono": ({}, {}),
    "noise branch, host twice as fast": ({"noise": True}, {"sample_rate": 88200}),
    "host half as fast": ({"padding": "causal"}, {"sample_rate": 22050}),
    "stereo": ({"channels": 2}, {}),
    "mono to three outputs": ({"noise": True}, {"channels": 3}),
    "stereo to one output": ({"channels": 2, "padding": "causal"}, {"channels": 1}),
    "all latents, queue from the start": ({}, {"latent_size": 8, "buffered": True}),
    "without streaming": ({}, {"streaming": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_file_verifies_itself(case, tmp_path, make_codec):
    codec, options = CASES[case]
    delivered = make_file(tmp_path, make_codec(**codec), **options)
    assert delivered.verification.passed
    assert (tmp_path / "model.ts").stat().st_size == delivered.size < 1_500_000
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"]
    assert any("latency" in line for line in describe(delivered))
    assert any("CLICK" in warning for warning in delivered.warnings) == (case == "without streaming")


def test_codes_in_a_space_of_their_own(tmp_path):
    """Not lowered: vectors are compared with codes behind a projection."""
    torch.manual_seed(0)
    sizes = ["CAPACITY = 2", "LATENT_SIZE = 4", "NUM_QUANTIZERS = 3", "CODEBOOK_SIZE = 16", "NOISE_AUGMENTATION = 3"]
    codec = config.load(["discrete"], [*sizes, "ResidualVectorQuantization.codebook_dim = 2"]).build("CODEC").eval()
    make_loud(codec)
    assert make_file(tmp_path, codec).verification.passed


@pytest.mark.parametrize(("factors", "said"), [
    ((0.3, 0.2), None),
    ((1.5, 0.8), "in blocks of 64 samples; blocks of 128 take 0.80 of their duration"),
    ((7.7, 3.9), "too slow to play live on this machine: 3.9 times the duration of a block at best"),
])  # fmt: skip
def test_a_file_that_no_host_here_can_play_says_so(mono, factors, said):
    times = tuple(BlockTimes(i + 1, 0.01, 0.01 * factor, 0.02, 20) for i, factor in enumerate(factors))
    warnings = too_slow(Speed(0.1, (0.1,), 0.01, times), mono.facts)
    assert mono.facts.hop == 64 and (said in warnings[0] if said else not warnings)
    assert not too_slow(None, mono.facts)


@pytest.fixture(scope="module")
def mono(tmp_path_factory, make_codec):
    path = tmp_path_factory.mktemp("mono") / "mono.ts"
    return export(make_codec(noise=True), path, options=ExportOptions(), time_it=False)


def load(delivered):
    return torch.jit.load(str(delivered.path)).eval()


def test_the_file_carries_its_facts(mono):
    extra = {FACTS_FILE: ""}
    module = torch.jit.load(str(mono.path), _extra_files=extra)
    assert all(hasattr(module, name) for name in (*NUMBERS, *LABELS))
    assert json.loads(extra[FACTS_FILE])["latency"] == mono.facts.latency == module.latency_samples
    assert module.get_latency() == (mono.facts.latency,)
    assert module.encode_params.tolist() == [1, 1, 4, 64]
    assert module.decode_params.tolist() == [4, 64, 1, 1]
    assert module.encode_output_labels[0] == "(signal) Latent dimension 1"


def test_fidelity_chooses_a_power_of_two_and_latent_size_is_exact(tmp_path, make_codec):
    codec = make_codec()
    assert prepare(codec, ExportOptions(fidelity=0.95)).facts.latent_size == 4
    assert prepare(codec, ExportOptions(latent_size=3)).facts.latent_size == 3
    with pytest.raises(UserError, match="8 latents; choose between 1 and 8"):
        make_file(tmp_path, make_codec(), latent_size=9)


def test_an_impulse_comes_out_no_earlier_than_causality_allows_and_around_the_latency(mono):
    module = load(mono)
    make_quiet(module)
    blocks = [64]
    silence = torch.zeros(1, 1, 64 * 60)
    tone = silence.clone()
    at = 64 * 30 + 11
    tone[..., at] = 1.0
    before = play(module, silence, blocks)
    module.set_reset(1)
    change = (play(module, tone, blocks) - before).abs()[0, 0]
    assert change[:at].max() < 1e-6
    assert at <= change.argmax() <= at + 2 * mono.facts.latency


def test_temperature_and_noise_make_it_random_and_zero_makes_it_repeatable(mono):
    module = load(mono)
    x = 0.2 * torch.randn(1, 1, 640)

    def twice():
        runs = []
        for _ in range(2):
            module.set_reset(1)
            runs.append(play(module, x, [64]))
        return (runs[0] - runs[1]).abs().max()

    assert twice() > 1e-4
    module.set_temperature(0.0)
    only_noise = twice()
    assert only_noise > 0
    module.set_noise(0.0)
    assert twice() == 0
    assert module.get_noise() == (0.0,)


def test_rows_of_a_batch_do_not_hear_each_other(mono):
    module = load(mono)
    make_quiet(module)
    x = 0.2 * torch.randn(3, 1, 640)
    together = play(module, x, [64, 128])
    for row in range(3):
        module.set_reset(1)
        alone = play(module, x[row : row + 1], [64, 128])
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-6, rtol=0)


def test_short_blocks_go_through_the_queue_one_hop_later(mono):
    module = load(mono)
    make_quiet(module)
    x = 0.2 * torch.randn(1, 1, 6400)
    direct = play(module, x, [64])
    module.set_reset(1)
    queued = play(module, x, [10])
    assert module.get_buffered() == (1,)
    assert module.get_latency() == (mono.facts.latency + 64,)
    torch.testing.assert_close(queued[..., 64:], direct[..., : queued.shape[-1] - 64], atol=1e-6, rtol=0)
    module.set_buffered(0)
    assert module.get_latency() == (mono.facts.latency,)


def test_the_answer_to_one_block_is_not_state_of_the_module(mono):
    module = load(mono)
    with torch.inference_mode():
        first = module.encode(torch.randn(1, 1, 64))
        kept = first.clone()
        first.fill_(1e9)
        second = module.encode(torch.zeros(1, 1, 64))
    assert torch.isfinite(kept).all() and second.abs().max() < 1e3


@pytest.mark.parametrize("streaming", [True, False])
def test_switches_of_adaptive_normalisation_are_attributes(tmp_path, make_codec, streaming):
    options = ExportOptions(streaming=streaming)
    export(make_codec(adaptive=True), tmp_path / "model.ts", options=options, time_it=False)
    model = torch.jit.load(str(tmp_path / "model.ts"))
    assert [name for name in model.get_attributes() if name in SWITCHES] == list(SWITCHES)
    model.set_temperature(0.0)
    torch.manual_seed(0)
    voice, target = 0.1 * torch.randn(1, 1, 64 * 32), torch.rand(1, 1, 64 * 32)
    before = model.forward(voice)
    model.set_reset(1)
    assert model.set_learn_target(1) == 0 and model.get_learn_target() == (1,)
    model.forward(target)
    model.set_learn_target(0)
    model.set_learn_source(1)
    model.forward(voice)
    model.set_learn_source(0)
    dressed = model.forward(voice)
    assert (dressed - before)[..., 64 * 16 :].abs().max() > 1e-3 * before.abs().max()
    model.set_reset_target(1)
    model.forward(voice)
    assert model.get_reset_target() == (1,) and model.set_reset_target(0) == 0
    model.forward(voice)
    if streaming:
        model.set_reset(1)
    assert torch.equal(model.forward(voice), before)


def test_models_without_adaptive_normalisation_have_no_switches(mono):
    model = load(mono)
    assert not set(SWITCHES) & set(model.get_attributes())
    assert model.set_learn_source(1) != 0 and model.get_learn_source() == (0,)


def test_stereo_mode_as_switch_of_any_kind(mono):
    module = load(mono)
    for switch in (True, 1, torch.tensor(1)):
        module.set_stereo_mode(switch)
        assert module.decode(torch.zeros(2, 8, 3)).shape == (1, 2, 192)
        module.set_stereo_mode(False)
    assert module.decode(torch.zeros(2, 4, 3)).shape == (2, 1, 192)


def test_a_file_that_fails_is_not_left_behind_and_an_older_one_stays(tmp_path, make_codec, monkeypatch):
    old = b"an older file"
    (tmp_path / "model.ts").write_bytes(old)
    real = deliver.prepare

    def wrong_latency(codec, options, prior=None):
        prepared = real(codec, options, prior)
        prepared.reference = lambda audio: 2 * audio
        return prepared

    monkeypatch.setattr(deliver, "prepare", wrong_latency)
    with pytest.raises(ExportFailed, match="equal the plain model: max error"):
        make_file(tmp_path, make_codec())
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"]
    assert (tmp_path / "model.ts").read_bytes() == old


def test_a_model_that_hears_nothing_is_refused_in_words(tmp_path, make_codec):
    codec = make_codec()
    for name, parameter in codec.decoder.named_parameters():
        if name.endswith("weight_g"):
            torch.nn.init.zeros_(parameter)
    with pytest.raises(UserError, match="no input reaches the output .* doctor"):
        make_file(tmp_path, codec)
    assert not list(tmp_path.iterdir())


def test_speed_is_measured_in_a_fresh_process(mono):
    speed = deliver.measure_speed(mono.path, seconds=0.05)
    assert [times.hops for times in speed.times] == [1, 2, 4]
    assert all(times.median > 0 and times.worst >= times.median for times in speed.times)
    assert len(speed.first) == 2


def test_a_run_without_latent_analysis_says_so(make_codec):
    codec = make_codec()
    codec.fidelity.zero_()
    prepared = prepare(codec, ExportOptions())
    assert prepared.facts.latent_size == 8
    assert any("never analysed" in warning for warning in prepared.warnings)
