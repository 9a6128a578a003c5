"""Runs of acids-rave, made by its own code, become ours: same sound, same place in the training."""

import pytest
import torch

from rave_tools import config
from rave_tools.cli import opening
from rave_tools.cli.main import main

from .runs_of_rave import NAMES, load, write


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Name of a fixture -> (fixture, folder of the run made of it); each is imported once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            fixture = load(name)
            assert main(["import", "--run", str(write(fixture, folder / "theirs")), "--output", str(folder / "ours")]) == 0
            made[name] = fixture, folder / "ours"
        return made[name]

    return make


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_sound_is_the_same(imported, name, monkeypatch):
    fixture, folder = imported(name)
    codec, _ = opening.open_codec(str(folder))
    latent = codec.encode(fixture["x"], deterministic=True).z
    torch.testing.assert_close(latent, fixture["latent"], rtol=1e-5, atol=1e-5)
    if fixture["uniform"]:
        drawn = iter(fixture["uniform"])
        monkeypatch.setattr(torch, "rand_like", lambda like: next(drawn).reshape(like.shape))
    torch.testing.assert_close(codec.decode(latent), fixture["audio"], rtol=0, atol=1e-5)
