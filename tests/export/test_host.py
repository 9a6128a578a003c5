"""Files in a real host: the C++ block host of tests/host/ plays them as nn~ does, in blocks, on threads."""

import json
import math
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from rave_tools import config
from rave_tools.export.deliver import export
from rave_tools.export.prepare import ExportOptions, prepare
from rave_tools.export.verify import make_quiet, play
from tests.export.small import small_codec
from tests.host import build
from tests.loud import make_loud

QUIET = ("--set", "temperature=0", "--set", "noise=0")
THREADS = ("none", "new", "worker")
SMALL = {"v1": 2, "v2": 4, "v2_small": 4, "brave": 4}
"""Models of the family that have a file in configs/models, and a capacity that keeps them quick."""


@pytest.fixture(scope="session")
def host():
    try:
        return build.build()
    except build.NoCompiler as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def run(host):
    def running(path, *arguments):
        command = [str(host), str(path), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return running


def write(path, audio, rate=44100):
    """(C, T) to a float wav."""
    soundfile.write(path, audio.T.numpy(), rate, subtype="FLOAT")
    return path


def read(path):
    """A wav to (C, T)."""
    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T.copy())


def python_stream(path, audio, sizes, methods=("forward",)):
    """What Python plays of the same file, everything random turned off."""
    module = torch.jit.load(str(path)).eval()
    make_quiet(module)
    return play(module, audio, sizes, methods)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Hop 64, noise branch."""
    path = tmp_path_factory.mktemp("small") / "small.ts"
    return export(small_codec(noise=True), path, options=ExportOptions(), time_it=False)


# ------------------------------------------------------------------------------------------ the host itself, on toys


class Toy(torch.nn.Module):
    """One method with a known answer; subclasses override ``answer``."""

    forward_params: torch.Tensor

    def __init__(self, params=(1, 1, 1, 1)):
        super().__init__()
        self.register_buffer("forward_params", torch.tensor(params))
        self.register_buffer("mode_params", torch.tensor([1]))
        self.mode = (0,)
        self.cache = torch.zeros(1)
        self.kept = [torch.zeros(1)]

    @torch.jit.export
    def get_methods(self) -> list[str]:
        return ["forward"]

    @torch.jit.export
    def get_attributes(self) -> list[str]:
        return ["none", "mode"]

    @torch.jit.export
    def get_mode(self) -> tuple[int]:
        return self.mode

    @torch.jit.export
    def set_mode(self, mode: int) -> int:
        self.mode = (mode,)
        return 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


class HalfRate(Toy):
    """Counts its frames, and takes the last sample of every four."""

    def __init__(self):
        super().__init__((1, 4, 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.0


class Fails(Toy):
    """Throws while mode is 1, answers too little while it is 2, NaN while it is 3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode[0] == 1:
            raise ValueError("on purpose")
        if self.mode[0] == 2:
            return x[..., 1:]
        elif self.mode[0] == 3:
            return x * math.nan
        return x.clone()


class Hungry(Toy):
    """Allocates a megabyte per block; keeps all of them while mode is 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feast = x[0, 0, :1].expand(262144).clone()
        if self.mode[0] == 1:
            self.kept.append(feast)
        return x + feast[0]


class RefusesToForget(Toy):
    """Its setter writes in place into what its forward assigned: impossible outside of InferenceMode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = x * 2
        return x.clone()

    @torch.jit.export
    def set_mode(self, mode: int) -> int:
        self.cache.zero_()
        return 0


class AnswersWrongly(Toy):
    """Its setter does its work and answers 1."""

    @torch.jit.export
    def set_mode(self, mode: int) -> int:
        self.mode = (mode,)
        return 1


def toy(tmp_path, cls):
    path = tmp_path / f"{cls.__name__}.ts"
    torch.jit.save(torch.jit.script(cls().eval()), str(path))
    return path


@pytest.mark.parametrize("thread", THREADS)
def test_the_host_adds_the_latency_of_its_block_and_of_its_thread(thread, tmp_path, run):
    sound = write(tmp_path / "in.wav", torch.rand(1, 4096) - 0.5)
    heard = tmp_path / "out.wav"
    report = run(toy(tmp_path, Toy), "--input", sound, "--block", 256, "--thread", thread, "--output", heard)
    late = 256 - 64 if thread == "none" else 512 - 64
    assert report["host_latency"] == late
    assert torch.equal(read(heard)[:, late:], read(sound)[:, : 4096 - late])
    assert not read(heard)[:, :late].any()


def test_frames_are_the_last_of_their_samples_and_are_held(tmp_path, run):
    sound = write(tmp_path / "in.wav", torch.arange(256.0)[None] / 256)
    run(toy(tmp_path, HalfRate), "--input", sound, "--block", 64, "--answers", tmp_path / "out.wav")
    expected = (torch.arange(256) // 4 * 4 + 3) / 256
    assert torch.equal(read(tmp_path / "out.wav")[0], expected)


def test_blocks_are_powers_of_two_and_no_smaller_than_the_largest_ratio(tmp_path, run, small):
    assert run(toy(tmp_path, Toy), "--block", 100, "--blocks", 2)["objects"][0]["block"] == 128
    assert run(small.path, "--block", 1, "--blocks", 2)["objects"][0]["block"] == 64


def test_a_block_that_fails_repeats_the_one_before(tmp_path, run):
    sound = write(tmp_path / "in.wav", torch.rand(1, 640) - 0.5)
    for mode, words in ((1, "on purpose"), (2, "returned 63 numbers, expected 64")):
        failing = ("--set", f"mode={mode}@4", "--set", "mode=0@6")
        report = run(
            toy(tmp_path, Fails), "--input", sound, "--block", 64, *failing, "--answers", tmp_path / "out.wav"
        )
        played, heard = read(sound).split(64, 1), read(tmp_path / "out.wav").split(64, 1)
        assert report["objects"][0]["errors"] == 2 and words in report["objects"][0]["first_error"]
        assert all(torch.equal(heard[i], played[3 if i in (4, 5) else i]) for i in range(10))


def test_samples_that_are_not_finite_and_blocks_that_are_late_are_counted(tmp_path, run):
    report = run(toy(tmp_path, Fails), "--block", 64, "--blocks", 10, "--set", "mode=3@7", "--sr", 10**9)
    assert report["objects"][0]["nonfinite"] == 3 * 64
    assert report["objects"][0]["late"] == 10


def test_the_counter_of_allocations_counts(tmp_path, run):
    lean = run(toy(tmp_path, Toy), "--block", 64, "--blocks", 200)["objects"][0]["allocations"]
    hungry = run(toy(tmp_path, Hungry), "--block", 64, "--blocks", 200)["objects"][0]["allocations"]
    assert 1 <= lean["call"]["min"] == lean["call"]["max"] <= 20
    assert lean["bytes"]["max"] < 10_000
    assert 2**20 <= hungry["bytes"]["min"] < 2**20 + 10_000
    assert lean["thread"]["p50"] == lean["process"]["p50"]


def growth(report):
    """Resident megabytes that came while playing."""
    return report["rss_mb"]["end"] - report["rss_mb"]["playing"][0]


def test_a_model_that_keeps_its_blocks_is_seen_to_grow(tmp_path, run):
    assert growth(run(toy(tmp_path, Hungry), "--block", 64, "--blocks", 200, "--set", "mode=1")) > 100
    assert growth(run(toy(tmp_path, Hungry), "--block", 64, "--blocks", 200)) < 3


@pytest.mark.parametrize(
    ("cls", "words"), [(RefusesToForget, "Inplace update to inference tensor"), (AnswersWrongly, "did not answer 0")]
)
def test_setters_run_outside_of_inference_mode_and_must_answer_zero(cls, words, tmp_path, run):
    report = run(toy(tmp_path, cls), "--block", 64, "--blocks", 10, "--set", "mode=1@5", "--set", "nothing=1@6")
    assert [entry["ok"] for entry in report["sets"]] == [False, False]
    assert words in report["sets"][0]["error"]
    assert "no attribute nothing" in report["sets"][1]["error"]


def test_a_file_that_is_no_model_ends_with_one_line(tmp_path, host):
    (tmp_path / "no.ts").write_text("nothing")
    done = subprocess.run([host, tmp_path / "no.ts"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("host: ") and done.stderr.count("frame #") == 0


# ----------------------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize("thread", THREADS)
def test_every_kind_of_thread_plays_what_python_plays(thread, tmp_path, run, small):
    audio = 0.3 * torch.randn(1, 64 * 120)
    sound = write(tmp_path / "in.wav", audio)
    files = ("--output", tmp_path / "heard.wav", "--answers", tmp_path / "answers.wav")
    report = run(small.path, "--input", sound, "--block", 256, "--vector", 64, "--thread", thread, *QUIET, *files)
    expected = python_stream(small.path, audio[None], [256])[0]
    torch.testing.assert_close(read(tmp_path / "answers.wav"), expected, atol=1e-6, rtol=0)
    late = report["host_latency"]
    heard = read(tmp_path / "heard.wav")
    torch.testing.assert_close(heard[:, late:], expected[:, : heard.shape[1] - late], atol=1e-6, rtol=0)
    assert report["objects"][0]["errors"] == report["objects"][0]["nonfinite"] == 0


@pytest.mark.parametrize("hops", [1, 2])
def test_encoder_and_decoder_in_two_objects_are_the_whole_model(hops, tmp_path, run, small):
    """Each object adds its block; the frames between them are held, so the second finds each of them once."""
    block, vector = 64 * hops, 16
    audio = 0.3 * torch.randn(1, 64 * 100)
    sound = write(tmp_path / "in.wav", audio)
    run(small.path, "--input", sound, "--block", block, "--vector", vector, "--method", "encode,decode", *QUIET,
        "--output", tmp_path / "heard.wav")  # fmt: skip
    heard, late = read(tmp_path / "heard.wav"), 2 * block - 64 - vector
    expected = python_stream(small.path, audio[None], [block])[0]
    settled = 0 if hops == 1 else 64 * 40  # two hops: the decoder hears one frame of silence before it all begins
    torch.testing.assert_close(
        heard[:, late + settled :], expected[:, settled : heard.shape[1] - late], atol=1e-6, rtol=0
    )


def test_rows_of_mc_are_models_of_their_own(tmp_path, run, small):
    audio = 0.3 * torch.randn(3, 64 * 40)
    sound = write(tmp_path / "in.wav", audio)
    run(small.path, "--input", sound, "--block", 128, "--batch", 3, *QUIET, "--answers", tmp_path / "out.wav")
    for row, answer in enumerate(read(tmp_path / "out.wav")):
        alone = python_stream(small.path, audio[row][None, None], [128])[0, 0]
        torch.testing.assert_close(answer, alone, atol=1e-6, rtol=0)


def test_stereo_goes_in_and_out(tmp_path, run):
    path = export(small_codec(channels=2), tmp_path / "s.ts", options=ExportOptions(), time_it=False).path
    audio = 0.3 * torch.randn(2, 64 * 40)
    run(path, "--input", write(tmp_path / "in.wav", audio), "--block", 128, *QUIET, "--answers", tmp_path / "out.wav")
    torch.testing.assert_close(
        read(tmp_path / "out.wav"), python_stream(path, audio[None], [128])[0], atol=1e-6, rtol=0
    )


def test_the_block_size_may_change_while_it_plays(tmp_path, run, small):
    audio = 0.3 * torch.randn(1, 20 * 128 + 20 * 1024 + 20 * 64)
    sound = write(tmp_path / "in.wav", audio)
    report = run(small.path, "--input", sound, "--blocks", 60, "--block", 128, "--bufsize", "1024@20",
                 "--bufsize", "64@40", *QUIET, "--thread", "new", "--answers", tmp_path / "out.wav")  # fmt: skip
    expected = python_stream(small.path, audio[None], [128] * 20 + [1024] * 20 + [64] * 20)[0]
    torch.testing.assert_close(read(tmp_path / "out.wav"), expected, atol=1e-6, rtol=0)
    assert report["objects"][0]["errors"] == 0


def test_attributes_are_listed_set_and_read(run, small):
    sets = ("--set", "temperature=0.5@3", "--set", "noise=0.25@4", "--set", "latency=5@5", "--set", "reset=1@6")
    report = run(small.path, "--block", 64, "--blocks", 10, *sets)
    found = report["attributes"]
    assert {name: found[name]["types"] for name in ("temperature", "noise", "latency", "reset")} == {
        "temperature": [2], "noise": [2], "latency": [1], "reset": [1]
    }  # fmt: skip
    assert found["temperature"]["value"] == [0.5] and found["noise"]["value"] == [0.25]
    assert found["latency"]["value"] == [small.facts.latency]
    assert [entry["ok"] for entry in report["sets"]] == [True, True, False, True]
    assert report["methods"] == {"encode": [1, 1, 4, 64], "decode": [4, 64, 1, 1], "forward": [1, 1, 1, 1]}


@pytest.mark.parametrize("thread", THREADS)
def test_reset_begins_anew_and_nothing_less_does(thread, tmp_path, run, small):
    half = 0.3 * torch.randn(1, 64 * 50)
    sound = write(tmp_path / "in.wav", torch.cat([half, half], 1))
    answers = []
    for extra in (("--set", "reset=1@50"), ()):
        run(small.path, "--input", sound, "--block", 64, "--thread", thread, *QUIET, *extra,
            "--answers", tmp_path / "out.wav")  # fmt: skip
        answers.append(read(tmp_path / "out.wav"))
    first, second = answers[0].chunk(2, 1)
    assert torch.equal(first, second)
    assert not torch.equal(*answers[1].chunk(2, 1))


def test_not_a_number_does_not_haunt(tmp_path, run, small):
    audio = 0.3 * torch.randn(1, 64 * 400)
    poisoned = audio.clone()
    poisoned[0, 1000:1005] = torch.tensor([math.nan, math.inf, -math.inf, 4e21, -4e21])
    answers = []
    for signal in (audio, poisoned):
        sound = write(tmp_path / "in.wav", signal)
        report = run(small.path, "--input", sound, "--block", 64, *QUIET, "--answers", tmp_path / "out.wav")
        assert report["objects"][0]["nonfinite"] == report["objects"][0]["errors"] == 0
        answers.append(read(tmp_path / "out.wav"))
    assert not torch.equal(*answers)
    torch.testing.assert_close(answers[0][:, -64:], answers[1][:, -64:], atol=1e-6, rtol=0)


@pytest.fixture(scope="module", params=["v2_small", "brave"])
def live(request, tmp_path_factory):
    """A low latency model and a small one of the family, with few channels; blocks of one hop, at least 128."""
    torch.manual_seed(2)
    codec = config.load([request.param], [f"CAPACITY = {SMALL[request.param]}"]).build("CODEC").eval()
    path = tmp_path_factory.mktemp(request.param) / "live.ts"
    delivered = export(codec, path, options=ExportOptions(latent_size=8), time_it=False)
    return delivered, max(delivered.facts.hop, 128)


@pytest.mark.parametrize("thread", ["none", "new"])
def test_a_live_model_plays_what_python_plays_and_in_time(thread, live, tmp_path, run):
    delivered, block = live
    audio = 0.3 * torch.randn(1, block * 60)
    sound = write(tmp_path / "in.wav", audio)
    report = run(delivered.path, "--input", sound, "--block", block, "--thread", thread, *QUIET,
                 "--answers", tmp_path / "out.wav")  # fmt: skip
    played = report["objects"][0]
    assert played["block"] == block and played["blocks"] == 60
    assert played["errors"] == played["nonfinite"] == 0
    assert played["cpu_ms"]["p50"] < played["budget_ms"]
    assert played["allocations"]["thread"]["p50"] == played["allocations"]["thread"]["min"]
    expected = python_stream(delivered.path, audio[None], [block])[0]
    torch.testing.assert_close(read(tmp_path / "out.wav"), expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A causal codec with an LSTM, whose frames of 320 samples fit no block of nn~; with the queue from the start."""
    torch.manual_seed(2)
    codec = config.load(["encodec_baseline"], ["CAPACITY = 2", "LATENT_SIZE = 6"]).build("CODEC").eval()
    make_loud(codec)
    path = tmp_path_factory.mktemp("odd") / "odd.ts"
    return codec, export(codec, path, options=ExportOptions(buffered=True), time_it=False)


@pytest.mark.parametrize("thread", ["none", "new"])
@pytest.mark.parametrize("block", [64, 512, 1024, 2048])
def test_a_codec_of_odd_frames_plays_the_plain_model_and_no_block_allocates_more_than_the_others(
    block, thread, odd, tmp_path, run
):
    """nn~ makes no block shorter than a frame, so 64 samples are 512."""
    codec, delivered = odd
    audio = 0.3 * torch.randn(1, 2048 * 60)
    sound = write(tmp_path / "in.wav", audio, rate=24000)
    report = run(delivered.path, "--input", sound, "--block", block, "--thread", thread, *QUIET[:2], "--warm", 30,
                 "--answers", tmp_path / "out.wav")  # fmt: skip
    played, (late,) = report["objects"][0], report["attributes"]["latency"]["value"]
    assert played["errors"] == played["nonfinite"] == 0 and played["block"] == max(block, 512)
    assert late == delivered.facts.latency + 320
    expected = prepare(codec, ExportOptions()).reference(audio[None])[0]
    heard = read(tmp_path / "out.wav")
    torch.testing.assert_close(heard[:, late:], expected[:, : heard.shape[1] - late], atol=1e-4, rtol=0)
    allocations = played["allocations"]["call"]
    assert allocations["max"] < 1.3 * allocations["min"] and allocations["max"] < 1200
    assert growth(report) < 4


def test_odd_frames_as_objects_of_their_own_are_refused_in_words(odd, run):
    report = run(odd[1].path, "--block", 512, "--blocks", 20, "--method", "encode")
    assert "whole latent frames of 320 samples; play forward" in report["objects"][0]["first_error"]


GARBAGE = {
    "nan": math.nan,
    "inf": math.inf,
    "minus_inf": -math.inf,
    "uninitialised": 4e21,
    "denormal": 1e-42,
}


def test_a_live_model_survives_garbage_and_reset_ends_what_is_left_of_it(live, tmp_path, run):
    """Whole blocks of each kind of garbage; never an answer that is not finite, and after a reset no trace of it."""
    delivered, block = live
    clean = 0.3 * torch.randn(1, block * 8)
    garbage = torch.cat([torch.full((1, 2 * block), value) for value in GARBAGE.values()], 1)
    sound = write(tmp_path / "in.wav", torch.cat([clean, garbage, clean], 1))
    at = (clean.shape[1] + garbage.shape[1]) // block
    report = run(delivered.path, "--input", sound, "--block", block, *QUIET, "--set", f"reset=1@{at}",
                 "--answers", tmp_path / "out.wav")  # fmt: skip
    assert report["objects"][0]["errors"] == report["objects"][0]["nonfinite"] == 0
    assert report["sets"][-1]["ok"]
    heard = read(tmp_path / "out.wav")
    assert torch.equal(heard[:, -clean.shape[1] :], heard[:, : clean.shape[1]])


def test_denormals_are_silence_to_a_live_model(live, tmp_path, run):
    """Numbers that a processor has to compute in software cost four times as much; they are cut at the door."""
    delivered, block = live
    answers = []
    for name, value in (("silence", 0.0), ("denormal", 1e-42)):
        sound = write(tmp_path / f"{name}.wav", torch.full((1, block * 20), value))
        run(delivered.path, "--input", sound, "--block", block, *QUIET, "--answers", tmp_path / "out.wav")
        answers.append(read(tmp_path / "out.wav"))
    assert torch.equal(*answers)


def test_attributes_of_a_live_model_turn_while_a_thread_computes(live, tmp_path, run):
    """Messages come from the host's thread, blocks from one of its own; rows of mc keep apart."""
    delivered, block = live
    sets = [("--set", f"temperature={value}@{place}") for place, value in ((5, 0), (9, 1), (13, 0))]
    sets.append(("--set", "reset=1@14"))
    flat = [word for pair in sets for word in pair]
    audio = torch.cat([0.3 * torch.randn(1, block * 30), torch.zeros(1, block * 30)])
    sound = write(tmp_path / "in.wav", audio)
    report = run(delivered.path, "--input", sound, "--block", block, "--batch", 2, "--thread", "new",
                 "--set", "noise=0", *flat, "--answers", tmp_path / "out.wav")  # fmt: skip
    known = [entry["ok"] for entry in report["sets"] if entry["name"] in report["attributes"]]
    assert len(known) == len(report["sets"]) - ("noise" not in report["attributes"]) and all(known)
    assert report["attributes"]["temperature"]["value"] == [0]
    assert report["objects"][0]["errors"] == report["objects"][0]["nonfinite"] == 0
    heard = read(tmp_path / "out.wav")
    quiet = python_stream(delivered.path, audio[:1, 14 * block :][None], [block])[0]
    torch.testing.assert_close(heard[:1, 14 * block :], quiet, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("thread", "megabytes"), [("none", 0.5), ("worker", 0.5), ("new", 4.0)])
def test_memory_is_flat_over_ten_thousand_blocks(thread, megabytes, run, small):
    """Ten thousand threads, one per block, leave stacks and arenas behind: the host's own, and no more than these."""
    report = run(small.path, "--block", 64, "--blocks", 10_000, "--thread", thread, "--warm", 200)
    played = report["objects"][0]
    assert played["blocks"] == 10_000 and played["errors"] == played["nonfinite"] == 0
    assert growth(report) < megabytes
    assert played["allocations"]["thread"]["p50"] == played["allocations"]["thread"]["p999"]


def existing(*mixins):
    """(name, configurations, capacity) of the models whose files are there."""
    files = {path.stem for path in (build.HERE.parents[1] / "configs" / "models").glob("*.gin")}
    return [pytest.param([name, *mixins], SMALL[name], id="+".join([name, *mixins])) for name in SMALL if name in files]


CONFIGURATIONS = [*existing(), *(case for case in existing("causal") if "brave" not in case.id)]


@pytest.mark.slow
@pytest.mark.parametrize(("names", "capacity"), CONFIGURATIONS)
def test_a_model_of_the_family_plays_and_is_as_late_as_it_says(names, capacity, tmp_path, run):
    """Its stream is Python's, and an impulse in the host is the plain model's answer, late by latency and host."""
    torch.manual_seed(1)
    codec = config.load(names, [f"CAPACITY = {capacity}"]).build("CODEC").eval()
    options = ExportOptions(latent_size=min(8, codec.latent_dim))
    delivered = export(codec, tmp_path / "model.ts", options=options, time_it=False)
    facts, prepared = delivered.facts, prepare(codec, options)
    block = max(facts.hop, 128)
    left, right = prepared.receptive_field
    at = -(-(left + facts.latency) // block) * block + 37
    blocks = (at + facts.latency + left + right) // block + 4
    answers = {}
    for kind in ("silence", f"impulse@{at}"):
        report = run(delivered.path, "--input", kind, "--blocks", blocks, "--block", block, *QUIET,
                     "--output", tmp_path / "heard.wav", "--answers", tmp_path / "answers.wav")  # fmt: skip
        assert report["objects"][0]["errors"] == report["objects"][0]["nonfinite"] == 0
        answers[kind[:7]] = read(tmp_path / "heard.wav").double()
    response = (answers["impulse"] - answers["silence"])[0]

    impulse = torch.zeros(1, 1, blocks * block)
    impulse[..., at] = 1.0
    stream = python_stream(delivered.path, impulse, [block])[0]
    torch.testing.assert_close(read(tmp_path / "answers.wav"), stream, atol=1e-6, rtol=0)

    moved = torch.zeros(1, 1, blocks * block)
    moved[..., at + facts.offset] = 1.0
    plain = (prepared.reference(moved) - prepared.reference(torch.zeros_like(moved))).double()[0, 0]
    late = facts.latency - facts.offset + report["host_latency"]
    assert best_shift(response, plain) == late
    error = (response[late:] - plain[: response.shape[0] - late]).abs().max()
    assert error < 1e-4 * plain.abs().max()
    if names == ["brave"]:
        assert 1000 * (facts.latency + report["host_latency"]) / facts.sample_rate < 10


def best_shift(late, early):
    """By how many samples ``early`` must be delayed to look most like ``late``."""
    size = 2 * len(late)
    spectrum = np.fft.rfft(late.numpy(), size) * np.conj(np.fft.rfft(early.numpy(), size))
    return int(np.argmax(np.fft.irfft(spectrum, size)))
