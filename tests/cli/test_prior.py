"""A prior as a person makes it: train on a codec's latents, go on, listen, export."""

import numpy as np
import pytest
import soundfile
import torch

from rave_tools import config
from rave_tools.cli.main import main
from rave_tools.runs import RunDirectory, open_run

RATE = 44100
CODEC = """
from __gin__ import dynamic_registration
include 'v2_small.gin'
CAPACITY = 4
LATENT_SIZE = 8
"""
SMALL = ["--override", "RES_SIZE = 16", "--override", "SKP_SIZE = 16", "--override", "N_LAYERS = 3"]
MACHINE = ["--batch", "2", "--workers", "0", "--accelerator", "cpu", "--noestimate"]

pytestmark = pytest.mark.slow


def make_codec_run(folder, seed):
    """A run folder with random weights and an analysed latent space: its first 4 axes carry 95 %."""
    torch.manual_seed(seed)
    codec = config.load([], text=CODEC).build("CODEC")
    codec.fidelity.copy_(torch.tensor([0.5, 0.8, 0.9, 0.94, 0.97, 0.98, 0.99, 1.0]))
    codec.latent_pca.copy_(torch.linalg.qr(torch.randn(8, 8))[0])
    weights = {f"codec.{name}": value for name, value in codec.state_dict().items()}
    RunDirectory(folder).create().save("last", {"state_dict": weights, "config": CODEC, "rave_tools": {}})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A database, a codec's run and another one's."""
    folder = tmp_path_factory.mktemp("prior")
    time = np.arange(3 * RATE) / RATE
    (folder / "sound").mkdir()
    for number in range(3):
        tone = 0.3 * np.sin(2 * np.pi * 110 * (number + 1) * time) * np.sin(2 * np.pi * 3 * time)
        soundfile.write(folder / "sound" / f"{number}.wav", tone.astype("f4"), RATE)
    words = ["--input_path", str(folder / "sound"), "--output_path", str(folder / "db"), "--num_signal", "16384"]
    assert main(["preprocess", *words]) == 0
    make_codec_run(folder / "codec", 0)
    make_codec_run(folder / "stranger", 1)
    return folder


def train(place, name, *words):
    folders = ["--db_path", str(place / "db"), "--out_path", str(place), "--name", name]
    return main(["train", *folders, *MACHINE, *SMALL, *words])


@pytest.fixture(scope="module")
def prior(place):
    words = ["--model", str(place / "codec"), "--n_signal", "16384", "--max_steps", "4", "--val_every", "2"]
    assert train(place, "prior", *words, "--ema", "0.9") == 0
    return place / "prior"


def test_its_run_is_complete_in_itself(place, prior):
    opened, codec = open_run(prior), open_run(place / "codec")
    assert opened.step == 4 and opened.facts["model"] == str(place / "codec")
    text = opened.config_text
    assert "CONTROLS = 4" in text and "CAPACITY = 4" in text and "PHASE_1_DURATION" not in text
    for name, value in codec.part("codec").items():
        assert torch.equal(opened.part("codec")[name], value), name
    network = config.load([], text=text).build("PRIOR")
    network.load_state_dict(opened.part("prior"))
    assert network.latent_size == 4 and not torch.equal(network.latent_scale, torch.ones(4))
    assert set(opened.extra["ema"]) == {f"prior.{name}" for name, _ in network.named_parameters()}
    assert list(prior.glob("events.out.tfevents.*"))


def test_the_window_holds_what_the_prior_sees_unless_it_is_given(place, capsys):
    words = ["--model", str(place / "codec"), "--smoke_test", "--override", "LatentPrior.cycle_size = 7"]
    assert train(place, "wide", *words, "--override", "N_LAYERS = 7", "--override", "seconds = 0") == 1
    assert "seconds" in capsys.readouterr().err
    words += ["--override", "PriorTrainingWrapper.seconds = 0", "--override", "N_LAYERS = 7"]
    assert train(place, "wide", *words) == 0
    # 257 frames of the past and 4 of the diagonal, up to a power of two: 512 frames of 512 samples.
    assert open_run(place / "wide").facts["flags"]["n_signal"] == 512 * 512
    out = capsys.readouterr().out
    assert "4 of 8 latents to predict" in out and "Prior     | LatentPrior" in out


def test_a_run_in_two_halves_equals_a_whole_one(place):
    words = ["--model", str(place / "codec"), "--n_signal", "16384", "--val_every", "2"]
    assert train(place, "whole", *words, "--max_steps", "5") == 0
    assert train(place, "half", *words, "--max_steps", "3") == 0
    resume = ["train", "--resume", str(place / "half"), "--max_steps", "5", *MACHINE[2:]]
    assert main([*resume, "--model", str(place / "codec")]) == 1
    assert main(resume) == 0
    whole, half = open_run(place / "whole"), open_run(place / "half")
    assert half.facts["model"] == str(place / "codec")
    for name, value in whole.state_dict.items():
        assert torch.equal(value, half.state_dict[name]), name


def test_it_plays(place, prior, tmp_path, capsys):
    words = ["generate", "--model", str(place / "codec"), "--prior", str(prior), "--seconds", "1.5"]
    for name, more in (("a", []), ("b", []), ("other seed", ["--seed", "1"]), ("cold", ["--temperature", "0"])):
        assert main([*words, *more, "--bits", "float", "--out_path", str(tmp_path / name)]) == 0
    sounds = {path.parent.name: soundfile.read(path) for path in tmp_path.rglob("prior.wav")}
    assert all(rate == RATE and audio.shape == (round(1.5 * RATE),) for audio, rate in sounds.values())
    assert np.array_equal(sounds["a"][0], sounds["b"][0])
    assert not np.array_equal(sounds["a"][0], sounds["other seed"][0])
    assert all(np.isfinite(audio).all() and audio.std() > 0 for audio, _ in sounds.values())
    assert "4 latents, temperature 0" in capsys.readouterr().out


def test_it_goes_into_the_export(place, prior, tmp_path, capsys):
    path = tmp_path / "both.ts"
    words = ["export", "--run", str(place / "codec"), "--prior", str(prior), "--output", str(path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "encode, decode, forward, prior" in out and "FAILED" not in out
    assert "prior" in out.split("real-time factor")[-1]
    module = torch.jit.load(str(path))
    assert module.prior_params.tolist() == [1, 512, 4, 512]
    assert main([*words, "--latent_size", "3"]) == 1
    assert "the prior draws 4 latents" in capsys.readouterr().err
    assert main([*words, "--fidelity", "0.9"]) == 1
    assert "the prior decides how many latents" in capsys.readouterr().err


def test_the_prior_of_another_codec_is_refused(place, prior, tmp_path, capsys):
    for words in (
        ["export", "--run", str(place / "stranger"), "--prior", str(prior), "--output", str(tmp_path)],
        ["generate", "--model", str(place / "stranger"), "--prior", str(prior), "--out_path", str(tmp_path)],
    ):
        assert main(words) == 1
        assert f"is the prior of another codec ({place / 'codec'})" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["export", "--run", str(place / "codec"), "--prior", str(place / "codec")]) == 1
    assert "holds no prior" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "prior/rave_prior"], "give --model, the run folder of a trained codec"),
        (["--config", "v2", "--config", "prior/rave_prior", "--override", "CAPACITY = 4", "--override", "CONTROLS = 4"],
         "give --model"),
        (["--model", "{codec}", "--config", "v2"], "v2 trains a codec itself"),
        (["--model", "{codec}", "--override", "CONTROLS = 16"], "predicts 16 latents and the codec has 8"),
        (["--model", "{codec}", "--override", "CONTROLS = 3"], "no multiple of its 3 latents"),
        (["--model", "{codec}", "--n_signal", "2048"], "4 latent frames"),
        (["--model", "{codec}", "--channels", "2"], "--channels is a fact of the codec"),
        (["--model", "/nowhere/run"], "no run at /nowhere/run"),
        (["--model", "{codec}", "--override", "RESOLUTON = 8"], "Did you mean RESOLUTION"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(place, capsys, words, message):
    words = [word.format(codec=place / "codec") for word in words]
    assert train(place, "never", *words, "--max_steps", "1") == 1
    assert message in capsys.readouterr().err
    assert not (place / "never" / "checkpoints" / "last.ckpt").exists()


def test_generate_wants_either_files_or_a_prior(place, prior, capsys):
    words = ["generate", "--model", str(place / "codec")]
    assert main(words) == 1
    assert "--input is required" in capsys.readouterr().err
    assert main([*words, "--prior", str(prior), "--input", str(place / "sound")]) == 1
    assert "leave --input out" in capsys.readouterr().err
    assert main(["generate", "--model", "x.ts", "--prior", str(prior)]) == 1
    assert "the run it was trained on" in capsys.readouterr().err
