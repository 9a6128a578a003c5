"""Databases as datasets: an item is a crop, drawn from a generator that only (seed, epoch, index) decide.

A crop may cross the border between two records of a file, so that the last, short record of a file is trained on with
the sound before it and not with silence behind it; only files shorter than a crop are padded.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rave_tools.data.audio_io import resample
from rave_tools.data.decoding import fit_channels
from rave_tools.data.sounds import DataError, LazySound, Sound, Spans, StoredSound
from rave_tools.data.store import StoreError, read_facts
from rave_tools.data.transforms import TransformLike

Item = tuple[Tensor, int, dict[str, Any]]


class Draw(NamedTuple):
    """Which item, in which pass over the database."""

    epoch: int
    index: int


class Crops(torch.utils.data.Dataset[Item]):
    """What both datasets are: crops of a sound.

    Args:
        sound: where the samples come from.
        n_signal: length of a crop in samples, at `sampling_rate`.
        split: train, validation or all.
        sampling_rate: wanted, in hertz; None keeps the database's.
        channels: wanted; None keeps the database's. Fewer than stored only with a `downmix`.
        downmix: mean, first or random, where one channel is wanted of several that are stored.
        stretch: a transform that shortens its input (random pitch), applied before the crop is cut to length.
        transform: what is done to each crop; None for nothing.
        seed: of all that is drawn.

    Raises:
        DataError: the channels do not fit.
    """

    def __init__(
        self,
        sound: Sound,
        *,
        n_signal: int,
        split: str = "train",
        sampling_rate: int | None = None,
        channels: int | None = None,
        downmix: str | None = None,
        stretch: TransformLike | None = None,
        transform: TransformLike | None = None,
        seed: int = 0,
    ):
        facts = sound.facts
        self.sound, self.n_signal, self.seed = sound, n_signal, seed
        self.sampling_rate = sampling_rate or facts.sampling_rate
        self.channels = channels or facts.channels
        self.downmix = downmix
        self.stretch, self.transform = stretch, transform
        if n_signal < 1:
            raise DataError(f"n_signal is {n_signal}; it must be at least 1")
        if self.channels > facts.channels or (self.channels < facts.channels and downmix is None):
            raise DataError(
                f"the model has {self.channels} channels and the database {facts.channels}; preprocess with "
                f"--channels {self.channels}, or train with --channels {facts.channels}"
            )
        self.spans = sound.spans(split)
        self._needed = int(
            np.ceil(n_signal * getattr(stretch, "reach", 1.0) * facts.sampling_rate / self.sampling_rate)
        )
        lengths = self.spans.high - self.spans.low
        self._last_items = np.cumsum(-(-lengths // sound.chunk))

    def __len__(self) -> int:
        return int(self._last_items[-1]) if len(self._last_items) else 0

    @property
    def span_needed(self) -> int:
        """Samples at the database's rate that make one crop."""
        return self._needed

    @property
    def seconds(self) -> float:
        """Seconds of sound in the split."""
        return float((self.spans.high - self.spans.low).sum()) / self.sound.facts.sampling_rate

    def __getitem__(self, draw: Draw | int) -> Item:
        epoch, index = draw if isinstance(draw, tuple) else (0, int(draw))
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        generator = np.random.Generator(np.random.SFC64([self.seed, epoch, index]))
        file = int(np.searchsorted(self._last_items, index, side="right"))
        place = index - (int(self._last_items[file - 1]) if file else 0)
        start = self._start(file, place, generator)
        audio, valid = self.segment(file, start, self._needed, generator)
        if self.stretch is not None:
            before = audio.shape[1]
            audio = self.stretch(audio, generator)
            valid = round(valid * audio.shape[1] / before)
        audio, valid = _fit_length(audio, self.n_signal), min(valid, self.n_signal)
        if self.transform is not None:
            audio = self.transform(audio, generator)
        metadata = {
            "source": self.spans.paths[file],
            "start": start / self.sound.facts.sampling_rate,
            "index": index,
            "epoch": epoch,
        }
        return torch.from_numpy(np.ascontiguousarray(audio, np.float32)), valid, metadata

    def _start(self, file: int, place: int, generator: np.random.Generator) -> int:
        """Draw where a crop begins: inside the item, moved back where the file ends too soon."""
        low, high = int(self.spans.low[file]), int(self.spans.high[file])
        needed = self._needed
        begin = low + place * self.sound.chunk
        end = min(begin + self.sound.chunk, high)
        first = max(low, min(begin, end - needed))
        last = max(first, min(max(begin, end - needed), high - needed))
        return int(generator.integers(first, last + 1))

    def segment(self, file: int, start: int, length: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        """Sound from a place on, with the wanted rate and channels.

        Args:
            file: index into the spans.
            start: first sample at the database's rate.
            length: samples at the database's rate.
            generator: for a random choice of channels.

        Returns:
            float32, shape (C, length at the wanted rate), and how many of these samples are sound.
        """
        stop = min(start + length, int(self.spans.high[file]))
        audio = self.sound.read(self.spans, file, start, stop)
        if audio.shape[0] > self.channels:
            if self.downmix == "random":
                audio = audio[np.sort(generator.choice(audio.shape[0], self.channels, replace=False))]
            else:
                audio = fit_channels(audio, self.channels, self.downmix or "first")
        audio = resample(audio, self.sound.rate(self.spans, file), self.sampling_rate)
        wanted = int(np.ceil(length * self.sampling_rate / self.sound.facts.sampling_rate))
        valid = min(wanted, audio.shape[1])
        return _fit_length(audio, wanted), valid

    def segments(self, limit: int) -> list[tuple[int, int]]:
        """Places that tile the split without random choice, evenly thinned to at most `limit`.

        Args:
            limit: count.

        Returns:
            (file, start) pairs.
        """
        needed = self._needed
        places = list(_tiles(self.spans, needed))
        if len(places) <= limit:
            return places
        return [places[int(position)] for position in np.linspace(0, len(places) - 1, limit)]


def _tiles(spans: Spans, length: int) -> Iterator[tuple[int, int]]:
    for file, (low, high) in enumerate(zip(spans.low.tolist(), spans.high.tolist(), strict=True)):
        for start in range(low, max(high - length // 2, low + 1), length):
            yield file, max(low, min(start, high - length))


def _fit_length(audio: np.ndarray, length: int) -> np.ndarray:
    if audio.shape[1] >= length:
        return audio[:, :length]
    return np.concatenate([audio, np.zeros((audio.shape[0], length - audio.shape[1]), np.float32)], axis=1)


class AudioDataset(Crops):
    """Crops from a database that holds the sound; see :class:`Crops` for the arguments."""

    def __init__(self, db_path: str, *, n_signal: int, **options: Any):
        super().__init__(StoredSound(db_path), n_signal=n_signal, **options)


class LazyAudioDataset(Crops):
    """Crops decoded from the files that a lazy database refers to; see :class:`Crops` for the arguments."""

    def __init__(self, db_path: str, *, n_signal: int, **options: Any):
        facts = read_facts(db_path)
        rate = options.get("sampling_rate") or facts.sampling_rate
        chunk = 2 * int(np.ceil(n_signal * facts.sampling_rate / rate))
        super().__init__(LazySound(db_path, chunk=chunk), n_signal=n_signal, **options)


def open_dataset(db_path: str, *, n_signal: int, **options: Any) -> Crops:
    """The dataset that fits a database.

    Args:
        db_path: folder of the database.
        n_signal: length of a crop in samples.
        options: of :class:`Crops`.

    Returns:
        An `AudioDataset` or a `LazyAudioDataset`.

    Raises:
        StoreError: there is no database.
        DataError: it does not fit.
    """
    return (LazyAudioDataset if read_facts(db_path).lazy else AudioDataset)(db_path, n_signal=n_signal, **options)


class FixedSegments(torch.utils.data.Dataset[Item]):
    """The same segments every time, for validation.

    Args:
        crops: the validation split.
        limit: at most so many segments.
    """

    def __init__(self, crops: Crops, *, limit: int):
        self._crops = crops
        self._places = crops.segments(limit)
        if not self._places:
            raise StoreError("there is no sound to validate on")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Item:
        crops = self._crops
        file, start = self._places[index]
        generator = np.random.default_rng([crops.seed, index])
        needed = int(np.ceil(crops.n_signal * crops.sound.facts.sampling_rate / crops.sampling_rate))
        audio, valid = crops.segment(file, start, needed, generator)
        audio, valid = _fit_length(audio, crops.n_signal), min(valid, crops.n_signal)
        if crops.transform is not None:
            audio = crops.transform(audio, generator)
        metadata = {
            "source": crops.spans.paths[file],
            "start": start / crops.sound.facts.sampling_rate,
            "index": index,
            "epoch": 0,
        }
        return torch.from_numpy(np.ascontiguousarray(audio, np.float32)), valid, metadata
