"""Models saved with torch.package: an archive of source code, an object and its numbers, of which the code is not run.

The object is a network whose classes the archive would bring along. They are not needed: what a network holds, its
parameters, buffers and parts, torch keeps under names of its own.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from rave_tools.errors import RunError
from rave_tools.importing.pickles import Record, restricted_unpickler

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
DATA, MARK = ".data", "extern_modules"


def is_package(path: Path) -> bool:
    """Whether a file is an archive of torch.package."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).parts[1:] == (DATA, MARK) for name in archive.namelist())


def load_package(path: Path) -> dict[str, Any]:
    """The weights of the network in an archive, and its facts.

    Returns:
        ``state_dict`` and ``metadata``, as audiotools saves both without a package; and ``replaced``, the names of the
        classes that were not opened.

    Raises:
        RunError: the archive is damaged, or holds no single network.
    """
    with zipfile.ZipFile(path) as archive:
        if (spoilt := archive.testzip()) is not None:
            raise RunError(f"{path} is damaged: the checksum of {spoilt} is wrong; copy it again")
        names = [name for name in archive.namelist() if name.endswith(".pth") and f"/{DATA}/" not in name]
        if len(names) != 1:
            raise RunError(
                f"{path} is an archive of torch.package with {len(names)} objects, where one network was expected; "
                "save its state_dict with torch.save and import that"
            )
        replaced: set[str] = set()
        try:
            network = _unpickled(archive, names[0], replaced)
            state = _state_dict(network)
        except (
            pickle.UnpicklingError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            EOFError,
            RuntimeError,
        ) as error:
            raise RunError(
                f"{path} is an archive of torch.package whose network cannot be read without running its code "
                f"({type(error).__name__}: {error}); in the program that made it, save its state_dict with torch.save "
                "and import that"
            ) from error
    metadata = network.state.get("metadata") if isinstance(network, Record) else None
    return {
        "state_dict": state,
        "metadata": metadata if isinstance(metadata, dict) else {},
        "replaced": sorted(replaced),
    }


def _unpickled(archive: zipfile.ZipFile, name: str, replaced: set[str]) -> Any:
    root = name.split("/", 1)[0]
    storages: dict[str, Any] = {}

    class Unpickler(restricted_unpickler(replaced)):  # type: ignore[misc]
        """Also finds storages, which lie in files of their own."""

        def find_class(self, module: str, name: str) -> Any:
            if module in ("torch", "torch.storage") and name in STORAGES:
                return STORAGES[name]
            return super().find_class(module, name)

        def persistent_load(self, saved: Any) -> Any:
            if not isinstance(saved, tuple) or saved[0] != "storage":
                raise pickle.UnpicklingError("it holds more than tensors")
            _, dtype, key, _, size = saved
            if key not in storages:
                content = bytearray(archive.read(f"{root}/{DATA}/{key}.storage"))
                if len(content) != size * dtype.itemsize:
                    raise pickle.UnpicklingError(f"{key} has {len(content)} bytes for {size} numbers of {dtype}")
                whole = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
                storages[key] = torch.storage.TypedStorage(
                    wrap_storage=whole.untyped_storage(), dtype=dtype, _internal=True
                )
            return storages[key]

    with archive.open(name) as stream:
        return Unpickler(stream).load()


def _state_dict(network: Any, prefix: str = "") -> dict[str, Tensor]:
    """What the network's state_dict would give."""
    state = network.state if isinstance(network, Record) else None
    if state is None or not isinstance(state.get("_modules"), Mapping):
        raise pickle.UnpicklingError(f"{prefix or 'it'} is no network")
    hidden = state.get("_non_persistent_buffers_set") or ()
    made = {
        f"{prefix}{name}": value.detach()
        for name, value in [*state["_parameters"].items(), *state["_buffers"].items()]
        if isinstance(value, Tensor) and name not in hidden
    }
    for name, part in state["_modules"].items():
        if part is not None:
            made.update(_state_dict(part, f"{prefix}{name}."))
    return made
