"""The demo is the whole chain: what it leaves is what README promises."""

import numpy as np
import pytest
import soundfile
import torch

from rave_tools.cli import demo
from rave_tools.cli.main import main


@pytest.mark.slow
def test_demo_leaves_everything(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["demo", "--output", str(folder), "--max_steps", "3"]) == 0
    said = capsys.readouterr().out
    for command in ("preprocess", "train", "export", "generate"):
        assert f"$ rave_tools {command} " in said
    target, _ = soundfile.read(folder / "unheard" / "tune.wav")
    played = list((folder / "played").rglob("*.wav"))
    assert len(played) == 1
    estimate, rate = soundfile.read(played[0])
    assert rate == demo.SAMPLING_RATE
    assert abs(len(estimate) - len(target)) <= 512
    assert np.isfinite(estimate).all() and np.abs(estimate).max() > 0
    assert (folder / "spectrogram.png").read_bytes()[1:4] == b"PNG"
    assert (folder / "runs" / "demo" / "config.gin").exists()
    model = torch.jit.load(str(folder / "demo.ts"))
    assert {"encode", "decode", "forward"} <= set(model.get_methods())


def test_demo_does_not_write_over_anything(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
