"""What validation looks at, decided once: whole files set aside, and the segments drawn from them.

Everything hangs on the seed and the files alone, never on workers, batches or processes. Saved in the run's folder, it
is taken up again on resume, whatever has been added to the folders of sound since.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rave_tools.data.scan import FoundFile, cut_to, without
from rave_tools.data.segments import Geometry, Segment
from rave_tools.data.sounds import DataError
from rave_tools.data.store import write_atomically

MANIFEST = "validation_segments.json"
FORMAT = 1


@dataclass(frozen=True)
class HeldFile:
    """A file that validation uses.

    Attributes:
        root: which of the given folders it is in.
        name: path inside it.
        rate: in hertz.
        channels: count.
        frames: samples per channel.
        begin: first sample that is for validation; 0 where the whole file is, more where it is the only file.
    """

    root: int
    name: str
    rate: int
    channels: int
    frames: int
    begin: int = 0


@dataclass(frozen=True)
class HeldOut:
    """The part that is set aside.

    Attributes:
        settings: sampling_rate, n_signal and channels that the segments are made for.
        files: set aside.
        segments: (index into `files`, first sample at the file's rate, channel or None for all).
    """

    settings: dict[str, int]
    files: tuple[HeldFile, ...]
    segments: tuple[tuple[int, int, int | None], ...]

    def save(self, path: Path) -> None:
        """Write atomically, one line per file and segment."""
        files = ",\n".join("  " + json.dumps(asdict(file), ensure_ascii=False) for file in self.files)
        segments = ",\n".join("  " + json.dumps(segment) for segment in self.segments)
        text = (
            f'{{"format": {FORMAT}, "settings": {json.dumps(self.settings)},\n"files": [\n{files}\n],\n'
            f'"segments": [\n{segments}\n]}}\n'
        )
        write_atomically(path, text)

    @staticmethod
    def load(path: Path) -> "HeldOut":
        """Read what `save` wrote.

        Raises:
            DataError: it cannot be read.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this version knows {FORMAT}")
            return HeldOut(
                content["settings"],
                tuple(HeldFile(**file) for file in content["files"]),
                tuple((file, start, channel) for file, start, channel in content["segments"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); put it back, or delete it for new validation segments"
            ) from error

    def training(self, files: Sequence[FoundFile]) -> list[FoundFile]:
        """The files, or their beginnings, that are left for training."""
        left = without(files, {(held.root, held.name) for held in self.files if not held.begin})
        begins = {(held.root, held.name): held.begin for held in self.files if held.begin}
        return [cut_to(file, begins.get((file.root, file.name), file.layout.frames)) for file in left]

    def places(self, files: Sequence[FoundFile], folders: Sequence[str], path: Path | None) -> list[Segment]:
        """The segments, in the files as they are now.

        Args:
            files: found now.
            folders: that were searched.
            path: of the saved list, for messages.

        Returns:
            Where to read.

        Raises:
            DataError: a file is gone or has changed.
        """
        there = {(file.root, file.name): file for file in files}
        found = []
        for held in self.files:
            file = there.get((held.root, held.name))
            folder = folders[held.root] if held.root < len(folders) else f"--audio_path number {held.root + 1}"
            if file is None:
                raise DataError(
                    f"{Path(folder) / held.name}: is gone or not usable any more, and validation segments of this run "
                    f"lie in it ({path}); put it back, or delete that list for new segments, which are not comparable"
                )
            now = (file.layout.rate, file.layout.channels, file.layout.frames)
            if now != (held.rate, held.channels, held.frames):
                raise DataError(
                    f"{file.layout.path}: has changed since its validation segments were drawn, from (rate, channels, "
                    f"samples) {(held.rate, held.channels, held.frames)} to {now} ({path}); put the old one back, or "
                    "delete that list for new segments, which are not comparable"
                )
            found.append(file)
        return [Segment(found[index].layout, start, channel) for index, start, channel in self.segments]

    def check(self, settings: dict[str, int], path: Path) -> None:
        """Refuse segments that were made for another model.

        Raises:
            DataError: they were.
        """
        differences = [
            f"{name} {self.settings.get(name)} then, {value} now"
            for name, value in settings.items()
            if self.settings.get(name) != value
        ]
        if differences:
            raise DataError(
                f"{path}: holds validation segments for other settings ({'; '.join(differences)}); give the same ones, "
                "or delete that list for new segments, which are not comparable"
            )


def set_aside(
    files: Sequence[FoundFile], geometry: Geometry, *, channels: int, share: float, limit: int, seed: int
) -> HeldOut:
    """Choose files for validation, and segments in them.

    Of a single file its last part is taken.

    Args:
        files: all that are usable.
        geometry: length and rate of a segment.
        channels: 1 for one channel, drawn; more for all.
        share: percent of the files, at least one file; of a single file, percent of its length.
        limit: at most so many segments; no more than lie side by side in the files.
        seed: of the choice.

    Returns:
        The choice.

    Raises:
        DataError: the share is no percentage, or there is too little sound to divide.
    """
    if not 0 < share < 100:
        raise DataError(f"--validation_share {share:g} is no percentage between 0 and 100")
    if limit < 1:
        raise DataError(f"validation_segments is {limit}; it must be at least 1")
    generator = np.random.Generator(np.random.PCG64([seed, 0]))
    if len(files) == 1:
        held = [(files[0], _end(files[0], geometry, share))]
    else:
        count = min(max(1, round(len(files) * share / 100)), len(files) - 1)
        chosen = sorted(generator.permutation(len(files))[:count].tolist())
        held = [(files[index], 0) for index in chosen]
    segments: list[tuple[int, int, int | None]] = []
    room = [_room(file, begin, geometry, channels) for file, begin in held]
    while len(segments) < limit and any(room):
        for index, (file, begin) in enumerate(held):
            if room[index] and len(segments) < limit:
                room[index] -= 1
                start = geometry.draw(file.layout, generator, begin)
                channel = int(generator.integers(file.layout.channels)) if channels == 1 else None
                segments.append((index, start, channel))
    settings = {"sampling_rate": geometry.sampling_rate, "n_signal": geometry.length, "channels": channels}
    return HeldOut(
        settings,
        tuple(
            HeldFile(file.root, file.name, file.layout.rate, file.layout.channels, file.layout.frames, begin)
            for file, begin in held
        ),
        tuple(sorted(segments, key=lambda segment: segment[:2])),
    )


def _room(file: FoundFile, begin: int, geometry: Geometry, channels: int) -> int:
    """How many segments lie side by side in a file."""
    places = max(1, (file.layout.frames - begin) // geometry.needed(file.layout.rate))
    return places * (file.layout.channels if channels == 1 else 1)


def _end(file: FoundFile, geometry: Geometry, share: float) -> int:
    """Where the validation part of the only file begins."""
    place = file.layout
    needed = geometry.needed(place.rate)
    if place.frames < 2 * needed:
        raise DataError(
            f"{place.path}: is the only usable file, and its {place.seconds:.2f} s are too short to be divided into "
            f"training and validation of {needed / place.rate:.2f} s each; add files, or make --n_signal smaller"
        )
    begin = min(place.frames - needed, max(needed, round(place.frames * (1 - share / 100))))
    step = geometry.step(place.rate)
    return begin // step * step if begin // step * step >= needed else begin
