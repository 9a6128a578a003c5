"""Exports that acids-rave itself has made, in every form, play here (tests/fixtures/import/README.md)."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from rave_tools.cli.main import main
from rave_tools.inference.exported import machine_of_file
from rave_tools.inference.reconstruct import reconstruct

FOLDER = Path(__file__).parents[1] / "fixtures" / "import" / "exports"
FACTS = {
    # name: (streams, channels, hop)
    "v1": (False, 1, 128),
    "v2_streaming": (True, 1, 2048),
    "v2_stereo_streaming": (True, 2, 2048),
    "discrete_streaming": (True, 1, 1024),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name -> the file, unpacked once."""
    folder = tmp_path_factory.mktemp("exports")

    def unpack(name):
        path = folder / f"{name}.ts"
        if not path.exists():
            path.write_bytes(lzma.decompress((FOLDER / f"{name}.ts.xz").read_bytes()))
        return path

    return unpack


def chord(channels, length):
    time = torch.arange(length) / 44100
    return torch.stack([0.3 * torch.sin(2 * torch.pi * 220 * (c + 1) * time) for c in range(channels)])[None]


@pytest.mark.parametrize("name", FACTS)
def test_what_a_file_says_about_itself_is_understood(exported, name):
    machine = machine_of_file(exported(name))
    streaming, channels, hop = FACTS[name]
    assert (machine.streaming, machine.hop) == (streaming, hop)
    assert (machine.channels, machine.out_channels) == (channels, channels)
    assert machine.sample_rate == 44100 and machine.latency is None and machine.unit == hop


@pytest.mark.parametrize("name", FACTS)
@torch.no_grad()
def test_it_sounds_as_in_a_host(exported, name):
    """Block by block, from a fresh file: what the model itself answers, not more and not less."""
    machine = machine_of_file(exported(name))
    streaming, channels, hop = FACTS[name]
    x = chord(channels, 6 * hop + 100)
    torch.manual_seed(3)
    heard = torch.cat(list(reconstruct([x], machine, chunk=hop if streaming else None)), -1)
    fresh = torch.jit.load(str(exported(name))).eval()
    padded = torch.nn.functional.pad(x, (0, hop * (2 if streaming else 1) - 100))
    blocks = padded.split(hop, -1) if streaming else [padded]
    torch.manual_seed(3)
    expected = torch.cat([fresh.forward(block) for block in blocks], -1)[..., : x.shape[-1]]
    assert heard.shape == x.shape and heard.abs().max() > 1e-4
    torch.testing.assert_close(heard, expected, rtol=0, atol=1e-5)
    torch.manual_seed(3)
    again = torch.cat(list(reconstruct([x], machine, chunk=hop if streaming else None)), -1)
    torch.testing.assert_close(again, heard, rtol=0, atol=1e-5)  # it has forgotten what it heard


@pytest.mark.parametrize("name", FACTS)
def test_generate_takes_it(exported, name, tmp_path, capsys):
    for channels in (1, 2):
        soundfile.write(tmp_path / f"{channels}.wav", chord(channels, 9000)[0].T.numpy(), 44100)
    words = ["--input", str(tmp_path), "--out_path", str(tmp_path / "out"), "--noprogress"]
    live = ["--stream"] if FACTS[name][0] else []
    assert main(["generate", "--model", str(exported(name)), *words, *live]) == 0
    assert "problems       0" in capsys.readouterr().out
    for channels in (1, 2):
        heard, rate = soundfile.read(tmp_path / "out" / f"{channels}.wav", always_2d=True)
        assert heard.shape == (9000, max(channels, FACTS[name][1])) and rate == 44100 and np.isfinite(heard).all()
