"""A stranger's checkpoint runs nothing."""

import argparse
import collections
import os
import types

import pytest
import torch

from rave_tools.errors import RunError
from rave_tools.importing.pickles import Record, load_foreign


class Bomb:
    """Runs a command wherever it is unpickled in earnest."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Bag(dict):
    """A dictionary with a class of its own."""


@pytest.mark.parametrize("new_format", [True, False])
def test_code_is_not_run_and_tensors_arrive(tmp_path, new_format):
    trace = tmp_path / "trace"
    bag = Bag(a=1)
    content = {
        "state_dict": collections.OrderedDict(w=torch.arange(6.0).reshape(2, 3).T, p=torch.nn.Parameter(torch.ones(2))),
        "bomb": Bomb(trace), "hyper_parameters": argparse.Namespace(lr=1), "bag": bag, "dtype": torch.float16,
        "callbacks": {types.SimpleNamespace: {"steps": 3}}, "list": [1, (2, {3})],
    }  # fmt: skip
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=new_format)
    read, replaced = load_foreign(tmp_path / "x.ckpt")
    assert not trace.exists()
    assert torch.equal(read["state_dict"]["w"], content["state_dict"]["w"])
    assert torch.equal(read["state_dict"]["p"], torch.ones(2))
    assert isinstance(read["bomb"], Record) and read["bomb"].of.endswith(".system")
    assert read["hyper_parameters"].state == {"lr": 1}
    assert isinstance(read["bag"], Record) and read["bag"].state == {"a": 1}
    assert read["dtype"] is torch.float16 and read["list"] == [1, (2, {3})]
    (key,) = read["callbacks"]
    assert issubclass(key, Record) and key.of == "types.SimpleNamespace" and read["callbacks"][key] == {"steps": 3}
    assert {"argparse.Namespace", "types.SimpleNamespace"} <= set(replaced)


def test_plain_files_need_no_second_look(tmp_path):
    torch.save({"a": torch.ones(2), "n": 3}, tmp_path / "x.ckpt")
    assert load_foreign(tmp_path / "x.ckpt")[1] == []


@pytest.mark.parametrize("content", [b"", b"PK", b"text", b"\x80\x02."])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"x\.ckpt"):
        load_foreign(path)
    with pytest.raises(RunError, match="there is no file"):
        load_foreign(tmp_path / "y.ckpt")
    torch.save([1, 2], path)
    with pytest.raises(RunError, match="holds one list"):
        load_foreign(path)
