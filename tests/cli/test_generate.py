"""``rave_tools generate`` as a person types it: a run, its export, and an export by other hands."""

import numpy as np
import pytest
import soundfile
import torch

from rave_tools import config
from rave_tools.cli.main import main
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
    assert main(["export", "--run", str(folder.path), "--output", str(root / "tiny.ts"), "--nospeed"]) == 0
    return folder.path, root / "tiny.ts"


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    time = np.arange(RATE) / RATE
    left = 0.4 * np.sin(2 * np.pi * 220 * time)
    for name, audio, rate in (
        ("mono.wav", left, RATE),
        ("deep/stereo.flac", np.stack([left, -left], 1)[:30000], 48000),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, audio, rate)
    return folder


@pytest.mark.parametrize("kind", ["run", "export"])
@pytest.mark.parametrize("words", [[], ["--stream"], ["--stream", "--chunk_size", "2048"]])
def test_a_folder_goes_through_and_the_same_tree_comes_out(kind, words, models, sounds, tmp_path, capsys):
    model = models[kind == "export"]
    command = ["generate", "--model", str(model), "--input", str(sounds), "--out_path", str(tmp_path / "out"), *words]
    assert main(command) == 0
    mono, rate = soundfile.read(tmp_path / "out" / "mono.wav", always_2d=True)
    assert (mono.shape, rate) == ((RATE, 1), RATE)
    stereo, rate = soundfile.read(tmp_path / "out" / "deep" / "stereo.wav", always_2d=True)
    assert (stereo.shape, rate) == ((round(30000 * RATE / 48000), 2), RATE)
    out = capsys.readouterr().out
    assert "files written  2" in out and "problems       0" in out
    assert "resampled from 48000 to 44100 Hz" in out and "each channel on its own" in out


def test_blocks_of_64_samples_go_through_the_exports_own_queue(models, sounds, tmp_path):
    outputs = []
    for size in ("64", "512", "1024", "2048"):
        out = tmp_path / size
        words = ["--model", str(models[1]), "--input", str(sounds / "mono.wav"), "--out_path", str(out)]
        words += ["--bits", "float", "--temperature", "0", "--stream", "--chunk_size", size]
        assert main(["generate", *words]) == 0
        outputs.append(soundfile.read(out / "mono.wav")[0])
    assert np.abs(outputs[0]).max() > 1e-3
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], atol=1e-6)


def test_a_corrupt_file_is_listed_and_the_exit_code_says_so(models, sounds, tmp_path, capsys):
    (sounds / "broken.wav").write_bytes(b"RIFF nothing of the kind")
    words = ["--model", str(models[0]), "--input", str(sounds), "--out_path", str(tmp_path / "out")]
    assert main(["generate", *words]) == 1
    out = capsys.readouterr().out
    assert "problems       1" in out and "broken.wav" in out and "[no output]" in out
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.wav")) == ["mono.wav", "stereo.wav"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "missing.ts"], "no such file"),
        (["--model", "missing"], "no run at missing"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--input", "missing.wav"], "no such file or folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(models, sounds, tmp_path, capsys, words, message):
    defaults = {"--model": str(models[0]), "--input": str(sounds), "--out_path": str(tmp_path / "out")}
    defaults |= dict(zip(words[::2], words[1::2], strict=True))
    assert main(["generate", *(word for pair in defaults.items() for word in pair)]) == 1
    assert message in capsys.readouterr().err


def test_an_export_without_streaming_plays_whole_files_only(models, sounds, tmp_path, capsys):
    path = tmp_path / "whole.ts"
    assert main(["export", "--run", str(models[0]), "--nostreaming", "--output", str(path), "--nospeed"]) == 0
    words = ["generate", "--model", str(path), "--input", str(sounds / "mono.wav"), "--out_path", str(tmp_path / "out")]
    assert main(words) == 0
    assert main([*words, "--stream"]) == 1
    assert "without streaming" in capsys.readouterr().err
