"""``rave_tools evaluate`` as a person types it: a run beside its export, and what lies in the folder afterwards."""

import csv
import json
import statistics
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from rave_tools import config
from rave_tools.cli import evaluate
from rave_tools.cli.main import main
from rave_tools.contracts import Latent
from rave_tools.errors import UserError
from rave_tools.inference.evaluate import Contestant, Evaluation
from rave_tools.runs import RunDirectory

CONFIG = """
from __gin__ import dynamic_registration
include 'v2.gin'
include 'causal.gin'
CAPACITY = 4
RATIOS = [4, 2, 2, 2]
LATENT_SIZE = 8
"""
RATE = 44100


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(run folder, its export) with random weights made loud enough to compare."""
    torch.manual_seed(0)
    codec = config.load([], text=CONFIG).build("CODEC")
    with torch.no_grad():
        for name, value in codec.named_parameters():
            if name.endswith("weight_g"):
                value.mul_(1.6)
    weights = {f"codec.{name}": value for name, value in codec.state_dict().items()}
    root = tmp_path_factory.mktemp("models")
    folder = RunDirectory(root / "tiny").create()
    folder.save("last", {"state_dict": weights, "config": CONFIG, "rave_tools": {"generator_updates": 7}})
    assert main(["export", "--run", str(folder.path), "--output", str(root / "live.ts"), "--nospeed"]) == 0
    return str(folder.path), str(root / "live.ts")


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    time = np.arange(RATE) / RATE
    left = 0.4 * np.sin(2 * np.pi * 220 * time)
    for name, audio, rate in (
        ("mono.wav", left, RATE),
        ("deep/stereo.flac", np.stack([left, -left], 1)[:30000], 48000),
        ("deep/<silent> & still.wav", 0 * left[:20000], RATE),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, audio, rate)
    return folder


def call(models, sounds, out, *words):
    named = [word for model in models for word in ("--model", model)]
    return main(["evaluate", *named, "--input", str(sounds), "--output", str(out), "--noprogress", *words])


def rows_in(out):
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Tags with their attributes, the text of cells, and what a page must not have: an unclosed or unknown end."""

    void = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def test_a_run_beside_its_export(models, sounds, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(models, sounds, out, "--temperature", "0") == 0
    text = capsys.readouterr().out
    for said in ("model tiny: 44100 Hz", "7 updates", "streams, latency of", "at most 30 s from the middle",
                 "each channel on its own (1 file)", "resampled from 48000 to 44100 Hz",
                 "files without a value: SI-SDR 1 silent; STFT distance 1 silent",
                 "Frechet distance on log-mel", "problems  0", "threads"):  # fmt: skip
        assert said in text, said

    rows = rows_in(out)
    assert [(row["model"], row["file"]) for row in rows] == [
        (model, file)
        for file in ("deep/<silent> & still.wav", "deep/stereo.flac", "mono.wav") for model in ("tiny", "live")
    ]  # fmt: skip
    silent = rows[0]
    assert silent["si_sdr"] == "" and "si_sdr: silent" in silent["undefined"] and float(silent["l1"]) >= 0
    assert {row["channels"] for row in rows} == {"1", "2"} and all(float(row["realtime"]) > 0 for row in rows)

    summary = json.loads((out / "summary.json").read_text())
    assert (summary["files"], summary["problems"], summary["interrupted"]) == (3, {}, "")
    for model in summary["models"]:
        values = [float(row["si_sdr"]) for row in rows if row["model"] == model["name"] and row["si_sdr"]]
        found = model["measures"]["si_sdr"]
        assert found["mean"] == statistics.fmean(values) and found["worst"] == min(values)
        assert found["undefined"] == {"silent": 1} and found["count"] == 2
        assert model["frechet"]["value"] > 0 and model["frechet"]["count"] > 64 and model["bitrate_kbps"] is None
    offline, live = summary["models"]
    assert live["streaming"] and live["latency_samples"] > 0 and not offline["streaming"]
    # The stream begins and ends otherwise, but its latency taken out it is the same model.
    for name in ("l1", "mel", "stft"):
        assert live["measures"][name]["mean"] == pytest.approx(offline["measures"][name]["mean"], rel=0.01), name


def test_the_page_stands_alone(models, sounds, tmp_path):
    out = tmp_path / "out"
    assert call(models, sounds, out, "--players", "2", "--clip_seconds", "0.2") == 0
    text = (out / "report.html").read_text()
    page = Page(text)
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links and all(link.startswith("data:") for link in links)
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    assert page.count("audio") == 2 * 3 and page.count("img") == 2 * 3 + 1 and page.count("table") == 2
    assert all(link.startswith(("data:audio/flac;base64,", "data:image/png;base64,")) for link in links)
    assert any(cell.startswith("deep/<silent> & still.wav") for cell in page.cells) and "<silent>" not in text
    assert "prefers-color-scheme: dark" in text and "aria-sort" in text
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.csv", "summary.json"]


def test_the_same_words_give_the_same_numbers(models, sounds, tmp_path):
    both = []
    for name in ("a", "b"):
        assert call(models, sounds, tmp_path / name, "--seconds", "0.3", "--seed", "3", "--limit", "2") == 0
        both.append([{k: v for k, v in row.items() if k != "realtime"} for row in rows_in(tmp_path / name)])
    assert both[0] == both[1] and len(both[0]) == 4
    assert {row["seconds"] for row in both[0]} == {"0.3"}
    settings = json.loads((tmp_path / "a" / "summary.json").read_text())["settings"]
    assert settings["files"] == "2 of 3, drawn with seed 3"


def test_a_corrupt_file_is_counted_and_the_rest_measured(models, sounds, tmp_path, capsys):
    (sounds / "broken.wav").write_bytes(b"RIFF nothing of the kind")
    out = tmp_path / "out"
    assert call(models[:1], sounds, out) == 1
    text = capsys.readouterr().out
    assert "problems  1" in text and "broken.wav: is not audio" in text
    assert len(rows_in(out)) == 4 and "broken.wav" in json.loads((out / "summary.json").read_text())["problems"]
    assert "broken.wav: is not audio" in (out / "report.html").read_text()


@pytest.mark.parametrize("rows", [2, 3])
def test_ctrl_c_keeps_what_is_done(models, sounds, tmp_path, capsys, monkeypatch, rows):
    whole, left = Evaluation._play, [rows]

    def play(self, *arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        whole(self, *arguments)

    monkeypatch.setattr(Evaluation, "_play", play)
    out = tmp_path / "out"
    assert call(models, sounds, out) == 130
    assert "interrupted: 1 of 3 files were finished" in capsys.readouterr().out
    assert len(rows_in(out)) == rows
    summary = json.loads((out / "summary.json").read_text())
    assert ("with some of the models" in summary["interrupted"]) == (rows == 3)
    assert "Interrupted" in (out / "report.html").read_text()


def test_interrupted_before_the_first_file_there_is_still_a_page(models, sounds, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "warm_up", stop)
    assert call(models, sounds, tmp_path / "out") == 130
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["files"] == 0 and summary["models"][0]["measures"]["si_sdr"]["mean"] is None
    Page((tmp_path / "out" / "report.html").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "missing.ts"], "no such file"),
        (["--model", "missing"], "no run at missing"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--input", "missing.wav"], "no such file or folder"),
        (["--measures", "si_snr"], "--measures si_snr: there are si_sdr, l1"),
        (["--bandwidth", "6"], "none of these is one"),
        (["--bandwidth", "much"], "--bandwidth much: kilobits"),
        (["--embedding", "missing.ts"], "missing.ts: there is no such file"),
        (["--embedding", "missing"], "no run at missing"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(models, sounds, tmp_path, capsys, words, message):
    defaults = {"--model": models[0], "--input": str(sounds), "--output": str(tmp_path / "out")}
    defaults |= dict(zip(words[::2], words[1::2], strict=True))
    assert main(["evaluate", *(word for pair in defaults.items() for word in pair)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_before_anything_is_done(models, sounds, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pystoi", None)
    assert call(models, sounds, tmp_path / "out", "--measures", "l1,stoi") == 1
    assert "rave_tools[metrics]" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_measures_can_be_chosen_and_latents_of_a_run_embed(models, sounds, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(models[:1], sounds, out, "--measures", "l1,frechet", "--embedding", models[0], "--rate", "22050") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["models"][0]["measures"]) == ["l1"] and summary["embedding"].startswith("latents of tiny")
    assert summary["models"][0]["frechet"]["dimension"] == 8
    text = capsys.readouterr().out
    assert "compared at 22050 Hz" in text and "latents of tiny" in text
    assert call(models[:1], sounds, out, "--measures", "l1") == 0
    assert "frechet" not in json.loads((out / "summary.json").read_text())["models"][0]


def test_input_and_output_may_be_one_folder(models, sounds):
    assert call(models[:1], sounds, sounds, "--measures", "l1") == 0
    assert len(rows_in(sounds)) == 3


def test_models_of_one_name_are_told_apart(models):
    contestants = [Contestant("tiny", path, None) for path in ("a/tiny", "b/tiny", "b/tiny")]
    evaluate._tell_apart(contestants)
    assert [c.name for c in contestants] == ["tiny (a/tiny)", "tiny (b/tiny) (1)", "tiny (b/tiny) (2)"]


class TestCodes:
    def codec(self):
        """What the command asks of a codec with codebooks: 4 of 256, at 50 frames per second."""
        codec = SimpleNamespace(num_codebooks=4, codebook_size=256, channels=1, hop=320, sample_rate=16000, asked=[])

        def set_bandwidth(kilobits):
            if kilobits > 1.6:
                raise ValueError("this model has 0.4, 0.8, 1.2 and 1.6 kb/s")
            codec.num_codebooks = round(kilobits / 0.4)

        def encode(audio, *, deterministic):
            codes = torch.zeros(1, codec.num_codebooks, audio.shape[-1] // codec.hop)
            return Latent(torch.zeros(1, 8, 16), codes)

        codec.set_bandwidth, codec.encode = set_bandwidth, encode
        return codec

    @pytest.fixture
    def flags(self, monkeypatch):
        codec = self.codec()
        opened = SimpleNamespace(path="runs/coded/checkpoints/last.ckpt", step=5)
        monkeypatch.setattr(evaluate, "open_codec", lambda path, **_: (codec, opened))
        monkeypatch.setattr(evaluate, "run_name", lambda path: "coded")
        # The machine keeps what the codec was when it was made, as a deep copy does.
        monkeypatch.setattr(
            "rave_tools.inference.reconstruct.machine_of", lambda codec, **_: SimpleNamespace(books=codec.num_codebooks)
        )
        return lambda words: _parsed(["--model", "runs/coded", "--input", "x", *words])

    def test_each_bandwidth_is_a_model(self, flags):
        found = evaluate.open_contestants(flags(["--bandwidth", "0.4,1.6"]))
        assert [(c.name, c.bitrate, c.machine.books) for c in found] == [
            ("coded @ 0.4 kb/s", 0.4, 1), ("coded @ 1.6 kb/s", 1.6, 4)
        ]  # fmt: skip
        (found,) = evaluate.open_contestants(flags([]))
        assert (found.name, found.bitrate) == ("coded", 1.6)

    def test_one_that_the_model_does_not_have(self, flags):
        with pytest.raises(UserError, match=r"--bandwidth 24: runs/coded: this model has 0.4"):
            evaluate.open_contestants(flags(["--bandwidth", "24"]))

    def test_codebooks_that_were_never_placed_have_no_rate(self):
        codec = self.codec()
        codec.encode = lambda audio, *, deterministic: Latent(torch.zeros(1, 8, 16))
        assert evaluate.code_rate(codec) is None


def _parsed(words):
    from rave_tools.cli import usage

    flags = usage.new_flags(evaluate)
    flags(["evaluate", *words])
    return flags


def test_players_are_spread():
    assert evaluate.spread(3, 8) == {0, 1, 2} and evaluate.spread(100, 4) == {12, 37, 62, 87}
    assert evaluate.spread(5, 0) == set()
