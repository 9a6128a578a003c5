"""Runs on disk: what is opened, what is refused, and that an interrupted write costs nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rave_tools import migrations, runs
from rave_tools.errors import RunError

CONTENT = {
    "state_dict": {"codec.encoder.weight": torch.arange(6.0).reshape(2, 3), "adversary.bias": torch.zeros(2)},
    "config": "X = 1\n",
    "rave_tools": {"generator_updates": 12, "batches": 20},
    "optimizers": [{"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.5, 0.9)}],
}


@pytest.fixture
def run(tmp_path: Path) -> runs.RunDirectory:
    directory = runs.RunDirectory(tmp_path / "runs" / "piano").create()
    directory.write_config("X = 1\n")
    directory.save("last", CONTENT)
    return directory


def test_a_folder_a_checkpoints_folder_and_a_lone_file_open_alike(run: runs.RunDirectory, tmp_path: Path) -> None:
    lone = tmp_path / "lone.ckpt"
    lone.write_bytes(run.checkpoint_path("last").read_bytes())
    for path in (run.path, run.checkpoints, run.checkpoint_path("last"), str(lone)):
        opened = runs.open_run(path)
        assert (opened.config_text, opened.step, opened.facts["batches"]) == ("X = 1\n", 12, 20)
        assert torch.equal(opened.part("codec")["encoder.weight"], torch.arange(6.0).reshape(2, 3))
        assert list(opened.part("adversary")) == ["bias"]
        assert opened.extra["optimizers"][0]["betas"] == (0.5, 0.9)
    assert opened.facts["schema"] == migrations.SCHEMA


def test_best_and_last_are_chosen_by_name(run: runs.RunDirectory) -> None:
    run.save("best", {**CONTENT, "rave_tools": {"generator_updates": 7}})
    assert (runs.open_run(run.path).step, runs.open_run(run.path, which="best").step) == (12, 7)


def test_averaged_weights_replace_those_they_average(run: runs.RunDirectory) -> None:
    run.save("last", {**CONTENT, "ema": {"codec.encoder.weight": torch.full((2, 3), 5.0), "decay": 0.99}})
    opened = runs.open_run(run.path, ema=True)
    assert (opened.part("codec")["encoder.weight"] == 5).all() and "decay" not in opened.state_dict
    assert (runs.open_run(run.path).part("codec")["encoder.weight"] != 5).any()


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: data[:300], "truncated at 300 bytes"),
    (lambda data: b"", "it is empty"),
    (lambda data: b"not an archive at all", "it is no torch archive"),
])
def test_a_damaged_checkpoint_names_the_newest_good_one(run: runs.RunDirectory, damage, message: str) -> None:
    run.save("step_5", CONTENT)
    run.save("step_10", CONTENT)
    last = run.checkpoint_path("last")
    last.write_bytes(damage(last.read_bytes()))
    os.utime(run.checkpoint_path("step_5"), (1, 1))
    half = run.checkpoint_path("step_11")
    half.write_bytes(run.checkpoint_path("step_10").read_bytes()[:-50])
    with pytest.raises(RunError) as caught:
        runs.open_run(run.path)
    assert message in str(caught.value) and str(last) in str(caught.value)
    assert str(caught.value).endswith(f"The newest good one beside it is {run.checkpoint_path('step_10')}.")
    assert not runs.is_complete(half) and runs.is_complete(run.checkpoint_path("step_10"))


def test_what_is_no_run_says_what_is_there(run: runs.RunDirectory, tmp_path: Path) -> None:
    for path, which, message in [
        (tmp_path / "runs" / "violin", "last", "no run at .*violin. .*runs holds: piano."),
        (tmp_path / "runs", "last", "is a folder of runs; choose one: piano."),
        (run.path, "best", "has no 'best' checkpoint; it has last."),
        (tmp_path, "last", "has no checkpoint"),
    ]:
        with pytest.raises(RunError, match=message):
            runs.open_run(path, which=which)
    with pytest.raises(RunError, match="no averaged weights"):
        runs.open_run(run.path, ema=True)


def test_foreign_files_are_refused(run: runs.RunDirectory) -> None:
    path = run.checkpoint_path("last")
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(RunError, match="no checkpoint of rave_tools: it holds epoch, state_dict"):
        runs.open_run(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(RunError, match="one Tensor"):
        runs.open_run(path)
    torch.save({"state_dict": Path("x")}, path)
    with pytest.raises(RunError, match="could run code"):
        runs.open_run(path)
    runs.save_checkpoint(path, {**CONTENT, "rave_tools": {"schema": migrations.SCHEMA + 1, "version": "9.0"}})
    with pytest.raises(RunError, match="written by rave_tools 9.0 with layout .*upgrade"):
        runs.open_run(path)


def test_only_plain_values_are_saved(run: runs.RunDirectory) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['facts'\]\[1\] is PosixPath"):
        run.save("last", {**CONTENT, "facts": [1, Path("/x")]})
    assert runs.open_run(run.path).step == 12


FULL_DISK = """
import resource, signal, sys, torch
from rave_tools import runs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
content = {"state_dict": {"codec.w": torch.zeros(300, 300)}, "config": "X = 1", "rave_tools": {"generator_updates": 99}}
try:
    runs.RunDirectory(sys.argv[1]).save("last", content)
except runs.RunError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a file's size are POSIX")
def test_a_write_that_does_not_fit_keeps_the_one_before(run: runs.RunDirectory) -> None:
    """A limit on the size of files stands in for a full disk; both end the write in its middle."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(run.path)], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parent.parent)
    assert "cannot write" in done.stdout and "the one before is kept" in done.stdout
    assert runs.open_run(run.path).step == 12
    assert [path.name for path in run.checkpoints.iterdir()] == ["last.ckpt"], "nothing half-written is left behind"


def test_only_a_run_that_never_began_is_discarded(tmp_path: Path) -> None:
    for name, kept in (("nothing", False), ("checkpoints/last.ckpt", True), ("events.out.tfevents.1.vm.2.0", True)):
        folder = runs.RunDirectory(tmp_path / "run").create()
        folder.write_config("A = 1")
        if kept:
            (folder.path / name).write_bytes(b"x")
        folder.discard()
        assert folder.path.exists() is kept
        shutil.rmtree(folder.path, ignore_errors=True)


def test_a_full_disk_is_called_by_its_name(run: runs.RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(RunError, match="the disk is full; free some space; the one before is kept"):
        run.save("last", CONTENT)
    assert runs.open_run(run.path).step == 12


def test_every_start_is_written_down(run: runs.RunDirectory) -> None:
    run.write_command(["rave_tools", "train", "--name", "my run"])
    run.write_command(["rave_tools", "train", "--resume"], note="CAPACITY = 5 (was 4)")
    lines = (run.path / runs.COMMAND_NAME).read_text().splitlines()
    assert lines[1] == "rave_tools train --name 'my run'" and lines[3] == "rave_tools train --resume"
    assert lines[0].startswith("# ") and "commit" in lines[0] and lines[4] == "# CAPACITY = 5 (was 4)"


def test_weights_of_acids_rave_find_their_places() -> None:
    state = {"pqmf.hk": 1, "encoder.encoder.net.0.weight_g": 2, "decoder.net.0.bias": 3, "latent_pca": 4,
             "discriminator.discriminators.0.x": 5, "encoder.warmed_up": 6, "receptive_field": 7, "odd": 8,
             "audio_distance.multiscale_stft.mel_scales.0.mel": 9, "discriminator.specs.0.window": 10}
    renamed, dropped = migrations.from_acids_rave(state)
    assert renamed == {"codec.pqmf.hk": 1, "codec.encoder.encoder.net.0.weight_g": 2, "codec.decoder.net.0.bias": 3,
                       "codec.latent_pca": 4, "adversary.discriminator.discriminators.0.x": 5, "odd": 8}
    assert [line.split()[0] for line in dropped] == ["encoder.warmed_up", "receptive_field", *list(state)[-2:]]


def test_renames_reach_inside_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "MODULE_RENAMES", {"rave_tools.old": "rave_tools.new"})
    monkeypatch.setattr(migrations, "BINDING_RENAMES", {"SR": "SAMPLING_RATE"})
    assert migrations.rename_module("rave_tools.old.Thing") == "rave_tools.new.Thing"
    assert migrations.rename_module("rave_tools.older") == "rave_tools.older"
    assert migrations.rename_binding("SR") == "SAMPLING_RATE"
