"""Runs of acids-rave for the tests, unpacked from tests/fixtures/import (see the README there)."""

import io
import lzma
from pathlib import Path
from typing import Any

import torch

from rave_tools.codec.pretransforms.pqmf import CachedPQMF

FOLDER = Path(__file__).parents[1] / "fixtures" / "import"
NAMES = sorted(path.name.partition(".")[0] for path in FOLDER.glob("*.pt.xz"))


def load(name: str) -> dict[str, Any]:
    """A fixture, its filter bank made again: the file leaves out what follows from the configuration."""
    with lzma.open(FOLDER / f"{name}.pt.xz") as stream:
        fixture = torch.load(io.BytesIO(stream.read()), weights_only=True)
    config = fixture["config"]
    bands = int(next(line for line in config.splitlines() if line.startswith("N_BAND = ")).split()[-1])
    attenuation = int(next(line for line in config.splitlines() if "CachedPQMF.attenuation" in line).split()[-1])
    bank = CachedPQMF(attenuation, bands).state_dict()
    fixture["checkpoint"]["state_dict"].update({f"pqmf.{key}": value for key, value in bank.items()})
    return fixture


def write(fixture: dict[str, Any], folder: Path, *, name: str = "last", config: bool = True) -> Path:
    """A run folder as acids-rave leaves it; returns the folder."""
    checkpoints = folder / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.save(fixture["checkpoint"], checkpoints / f"{name}.ckpt")
    if config:
        (folder / "config.gin").write_text(fixture["config"])
    return folder
