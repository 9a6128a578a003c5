"""Databases of tokens or latents: sounds as a codec writes them, with the codec's identity.

LMDB keys: ``facts`` (JSON: format, kind, dtype, the codec's facts, its hash and run), ``item/00000000`` (JSON of a
sound, written after all else of it), ``data/00000000/0000/00000000`` (item, row, part: (K or D, `PART`) values; the
last part is shorter) and ``scale/00000000`` (float32, rows x segments, of codecs that divide by the loudness).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rave_tools.data.store import KeyedReader, KeyedWriter, StoreError

FORMAT = 1
PART = 1024
"""Frames that are stored together: a crop reads the parts that it touches and no more."""

CODES, LATENTS = "codes", "latents"


@dataclass(frozen=True)
class TokenFacts:
    """What a database holds.

    Attributes:
        kind: ``codes`` or ``latents``.
        dtype: numpy's name of what is stored.
        codec: facts of the codec: sample_rate, hop, channels, codebooks in use, codebook size, a hash of the
            weights, and so on.
        run: where the codec came from.
    """

    kind: str
    dtype: str
    codec: Mapping[str, Any]
    run: str

    @property
    def hash(self) -> str:
        """The codec's identity."""
        return hashlib.sha256(json.dumps(dict(self.codec), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def width(self) -> int:
        """K of codes, D of latents."""
        return int(self.codec["num_codebooks"] if self.kind == CODES else self.codec["latent_dim"])


@dataclass(frozen=True)
class TokenItem:
    """A sound.

    Attributes:
        path: of the source, relative to the folder that was encoded.
        source: of the source, absolute.
        size, modified: of the source, in bytes and nanoseconds, to notice that it changed.
        samples: length at the codec's rate.
        rate: of the source, in hertz.
        source_frames: length of the source at its own rate.
        rows: signals of the codec's channels that the source was divided into.
        frames: of each row.
        notes: what was done to the sound.
        damage: why it ends early; empty if it does not.
    """

    path: str
    source: str
    size: int
    modified: int
    samples: int = 0
    rate: int = 0
    source_frames: int = 0
    rows: int = 1
    frames: int = 0
    notes: Sequence[str] = field(default=())
    damage: str = ""

    def same_file(self, other: "TokenItem") -> bool:
        """Whether both speak of the same, unchanged file, wherever it lies now."""
        return (self.path, self.size, self.modified) == (other.path, other.size, other.modified)


def differences(stored: TokenFacts, wanted: TokenFacts) -> list[str]:
    """What differs between two databases' contents, each with both values."""
    found = [
        f"{name}: {stored.codec.get(name)} there, {wanted.codec.get(name)} here"
        for name in sorted({*stored.codec, *wanted.codec})
        if stored.codec.get(name) != wanted.codec.get(name)
    ]
    found += [
        f"{name}: {getattr(stored, name)} there, {getattr(wanted, name)} here"
        for name in ("kind", "dtype")
        if getattr(stored, name) != getattr(wanted, name)
    ]
    return found


def is_database(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is an LMDB database, of whatever."""
    return (Path(folder) / "data.mdb").is_file()


def check_place(folder: Path) -> None:
    """See that a folder can become a database, or is one.

    Raises:
        StoreError: it is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder}: is a file, and a database is a folder; choose another --output")
    if folder.exists() and not is_database(folder) and any(folder.iterdir()):
        raise StoreError(f"{folder}: holds something that is no database; choose another --output")


class TokenWriter:
    """Makes a database, or goes on with one.

    Args:
        database: its folder; made if missing.
        facts: of what is to be written.

    Raises:
        StoreError: the folder holds something else, or what another codec made.
    """

    def __init__(self, database: str | os.PathLike[str], facts: TokenFacts):
        self.folder = Path(database)
        check_place(self.folder)
        self.facts = facts
        self._store = KeyedWriter(self.folder)
        try:
            self._begin(facts)
            self.items = {item.path: (index, item) for index, item in _items(self._store)}
            self._next = 1 + max((index for index, _ in self.items.values()), default=-1)
        except BaseException:
            self._store.close()
            raise

    def _begin(self, facts: TokenFacts) -> None:
        text = self._store.get(b"facts")
        if text is None:
            if len(self._store):
                raise StoreError(f"{self.folder}: is a database of something else; choose another --output")
            self._store.put([(b"facts", json.dumps({"format": FORMAT, **asdict(facts)}).encode())])
            return
        stored = _facts(text, self.folder)
        different = differences(stored, facts)
        if different:
            raise StoreError(
                f"{self.folder}: holds {stored.kind} of codec {stored.hash} (run {stored.run}), and these would be "
                f"{facts.kind} of codec {facts.hash}; {'; '.join(different)}. Give the run and flags that it was made "
                "with, or another --output"
            )

    def add(
        self,
        item: TokenItem,
        blocks: Iterable[np.ndarray],
        *,
        complete: Callable[[], tuple[TokenItem, np.ndarray | None]],
    ) -> TokenItem:
        """Store a sound, in place of an earlier one of the same path; part by part, in bounded memory.

        Args:
            item: whose place it is.
            blocks: (rows, K or D, n) with any n, in order.
            complete: asked when all blocks are read: the item as it shall be kept (its frames are counted here), and
                what each segment was divided by, (rows, segments), if anything.

        Raises:
            StoreError: the disk is full.
        """
        index = self.items[item.path][0] if item.path in self.items else self._next
        self._forget(index)
        self.items.pop(item.path, None)
        frames = rows = 0
        for part, block in enumerate(_regroup(blocks, PART)):
            rows = block.shape[0]
            frames += block.shape[2]
            self._store.put(
                [(_data_key(index, row, part), np.ascontiguousarray(block[row]).tobytes()) for row in range(rows)]
            )
        item, scales = complete()
        item = replace(item, frames=frames, rows=rows)
        pairs = [] if scales is None else [(b"scale/%08d" % index, scales.astype(np.float32).tobytes())]
        self._store.put([*pairs, (b"item/%08d" % index, json.dumps(asdict(item)).encode())])
        self.items[item.path] = (index, item)
        self._next = max(self._next, index + 1)
        return item

    def _forget(self, index: int) -> None:
        """Remove a sound, or what an interrupted run left of it; the item first, for it says that all is there."""
        self._store.remove([b"item/%08d" % index])
        rest = [key for prefix in (b"data/%08d/", b"scale/%08d") for key in self._store.keys_below(prefix % index)]
        self._store.remove(rest)

    def close(self) -> None:
        """Flush and release."""
        self._store.close()


class TokenStore:
    """Random access to a database: one entry per row of each sound. Can be pickled and read in worker processes.

    Args:
        database: its folder.

    Attributes:
        facts: of the codec and of what is stored.
        items: the sounds, in the order of their paths' encoding.
        entries: (number of the sound in `items`, row) by index.

    Raises:
        StoreError: missing, empty, of another kind or damaged.
    """

    def __init__(self, database: str | os.PathLike[str]):
        self.folder = Path(database)
        if not is_database(self.folder):
            raise StoreError(f"{self.folder}: no such database; make one with `rave_tools encode --output {database}`")
        self._store = KeyedReader(self.folder)
        text = self._store.get(b"facts")
        if text is None:
            raise StoreError(
                f"{self.folder}: is no database of tokens (one of sounds, perhaps); make one with `rave_tools encode`"
            )
        self.facts = _facts(text, self.folder)
        found = _items(self._store)
        if not found:
            raise StoreError(f"{self.folder}: holds no sound yet; run the same `rave_tools encode` again to fill it")
        self._places = [index for index, _ in found]
        self.items = [item for _, item in found]
        self.entries = [(number, row) for number, item in enumerate(self.items) for row in range(item.rows)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> np.ndarray:
        """All of an entry, (K or D, N)."""
        return self.read(index)

    def item(self, index: int) -> TokenItem:
        """The sound that an entry belongs to."""
        return self.items[self.entries[index][0]]

    def frames(self, index: int) -> int:
        """N of an entry."""
        return self.item(index).frames

    def read(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A part of an entry.

        Args:
            index: of the entry.
            start: first frame.
            stop: one past the last; None reads to the end.

        Returns:
            (K or D, stop - start) in the stored dtype.

        Raises:
            ValueError: frames that the entry does not have.
            StoreError: a part is missing.
        """
        number, row = self.entries[index]
        frames = self.items[number].frames
        stop = frames if stop is None else stop
        if not 0 <= start <= stop <= frames:
            raise ValueError(f"frames {start} to {stop} of {self.items[number].path}, which has {frames}; ask for less")
        parts = [np.empty((self.facts.width, 0), self.facts.dtype)]
        for part in range(start // PART, -(-stop // PART)):
            data = self._store.get(_data_key(self._places[number], row, part))
            if data is None:
                raise StoreError(f"{self.folder}: part {part} of {self.items[number].path} is missing; encode it anew")
            values = np.frombuffer(data, self.facts.dtype).reshape(self.facts.width, -1)
            parts.append(values[:, max(0, start - part * PART) : stop - part * PART])
        return np.concatenate(parts, axis=1)

    def crop(self, index: int, frames: int, *, generator: np.random.Generator) -> np.ndarray:
        """So many frames from anywhere in an entry, (K or D, frames).

        Raises:
            ValueError: the entry is shorter.
        """
        spare = self.frames(index) - frames
        if spare < 0:
            raise ValueError(
                f"a crop of {frames} frames of {self.item(index).path}, which has {self.frames(index)}; ask for less, "
                "or leave short entries out"
            )
        start = int(generator.integers(spare + 1))
        return self.read(index, start, start + frames)

    def scales(self, index: int) -> np.ndarray | None:
        """What each segment of an entry was divided by, (segments,); None of a codec that leaves levels alone."""
        number, row = self.entries[index]
        data = self._store.get(b"scale/%08d" % self._places[number])
        return None if data is None else np.frombuffer(data, np.float32).reshape(self.items[number].rows, -1)[row]

    def close(self) -> None:
        """Release the database; the next read opens it again."""
        self._store.close()


def _facts(text: bytes, folder: Path) -> TokenFacts:
    content = json.loads(text)
    if content.pop("format") != FORMAT:
        raise StoreError(f"{folder}: was made by another version of rave_tools; encode the sounds anew")
    return TokenFacts(**content)


def _items(store: KeyedReader | KeyedWriter) -> list[tuple[int, TokenItem]]:
    return [(int(key[5:]), TokenItem(**json.loads(value))) for key, value in store.below(b"item/")]


def _data_key(index: int, row: int, part: int) -> bytes:
    return b"data/%08d/%04d/%08d" % (index, row, part)


def _regroup(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Blocks (..., n) of any n to blocks of `size`, the last one shorter."""
    waiting: np.ndarray | None = None
    for block in blocks:
        waiting = block if waiting is None else np.concatenate([waiting, block], -1)
        while waiting.shape[-1] >= size:
            yield waiting[..., :size]
            waiting = waiting[..., size:]
    if waiting is not None and waiting.shape[-1]:
        yield waiting
