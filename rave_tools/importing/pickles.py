"""Checkpoints of other programs, read without running anything of theirs.

Lightning's checkpoints are pickles, and may hold objects of any class beside the tensors. First torch's own restricted
reader is tried; where it refuses, a second one admits tensors and plain containers, and puts an inert record in the
place of everything else: its class is never looked up, its constructor never called.
"""

import collections
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rave_tools import runs
from rave_tools.errors import RunError

_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: collections.OrderedDict(),
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("builtins", "set"): set,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "bool"): bool,
    ("builtins", "str"): str,
}


class Record:
    """What stands in the place of an object of an unknown class: it took what was given, and does nothing.

    Attributes:
        of: full name of the class.
        state: what the pickle wanted to put into the object.
    """

    of = ""

    def __new__(cls, *_: Any, **__: Any) -> "Record":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {"state": state}

    def __call__(self, *_: Any, **__: Any) -> "Record":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        vars(self).setdefault("state", {})[key] = value

    def append(self, item: Any) -> None:
        """A pickle of a list-like object fills it by this."""

    def extend(self, items: Any) -> None:
        """Likewise, several at once."""

    def add(self, item: Any) -> None:
        """Likewise, for sets."""

    def __repr__(self) -> str:
        return f"<{self.of}, not opened>"


def load_foreign(path: Path) -> tuple[dict[Any, Any], list[str]]:
    """Read a checkpoint of another program onto the CPU.

    Args:
        path: a file that ``torch.save`` has written, of any age.

    Returns:
        Its contents, and the names of the classes whose objects were replaced by `Record`.

    Raises:
        RunError: there is no such file, it is damaged, or it holds no dictionary.
    """
    if not path.is_file():
        raise RunError(f"there is no file {path}")
    replaced: set[str] = set()
    try:
        content = _load(path, replaced)
    except Exception as error:
        raise RunError(f"{path} is damaged or no checkpoint ({runs.damage(path)})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is no checkpoint: it holds one {type(content).__name__}")
    return content, sorted(replaced)


def spoilt_record(path: Path) -> str | None:
    """The first part of a checkpoint whose checksum is wrong, which torch does not look at; None if all are right.

    Files of the time before torch 1.6 have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        return str(error)


def _load(path: Path, replaced: set[str]) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return _load_restricted(path, replaced)


def _load_restricted(path: Path, replaced: set[str]) -> Any:
    unpickler = restricted_unpickler(replaced)

    def load(stream: Any, **options: Any) -> Any:
        return unpickler(stream, **options).load()

    # What torch asks of a pickle module; storages it finds itself, by their names.
    reader = SimpleNamespace(__name__="rave_tools", Unpickler=unpickler, load=load)
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)


def restricted_unpickler(replaced: set[str]) -> type[pickle.Unpickler]:
    """A reader of pickles that finds what is admitted, and records for the rest.

    Args:
        replaced: gains the names of the classes that it did not look up.
    """

    class Unpickler(pickle.Unpickler):
        """See `restricted_unpickler`."""

        def find_class(self, module: str, name: str) -> Any:
            module = "builtins" if module == "__builtin__" else module
            if (module, name) in _ADMITTED:
                return _ADMITTED[module, name]
            if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
                return value
            full = f"{module}.{name}"
            replaced.add(full)
            return type(name.rpartition(".")[2], (Record,), {"of": full})

    return Unpickler
