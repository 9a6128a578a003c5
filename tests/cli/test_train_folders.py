"""``rave_tools train --audio_path``: from a folder of sound files to a run, without a database."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from rave_tools import config
from rave_tools.cli import training_data
from rave_tools.cli.main import main
from rave_tools.runs import open_run

TINY = [
    "--config", "v2_small", "--override", "CAPACITY = 4", "--override", "LATENT_SIZE = 8",
    "--override", "PHASE_1_DURATION = 20", "--override", "MultiScaleSTFT.scales = [512, 128]",
    "--n_signal", "16384", "--batch", "2", "--workers", "0", "--accelerator", "cpu", "--noestimate",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes")
    for number in range(3):
        audio = np.random.default_rng(number).uniform(-0.3, 0.3, (48000 + 24000, 4))
        soundfile.write(path / f"{number}.wav", audio, 48000, format="RF64", subtype="PCM_24")
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    words = ["train", *TINY, "--audio_path", str(folder), "--out_path", str(out), "--name", "one"]
    assert main([*words, "--max_steps", "3", "--val_every", "2", "--pick_by", "duration"]) == 0
    return out / "one"


def test_a_run_keeps_its_folder_flags_and_segments(trained, folder):
    flags = open_run(trained).facts["flags"]
    assert flags["audio_path"] == [str(folder)] and flags["db_path"] is None and flags["pick_by"] == "duration"
    content = json.loads((trained / "validation_segments.json").read_text())
    assert len(content["files"]) == 1 and {channel for _, _, channel in content["segments"]} <= {0, 1, 2, 3}
    assert content["settings"] == {"sampling_rate": 44100, "n_signal": 16384, "channels": 1}


def test_resume_takes_the_same_folder_and_segments(trained, capsys):
    before = (trained / "validation_segments.json").read_bytes()
    words = ["train", "--resume", str(trained), "--max_steps", "4", "--workers", "0", "--accelerator", "cpu"]
    assert main([*words, "--noestimate"]) == 0
    output = capsys.readouterr().out
    assert "taken up again from" in output and "every second as likely" in output
    assert (trained / "validation_segments.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "or --audio_path: a folder of sound files"),
        (["--audio_path", "FOLDER", "--db_path", "x"], "give one of both"),
        (["--audio_path", "/nowhere"], "/nowhere: no such file or folder (given as --audio_path)"),
        (["--audio_path", "FOLDER", "--channels", "32"], "do not have the 32 channels of the model"),
        (["--audio_path", "FOLDER", "--channel_choice", "random"], "--channel_choice is for --db_path"),
        (["--db_path", "x", "--truncated", "use"], "--truncated is for --audio_path"),
    ],
)
def test_mistakes_get_one_line(words, message, folder, tmp_path, capsys):
    words = [str(folder) if word == "FOLDER" else word for word in words]
    assert main(["train", *TINY, *words, "--out_path", str(tmp_path), "--name", "x"]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_configuration_says_window_and_batch(folder, tmp_path):
    extra = tmp_path / "recipe.gin"
    extra.write_text("N_SIGNAL = 16384\nBATCH = 3\n")
    words = [word for word in TINY if word not in ("--n_signal", "16384", "--batch", "2")]
    words = ["train", *words, "--config", str(extra), "--audio_path", str(folder), "--out_path", str(tmp_path)]
    assert main([*words, "--name", "a", "--max_steps", "1"]) == 0
    flags = open_run(tmp_path / "a").facts["flags"]
    assert (flags["n_signal"], flags["batch"]) == (16384, 3)


def test_a_database_of_four_channels_feeds_one_random_channel(folder, tmp_path):
    database = tmp_path / "db"
    words = ["--input_path", str(folder), "--output_path", str(database), "--num_signal", "16384", "--channels", "4"]
    assert main(["preprocess", *words]) == 0
    words = ["train", *TINY, "--db_path", str(database), "--out_path", str(tmp_path), "--name", "b", "--max_steps", "1"]
    assert main([*words, "--channels", "1"]) == 1
    assert main([*words, "--channels", "1", "--channel_choice", "random"]) == 0


@pytest.mark.parametrize(("saved", "expected"), [({}, 24000), ({"n_signal": 16000}, 16000)])
def test_an_imported_run_takes_its_window_from_its_configuration(saved, expected):
    """It has no flags of a training before it; a run that has keeps them."""
    values = {"n_signal": saved.get("n_signal", 131072), "batch": 8}
    flags = {name: SimpleNamespace(present=False) for name in values}
    opened = SimpleNamespace(facts={"flags": saved})
    training_data.take_macros(values, flags, opened, config.load(["encodec_24khz"]))
    assert values == {"n_signal": expected, "batch": 8}
