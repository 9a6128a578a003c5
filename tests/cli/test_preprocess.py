"""`rave_tools preprocess`, as a person types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from rave_tools.cli.main import main
from tests.data.sounds import RATE, chirp, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "sounds" / "a.wav", chirp(1.0, seed=1))
    write(tmp_path / "sounds" / "b.flac", chirp(0.6, channels=1, seed=2), file_format="FLAC")
    write(tmp_path / "sounds" / "silent.wav", np.zeros((1, 3000), np.float32))
    (tmp_path / "sounds" / "empty.wav").write_bytes(b"")
    return tmp_path


def run(folder, *more):
    words = [
        "preprocess",
        "--input_path",
        str(folder / "sounds"),
        "--output_path",
        str(folder / "db"),
        "--workers",
        "0",
    ]
    return main([*words, "--num_signal", "4096", "--sampling_rate", str(RATE), *more])


def test_the_table_says_what_became_of_every_file(folder, capsys):
    assert run(folder) == 0
    out = capsys.readouterr().out
    assert "empty.wav: is empty (0 bytes)" in out and "silent.wav: silent" in out
    assert "mixed to their mean" in out and "for validation" in out
    found, used, skipped = (
        next(line.split() for line in out.splitlines() if line.split()[:1] == [word])
        for word in ("found", "used", "skipped")
    )
    assert (found[1], used[1], skipped[1]) == ("4", "2", "2")
    assert yaml.safe_load((folder / "db" / "metadata.yaml").read_text())["n_seconds"] == pytest.approx(1.6)
    assert run(folder) == 0
    assert "complete already" in capsys.readouterr().out


def test_flags_of_rave_are_accepted_and_the_needless_ones_said(folder, capsys):
    assert run(folder, "--max_db_size", "10", "--nodyndb", "--channels", "2", "--ext", "wav,flac") == 0
    out = capsys.readouterr().out
    assert "--max_db_size is not needed" in out and "--dyndb is not needed" in out and "repeated to make 2" in out


def test_errors_are_one_line_and_the_exit_code_is_1(folder, capsys):
    assert run(folder, "--ext", "mp3") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no audio found: searched") and "1 .flac" in error and error.count("\n") == 1
    assert run(folder, "--strict") == 1
    assert "--strict: 2 of 4 files" in capsys.readouterr().err
    assert main(["preprocess", "--input_path", "x", "--output_path", "y", "--chanels", "2"]) == 2
    assert "channels" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(folder, capsys):
    assert run(folder, "--dry_run") == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (folder / "db").exists()


def test_lazy_asks_nothing(folder, capsys):
    assert run(folder, "--lazy") == 0
    assert "referred to" in capsys.readouterr().out
    assert yaml.safe_load((folder / "db" / "metadata.yaml").read_text())["lazy"] is True


@pytest.mark.slow
def test_a_killed_run_is_completed_by_the_same_command(tmp_path):
    for number in range(10):
        write(tmp_path / "sounds" / f"{number}.wav", chirp(40.0, seed=number), rate=RATE)
    words = [
        sys.executable,
        "-m",
        "rave_tools",
        "preprocess",
        "--input_path",
        str(tmp_path / "sounds"),
        "--workers",
        "1",
    ]
    words += ["--sampling_rate", "48000", "--channels", "2", "--num_signal", "65536", "--output_path"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*words, str(tmp_path / "db")], env=environment, stdout=subprocess.PIPE, text=True)
    journal, deadline = tmp_path / "db" / "sources.partial.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_text().count("\n") > 1:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "db" / "metadata.yaml").exists()
    for name in ("db", "whole"):
        subprocess.run([*words, str(tmp_path / name)], env=environment, check=True, capture_output=True)
    books = [(tmp_path / name / "sources.jsonl").read_text().splitlines() for name in ("db", "whole")]
    assert books[0] == books[1] and len(books[0]) == 11
    assert json.loads(books[0][1])["records"] == -(-40 * 48000 // 131072)
    from rave_tools.data.store import ExampleStore

    stores = [ExampleStore(tmp_path / name) for name in ("db", "whole")]
    assert len(stores[0]) == len(stores[1])
    for index in range(len(stores[0])):
        assert np.array_equal(stores[0].read(index, 0, 131072), stores[1].read(index, 0, 131072))
