"""``rave_tools export`` as a person types it."""

import pytest
import torch

from rave_tools import config
from rave_tools.cli.main import main
from rave_tools.runs import RunDirectory

CONFIG = """
from __gin__ import dynamic_registration
include 'v2_small.gin'
CAPACITY = 4
LATENT_SIZE = 8
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with random weights, averaged ones that differ, and an analysed latent space."""
    torch.manual_seed(0)
    codec = config.load([], text=CONFIG).build("CODEC")
    codec.fidelity.copy_(torch.linspace(0.3, 1.0, 8))
    weights = {f"codec.{name}": value for name, value in codec.state_dict().items()}
    folder = RunDirectory(tmp_path_factory.mktemp("runs") / "tiny").create()
    averaged = {name: value * 1.01 for name, value in weights.items() if name.endswith("weight_g")}
    facts = {"generator_updates": 7}
    folder.save("last", {"state_dict": weights, "config": CONFIG, "rave_tools": facts, "ema": averaged})
    return folder.path


def test_export_prints_its_table_and_leaves_one_file(run, tmp_path, capsys):
    assert main(["export", "--run", str(run), "--output", str(tmp_path), "--nospeed"]) == 0
    out = capsys.readouterr().out
    assert "exporting" in out and "7 generator updates" in out
    assert "latency" in out and "samples = " in out and " ms" in out
    assert "FAILED" not in out and out.count("ok ") >= 9
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.ts"]
    assert torch.jit.load(str(tmp_path / "tiny.ts")).sr == 44100


def test_the_file_lies_in_the_run_by_default_and_takes_a_name(run, capsys):
    words = ["--name", "other", "--nospeed", "--ema_weights", "--latent_size", "3"]
    assert main(["export", "--run", str(run), *words]) == 0
    module = torch.jit.load(str(run / "other.ts"))
    assert module.latent_size == 3
    assert "averaged weights" in capsys.readouterr().out


def test_a_file_without_streaming_says_that_it_clicks(run, tmp_path, capsys):
    assert main(["export", "--run", str(run), "--nostreaming", "--output", str(tmp_path / "x.ts"), "--nospeed"]) == 0
    assert "WILL CLICK" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latent_size", "9"], "this model has 8 latents"),
        (["--sr", "48000"], "cannot be exported at 48000 Hz"),
        (["--fidelity", "1.5"], "--fidelity 1.5"),
        (["--name", "a b"], "space in its name"),
        (["--checkpoint", "best"], "it has last"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run, tmp_path, capsys, words, message):
    assert main(["export", "--run", str(run), "--output", str(tmp_path), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_weights_of_another_model_are_refused(run, tmp_path, capsys):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    other = RunDirectory(tmp_path / "other").create()
    content["config"] = CONFIG.replace("CAPACITY = 4", "CAPACITY = 6")
    other.save("last", {key: content[key] for key in ("state_dict", "config", "rave_tools")})
    assert main(["export", "--run", str(other.path)]) == 1
    assert "do not fit the configuration" in capsys.readouterr().err
