"""Blocks through a machine: as long as the input, in time with it, equal to one pass."""

import pytest
import torch
from torch.nn import functional as F

from rave_tools.export.deliver import export
from rave_tools.export.prepare import ExportOptions
from rave_tools.inference import exported as exported_models
from rave_tools.inference.exported import ExportedModelError, machine_of_file
from rave_tools.inference.reconstruct import machine_of, reconstruct, regroup


def play(x, machine, *, chunk=None, block=1000):
    return torch.cat(list(reconstruct(x.split(block, -1), machine, chunk=chunk)), -1)


@torch.no_grad()
def whole(codec, x):
    hop = codec.hop
    return codec(F.pad(x, (0, -x.shape[-1] % hop)))[..., : x.shape[-1]]


@pytest.mark.parametrize("chunk", [None, 640, 1000, 6400])
@pytest.mark.parametrize("length", [1, 640, 12345])
def test_overlapping_parts_equal_one_pass(chunk, length, make_codec):
    codec = make_codec(channels=2)
    x = 0.3 * torch.randn(2, 2, length)
    y = play(x, machine_of(codec, live=False), chunk=chunk)
    torch.testing.assert_close(y, whole(codec, x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("padding", ["centered", "causal"])
@pytest.mark.parametrize("chunk", [64, 192, 4096])
def test_a_stream_is_in_time_with_one_pass(padding, chunk, make_codec):
    codec = make_codec(padding=padding)
    left, right = codec.receptive_field()
    x = 0.3 * torch.randn(1, 1, 9000)
    machine = machine_of(codec, live=True)
    y = play(x, machine, chunk=chunk)
    assert y.shape == x.shape
    # At the ends the plain model sees zeros between its layers where the stream sees what silence becomes.
    inside = slice(left + 64, -right - 64)
    torch.testing.assert_close(y[..., inside], whole(codec, x)[..., inside], atol=1e-6, rtol=0)
    torch.testing.assert_close(play(x, machine, chunk=chunk), y, atol=0, rtol=0)


def test_latents_may_be_drawn(make_codec):
    x = 0.3 * torch.randn(1, 1, 6400)
    machine = machine_of(make_codec(), live=False, temperature=1.0)
    assert (play(x, machine) - play(x, machine)).abs().max() > 1e-5


def test_regroup_loses_nothing():
    x = torch.arange(1000.0)[None]
    blocks = list(regroup(x.split(77, -1), 64, keep_rest=True))
    assert all(block.shape[-1] == 64 for block in blocks[:-1])
    assert torch.equal(torch.cat(blocks, -1), x)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, make_codec):
    path = tmp_path_factory.mktemp("exported") / "small.ts"
    codec = make_codec()
    export(codec, path, options=ExportOptions(latent_size=8), time_it=False)
    return codec, path


@pytest.mark.parametrize("chunk", [None, 64, 50, 256])
def test_a_file_plays_like_the_run_it_was_made_of(chunk, exported):
    codec, path = exported
    left, right = codec.receptive_field()
    x = 0.3 * torch.randn(2, 1, 9000)
    machine = machine_of_file(path, temperature=0.0)
    assert machine.streaming and machine.latency > 0
    y = play(x, machine, chunk=chunk)
    assert y.shape == x.shape
    inside = slice(left + 64, -right - 64)
    torch.testing.assert_close(y[..., inside], whole(codec, x)[..., inside], atol=1e-6, rtol=0)


class Foreign(torch.nn.Module):
    """An export by other hands: forward, sr, params, no latency; with or without memory, in a buffer or elsewhere."""

    def __init__(self, remembers, buffer=True):
        super().__init__()
        self.sr = 22050
        self.remembers = remembers
        self.register_buffer("forward_params", torch.tensor([1, 1, 1, 1]))
        self.register_buffer("encode_params", torch.tensor([1, 1, 4, 64]))
        if buffer:
            self.register_buffer("past", torch.zeros(64, 1, 1))
        else:
            self.past = torch.zeros(64, 1, 1)

    def forward(self, x):
        if not self.remembers:
            return x * 0.5
        y = torch.cat([self.past[: x.shape[0]], x], -1)
        self.past[: x.shape[0]] = y[..., -1:]
        return y[..., :-1]


@pytest.mark.parametrize(("remembers", "buffer", "loads"), [(False, True, 1), (True, True, 1), (True, False, 4)])
def test_a_foreign_file_plays_and_forgets_between_files(remembers, buffer, loads, tmp_path, monkeypatch):
    """It is loaded anew for each file only if what it remembers lies out of reach."""
    path = tmp_path / "foreign.ts"
    torch.jit.script(Foreign(remembers, buffer)).save(str(path))
    loaded = []
    load = exported_models.load
    monkeypatch.setattr(exported_models, "load", lambda *given: loaded.append(given) or load(*given))
    machine = machine_of_file(path)
    assert (machine.streaming, machine.sample_rate, machine.hop) == (remembers, 22050, 64)
    x = torch.randn(1, 1, 3000)
    expected = F.pad(x, (1, -1)) if remembers else x * 0.5
    for _ in range(2):
        torch.testing.assert_close(play(x, machine, chunk=128), expected, atol=0, rtol=0)
    assert len(loaded) == loads
    with pytest.raises(ExportedModelError, match="no attribute temperature"):
        machine_of_file(path, temperature=0.0)


def test_files_that_are_no_models_are_named(tmp_path):
    damaged = tmp_path / "damaged.ts"
    damaged.write_bytes(b"nothing")
    with pytest.raises(ExportedModelError, match="damaged.ts is not a TorchScript model"):
        machine_of_file(damaged)
    with pytest.raises(ExportedModelError, match="no such file"):
        machine_of_file(tmp_path / "missing.ts")
    silent = tmp_path / "silent.ts"
    torch.jit.script(torch.nn.Identity()).save(str(silent))
    with pytest.raises(ExportedModelError, match="sample rate"):
        machine_of_file(silent)
    with pytest.raises(ExportedModelError, match="no nn~ model"):
        machine_of_file(silent, sample_rate=44100)
