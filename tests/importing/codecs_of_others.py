"""Published codecs for the tests, from tests/fixtures/import/codecs, written as their programs write them."""

import io
import json
import lzma
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "fixtures" / "import" / "codecs"
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def unpacked(name: str) -> bytes:
    """A file as its program has written it."""
    return lzma.decompress((FOLDER / f"{name}.xz").read_bytes())


def load(name: str) -> dict[str, Any]:
    """Weights, sound, codes and decoded sound of one codec."""
    return torch.load(io.BytesIO(unpacked(f"{name}.pt")), weights_only=True)


def parametrized(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as torch's second weight normalisation names them."""
    return {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in state.items()
    }


def old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as torch's first weight normalisation names them."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in state.items()
    }


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without weight normalisation: length times direction."""
    made = {}
    for name, value in old(state).items():
        if name.endswith(".weight_v"):
            made[name[:-2]] = torch._weight_norm(value, old(state)[f"{name[:-1]}g"], 0)
        elif not name.endswith(".weight_g"):
            made[name] = value
    return made


FORMS = {"old": old, "parametrized": parametrized, "folded": folded}


def safetensors(state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A file of the safetensors format."""
    table: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    data = b""
    for name, value in state.items():
        content = value.contiguous().numpy().tobytes()
        table[name] = {
            "dtype": TYPES[value.dtype], "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }  # fmt: skip
        data += content
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def write(path: Path, state: Any) -> Path:
    """A file of weights, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        path.write_bytes(safetensors(state))
    else:
        torch.save(state, path)
    return path
