"""``rave_tools train`` as a person types it, on a few seconds of synthetic sound."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from rave_tools.cli.main import main
from rave_tools.runs import open_run

SMALL = [
    "--config", "v2_small", "--override", "CAPACITY = 4", "--override", "LATENT_SIZE = 8",
    "--override", "PHASE_1_DURATION = 2", "--override", "MultiScaleSTFT.scales = [512, 128]",
]  # fmt: skip
TINY = [*SMALL, "--n_signal", "16384", "--batch", "2", "--workers", "0", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    time_axis = np.arange(2 * 44100) / 44100
    for number in range(4):
        tone = 0.3 * np.sin(2 * np.pi * 110 * (number + 1) * time_axis)
        soundfile.write(folder / f"{number}.wav", tone.astype("f4"), 44100)
    path = folder / "db"
    assert main(["preprocess", "--input_path", str(folder), "--output_path", str(path), "--num_signal", "16384"]) == 0
    return path


@pytest.fixture(scope="module")
def trained(database, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    words = ["train", *TINY, "--db_path", str(database), "--out_path", str(out), "--name", "one", "--max_steps", "4"]
    assert main([*words, "--val_every", "2", "--ema", "0.9"]) == 0
    return out / "one"


def test_a_run_leaves_everything(trained):
    assert (trained / "config.gin").read_text().count("CAPACITY = 4") == 1
    typed = (trained / "command.txt").read_text().splitlines()[-1]
    assert typed.startswith("rave_tools train ") and "--config=v2_small" in typed
    assert "'--override=CAPACITY = 4'" in typed and "--max_steps=4" in typed
    assert list(trained.glob("events.out.tfevents.*"))
    opened = open_run(trained, which="best", ema=True)
    assert open_run(trained).step == 4
    assert opened.facts["flags"]["n_signal"] == 16384


def test_its_configuration_alone_rebuilds_the_codec(trained):
    from rave_tools import config

    opened = open_run(trained)
    codec = config.load([], text=opened.config_text).build("CODEC")
    codec.load_state_dict(opened.part("codec"))


def test_a_run_is_not_overwritten(trained, database, capsys):
    words = ["train", *TINY, "--db_path", str(database), "--out_path", str(trained.parent), "--name", "one"]
    assert main(words) == 1
    assert "--resume" in capsys.readouterr().err


def test_resume_needs_nothing_else_and_says_what_changes(trained, capsys):
    words = ["train", "--resume", str(trained), "--max_steps", "5", "--workers", "0", "--accelerator", "cpu"]
    assert main([*words, "--override", "BETA_TARGET = 0.03"]) == 0
    output = capsys.readouterr().out
    assert "resuming at step 4, phase 2" in output
    assert "changed on resume: BETA_TARGET = 0.03 (was 0.01" in output
    assert open_run(trained).step == 5
    assert "BETA_TARGET = 0.03" in (trained / "config.gin").read_text()
    assert (trained / "command.txt").read_text().count("# 20") == 2
    assert main(["train", "--resume", str(trained), "--max_steps", "5"]) == 1
    assert "raise --max_steps" in capsys.readouterr().err


def test_a_run_in_two_halves_equals_a_whole_one(trained, database, tmp_path):
    words = [
        "train",
        *TINY,
        "--db_path",
        str(database),
        "--out_path",
        str(tmp_path),
        "--val_every",
        "2",
        "--noestimate",
    ]
    assert main([*words, "--name", "whole", "--max_steps", "5"]) == 0
    assert main([*words, "--name", "half", "--max_steps", "3"]) == 0
    assert (
        main(["train", "--resume", str(tmp_path / "half"), "--max_steps", "5", "--workers", "0", "--noestimate"]) == 0
    )
    whole, half = open_run(tmp_path / "whole"), open_run(tmp_path / "half")
    assert whole.facts["batches"] == half.facts["batches"] > 5
    for name, weight in whole.state_dict.items():
        assert torch.equal(weight, half.state_dict[name]), name


def test_init_from_says_what_was_taken(trained, database, tmp_path, capsys):
    words = ["train", *TINY, "--db_path", str(database), "--out_path", str(tmp_path), "--name", "two", "--smoke_test"]
    assert main([*words, "--init_from", str(trained), "--override", "LATENT_SIZE = 4", "--noestimate"]) == 0
    output = capsys.readouterr().out
    assert "initial weights:" in output and "not taken: codec.latent_pca is (8, 8) in the checkpoint, (4, 4)" in output
    assert open_run(tmp_path / "two").step == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "x"], "--db_path is required"),
        (["--db_path", "/nowhere/db", "--name", "x"], "/nowhere/db"),
        (["--resume", "/nowhere/run"], "no run at /nowhere/run"),
        (["--name", "x", "--accelerator", "abacus"], "none of auto, cpu, cuda, mps"),
        (["--name", "x", "--devices", "two"], "neither a number"),
        (["--name", "x", "--rand_pitch", "up"], "two factors"),
        (["--name", "x", "--precision", "16"], "CUDA"),
        (["--name", "x", "--override", "CAPACTY = 4"], "CAPACITY"),
        (["--name", "x", "--config", "v22"], "v2"),
        (["--name", "x", "--ema", "2"], "--ema"),
        (["--name", "x", "--n_signal", "16385"], "--n_signal"),
    ],
)
def test_mistakes_get_one_line(words, message, database, tmp_path, capsys):
    given = (
        [] if "--db_path" in words or "--resume" in words or words == ["--name", "x"] else ["--db_path", str(database)]
    )
    cpu = [] if "--accelerator" in words else ["--accelerator", "cpu"]
    small = TINY[:-2] if "--config" not in words and "--resume" not in words else []
    assert main(["train", *small, *given, *cpu, "--out_path", str(tmp_path), *words]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_misspelt_flag_gets_a_hint(capsys):
    assert main(["train", "--bach", "8"]) == 2
    assert "--batch" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(signum, database, tmp_path):
    words = ["train", *TINY, "--db_path", str(database), "--out_path", str(tmp_path), "--name", "long", "--noestimate"]
    words[words.index("--workers") + 1] = "1"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rave_tools", *words], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "step 1/" in line:
            break
    time.sleep(0.5)
    os.killpg(process.pid, signum)  # as a terminal does: the loaders are told as well
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, "".join(lines) + rest
    assert "go on with: rave_tools train --resume" in rest
    assert "Traceback" not in rest
    assert open_run(tmp_path / "long").step >= 1
