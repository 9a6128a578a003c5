"""The files that a database is made from: finding them, keeping the book, dividing them for validation."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rave_tools.data.store import StoreError, write_atomically

BOOK_FILE = "sources.jsonl"
JOURNAL_FILE = "sources.partial.jsonl"
EXTENSIONS = (
    "wav",
    "wave",
    "w64",
    "rf64",
    "aif",
    "aiff",
    "flac",
    "ogg",
    "oga",
    "opus",
    "mp3",
    "m4a",
    "aac",
    "caf",
    "au",
)


@dataclass(frozen=True)
class Source:
    """One file and what became of it.

    Attributes:
        path: absolute.
        size: in bytes, to notice that a file changed.
        modified: time stamp in nanoseconds, likewise.
        found_seconds: length of the sound in it; what its header says where it could not be decoded.
        samples: stored (or, lazily, referred to), per channel at the database's rate, padding not counted.
        records: stored.
        train_samples: how many of the samples, counted from the first, are for training; the others are for validation.
        rate: of the file, in hertz.
        channels: of the file.
        skipped: the reason why nothing of it is used; empty for a file in use.
        notes: what else a person should know (damaged, clipped, ...).
    """

    path: str
    size: int
    modified: int
    found_seconds: float = 0.0
    samples: int = 0
    records: int = 0
    train_samples: int = 0
    rate: int = 0
    channels: int = 0
    skipped: str = ""
    notes: tuple[str, ...] = ()

    def same_file(self, other: "Source") -> bool:
        """Whether both entries speak of the same, unchanged file."""
        return (self.path, self.size, self.modified) == (other.path, other.size, other.modified)


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        sources: audio files, in an order that is the same in every run.
        passed_over: how many other files were seen, by extension.
    """

    sources: list[Source]
    passed_over: Counter[str] = field(default_factory=Counter)


def _walk(root: Path, seen: set[str]) -> Iterator[Path]:
    """Files below a folder in sorted order, links followed, circles of links not."""
    real = os.path.realpath(root)
    if real in seen:
        return
    seen.add(real)
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        elif entry.is_file():
            yield Path(entry.path)


def search(
    input_paths: Sequence[str], extensions: Sequence[str] = EXTENSIONS, *, flag: str = "--input_path"
) -> Search:
    """Find audio files.

    Args:
        input_paths: folders, searched with all that is below them, or single files.
        extensions: what counts as audio, without dot, upper or lower case.
        flag: how the paths were given, for messages.

    Returns:
        The files, each once, sorted within each input path, and the count of what was passed over.

    Raises:
        StoreError: an input path does not exist.
    """
    wanted = {extension.lower().lstrip(".") for extension in extensions}
    found: dict[str, Source] = {}
    passed_over: Counter[str] = Counter()
    seen: set[str] = set()
    for given in input_paths:
        root = Path(given).expanduser()
        if not root.exists():
            raise StoreError(f"{given}: no such file or folder (given as {flag})")
        for path in [root] if root.is_file() else _walk(root, seen):
            extension = path.suffix.lower().lstrip(".")
            if not root.is_file() and (extension not in wanted or path.name.startswith("._")):
                passed_over[extension or "no extension"] += 1
                continue
            status = path.stat()
            found.setdefault(os.path.realpath(path), Source(os.path.abspath(path), status.st_size, status.st_mtime_ns))
    return Search(list(found.values()), passed_over)


def divide(sources: Sequence[Source], share: float, *, chunk: int | None) -> list[Source]:
    """Set files aside for validation, so that no recording is on both sides.

    Files are drawn in the order of a hash of their names, so that the choice depends neither on the run nor on the
    number of workers. A single file cannot be divided by file: its end is set aside.

    Args:
        sources: all entries, unused ones included.
        share: percent of the seconds that validation should have; 0 for none.
        chunk: samples per record, which are not divided; None for a lazy database.

    Returns:
        The same entries with `train_samples` set.
    """
    used = [index for index, source in enumerate(sources) if source.records]
    train = {index: sources[index].samples for index in used}
    if share > 0:
        if len(used) == 1:
            train[used[0]] = _without_end(sources[used[0]], share, chunk)
        for index in _held_files(sources, used, share):
            train[index] = 0
    return [replace(source, train_samples=train.get(index, 0)) for index, source in enumerate(sources)]


def _without_end(source: Source, share: float, chunk: int | None) -> int:
    if chunk is None:
        return round(source.samples * (1 - share / 100))
    held = max(1, round(source.records * share / 100)) if source.records > 1 else 0
    return min(source.samples, (source.records - held) * chunk)


def _held_files(sources: Sequence[Source], used: Sequence[int], share: float) -> list[int]:
    """Files whose length comes near the share; never all, and none that is far longer than the share."""
    target = sum(sources[index].samples for index in used) * share / 100
    order = sorted(
        used,
        key=lambda index: hashlib.sha1(Path(sources[index].path).name.encode()).digest() + index.to_bytes(8, "big"),
    )
    fitting = [index for index in order if sources[index].samples <= 2 * target]
    fitting = fitting or sorted(order, key=lambda index: sources[index].samples)[:1]
    held: list[int] = []
    for index in fitting[: len(used) - 1]:
        if sum(sources[other].samples for other in held) >= target:
            break
        held.append(index)
    return held


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _parse(line: str) -> Source:
    content = json.loads(line)
    known = {name: content[name] for name in Source.__dataclass_fields__ if name in content}
    return Source(**{**known, "notes": tuple(content.get("notes", ()))})


class Journal:
    """The book while the database is in the making: one line per finished file, appended after its records are safe.

    Args:
        database: its folder.
        settings: what decides the content of the database; written as the first line.
    """

    def __init__(self, database: Path, settings: Mapping[str, Any]):
        self._path = database / JOURNAL_FILE
        self._settings = dict(settings)

    def entries(self) -> list[Source] | None:
        """What an interrupted run left; None where there is none.

        Raises:
            StoreError: it was made by other settings.
        """
        if not self._path.is_file():
            return None
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        if not lines:
            return None
        check_same_settings(self._path.parent, json.loads(lines[0])["settings"], self._settings)
        return [_parse(line) for line in lines[1:]]

    def restart(self, entries: Sequence[Source]) -> None:
        """Begin with these entries, a torn last line of the previous run thereby removed."""
        write_atomically(
            self._path, _line({"settings": self._settings}) + "".join(_line(asdict(entry)) for entry in entries)
        )

    def append(self, entries: Sequence[Source]) -> None:
        """Add finished files durably."""
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(_line(asdict(entry)) for entry in entries))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be written ({error.strerror})") from error


def check_same_settings(database: Path, made_with: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to mix two commands in one database.

    Args:
        database: its folder.
        made_with: settings that it was begun with.
        wanted: settings of this run.

    Raises:
        StoreError: they differ; the message lists each difference.
    """
    differences = [
        f"--{name}: {made_with.get(name)} there, {wanted.get(name)} now"
        for name in sorted({*made_with, *wanted})
        if made_with.get(name) != wanted.get(name)
    ]
    if differences:
        raise StoreError(
            f"{database}: holds a database made by other settings ({'; '.join(differences)}); give the same ones, "
            "choose another --output_path, or delete this folder"
        )


def write_book(database: Path, settings: Mapping[str, Any], sources: Sequence[Source]) -> None:
    """Write ``sources.jsonl``: the settings, then one line per file."""
    write_atomically(
        database / BOOK_FILE, _line({"settings": dict(settings)}) + "".join(_line(asdict(entry)) for entry in sources)
    )


def read_book(database: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Source]]:
    """Read ``sources.jsonl``.

    Args:
        database: its folder.

    Returns:
        The settings it was made with, and the entries in the order of their records.

    Raises:
        StoreError: missing or damaged.
    """
    path = Path(database) / BOOK_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return json.loads(lines[0])["settings"], [_parse(line) for line in lines[1:]]
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: cannot be read ({error}); without it the records cannot be told apart, preprocess again"
        ) from error
