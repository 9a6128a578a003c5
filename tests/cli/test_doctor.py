"""``rave_tools doctor`` as a person types it."""

import json

import pytest
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from rave_tools import config
from rave_tools.cli.main import main
from rave_tools.runs import RunDirectory
from rave_tools.training import run as training

OVERRIDES = ["CAPACITY = 4", "LATENT_SIZE = 8", "CHANNELS = 1", "PHASE_1_DURATION = 300"]


class Through(nn.Module):
    """An nn~ model that hands its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("forward_params", torch.tensor([1, 1, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(x)


@pytest.fixture
def through(tmp_path):
    path = tmp_path / "through.ts"
    torch.jit.save(torch.jit.script(Through().eval()), str(path))
    return path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run folder as training leaves it, with random weights and falling losses; checkpoints of 40 of 500 updates."""
    torch.manual_seed(0)
    loaded = config.load(["v2_small"], OVERRIDES)
    wrapper = loaded.build_argument(training.train, "wrapper")
    wrapper.codec.fidelity.copy_(torch.linspace(0.3, 1.0, 8))
    folder = RunDirectory(tmp_path_factory.mktemp("runs") / "tiny").create()
    text = loaded.operative(training.train, max_steps=500)
    flags = {"n_signal": 32768, "db_path": "/nowhere/db"}
    facts = {"generator_updates": 200, "flags": flags}
    folder.save("last", {"state_dict": wrapper.state_dict(), "config": text, "rave_tools": facts})
    folder.write_config(text)
    words = [f"--override={override}" for override in OVERRIDES]
    folder.write_command(["rave_tools", "train", "--name=tiny", "--config=v2_small", *words])
    with SummaryWriter(str(folder.path)) as writer:
        for step in range(10, 201, 10):
            distance = 24 - step / 20
            rows = {"losses/fullband_spectral_distance": distance, "losses/loss": 2 * distance, "losses/kl": 0.1,
                    "optimisation/beta_kl": 0.01, "run/phase": 1.0, "run/steps_per_second": 2.0}  # fmt: skip
            for tag, value in rows.items():
                writer.add_scalar(tag, value, step)
    return folder.path


def test_a_healthy_run_is_explained_and_exits_0(healthy, tmp_path, capsys):
    assert main(["doctor", str(healthy), "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert "step 200 of 500 (40.0 %); phase 1 of 2, representation learning, from 0 to 300" in out
    assert "2 min 30 s left at this speed" in out.replace("\n           ", " ")
    assert "cannot tell: no validation yet" in out and "cannot tell: the run's database /nowhere/db is not here" in out
    assert "of 8: 0.8: 6, 0.9: 7," in out.replace("\n           ", " ")
    assert "10017 samples (227.1 ms) when streaming" in out
    assert "3 bindings differ from v2_small" in out and "CAPACITY = 4 (was 48)" in out
    assert "0 errors, 0 warnings" in out
    (result,) = json.loads((tmp_path / "found.json").read_text())
    assert result["path"] == str(healthy) and result["counts"]["error"] == 0
    assert {"severity", "subject", "seen", "means", "mend", "where"} == set(result["findings"][0])


def test_a_checkpoint_alone_and_its_folder_are_the_same_run(healthy, capsys):
    assert main(["doctor", str(healthy / "checkpoints" / "last.ckpt"), str(healthy / "checkpoints"), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.count("0 errors, 0 warnings") == 2 and "  note " not in out


def test_weights_that_are_lost_exit_1(healthy, tmp_path, capsys):
    content = torch.load(healthy / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["codec.latent_mean"][0] = float("nan")
    RunDirectory(tmp_path).create().save("last", content)
    assert main(["doctor", str(tmp_path), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "tensors are not finite: codec.latent_mean" in out.replace("\n           ", " ") and "1 error" in out


def test_a_run_before_its_first_checkpoint_is_read_from_its_curves(healthy, tmp_path, capsys):
    event = next(healthy.glob("events*"))
    (tmp_path / event.name).write_bytes(event.read_bytes())
    assert main(["doctor", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())  # lines are broken where the length of the folder has it
    assert "still learning" not in out and "fullband_spectral_distance: 23.5 at the start" in out
    assert "cannot tell:" in out and "no checkpoint" in out


def test_a_file_of_a_stranger(through, capsys):
    assert main(["doctor", str(through), "--nospeed", "--sampling_rate", "8000"]) == 0
    out = capsys.readouterr().out
    assert "warning  block: the largest ratio of all methods is 1, under 64" in out
    assert "warning  file name" not in out and "get_methods() does not exist" in out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "no run at"),
        (lambda folder: folder / "missing.ts", "there is no such file"),
        (lambda folder: folder, "has no checkpoint"),
        (lambda folder: _written(folder / "bad.ts", b"no archive"), "is not a TorchScript file that can be loaded"),
        (lambda folder: _written(folder / "bad.ckpt", b"PK\x03\x04 and no more"), "is damaged (truncated at 16 bytes)"),
    ],
    ids=["no path", "no file", "empty folder", "corrupt export", "truncated checkpoint"],
)
def test_what_cannot_be_opened_is_one_line(tmp_path, capsys, make, message):
    assert main(["doctor", str(make(tmp_path))]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1
    assert not captured.out


def _written(path, content):
    path.write_bytes(content)
    return path


def test_one_bad_path_does_not_hide_the_others(through, tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "missing"), str(through), "--nospeed", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "largest ratio" in captured.out


def test_no_path_is_wrong_usage(capsys):
    assert main(["doctor"]) == 2
    assert "name a run folder, a .ckpt or a .ts" in capsys.readouterr().err


def test_weights_that_do_not_fit_their_configuration_are_an_error(healthy, tmp_path, capsys):
    content = torch.load(healthy / "checkpoints" / "last.ckpt", weights_only=True)
    content["config"] = content["config"].replace("CAPACITY = 4", "CAPACITY = 6")
    RunDirectory(tmp_path).create().save("last", content)
    assert main(["doctor", str(tmp_path), "--quiet"]) == 1
    assert "error    model: the weights in" in capsys.readouterr().out


def test_a_run_that_is_no_codec_is_examined_as_far_as_it_goes(healthy, tmp_path, capsys):
    content = torch.load(healthy / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"] = {"prior.weight": torch.ones(3)}
    content["config"] = "from __gin__ import dynamic_registration\nSAMPLING_RATE = 44100\n"
    RunDirectory(tmp_path).create().save("last", content)
    assert main(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "this is no run of a codec" in out and "all 3 numbers of 1 tensors are finite" in out


@pytest.mark.parametrize("content", [b"", b"garbage that is no event at all, long enough to be one"])
def test_an_event_file_that_is_none_leaves_the_rest(healthy, tmp_path, capsys, content):
    (tmp_path / "events.out.tfevents.1.x").write_bytes(content)
    folder = RunDirectory(tmp_path).create()
    checkpoint = healthy / "checkpoints" / "last.ckpt"
    folder.checkpoint_path("last").write_bytes(checkpoint.read_bytes())
    assert main(["doctor", str(tmp_path)]) == 0
    assert "the run has no TensorBoard events" in capsys.readouterr().out.replace("\n           ", " ")
