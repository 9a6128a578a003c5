"""A run on disk: its configuration, its checkpoints, and how both are opened again.

    runs/NAME/config.gin               what was built, alone enough to build it again
    runs/NAME/command.txt              argv, version and commit of every start
    runs/NAME/checkpoints/last.ckpt    the newest state
    runs/NAME/checkpoints/best.ckpt    the best validation distance
    runs/NAME/checkpoints/step_*.ckpt  every so many steps

Every file is written beside its place and renamed over it, so that an interrupted write leaves the one before. A
checkpoint holds its configuration too, and can be opened alone; it holds nothing but tensors and plain values, so that
opening a stranger's file runs no code of theirs.
"""

import errno
import os
import pickle
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from . import __version__, migrations
from .errors import RunError

CONFIG_NAME = "config.gin"
COMMAND_NAME = "command.txt"
CHECKPOINTS_NAME = "checkpoints"
SUFFIX = ".ckpt"
LAST, BEST = "last", "best"
FACTS_KEY = "rave_tools"


class RunDirectory:
    """The folder of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def config_path(self) -> Path:
        """Where the configuration stands."""
        return self.path / CONFIG_NAME

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS_NAME

    def checkpoint_path(self, name: str) -> Path:
        """Where the checkpoint of a name (``last``, ``best``, ``step_1000``) stands."""
        return self.checkpoints / f"{name}{SUFFIX}"

    def create(self) -> "RunDirectory":
        """Make the folders.

        Raises:
            RunError: they cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder {self.path}: {_reason(error)}") from error
        return self

    def discard(self) -> None:
        """Remove a run that never began: one without checkpoints and curves. Any other stays."""
        if not self.existing() and not list(self.path.glob("*tfevents*")):
            shutil.rmtree(self.path, ignore_errors=True)

    def existing(self) -> list[Path]:
        """The checkpoints, newest first."""
        return sorted(self.checkpoints.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)

    def write_config(self, text: str) -> None:
        """Save the configuration."""
        write_text(self.config_path, text)

    def write_command(self, argv: Sequence[str], *, note: str = "") -> None:
        """Append what was typed, when, with which version and commit, so that a run says how it was made."""
        path = self.path / COMMAND_NAME
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines = [f"# {datetime.now(timezone.utc).isoformat(timespec='seconds')} rave_tools {__version__}"
                 f" commit {commit() or 'unknown'} torch {torch.__version__}", shlex.join(argv)]
        if note:
            lines.append(f"# {note}")
        write_text(path, before + "\n".join(lines) + "\n")

    def save(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a checkpoint; see `save_checkpoint`."""
        path = self.checkpoint_path(name)
        save_checkpoint(path, content)
        return path


@dataclass
class OpenedRun:
    """A checkpoint and the configuration that it belongs to.

    Attributes:
        config_text: gin text that alone rebuilds the model.
        state_dict: the training wrapper's weights; the codec's stand under ``codec.``.
        step: generator updates so far.
        path: the checkpoint file.
        extra: everything else in the checkpoint (optimiser states, ema, counters under ``rave_tools``).
    """

    config_text: str
    state_dict: dict[str, Tensor]
    step: int
    path: Path
    extra: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights of one part, without its prefix.

        Args:
            prefix: ``codec``, ``adversary``, ...
        """
        start = f"{prefix}."
        return {key[len(start):]: value for key, value in self.state_dict.items() if key.startswith(start)}

    @property
    def facts(self) -> dict[str, Any]:
        """The counters and the version that wrote the checkpoint."""
        return self.extra.get(FACTS_KEY, {})


def open_run(path: str | os.PathLike[str], *, which: str = LAST, ema: bool = False) -> OpenedRun:
    """Open a run folder or a lone checkpoint.

    Args:
        path: a run folder, its checkpoints folder, or a ``.ckpt`` file.
        which: ``last``, ``best`` or ``step_N``: which checkpoint of a folder.
        ema: take the averaged weights where the run kept them.

    Raises:
        RunError: there is no run, the file is damaged or foreign, or it has no averaged weights.
    """
    if Path(path).suffix == ".ts":
        raise RunError(f"{path} is an export already; give the run it was made from.")
    file = find_checkpoint(Path(path), which)
    content = load_checkpoint(file)
    facts = content.get(FACTS_KEY, {})
    try:
        migrations.checkpoint_schema(facts)
    except ValueError as error:
        raise RunError(f"{file}: {error}") from error
    config_text = content.get("config")
    if "state_dict" not in content or not config_text:
        hint = _how_to_import(file) if "pytorch-lightning_version" in content else _how_to_import_weights(content, file)
        raise RunError(f"{file} is no checkpoint of rave_tools: it holds {', '.join(sorted(map(str, content)))}, "
                       f"and not both state_dict and config.{hint}")
    state = dict(content["state_dict"])
    if ema:
        averaged = content.get("ema")
        if not averaged:
            raise RunError(f"{file} has no averaged weights: the run was trained without --ema.")
        state.update({key: value for key, value in averaged.items() if isinstance(value, Tensor)})
    extra = {key: value for key, value in content.items() if key not in ("state_dict", "config")}
    return OpenedRun(config_text, state, int(facts.get("generator_updates", 0)), file, extra)


def find_checkpoint(path: Path, which: str = LAST) -> Path:
    """The checkpoint file that a path means.

    Args:
        path: see `open_run`.
        which: see `open_run`.

    Raises:
        RunError: there is none; names what is there.
    """
    if path.is_file():
        return path
    if not path.exists():
        near = sorted(item.name for item in path.parent.glob("*") if item.is_dir()) if path.parent.is_dir() else []
        hint = f" {path.parent} holds: {', '.join(near[:8])}." if near else ""
        raise RunError(f"no run at {path}.{hint}")
    folder = path if path.name == CHECKPOINTS_NAME else path / CHECKPOINTS_NAME
    file = folder / f"{which}{SUFFIX}"
    if file.is_file():
        return file
    others = sorted(item.stem for item in folder.glob(f"*{SUFFIX}"))
    if others:
        raise RunError(f"{folder.parent} has no '{which}' checkpoint; it has {', '.join(others)}.")
    inside = sorted(item.parent.name for item in path.glob(f"*/{CHECKPOINTS_NAME}"))
    if inside:
        if all(name.startswith("version_") for name in inside):
            raise RunError(f"{path} looks like a run of acids-rave.{_how_to_import(path)}")
        raise RunError(f"{path} is a folder of runs; choose one: {', '.join(inside[:8])}.")
    raise RunError(f"{path} has no checkpoint: the run ended before it wrote one, or this is no run.")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: the one before stays until the new one is complete on the disk.

    Args:
        path: where to.
        content: tensors and plain values only; ``rave_tools`` gains the version and the layout.

    Raises:
        RunError: the disk is full or the folder cannot be written; the checkpoint before is untouched.
        TypeError: something in it could only be read back by running code.
    """
    stamped = dict(content)
    stamped[FACTS_KEY] = {"version": __version__, "schema": migrations.SCHEMA, **content.get(FACTS_KEY, {})}
    _check_plain(stamped, "checkpoint")
    kept = f"; the one before is kept: {path}" if path.is_file() else ""
    _replace(path, lambda stream: torch.save(stamped, stream), kept)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running code from it.

    Raises:
        RunError: it cannot be read; names the file and the newest good one beside it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and begins_as_torch(path):
            raise RunError(f"{path} holds Python objects and is not opened, for they could run code; "
                           "rave_tools writes checkpoints of tensors and plain values only."
                           f"{_how_to_import(path)}") from error
        raise RunError(f"{path} is damaged ({damage(path)}).{_good_one_beside(path)}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is no checkpoint of rave_tools: it holds one {type(content).__name__}.")
    return content


def is_complete(path: Path) -> bool:
    """True when a checkpoint's archive is whole: its index is written last, and its checksums hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    _replace(path, lambda stream: stream.write(text.encode("utf-8")), "")


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically, as `write_text`."""
    _replace(path, lambda stream: stream.write(data), "")


def commit() -> str | None:
    """The commit of the checkout that the package runs from, with ``+`` if it has changes; None elsewhere."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        head, changes = (subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True,
                                        timeout=10, check=True).stdout.strip()
                         for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def _replace(path: Path, fill: Callable[[BinaryIO], Any], kept: str) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise RunError(f"cannot write {path}: {_reason(cause)}{kept}.") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error behind torch's: its writer reports a full disk as an unexpected position."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write there"
    return error.strerror or str(error)


def damage(path: Path) -> str:
    """In what way a file that torch cannot read is no whole checkpoint, in words."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return _reason(error)
    if size == 0:
        return "it is empty"
    return f"truncated at {size} bytes" if begins_as_torch(path) else "it is no torch archive"


def begins_as_torch(path: Path) -> bool:
    """True when the first bytes are a zip archive's, torch's format since 1.6."""
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


def _how_to_import(path: Path) -> str:
    return f" If acids-rave made it: rave_tools import --run {path} --output RUN makes a run of it."


def _how_to_import_weights(content: Mapping[Any, Any], path: Path) -> str:
    if not any(str(name).startswith(("encoder.", "xp.cfg", "best_state", "metadata")) for name in content):
        return ""
    return (" If it is a published codec: rave_tools import --from encodec|audiocraft|transformers|dac "
            f"--checkpoint {path} --output RUN makes a run of it.")


def _good_one_beside(path: Path) -> str:
    others = sorted((item for item in path.parent.glob(f"*{SUFFIX}") if item != path),
                    key=lambda item: item.stat().st_mtime, reverse=True)
    for other in others:
        if is_complete(other):
            return f" The newest good one beside it is {other}."
    return " There is no other checkpoint beside it."


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(key, where)
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple, set)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif not isinstance(value, (Tensor, str, bytes, int, float, complex, bool, type(None), torch.Size, torch.dtype,
                                torch.device)):
        raise TypeError(f"{where} is {type(value).__name__}; a checkpoint holds tensors and plain values only")
