"""Files and folders through a model: the same tree comes out, nothing is lost in silence."""

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from rave_tools.data.audio_io import BLOCK, AudioFacts, AudioReader, Resampler, open_audio
from rave_tools.data.sources import EXTENSIONS
from rave_tools.errors import UserError
from rave_tools.inference.reconstruct import Machine, reconstruct

SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}
LARGEST_WAV = 4_000_000_000
STEREO = 2
LITTLE_ROOM = 1 << 20
"""Bytes free below which a failed write is laid on the full disk; libsndfile itself says only "System error"."""

Progress = Callable[["Job", float], None]
"""Told the file and how many seconds of it are done."""


@dataclass(frozen=True)
class Job:
    """One file to make of another.

    Attributes:
        source: to read.
        target: to write, ending in ``.wav``.
    """

    source: Path
    target: Path


@dataclass
class Outcome:
    """What became of one file.

    Attributes:
        job: the file.
        seconds: written, at the output's rate.
        spent: seconds that it took.
        notes: what was done to it that a person may want to know.
        problem: why it is missing or incomplete; empty when all went well.
        written: whether there is an output.
    """

    job: Job
    seconds: float = 0.0
    spent: float = 0.0
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    written: bool = False


@dataclass(frozen=True)
class Choices:
    """What a person may choose.

    Attributes:
        chunk: samples at once; None chooses.
        subtype: of the wav files, as libsndfile names it.
        keep_rate: write at the input's sample rate instead of the model's.
        seed: of everything random, set anew for each file.
    """

    chunk: int | None = None
    subtype: str = "PCM_16"
    keep_rate: bool = False
    seed: int = 0


def plan(inputs: Sequence[str], out_path: str, extensions: Sequence[str] = EXTENSIONS) -> list[Job]:
    """Which files are made of which, see `find_sounds` and `targets`.

    Raises:
        UserError: an input does not exist, nothing is found, or an output would replace an input.
    """
    found = find_sounds(inputs, out_path, extensions)
    jobs = [Job(source, target) for source, target in targets(found, Path(out_path)).items()]
    sources = {source.resolve() for source in found}
    for job in jobs:
        if job.target.resolve() in sources:
            raise UserError(f"{job.target} would replace an input; choose another --out_path")
    return jobs


def find_sounds(
    inputs: Sequence[str], out_path: str, extensions: Sequence[str] = EXTENSIONS
) -> dict[Path, Path]:
    """Sound files, each with its place in the tree below the inputs.

    One folder keeps its tree; of several, each gets a folder of its name. What lies below ``out_path`` is the outcome
    of an earlier call and no input.

    Raises:
        UserError: an input does not exist, or nothing is found.
    """
    wanted = {extension.lower() for extension in extensions}
    out = Path(out_path).resolve()
    found: dict[Path, Path] = {}
    folders = [given for given in inputs if Path(given).is_dir()]
    for given in inputs:
        root = Path(given)
        if not root.exists():
            raise UserError(f"{given}: there is no such file or folder (given as --input)")
        if root.is_file():
            found.setdefault(root, Path(root.name))
            continue
        above = Path(root.resolve().name) if len(folders) > 1 else Path()
        for path in sorted(root.rglob("*")):
            if out in path.resolve().parents or path.name.startswith("._"):
                continue
            if path.suffix.lower().lstrip(".") in wanted and path.is_file():
                found.setdefault(path, above / path.relative_to(root))
    if not found and any(out == Path(given).resolve() for given in inputs):
        raise UserError(f"{out}: input and output are one folder; give another --out_path")
    if not found:
        raise UserError(f"no audio in {', '.join(inputs)}; looked for {', '.join(extensions)}")
    return found


def targets(found: Mapping[Path, Path], out: Path) -> dict[Path, Path]:
    """The wav files to write, by source.

    Two sources that would share a name (``a.wav`` and ``a.flac``) keep their old extension inside the new one.
    """
    plain = Counter(str(place.with_suffix(".wav")) for place in found.values())
    chosen: dict[Path, Path] = {}
    taken: set[Path] = set()
    for source, place in found.items():
        target = place.with_suffix(".wav")
        if plain[str(target)] > 1:
            target = place.with_name(place.name + ".wav")
        number = 2
        while target in taken:
            target = place.with_name(f"{place.stem}_{number}.wav")
            number += 1
        taken.add(target)
        chosen[source] = out / target
    return chosen


@dataclass(frozen=True)
class Layout:
    """How a file's channels meet a model's.

    Attributes:
        rows: batch rows.
        note: what was done, empty if nothing.
        arrange: file channels (F, n) -> (rows, C, n).
    """

    rows: int
    note: str
    arrange: Callable[[Tensor], Tensor]


def lay_out(file_channels: int, machine: Machine) -> Layout:
    """Each group of C channels is a row where that works; else mono and stereo models adapt a file, and say how.

    Raises:
        UserError: the model has more than two channels, whose places mean something, and the file has other ones.
    """
    model = machine.channels
    if file_channels == model:
        return Layout(1, "", lambda x: x[None])
    if file_channels % model == 0 and machine.out_channels == model:
        rows = file_channels // model
        each = "each channel" if model == 1 else f"each {model} channels"
        return Layout(rows, f"{file_channels} channels: {each} on its own", lambda x: x.reshape(rows, model, -1))
    if model > STEREO:
        raise UserError(f"has {file_channels} channel{'s' * (file_channels > 1)}, and the model takes {model}")
    if file_channels < model:
        return Layout(1, f"1 channel repeated to {model}", lambda x: x.repeat(model, 1)[None])
    if model == 1:
        return Layout(1, f"{file_channels} channels mixed to 1", lambda x: x.mean(0, keepdim=True)[None])
    return Layout(1, f"first {model} of {file_channels} channels", lambda x: x[:model][None])


class WavWriter:
    """A wav file that grows block by block and appears under its name only when it is complete.

    Args:
        path: of the file.
        sample_rate: in hertz.
        channels: count.
        subtype: PCM_16, PCM_24 or FLOAT.
        frames: expected, to choose RF64 for files beyond four gigabytes; None if unknown.
    """

    def __init__(self, path: Path, *, sample_rate: int, channels: int, subtype: str, frames: int | None) -> None:
        self.path = path
        self.passing = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.sample_rate = sample_rate
        self.frames = 0
        self.clipped = 0
        self.subtype = subtype
        width = {"PCM_16": 2, "PCM_24": 3}.get(subtype, 4)
        container = "RF64" if frames is None or frames * channels * width > LARGEST_WAV else "WAV"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = soundfile.SoundFile(
                str(self.passing), "w", sample_rate, channels, subtype=subtype, format=container
            )
        except (soundfile.LibsndfileError, OSError) as error:
            refusal = self._refused(error)
            with contextlib.suppress(OSError):  # an empty file, where there was no room for a header
                self.passing.unlink(missing_ok=True)
            raise refusal from error

    def _refused(self, error: Exception) -> UserError:
        """Why the file is not there."""
        reason = str(error)
        try:
            if shutil.disk_usage(self.path.parent).free < LITTLE_ROOM:
                reason = "the disk is full; free some space, or choose another folder"
        except OSError:
            pass  # the folder itself is gone, and the error says so
        return UserError(f"{self.path}: cannot be written ({reason})")

    def write(self, audio: np.ndarray) -> None:
        """(C, n) in [-1, 1]."""
        if self.subtype != "FLOAT":
            self.clipped += int((np.abs(audio) > 1).sum())
            audio = audio.clip(-1, 1)
        try:
            self.file.write(audio.T)
        except (soundfile.LibsndfileError, OSError) as error:
            raise self._refused(error) from error
        self.frames += audio.shape[1]

    def finish(self) -> None:
        """Close the file and give it its name."""
        try:
            self.file.close()
            self.passing.replace(self.path)
        except (soundfile.LibsndfileError, OSError) as error:
            raise self._refused(error) from error

    def abandon(self) -> None:
        """Close and remove what there is, unless it is finished."""
        with contextlib.suppress(soundfile.LibsndfileError):  # what is removed need not be whole
            self.file.close()
        self.passing.unlink(missing_ok=True)


def process_files(
    jobs: Sequence[Job], machine: Machine, *, choices: Choices, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Play files through a machine, one by one.

    Args:
        jobs: files in and out.
        machine: the model.
        choices: chunk, format, rate.
        progress: told about every block.

    Yields:
        What became of each file, as soon as it is known. A file that cannot be read is an outcome, not an exception.
    """
    tell = progress or (lambda job, seconds: None)
    for job in jobs:
        started = time.perf_counter()
        outcome = Outcome(job)
        torch.manual_seed(choices.seed)
        try:
            _process_file(job, machine, choices, outcome, tell)
        except UserError as error:
            outcome.problem = str(error).removeprefix(f"{job.source}: ")
        except (RuntimeError, ValueError) as error:
            outcome.problem = f"the model failed: {str(error).strip().splitlines()[-1]}"
        outcome.spent = time.perf_counter() - started
        yield outcome


def _process_file(job: Job, machine: Machine, choices: Choices, outcome: Outcome, tell: Progress) -> None:
    with open_audio(job.source) as reader:
        facts: AudioFacts = reader.facts
        layout = lay_out(facts.channels, machine)
        rate = facts.sampling_rate if choices.keep_rate else machine.sample_rate
        channels = layout.rows * machine.out_channels
        outcome.notes += describe_changes(facts, machine, layout, rate)
        frames = None if facts.frames is None else round(facts.frames * rate / facts.sampling_rate)
        sound = Sound()
        blocks = read_sound(reader, layout, machine, sound, lambda seconds: tell(job, seconds))
        played = reconstruct(blocks, machine, chunk=choices.chunk)
        if not write_sound(
            played, outcome, rate=machine.sample_rate, target_rate=rate, channels=channels, subtype=choices.subtype,
            frames=frames,
        ):  # fmt: skip
            raise UserError(reader.damage or "holds no sound")
        outcome.problem = outcome.problem or reader.damage
        if sound.broken_input:
            outcome.notes.append(f"{sound.broken_input} samples that are not finite made silent")


def write_sound(
    blocks: Iterable[Tensor],
    outcome: Outcome,
    *,
    rate: int,
    target_rate: int,
    channels: int,
    subtype: str,
    frames: int | None = None,
    length: int | None = None,
) -> bool:
    """Write what a model answered into the target of an outcome, and say there how it went.

    Args:
        blocks: (rows, C, n), rows * C = channels.
        outcome: of the file.
        rate: of the blocks, in hertz.
        target_rate: of the file.
        channels: of the file.
        subtype: as libsndfile names it.
        frames: expected; None if unknown.
        length: that the file shall have exactly, where resampling would make it a sample longer or shorter.

    Returns:
        Whether there was anything to write.
    """
    broken = 0
    writer: WavWriter | None = None
    back = Resampler(rate, target_rate, channels)
    try:
        for block in blocks:
            broken += int((~torch.isfinite(block)).sum())
            audio = back(torch.nan_to_num(block).reshape(channels, -1).numpy())
            writer = writer or WavWriter(
                outcome.job.target, sample_rate=target_rate, channels=channels, subtype=subtype, frames=length or frames
            )
            writer.write(audio if length is None else audio[:, : length - writer.frames])
        if writer is None:
            return False
        rest = back.finish()
        if length is not None:
            missing = length - writer.frames - rest.shape[1]
            rest = np.pad(rest, ((0, 0), (0, max(0, missing))))[:, : length - writer.frames]
        writer.write(rest)
        writer.finish()
    finally:
        if writer is not None:
            writer.abandon()
    outcome.written = True
    outcome.seconds = writer.frames / target_rate
    if broken:
        outcome.problem = f"the model answered {broken} samples that are not finite, made silent"
    if writer.clipped:
        outcome.notes.append(f"{writer.clipped} samples clipped (use --bits float to keep them)")
    return True


@dataclass
class Sound:
    """What was read of a file.

    Attributes:
        broken_input: samples that were not finite; one of them would spoil all that follows.
        frames: read, at the file's rate.
    """

    broken_input: int = 0
    frames: int = 0


def read_sound(
    reader: AudioReader, layout: Layout, machine: Machine, sound: Sound, tell: Callable[[float], None]
) -> Iterator[Tensor]:
    """The file at the machine's rate, (rows, C, n)."""
    rate = reader.facts.sampling_rate
    resampler = Resampler(rate, machine.sample_rate, reader.facts.channels)
    done = 0
    while True:
        samples = reader.read(BLOCK)
        done += samples.shape[1]
        sound.frames = done
        ended = samples.shape[1] == 0
        broken = int((~np.isfinite(samples)).sum())
        if broken:
            sound.broken_input += broken
            samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        samples = resampler.finish() if ended else resampler(samples)
        if samples.shape[1]:
            yield layout.arrange(torch.from_numpy(np.ascontiguousarray(samples)))
        tell(done / rate)
        if ended:
            return


def describe_changes(facts: AudioFacts, machine: Machine, layout: Layout, rate: int) -> list[str]:
    """What is done to a file on its way to a model and to the rate of the output."""
    notes = [layout.note] if layout.note else []
    if facts.sampling_rate != machine.sample_rate:
        back = " and back" if rate == facts.sampling_rate else ""
        notes.append(f"resampled from {facts.sampling_rate} to {machine.sample_rate} Hz{back}")
    return notes
