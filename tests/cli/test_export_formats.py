"""``rave_tools export --format`` as a person types it."""

import pytest
import torch

from rave_tools import config
from rave_tools.cli.main import main
from rave_tools.runs import RunDirectory

CONFIG = """
from __gin__ import dynamic_registration
include 'v2_small.gin'
include 'causal.gin'
CAPACITY = 2
LATENT_SIZE = 4
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with random weights."""
    torch.manual_seed(0)
    codec = config.load([], text=CONFIG).build("CODEC")
    weights = {f"codec.{name}": value for name, value in codec.state_dict().items()}
    folder = RunDirectory(tmp_path_factory.mktemp("runs") / "tiny").create()
    folder.save("last", {"state_dict": weights, "config": CONFIG, "rave_tools": {"generator_updates": 7}})
    return folder.path


@pytest.mark.slow
def test_a_format_prints_its_table_and_leaves_its_files(run, tmp_path, capsys):
    words = ["--format", "pt2", "--block", "1024", "--nospeed"]
    assert main(["export", "--run", str(run), "--output", str(tmp_path), *words]) == 0
    out = capsys.readouterr().out
    assert "FAILED" not in out and out.count("ok ") == 4 and "1024 samples, one row" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pt2", "tiny_decode.pt2", "tiny_encode.pt2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--block", "512"], "--block is for --format onnx or pt2, not for nn_tilde"),
        (["--author", "me"], "--author is for --format neutone, not for nn_tilde"),
        (["--format", "pt2", "--tag", "drums"], "--tag is for --format neutone, not for pt2"),
        (["--format", "pt2", "--nostreaming"], "--nostreaming means nothing to --format pt2"),
        (["--format", "pt2", "--buffered"], "--buffered means nothing to --format pt2"),
        (["--format", "pt2", "--precision", "bf16"], "--precision bf16 means nothing to --format pt2"),
        (["--format", "pt2", "--block", "500"], "--block 500: a block is a whole number of hops of 512"),
        (["--format", "onnx", "--output", "model.ts"], "a file of this --format ends in .onnx"),
        (["--output", "model.nm"], "a file of this --format ends in .ts"),
        (["--format", "wav"], "nn_tilde, neutone, onnx, pt2"),
    ],
)
def test_what_a_format_cannot_honour_is_said_in_one_line(run, capsys, words, message):
    before = sorted(run.rglob("*"))
    assert main(["export", "--run", str(run), *words]) != 0
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message.replace(", ", "") in error.replace(", ", "").replace("|", "")
    assert sorted(run.rglob("*")) == before
