"""Folders through a model: the same tree out, every file accounted for."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

from rave_tools.errors import UserError
from rave_tools.inference.files import Choices, lay_out, plan, process_files
from rave_tools.inference.reconstruct import Machine, machine_of


def echo(channels=1, out_channels=None, sample_rate=8000):
    """A machine that returns what it hears."""
    out = out_channels or channels
    return Machine(
        process=lambda x: x.repeat(1, out, 1)[:, :out],
        restart=lambda: None,
        sample_rate=sample_rate,
        channels=channels,
        out_channels=out,
        unit=16,
        hop=16,
        streaming=False,
    )


def write(path, channels=1, seconds=1.0, rate=8000, level=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    audio = level * np.stack([np.sin(2 * np.pi * 200 * (c + 1) * time) for c in range(channels)], 1)
    soundfile.write(path, audio, rate, subtype="FLOAT")
    return audio.T


def run(jobs, machine, **choices):
    return list(process_files(jobs, machine, choices=Choices(**choices)))


def read(path):
    audio, rate = soundfile.read(path, always_2d=True)
    return audio.T, rate


def test_the_tree_comes_out_as_it_went_in(tmp_path):
    for name in ("a.wav", "deep/b.flac", "deep/er/c.WAV", "notes.txt", "._a.wav"):
        path = tmp_path / "in" / name
        if path.suffix == ".flac":
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.zeros(800), 8000)
        elif path.suffix.lower() == ".wav" and not name.startswith("."):
            write(path)
        else:
            path.write_text("no sound")
    jobs = plan([str(tmp_path / "in")], str(tmp_path / "out"))
    outcomes = run(jobs, echo())
    assert all(outcome.written and not outcome.problem for outcome in outcomes)
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert made == ["a.wav", "deep/b.wav", "deep/er/c.wav"]


def test_names_that_would_clash_and_several_folders_keep_apart(tmp_path):
    write(tmp_path / "x" / "a.wav")
    soundfile.write(tmp_path / "x" / "a.flac", np.zeros(800), 8000)
    write(tmp_path / "y" / "a.wav")
    jobs = plan([str(tmp_path / "x"), str(tmp_path / "y")], str(tmp_path / "out"))
    targets = sorted(str(job.target.relative_to(tmp_path / "out")) for job in jobs)
    assert targets == ["x/a.flac.wav", "x/a.wav.wav", "y/a.wav"]
    again = plan([str(tmp_path)], str(tmp_path / "out"))
    assert len(again) == 3


def test_inputs_are_never_replaced_and_never_invented(tmp_path):
    write(tmp_path / "a.wav")
    with pytest.raises(UserError, match="would replace an input"):
        plan([str(tmp_path / "a.wav")], str(tmp_path))
    with pytest.raises(UserError, match="no such file or folder"):
        plan([str(tmp_path / "missing")], str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no audio in"):
        plan([str(tmp_path / "empty")], str(tmp_path / "out"))


def test_a_damaged_file_is_listed_and_the_others_go_on(tmp_path):
    write(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "b.wav").write_bytes(b"RIFF but not really")
    (tmp_path / "in" / "c.wav").write_bytes(b"")
    write(tmp_path / "in" / "d.wav", seconds=0)
    write(tmp_path / "in" / "e.wav")
    outcomes = run(plan([str(tmp_path / "in")], str(tmp_path / "out")), echo())
    assert [outcome.written for outcome in outcomes] == [True, False, False, False, True]
    assert all(bool(outcome.problem) != outcome.written for outcome in outcomes)
    assert "empty" in outcomes[2].problem
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.wav", "e.wav"]


def test_a_model_that_fails_leaves_no_half_file(tmp_path):
    machine = echo()

    def fail(x):
        raise RuntimeError("out of memory")

    machine.process = fail
    write(tmp_path / "in" / "a.wav")
    (outcome,) = run(plan([str(tmp_path / "in")], str(tmp_path / "out")), machine)
    assert "out of memory" in outcome.problem
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("file", "model", "rows", "note"),
    [
        (1, 1, 1, ""),
        (2, 1, 2, "each channel on its own"),
        (1, 2, 1, "1 channel repeated to 2"),
        (4, 2, 2, "each 2 channels on its own"),
        (3, 2, 1, "first 2 of 3"),
    ],
)
def test_any_channel_count_is_handled_and_said(file, model, rows, note):
    layout = lay_out(file, echo(model))
    assert (layout.rows, note in layout.note) == (rows, True)
    assert layout.arrange(torch.zeros(file, 7)).shape == (rows, model, 7)


@pytest.mark.parametrize(("file", "model"), [(1, 4), (2, 4), (6, 4), (32, 25)])
def test_channels_that_mean_places_are_never_made_up(tmp_path, file, model):
    with pytest.raises(UserError, match=f"has {file} channel.*takes {model}"):
        lay_out(file, echo(model))
    write(tmp_path / "a.wav", channels=file)
    (outcome,) = run(plan([str(tmp_path / "a.wav")], str(tmp_path / "out")), echo(model))
    assert not outcome.written and f"takes {model}" in outcome.problem


class OnFullDisk(soundfile.SoundFile):
    """What libsndfile does where there is no room: for a header, while writing, or for the last bytes."""

    when = ""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        if self.mode == "w" and self.when == "opened":
            self.close()
            raise soundfile.LibsndfileError(2)

    def write(self, data):
        if self.when == "written":
            raise soundfile.LibsndfileError(2)
        super().write(data)

    def close(self):
        finished = self.mode == "w" and not self.closed
        super().close()
        if finished and self.when == "closed":
            raise soundfile.LibsndfileError(2)


@pytest.mark.parametrize("when", ["opened", "written", "closed"])
def test_a_full_disk_is_called_by_its_name_and_leaves_no_half_file(tmp_path, monkeypatch, when):
    write(tmp_path / "in" / "a.wav")
    jobs = plan([str(tmp_path / "in")], str(tmp_path / "out"))
    monkeypatch.setattr(OnFullDisk, "when", when)
    monkeypatch.setattr(soundfile, "SoundFile", OnFullDisk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    (outcome,) = run(jobs, echo())
    assert "disk is full" in outcome.problem and not outcome.written
    assert not list((tmp_path / "out").iterdir())


def test_no_channel_of_a_model_of_many_is_left_out():
    assert lay_out(8, echo(4)).rows == 2
    with pytest.raises(UserError, match="has 8 channels, and the model takes 4"):
        lay_out(8, echo(4, out_channels=1))


def test_mono_model_with_two_outputs_mixes_down():
    layout = lay_out(2, echo(1, out_channels=2))
    assert layout.rows == 1 and "mixed" in layout.note


def test_stereo_through_a_mono_model_stays_stereo_and_the_rate_is_the_models(tmp_path):
    audio = write(tmp_path / "a.wav", channels=2, rate=8000)
    (outcome,) = run(plan([str(tmp_path / "a.wav")], str(tmp_path / "out")), echo(sample_rate=16000), subtype="FLOAT")
    made, rate = read(tmp_path / "out" / "a.wav")
    assert rate == 16000 and made.shape == (2, 16000)
    assert "resampled from 8000 to 16000 Hz" in outcome.notes
    np.testing.assert_allclose(made[:, 1000:-1000:2], audio[:, 500:-500], atol=2e-3)


def test_the_rate_can_be_kept(tmp_path):
    audio = write(tmp_path / "a.wav", rate=8000)
    jobs = plan([str(tmp_path / "a.wav")], str(tmp_path / "out"))
    run(jobs, echo(sample_rate=16000), subtype="FLOAT", keep_rate=True)
    made, rate = read(tmp_path / "out" / "a.wav")
    assert rate == 8000 and made.shape == audio.shape
    np.testing.assert_allclose(made[:, 500:-500], audio[:, 500:-500], atol=5e-3)


def test_clipping_is_counted(tmp_path):
    write(tmp_path / "a.wav", level=1.5)
    (outcome,) = run(plan([str(tmp_path / "a.wav")], str(tmp_path / "out")), echo())
    assert any("clipped" in note for note in outcome.notes)
    assert np.abs(read(tmp_path / "out" / "a.wav")[0]).max() <= 1


def test_samples_that_are_not_finite_are_counted_on_both_sides(tmp_path):
    audio = np.full(8000, 0.1, np.float32)
    audio[100:103] = np.nan, np.inf, -np.inf
    soundfile.write(tmp_path / "a.wav", audio, 8000, subtype="FLOAT")
    jobs = plan([str(tmp_path / "a.wav")], str(tmp_path / "out"))
    (outcome,) = run(jobs, echo())
    assert not outcome.problem and "3 samples that are not finite made silent" in outcome.notes
    machine = echo()
    machine.process = lambda x: x * np.inf
    (outcome,) = run(jobs, machine)
    assert "not finite" in outcome.problem
    assert np.isfinite(read(tmp_path / "out" / "a.wav")[0]).all()


def test_a_long_file_is_read_in_blocks(tmp_path, make_codec):
    """Chunks bound what the model sees at once, whatever the length of the file."""
    machine = machine_of(make_codec(sampling_rate=8000), live=True)
    real, longest = machine.process, []

    def process(x):
        longest.append(x.shape[-1])
        return real(x)

    machine.process = process
    write(tmp_path / "a.wav", seconds=60)
    (outcome,) = run(plan([str(tmp_path / "a.wav")], str(tmp_path / "out")), machine, chunk=4096)
    assert max(longest) == 4096
    assert outcome.seconds == 60
