"""Training straight from folders of long sound files, of many channels or of one, without a database.

An item is a random segment of a random file, in one-channel mode of a random channel of it, drawn from a generator that
only (seed, position in the stream) decide: workers and processes change nothing, and a resumed run continues exactly.
Only that segment of that channel is read. Channels are never mixed, and their levels are left as they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rave_tools.data.columns import OpenFiles
from rave_tools.data.datamodule import BatchPlan, StreamedData, divide_stretches
from rave_tools.data.datasets import Draw, Item
from rave_tools.data.heldout import HeldOut, set_aside
from rave_tools.data.scan import FoundFile, scan
from rave_tools.data.segments import Geometry, Segment
from rave_tools.data.sounds import DataError
from rave_tools.data.transforms import Compose, TransformLike, deterministic

PICK_BY = ("file", "duration")


class PositionPlan(BatchPlan):
    """Batches whose items are drawn from their position in the endless stream alone."""

    def _draw(self, position: int) -> Draw:
        return Draw(0, position)


class _FolderItems(torch.utils.data.Dataset[Item]):
    """What training and validation share: reading, transforms, metadata."""

    def __init__(self, geometry: Geometry, *, n_signal: int, transform: TransformLike, stretch: TransformLike | None):
        self.geometry, self.n_signal = geometry, n_signal
        self._transform, self._stretch = transform, stretch
        self.open = OpenFiles()

    def _item(self, segment: Segment, index: int, generator: np.random.Generator) -> Item:
        audio, valid = self.geometry.read(segment, self.open)
        if self._stretch is not None:
            before = audio.shape[1]
            audio = self._stretch(audio, generator)
            valid = round(valid * audio.shape[1] / before)
            audio, valid = audio[:, : self.n_signal], min(valid, self.n_signal)
        audio = self._transform(audio, generator)
        metadata = {
            "source": segment.layout.path,
            "start": segment.start / segment.layout.rate,
            "channel": -1 if segment.channel is None else segment.channel,
            "index": index,
            "epoch": 0,
        }
        return torch.from_numpy(np.ascontiguousarray(audio, np.float32)), valid, metadata


class FolderSegments(_FolderItems):
    """Random segments; the index is a position in the endless stream.

    Args:
        files: to draw from.
        channels: 1 draws one channel of a file, more takes all.
        pick_by: file, every file as likely, or duration, every second as likely.
        seed: of all that is drawn.
        options: of the items: geometry, n_signal, transform, stretch.
    """

    def __init__(
        self, files: Sequence[FoundFile], *, channels: int, pick_by: str = "file", seed: int = 0, **options: Any
    ):
        super().__init__(**options)
        if pick_by not in PICK_BY:
            raise DataError(f"--pick_by is {pick_by!r}; choose one of {', '.join(PICK_BY)}")
        self.files, self._channels, self._seed = files, channels, seed
        weights = [file.layout.seconds if pick_by == "duration" else 1.0 for file in files]
        self._until = np.cumsum(weights)

    def __len__(self) -> int:
        return len(self.files)

    def draw(self, position: int) -> tuple[Segment, np.random.Generator]:
        """What is at a position, and the generator for its transforms."""
        generator = np.random.Generator(np.random.SFC64([self._seed, position]))
        point = generator.random() * self._until[-1]
        file = min(int(np.searchsorted(self._until, point, side="right")), len(self.files) - 1)
        place = self.files[file].layout
        start = self.geometry.draw(place, generator)
        channel = int(generator.integers(place.channels)) if self._channels == 1 else None
        return Segment(place, start, channel), generator

    def __getitem__(self, draw: Draw) -> Item:
        segment, generator = self.draw(draw.index)
        return self._item(segment, draw.index, generator)


class HeldSegments(_FolderItems):
    """The fixed segments of validation.

    Args:
        places: where they are.
        seed: for transforms that ask for a generator.
        options: of the items: geometry, n_signal, transform, stretch.
    """

    def __init__(self, places: Sequence[Segment], *, seed: int, **options: Any):
        super().__init__(**options)
        self.places, self._seed = places, seed

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Item:
        return self._item(self.places[index], index, np.random.Generator(np.random.SFC64([self._seed, index])))


class FolderDataModule(StreamedData):
    """Feeds a model from folders of sound files.

    Args:
        folders: searched with all that is below them.
        n_signal: samples per row.
        batch: rows per process.
        sampling_rate: of the model, in hertz; files of other rates are resampled while loading.
        channels: 1 takes a random channel of a random file for each row; more takes all channels, in order, of files
            that have exactly so many.
        manifest: file with the validation segments; read if it exists, else written by `prepare_data`. None keeps the
            segments in memory.
        workers: processes that load; 0 loads in this one.
        seed: of all that is drawn for training.
        validation_seed: of the choice of validation files and segments.
        validation_share: percent of the files that are set aside, at least one; of a single file, of its length.
        validation_segments: at most so many.
        min_seconds: shorter files are left out.
        other_channels: error, or skip, where files have another count of channels.
        truncated: refuse, or use, where a file's header announces more than there is.
        pick_by: file, every file as likely, or duration, every second as likely.
        augmentations: random transforms of training, in this order; none by default, RAVE's own included.
        normalize: bring each segment to full scale, all channels by one factor.
        derivative: differentiate each segment.
        rand_pitch: lowest and highest factor of playing speed.
        start_batch: batches that were consumed before.

    Raises:
        StoreError: a folder does not exist.
        DataError: the files do not fit the model or the saved segments.
    """

    MORE_VALIDATION = "train in fewer (--devices), or add files"

    def __init__(
        self,
        folders: Sequence[str],
        *,
        n_signal: int,
        batch: int,
        sampling_rate: int,
        channels: int = 1,
        manifest: Path | None = None,
        workers: int = 0,
        seed: int = 0,
        validation_seed: int = 0,
        validation_share: float = 5.0,
        validation_segments: int = 128,
        min_seconds: float = 1.0,
        other_channels: str = "error",
        truncated: str = "refuse",
        pick_by: str = "file",
        augmentations: Sequence[TransformLike] = (),
        normalize: bool = False,
        derivative: bool = False,
        rand_pitch: tuple[float, float] | None = None,
        start_batch: int = 0,
    ):
        super().__init__(n_signal=n_signal, batch=batch, workers=workers, seed=seed, start_batch=start_batch)
        if n_signal < 1 or channels < 1:
            raise DataError(f"n_signal is {n_signal} and channels {channels}; both must be at least 1")
        self.folders, self.sampling_rate, self.channels = list(folders), sampling_rate, channels
        self._manifest, self._pick_by = manifest, pick_by
        self._scan = scan(
            self.folders, channels=channels, min_seconds=min_seconds, other_channels=other_channels, truncated=truncated
        )
        stretch, rest = divide_stretches(augmentations, rand_pitch)
        fixed = deterministic(normalize=normalize, derivative=derivative)
        geometry = Geometry(n_signal, sampling_rate)
        self._resumed = manifest is not None and manifest.is_file()
        if manifest is not None and self._resumed:
            self.held = HeldOut.load(manifest)
            self.held.check({"sampling_rate": sampling_rate, "n_signal": n_signal, "channels": channels}, manifest)
        else:
            self.held = set_aside(
                self._scan.files, geometry, channels=channels, share=validation_share, limit=validation_segments,
                seed=validation_seed,
            )  # fmt: skip
        places = self.held.places(self._scan.files, self.folders, manifest)
        training = self.held.training(self._scan.files)
        if not training:
            raise DataError(
                f"{', '.join(self.folders)}: nothing is left for training, all files are set aside for validation; "
                "add files"
            )
        self._train = FolderSegments(
            training, channels=channels, pick_by=pick_by, seed=seed, n_signal=n_signal, stretch=stretch,
            geometry=Geometry(int(np.ceil(n_signal * getattr(stretch, "reach", 1.0))), sampling_rate),
            transform=Compose((*fixed.transforms, *rest)).at(sampling_rate),
        )  # fmt: skip
        self._validation = HeldSegments(
            places, seed=validation_seed, n_signal=n_signal, stretch=None, geometry=geometry,
            transform=fixed.at(sampling_rate),
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Write the validation segments where they are to be kept; Lightning calls this in one process alone."""
        if self._manifest is not None and not self._manifest.is_file():
            self._manifest.parent.mkdir(parents=True, exist_ok=True)
            self.held.save(self._manifest)

    def _plan(self, rank: int, world_size: int) -> BatchPlan:
        return PositionPlan(
            len(self._train), batch=self.batch, seed=self.seed, rank=rank, world_size=world_size, start=self.start_batch
        )

    def _release(self) -> None:
        self._train.open.close()
        self._validation.open.close()

    @property
    def seconds(self) -> float:
        """Seconds of sound for training, channels not counted."""
        return sum(file.layout.seconds for file in self._train.files)

    def describe(self) -> list[str]:
        """What a person should know before training, as lines."""
        files = [file.layout for file in self._train.files]
        counts = sorted({place.channels for place in files})
        span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        taken = "a random one for each row" if self.channels == 1 and counts != [1] else "all of them"
        lines = [
            f"data: {', '.join(self.folders)}: {self.seconds:,.0f} s in {len(files):,} files for training, every "
            f"{'file' if self._pick_by == 'file' else 'second'} as likely; {span} channel(s), {taken}",
            *self._about_validation(),
            *self._scan.describe(),
        ]
        rates = sorted({place.rate for place in files} - {self.sampling_rate})
        if rates:
            lines.append(
                f"data: resampled while loading, from {', '.join(f'{rate:,}' for rate in rates)} Hz to "
                f"{self.sampling_rate:,} Hz of the model"
            )
        short = sum(place.frames < self._train.geometry.needed(place.rate) for place in files)
        if short:
            lines.append(
                f"data: {short:,} of {len(files):,} files are shorter than {self.n_signal:,} samples and are followed "
                "by silence"
            )
        return lines

    def _about_validation(self) -> list[str]:
        held = self.held.files
        where = f", kept in {self._manifest}" if self._manifest is not None else ""
        line = f"data: {len(self._validation):,} fixed segments of {self.n_signal:,} samples for validation, "
        if held[0].begin:
            line += f"from {held[0].begin / held[0].rate:,.1f} s on in {held[0].name}"
            line += ", the only file: judged on the end of what is trained on"
        else:
            line += f"from {len(held):,} file(s) set aside"
        return [f"{line}{where}" if not self._resumed else f"{line}, taken up again from {self._manifest}"]
