"""Files of the safetensors format: eight bytes that say how long a table in JSON is, the table, the numbers."""

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from rave_tools.errors import RunError

SUFFIX = ".safetensors"
HEADER_LIMIT = 100_000_000
"""Bytes of the table; the format allows no more."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def looks_like_safetensors(path: Path) -> bool:
    """Whether a file begins as the format does: a length, and a table in braces."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= HEADER_LIMIT


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Raises:
        RunError: the file is truncated, or its table is not what the format says; names the tensor.

    Source: https://github.com/huggingface/safetensors, section Format.
    """
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > HEADER_LIMIT:
        raise RunError(f"{path} is no safetensors file: its table would have {length} bytes")
    if 8 + length > len(content):
        raise RunError(f"{path} is truncated at {len(content)} bytes: its table alone has {length}; copy it again")
    try:
        table = json.loads(content[8 : 8 + length])
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged: the table of its tensors cannot be read ({error}); copy it again"
        ) from error
    if not isinstance(table, dict):
        raise RunError(f"{path} is damaged: the table of its tensors is one {type(table).__name__}; copy it again")
    data = memoryview(content)[8 + length :]
    entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
    made, spans = {}, []
    for name, entry in entries.items():
        dtype, shape, begin, end = _checked(entry, name, path)
        if end > len(data):
            raise RunError(
                f"{path} is truncated at {len(content)} bytes: {name} ends at byte {8 + length + end}; copy it again"
            )
        spans.append((begin, end, name))
        flat = torch.frombuffer(data[begin:end], dtype=dtype) if end > begin else torch.empty(0, dtype=dtype)
        made[name] = flat.reshape(shape)
    spans.sort()
    for (_, before, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
        if begin < before:
            raise RunError(f"{path} is damaged: {first} and {second} lie over each other")
    return made


def _checked(entry: Any, name: str, path: Path) -> tuple[torch.dtype, list[int], int, int]:
    """Type, shape and place of a tensor, of which nothing is taken on trust."""
    if not isinstance(entry, dict):
        raise RunError(f"{path} is damaged: what its table says of {name} is no description of a tensor")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise RunError(f"{path}: {name} has numbers of the type {kind}; read are {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RunError(f"{path} is damaged: {name} has the shape {shape} and the place {offsets}")
    size = math.prod(shape) * DTYPES[kind].itemsize
    if offsets[1] - offsets[0] != size:
        raise RunError(
            f"{path} is damaged: {name} of shape {shape} needs {size} bytes, but its place has "
            f"{offsets[1] - offsets[0]}"
        )
    return DTYPES[kind], shape, offsets[0], offsets[1]


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
