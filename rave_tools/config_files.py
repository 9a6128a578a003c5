"""Where configuration files live, and how a bare name such as ``v2`` finds one."""

import os
from collections.abc import Iterator
from pathlib import Path

from .config_values import did_you_mean
from .errors import ConfigError

SUFFIX = ".gin"


def shipped_folder() -> Path:
    """The folder of the configurations that come with the package.

    A wheel carries them inside the package; in an editable install, and when run from a checkout, they lie beside it.

    Raises:
        ConfigError: neither folder exists, the installation is damaged.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no configs/ folder in or beside {package}: reinstall rave_tools.")


def shipped_files() -> list[Path]:
    """Every shipped configuration, sorted by folder and name."""
    return sorted(shipped_folder().rglob(f"*{SUFFIX}"), key=lambda path: (path.parent.parts, path.name))


def shown(path: Path) -> str:
    """A path as a person would name it: shipped files from the configs folder on, others as short as possible."""
    try:
        return str(path.resolve().relative_to(shipped_folder().parent))
    except ValueError:
        relative = os.path.relpath(path)
        return str(path) if relative.startswith(os.pardir) else relative


def is_shipped(path: Path) -> bool:
    """True when a file comes with the package."""
    return path.resolve().is_relative_to(shipped_folder().resolve())


def find(name: str, beside: Path | None = None) -> Path:
    """The file that a name means.

    Searched in this order: the name as a path from the working directory; beside the including file; the shipped
    configs folder; and, recursively inside that folder, any file whose path ends with the name.

    Args:
        name: ``v2``, ``v2.gin``, ``models/v2.gin`` or a path. A leading ``configs/`` may be written.
        beside: folder of the file that includes it.

    Raises:
        ConfigError: no file, or several, answer to the name.
    """
    wanted = name if name.endswith(SUFFIX) else name + SUFFIX
    root = shipped_folder()
    inside = wanted.removeprefix("configs/")
    places = [Path(name), Path(wanted)]
    if beside is not None:
        places.append(beside / wanted)
    places.append(root / inside)
    for place in places:
        if place.expanduser().is_file():
            return place.expanduser()
    parts = Path(inside).parts
    matches = [path for path in shipped_files() if path.parts[-len(parts):] == parts]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = " and ".join(shown(match) for match in matches)
        raise ConfigError(f"'{name}' means several files: {listed}. Write one of them.")
    hint = did_you_mean(Path(inside).stem, _nearby_names())
    raise ConfigError(f"no configuration '{name}' in {Path.cwd()} or among the shipped ones "
                      f"(rave_tools configs list).{hint}")


def _nearby_names() -> Iterator[str]:
    for path in shipped_files():
        yield path.stem
    for path in Path.cwd().glob(f"*{SUFFIX}"):
        yield path.stem


def description(path: Path) -> str:
    """The first line of a file's letter-head: its first comment, without the mark."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            text = text.lstrip("#").strip()
            if text:
                return text
        elif text:
            break
    return ""
