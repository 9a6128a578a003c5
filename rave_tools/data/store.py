"""The database on disk: LMDB records in udls' protobuf, as acids-rave reads and writes them.

A database is a folder with three things: ``data.mdb`` with one ``AudioExample`` per key ``00000000``, ``00000001``,
...; ``sources.jsonl``, the book of the files it was made from (:mod:`rave_tools.data.sources`); and ``metadata.yaml``,
written last and atomically, so that a folder without it is a database in the making.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import yaml

from rave_tools.errors import UserError

WAVEFORM = "waveform"
METADATA_FILE = "metadata.yaml"
INT16_SCALE = np.float32(1 / 32768)
_GROWTH = 64 << 20
_PAGE = 4096


class StoreError(UserError):
    """The database cannot be opened, read or written; the message names the folder and the mend."""


@dataclass(frozen=True)
class DatabaseFacts:
    """What ``metadata.yaml`` says.

    Attributes:
        channels: of the records.
        sampling_rate: in hertz.
        seconds: of sound stored, padding not counted.
        lazy: True where records are references to files.
        extra: our own fields; None for a database that another tool made.
    """

    channels: int
    sampling_rate: int
    seconds: float
    lazy: bool
    extra: Mapping[str, Any] | None = field(default=None)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step, so that a reader sees the old one or the new one and never a part.

    Args:
        path: the file.
        text: its new content.

    Raises:
        StoreError: the disk is full or not writable.
    """
    draft = path.with_name(path.name + ".draft")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error


def write_facts(database: str | os.PathLike[str], facts: DatabaseFacts) -> None:
    """Write ``metadata.yaml``: from here on the database is complete.

    Args:
        database: its folder.
        facts: what to state.
    """
    content: dict[str, Any] = {
        "channels": facts.channels,
        "lazy": facts.lazy,
        "n_seconds": facts.seconds,
        "sr": facts.sampling_rate,
    }
    if facts.extra is not None:
        content["rave_tools"] = dict(facts.extra)
    write_atomically(Path(database) / METADATA_FILE, yaml.safe_dump(content))


def read_facts(database: str | os.PathLike[str]) -> DatabaseFacts:
    """Read ``metadata.yaml``.

    Args:
        database: folder of a database made by ``rave_tools preprocess`` or ``rave preprocess``.

    Returns:
        Its facts.

    Raises:
        StoreError: there is no database, or an unfinished one.
    """
    folder = Path(database)
    path = folder / METADATA_FILE
    if not path.is_file():
        if not folder.is_dir():
            raise StoreError(
                f"{folder}: no such database folder; make one with `rave_tools preprocess --output_path {folder}`"
            )
        if (folder / "data.mdb").is_file():
            raise StoreError(
                f"{folder}: this database is unfinished (no {METADATA_FILE}); "
                "run the same preprocess command again to complete it"
            )
        raise StoreError(f"{folder}: not a database ({METADATA_FILE} is missing)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return DatabaseFacts(
            int(content.get("channels") or 1),
            int(content.get("sr", 44100)),
            float(content.get("n_seconds", 0)),
            bool(content["lazy"]),
            content.get("rave_tools"),
        )
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: is not the metadata of a database ({error!r})") from error


def _protobuf() -> ModuleType:
    """udls' generated protobuf module.

    It is loaded from its file: importing the package ``udls`` would import torch, seconds that preprocessing does not
    need.
    """
    name = "udls.generated.audio_example_pb2"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("udls")
    if package is None or package.origin is None:
        raise StoreError("the package udls is missing; install it with `pip install udls`")
    path = Path(package.origin).parent / "generated" / "audio_example_pb2.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StoreError(f"{path}: udls has no protobuf module here; install udls 1.1 or newer")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ExampleCodec:
    """Turns audio and references into ``AudioExample`` bytes."""

    def __init__(self) -> None:
        self._example = _protobuf().AudioExample

    def audio(self, pcm: bytes, *, channels: int, sampling_rate: int, metadata: Mapping[str, str]) -> bytes:
        """A record of sound.

        Args:
            pcm: int16 samples, channel after channel.
            channels: count.
            sampling_rate: in hertz.
            metadata: strings kept with the record.

        Returns:
            The protobuf.
        """
        buffer = self._example.AudioBuffer(
            shape=(channels, len(pcm) // (2 * channels)),
            sampling_rate=sampling_rate,
            data=pcm,
            precision=self._example.Precision.INT16,
        )
        return self._example(buffers={WAVEFORM: buffer}, metadata=metadata).SerializeToString()

    def reference(self, metadata: Mapping[str, str]) -> bytes:
        """A record that only points at a file (``path``, ``length`` in seconds, ``channels``)."""
        return self._example(metadata=metadata).SerializeToString()

    def metadata(self, record: bytes) -> dict[str, str]:
        """The strings kept with a record."""
        return dict(self._example.FromString(bytes(record)).metadata)


def key_of(index: int) -> bytes:
    """The LMDB key of a record."""
    return b"%08d" % index


class ExampleWriter:
    """Appends records to a database, in batches of one transaction each; the map grows as needed.

    Args:
        database: its folder; made if missing.

    Raises:
        StoreError: the folder cannot be made or holds something else.
    """

    def __init__(self, database: str | os.PathLike[str]):
        self.folder = Path(database)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._environment = lmdb.open(os.fspath(self.folder), map_size=_GROWTH, max_dbs=0)
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{self.folder}: cannot make a database here ({error})") from error

    def __len__(self) -> int:
        return int(self._environment.stat()["entries"])

    def append(self, first: int, records: Sequence[bytes]) -> None:
        """Store consecutive records durably.

        Args:
            first: index of the first of them; must be the present length.
            records: protobufs.

        Raises:
            StoreError: the disk is full.
        """
        if not records:
            return
        self._make_room(sum(len(record) + _PAGE for record in records))
        try:
            with self._environment.begin(write=True) as transaction:
                for offset, record in enumerate(records):
                    transaction.put(key_of(first + offset), record, append=True)
        except (lmdb.Error, OSError) as error:
            free = shutil.disk_usage(self.folder).free / 1e6
            raise StoreError(
                f"{self.folder}: cannot write ({error}; {free:,.0f} MB are free on this disk); "
                "free some space and run the same command again, it goes on where it stopped"
            ) from error

    def truncate(self, length: int) -> None:
        """Remove every record from index `length` on.

        Removing needs room too: LMDB copies the pages that it changes, and a reopened database has none to spare.
        """
        if length >= len(self):
            return
        self._make_room(_PAGE * (len(self) - length))
        with self._environment.begin(write=True) as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(key_of(length))
            while found:
                found = cursor.delete()

    def _make_room(self, size: int) -> None:
        """Grow the map before the transaction: LMDB never grows it by itself, and a full map loses the transaction.

        Freed pages are not counted on: a truncated file's space is reused when LMDB can, and never relied on.
        """
        info, page = self._environment.info(), self._environment.stat()["psize"]
        needed = (info["last_pgno"] + 1) * page + size * 2 + _GROWTH // 4
        if needed > info["map_size"]:
            self._environment.set_mapsize(-(-max(needed, info["map_size"] * 5 // 4) // _GROWTH) * _GROWTH)

    def close(self) -> None:
        """Flush and release."""
        self._environment.sync(True)
        self._environment.close()


class ExampleStore:
    """Reads records, zero-copy up to the conversion to float.

    The environment is opened at the first read and not pickled, so that each worker process opens its own.

    Args:
        database: its folder.

    Raises:
        StoreError: missing, unfinished or empty.
    """

    def __init__(self, database: str | os.PathLike[str]):
        self.folder = Path(database)
        self.facts = read_facts(database)
        self._environment: lmdb.Environment | None = None
        with self._open().begin() as transaction:
            self._keys: list[bytes] | None = None
            count = int(transaction.stat()["entries"])
            if count and transaction.get(key_of(0)) is not None and transaction.get(key_of(count - 1)) is not None:
                self._count = count
            else:
                self._keys = list(transaction.cursor().iternext(values=False))
                self._count = len(self._keys)
        if self._count == 0:
            raise StoreError(
                f"{self.folder}: this database holds no records; preprocess again and read the reasons that are printed"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def __len__(self) -> int:
        return self._count

    def _open(self) -> lmdb.Environment:
        if self._environment is None:
            self._environment = _shared_environment(self.folder)
        return self._environment

    def _key(self, index: int) -> bytes:
        return key_of(index) if self._keys is None else self._keys[index]

    def samples(self, index: int) -> int:
        """Samples per channel of a record, padding included."""
        with self._open().begin(buffers=True) as transaction:
            _, size = _find_pcm(transaction.get(self._key(index)))
        return size // (2 * self.facts.channels)

    def read(self, index: int, start: int, stop: int) -> np.ndarray:
        """A part of a record.

        Args:
            index: of the record.
            start: first sample.
            stop: one past the last.

        Returns:
            float32 in [-1, 1], shape (C, stop - start).
        """
        channels = self.facts.channels
        with self._open().begin(buffers=True) as transaction:
            record = transaction.get(self._key(index))
            if record is None:
                raise StoreError(f"{self.folder}: record {index} is missing; the database is damaged, preprocess again")
            offset, size = _find_pcm(record)
            samples = size // (2 * channels)
            pcm = np.frombuffer(record, np.int16, channels * samples, offset).reshape(channels, samples)
            return np.multiply(pcm[:, start:stop], INT16_SCALE, dtype=np.float32)

    def metadata(self, index: int) -> dict[str, str]:
        """The strings kept with a record."""
        with self._open().begin() as transaction:
            return ExampleCodec().metadata(transaction.get(self._key(index)))

    def close(self) -> None:
        """Release the environment; the next read opens it again."""
        self._environment = None


_ENVIRONMENTS: "WeakValueDictionary[tuple[int, int], lmdb.Environment]" = WeakValueDictionary()
"""LMDB forbids opening one file twice in a process, so that the stores of a process share what is open."""


def _shared_environment(folder: Path) -> lmdb.Environment:
    try:
        status = os.stat(folder / "data.mdb")
        key = (status.st_dev, status.st_ino)
        environment = _ENVIRONMENTS.get(key)
        if environment is None:
            environment = lmdb.open(os.fspath(folder), readonly=True, lock=False, max_spare_txns=4)
            _ENVIRONMENTS[key] = environment
        return environment
    except (OSError, lmdb.Error) as error:
        raise StoreError(f"{folder}: cannot be opened ({error})") from error


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    """A protobuf varint and the place after it."""
    value = shift = 0
    while True:
        byte = view[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7


def _fields(view: memoryview, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, first byte and end of every field of a message; for varints the value in place of the end."""
    while place < end:
        tag, place = _varint(view, place)
        number, kind = tag >> 3, tag & 7
        if kind == 2:
            size, place = _varint(view, place)
            yield number, place, place + size
            place += size
        elif kind == 0:
            first = place
            value, place = _varint(view, place)
            yield number, first, value
        else:
            place += {1: 8, 5: 4}[kind]


def _find_pcm(record: memoryview) -> tuple[int, int]:
    """Where the samples of a record lie: offset and size in bytes.

    Parsing with protobuf would copy the half megabyte of a record twice to read a part of it; walking the wire format
    (protobuf encoding specification) copies nothing.
    """
    int16 = 3
    for number, first, end in _fields(record, 0, len(record)):
        if number != 1:
            continue
        name, value = b"", (0, 0)
        for inner, inner_first, inner_end in _fields(record, first, end):
            if inner == 1:
                name = bytes(record[inner_first:inner_end])
            elif inner == 2:
                value = (inner_first, inner_end)
        if name != WAVEFORM.encode():
            continue
        span, precision = (0, 0), 0
        for inner, inner_first, inner_end in _fields(record, *value):
            if inner == 3:
                span = (inner_first, inner_end - inner_first)
            elif inner == 4:
                precision = inner_end
        if precision != int16:
            raise StoreError(f"a record's waveform has precision {precision}, expected {int16} (INT16)")
        return span
    raise StoreError("a record holds no waveform; is this a lazy database whose metadata.yaml says lazy: false?")


class KeyedWriter(ExampleWriter):
    """Puts bytes under keys of any name, in place of the numbered examples."""

    def get(self, key: bytes) -> bytes | None:
        """What is stored under a key, None if nothing is."""
        with self._environment.begin() as transaction:
            value = transaction.get(key)
            return None if value is None else bytes(value)

    def below(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Keys and values whose key begins so, in order."""
        return _below(self._environment, prefix)

    def keys_below(self, prefix: bytes) -> list[bytes]:
        """Keys that begin so, in order."""
        found = []
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not bytes(key).startswith(prefix):
                        break
                    found.append(bytes(key))
        return found

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store all or nothing, durably.

        Raises:
            StoreError: the disk is full.
        """
        self._change(sum(len(value) + 2 * _PAGE for _, value in pairs), pairs, ())

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove all or nothing.

        Raises:
            StoreError: the disk is full.
        """
        self._change(2 * _PAGE * len(keys), (), keys)

    def _change(self, size: int, pairs: Sequence[tuple[bytes, bytes]], keys: Sequence[bytes]) -> None:
        self._make_room(size)
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in pairs:
                    transaction.put(key, value)
                for key in keys:
                    transaction.delete(key)
        except (lmdb.Error, OSError) as error:
            free = shutil.disk_usage(self.folder).free / 1e6
            raise StoreError(
                f"{self.folder}: cannot write ({error}; {free:,.0f} MB are free on this disk); "
                "free some space and run the same command again, it goes on where it stopped"
            ) from error


class KeyedReader:
    """Reads what a `KeyedWriter` stored; opened at the first read and not pickled, so that each worker opens its own.

    Args:
        database: its folder.
    """

    def __init__(self, database: str | os.PathLike[str]):
        self.folder = Path(database)
        self._environment: lmdb.Environment | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def _open(self) -> lmdb.Environment:
        if self._environment is None:
            self._environment = _shared_environment(self.folder)
        return self._environment

    def get(self, key: bytes) -> bytes | None:
        """What is stored under a key, None if nothing is."""
        with self._open().begin() as transaction:
            value = transaction.get(key)
            return None if value is None else bytes(value)

    def below(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Keys and values whose key begins so, in order."""
        return _below(self._open(), prefix)

    def close(self) -> None:
        """Release the environment; the next read opens it again."""
        self._environment = None


def _below(environment: lmdb.Environment, prefix: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    with environment.begin() as transaction, transaction.cursor() as cursor:
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not bytes(key).startswith(prefix):
                    break
                found.append((bytes(key), bytes(value)))
    return found
