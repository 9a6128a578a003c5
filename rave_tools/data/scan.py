"""What a folder of sound files offers to training: headers alone are read, and every file left out has its reason."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from rave_tools.data.columns import Layout, layout
from rave_tools.data.readers import AudioError
from rave_tools.data.sounds import DataError
from rave_tools.data.sources import search

READERS = 16
"""Headers read at once: the time goes into waiting for the disk or the network."""

NAMED = 10
OTHER_CHANNELS = ("error", "skip")
TRUNCATED = ("refuse", "use")


@dataclass(frozen=True)
class FoundFile:
    """A file in use.

    Attributes:
        root: which of the given folders it is in.
        name: path inside that folder, with forward slashes; so that a folder can be moved between two runs.
        layout: of its samples.
    """

    root: int
    name: str
    layout: Layout


@dataclass(frozen=True)
class Scan:
    """What was found.

    Attributes:
        files: in use, sorted by folder and name.
        left_out: (reason, file and what exactly) of each that is not.
        cut: files whose header announces more than there is, and that are used as far as they go.
        passed_over: other files, by extension.
    """

    files: list[FoundFile]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def describe(self) -> Iterator[str]:
        """What is not used, counted by reason and listed."""
        for reason, count in Counter(reason for reason, _ in self.left_out).items():
            yield f"data: {count:,} file(s) left out: {reason}"
            yield from _listed([what for other, what in self.left_out if other == reason])
        if self.cut:
            yield f"data: {len(self.cut):,} truncated file(s) used up to what is there"
            yield from _listed(self.cut)
        if self.passed_over:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.passed_over.most_common(5))
            yield f"data: {sum(self.passed_over.values()):,} other files passed over, by extension: {kinds}"


def _listed(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"data:   {line}" for line in lines)


def scan(
    folders: Sequence[str],
    *,
    channels: int,
    min_seconds: float = 1.0,
    other_channels: str = "error",
    truncated: str = "refuse",
) -> Scan:
    """Look at the headers of all sound files.

    Args:
        folders: searched with all that is below them; single files too.
        channels: 1 for any one channel of each file, else the count that files must have.
        min_seconds: shorter files are left out.
        other_channels: error, or skip for leaving out files with another count of channels.
        truncated: refuse leaves out files whose header announces more than there is; use takes what is there.

    Returns:
        The files to use, and the others.

    Raises:
        StoreError: a folder does not exist.
        DataError: nothing is left; files have another channel count; a policy has an unknown name.
    """
    policies = (("other_channels", other_channels, OTHER_CHANNELS), ("truncated", truncated, TRUNCATED))
    for name, value, choices in policies:
        if value not in choices:
            raise DataError(f"--{name} is {value!r}; choose one of {', '.join(choices)}")
    found = search(folders, flag="--audio_path")
    paths = [source.path for source in found.sources]
    with ThreadPoolExecutor(READERS) as pool:
        looks = list(pool.map(_look, paths))
    result, wrong = Scan([], passed_over=found.passed_over), []
    for path, look in zip(paths, looks, strict=True):
        if isinstance(look, AudioError):
            result.left_out.append(("unreadable", str(look)))
        elif look.frames < look.announced and truncated == "refuse":
            result.left_out.append(("truncated (--truncated use takes what is there)", f"{path}: {_missing(look)}"))
        elif look.seconds < min_seconds or look.frames < 1:
            result.left_out.append((f"shorter than {min_seconds:g} s (--min_seconds)", f"{path}: {look.seconds:.3f} s"))
        elif channels > 1 and look.channels != channels:
            wrong.append(f"{path}: {look.channels} channels")
        else:
            if look.frames < look.announced:
                result.cut.append(f"{path}: {_missing(look)}")
            result.files.append(_named(folders, look))
    if wrong and other_channels == "error":
        raise DataError(_refusal(wrong, channels))
    result.left_out.extend((f"not {channels} channels (--other_channels skip)", line) for line in wrong)
    if not result.files:
        raise DataError(_nothing(folders, result, len(paths)))
    return result


def _look(path: str) -> Layout | AudioError:
    try:
        return layout(path)
    except AudioError as error:
        return error


def _missing(place: Layout) -> str:
    if not place.kind:
        return f"its end is missing; {place.seconds:.2f} s are there"
    whole = place.announced / place.rate
    return f"its header announces {whole:.2f} s and {place.seconds:.2f} s are there"


def _named(folders: Sequence[str], place: Layout) -> FoundFile:
    path = Path(place.path)
    for root, folder in enumerate(folders):
        base = Path(os.path.abspath(Path(folder).expanduser()))
        base = base if base.is_dir() else base.parent
        if path.is_relative_to(base):
            return FoundFile(root, path.relative_to(base).as_posix(), place)
    raise AssertionError(f"{place.path} is in none of {folders}")


def _refusal(wrong: Sequence[str], channels: int) -> str:
    shown = "; ".join(wrong[:NAMED]) + (f"; and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else "")
    return (
        f"{len(wrong):,} file(s) do not have the {channels} channels of the model: {shown}. Train with --channels 1 "
        "(a random channel of any file), take them out of the folder, or leave them out with --other_channels skip"
    )


def _nothing(folders: Sequence[str], result: Scan, seen: int) -> str:
    where = ", ".join(map(str, folders))
    if not seen:
        others = ", ".join(f"{count} {kind}" for kind, count in result.passed_over.most_common(5)) or "nothing else"
        return f"{where}: no sound file here or below ({others}); give the folder that holds them as --audio_path"
    reasons = "; ".join(f"{count} {reason}" for reason, count in Counter(r for r, _ in result.left_out).items())
    first = result.left_out[0][1]
    return f"{where}: none of {seen} sound file(s) can be used: {reasons}. The first: {first}"


def without(files: Sequence[FoundFile], held: set[tuple[int, str]]) -> list[FoundFile]:
    """The files that are not among the named ones."""
    return [file for file in files if (file.root, file.name) not in held]


def cut_to(file: FoundFile, frames: int) -> FoundFile:
    """The same file, as if it ended after so many frames."""
    return replace(file, layout=replace(file.layout, frames=frames))
