"""Files of the safetensors format, of which nothing is taken on trust."""

import json

import pytest
import torch

from rave_tools.errors import RunError
from rave_tools.importing.safetensors import load_safetensors, looks_like_safetensors

from .codecs_of_others import safetensors, unpacked

STATE = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b.c": torch.tensor([1.5, -2.0]).half(),
    "empty": torch.zeros(0, 3), "scalar": torch.tensor(7), "last": torch.randn(5),
}  # fmt: skip


def test_tensors_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(STATE))
    found = load_safetensors(path)
    assert list(found) == list(STATE) and looks_like_safetensors(path)
    for name, value in STATE.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype


def test_a_file_of_their_own_library(tmp_path):
    """Written by safetensors 0.8.0 (benchmarks/make_codec_import_fixtures.py): numbers from 0 to 9, in two types."""
    path = tmp_path / "a.bin"
    path.write_bytes(unpacked("numbers.safetensors"))
    found = load_safetensors(path)
    assert found["single"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] and found["single"].dtype == torch.float32
    assert found["brain"].tolist() == list(range(10)) and found["brain"].dtype == torch.bfloat16


def rewritten(change):
    content = safetensors(STATE)
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    change(table)
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


WRONG = {
    "nothing": (b"", "is no safetensors file"),
    "a table that is too long": ((1 << 50).to_bytes(8, "little") + b"{", "is no safetensors file"),
    "a cut table": (safetensors(STATE)[:40], "is truncated at 40 bytes: its table alone has"),
    "cut numbers": (safetensors(STATE)[:-4], "last ends at byte"),
    "no JSON": ((4).to_bytes(8, "little") + b"{{{{", "the table of its tensors cannot be read"),
    "a list": ((2).to_bytes(8, "little") + b"[]", "the table of its tensors is one list"),
    "an unknown type": (rewritten(lambda t: t["a"].update(dtype="Q4")), "a has numbers of the type Q4"),
    "a negative size": (rewritten(lambda t: t["a"].update(shape=[-2, -3])), "a has the shape [-2, -3]"),
    "no offsets": (rewritten(lambda t: t["a"].pop("data_offsets")), "the place None"),
    "backwards": (rewritten(lambda t: t["a"].update(data_offsets=[24, 0])), "the place [24, 0]"),
    "too little": (rewritten(lambda t: t["a"].update(data_offsets=[0, 8])), "needs 24 bytes, but its place has 8"),
    "no description": (rewritten(lambda t: t.update(a=3)), "a is no description of a tensor"),
    "one over the other": (rewritten(lambda t: t["a"].update(data_offsets=[2, 26])), "a and b.c lie over each other"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case, tmp_path):
    content, message = WRONG[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError) as error:
        load_safetensors(path)
    assert message in str(error.value)
