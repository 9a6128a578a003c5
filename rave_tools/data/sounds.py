"""Random access to the sound of a database, whether it lies in records or still in the files."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rave_tools.data.audio_io import AudioReader, open_audio
from rave_tools.data.decoding import fit_channels
from rave_tools.data.filtering import PIECE
from rave_tools.data.sources import BOOK_FILE, read_book
from rave_tools.data.store import DatabaseFacts, ExampleStore, read_facts
from rave_tools.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "all")
FOREIGN_VALIDATION_SHARE = 2
OPEN_FILES = 48


class DataError(UserError):
    """A database does not fit what is asked of it; the message names both."""


@dataclass(frozen=True)
class Spans:
    """The parts of files that a split may use.

    Attributes:
        paths: of the files, or names of the records where files are not known.
        first_records: index of each file's first record.
        low: first usable sample of each file, at the database's rate. Shape (files,).
        high: one past the last. Shape (files,).
        rates: sampling rates of the files themselves, needed to decode them lazily; 0 where unknown.
    """

    paths: Sequence[str]
    first_records: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rates: np.ndarray

    def part(self, selection: np.ndarray) -> "Spans":
        """Only the selected files."""
        paths = (
            [self.paths[index] for index in np.flatnonzero(selection)]
            if selection.dtype == bool
            else [self.paths[i] for i in selection]
        )
        return Spans(
            paths, self.first_records[selection], self.low[selection], self.high[selection], self.rates[selection]
        )


class Sound:
    """Random access to the sound of a database, on the time axis of each file."""

    facts: DatabaseFacts
    chunk: int

    def spans(self, split: str) -> Spans:
        """The files of a split."""
        raise NotImplementedError

    def read(self, spans: Spans, file: int, start: int, stop: int) -> np.ndarray:
        """Samples [start, stop) of a file, counted at the database's rate.

        Returns:
            float32, shape (C, n), at `rate(spans, file)`; less than asked for where a file has become shorter.
        """
        raise NotImplementedError

    def rate(self, spans: Spans, file: int) -> int:
        """Rate in hertz of what `read` returns."""
        return self.facts.sampling_rate

    def close(self) -> None:
        """Release what is open."""


def _split(low: np.ndarray, high: np.ndarray, border: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    if split not in SPLITS:
        raise DataError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if split == "train":
        return low, np.minimum(high, border)
    if split == "validation":
        return np.maximum(low, border), high
    return low, high


class StoredSound(Sound):
    """Sound that lies in the records."""

    def __init__(self, database: str):
        self._store = ExampleStore(database)
        self.facts = self._store.facts
        self._own = (Path(database) / BOOK_FILE).is_file()
        self._database = database
        self.chunk = int((self.facts.extra or {}).get("chunk") or self._store.samples(0))

    def spans(self, split: str) -> Spans:
        """See :class:`Sound`."""
        if self._own:
            _, book = read_book(self._database)
            used = [source for source in book if source.records]
            records = np.array([source.records for source in used])
            high = np.array([source.samples for source in used], np.int64)
            border = np.array([source.train_samples for source in used], np.int64)
            if records.sum() != len(self._store):
                raise DataError(
                    f"{self._database}: {BOOK_FILE} lists {records.sum()} records and the database holds "
                    f"{len(self._store)}; preprocess again"
                )
            paths, rates = [source.path for source in used], np.array([source.rate for source in used])
        else:
            count = len(self._store)
            records, high = np.ones(count, np.int64), np.full(count, self.chunk, np.int64)
            border = high * (np.arange(count) < _foreign_border(count))
            paths, rates = [f"record {index}" for index in range(count)], np.full(count, self.facts.sampling_rate)
        low, high = _split(np.zeros_like(high), high, border, split)
        spans = Spans(paths, np.cumsum(records) - records, low, high, rates)
        return spans.part(high > low)

    def read(self, spans: Spans, file: int, start: int, stop: int) -> np.ndarray:
        """See :class:`Sound`."""
        first, begin = divmod(start, self.chunk)
        record = int(spans.first_records[file]) + first
        if begin + stop - start <= self.chunk:
            return self._store.read(record, begin, begin + stop - start)
        parts = []
        while start < stop:
            end = min(stop, start - begin + self.chunk)
            parts.append(self._store.read(record, begin, begin + end - start))
            record, start, begin = record + 1, end, 0
        return np.concatenate(parts, axis=1)

    def close(self) -> None:
        """See :class:`Sound`."""
        self._store.close()


class LazySound(Sound):
    """Sound that is decoded from the files when it is asked for; files stay open, and a seek is to the sample."""

    def __init__(self, database: str, *, chunk: int):
        self.facts = read_facts(database)
        self.chunk = chunk
        self._database = database
        self._downmix = str((self.facts.extra or {}).get("downmix", "first"))
        self._open: OrderedDict[str, AudioReader] = OrderedDict()
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def spans(self, split: str) -> Spans:
        """See :class:`Sound`."""
        if (Path(self._database) / BOOK_FILE).is_file():
            _, book = read_book(self._database)
            used = [source for source in book if source.records]
            paths = [source.path for source in used]
            high = np.array([source.samples for source in used], np.int64)
            rates = np.array([source.rate for source in used])
            border = np.array([source.train_samples for source in used], np.int64)
        else:
            store = ExampleStore(self._database)
            references = [store.metadata(index) for index in range(len(store))]
            store.close()
            paths = [reference["path"] for reference in references]
            high = np.array(
                [int(float(reference["length"]) * self.facts.sampling_rate) for reference in references], np.int64
            )
            rates = np.zeros(len(paths), np.int64)
            border = high * (np.arange(len(paths)) < _foreign_border(len(paths)))
        low, high = _split(np.zeros_like(high), high, border, split)
        return Spans(paths, np.arange(len(paths)), low, high, rates).part(high > low)

    def _reader(self, path: str) -> AudioReader:
        reader = self._open.pop(path, None) or open_audio(path)
        self._open[path] = reader
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return reader

    def rate(self, spans: Spans, file: int) -> int:
        """See :class:`Sound`."""
        return int(spans.rates[file]) or self._reader(spans.paths[file]).facts.sampling_rate

    def read(self, spans: Spans, file: int, start: int, stop: int) -> np.ndarray:
        """See :class:`Sound`."""
        reader = self._reader(spans.paths[file])
        rate = reader.facts.sampling_rate
        first, frames = start * rate // self.facts.sampling_rate, -(-(stop - start) * rate // self.facts.sampling_rate)
        reader.seek(first)
        chosen: np.ndarray | None = None
        if self._downmix == "random" and reader.facts.channels > self.facts.channels:
            generator = np.random.default_rng([file, start])
            chosen = np.sort(generator.choice(reader.facts.channels, self.facts.channels, replace=False))
        result = np.empty((self.facts.channels, frames), np.float32)
        done = 0
        while done < frames and (block := reader.read(min(PIECE, frames - done))).shape[1]:
            part = result[:, done : done + block.shape[1]]
            part[:] = block[chosen] if chosen is not None else fit_channels(block, self.facts.channels, self._downmix)
            done += block.shape[1]
        if done == 0 and spans.paths[file] not in self._warned:
            self._warned.add(spans.paths[file])
            log.warning(
                "%s: no sound at %.1f s, where the database expects some; silence is used",
                reader.facts.path,
                first / rate,
            )
        return result[:, :done]

    def close(self) -> None:
        """See :class:`Sound`."""
        while self._open:
            self._open.popitem()[1].close()


def _foreign_border(count: int) -> int:
    """A database that another tool made has no split: its last records serve for validation."""
    return count - max(1, count * FOREIGN_VALIDATION_SHARE // 100) if count > 1 else count
