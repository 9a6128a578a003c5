"""Reconstructions of several models, measured side by side, file by file."""

import dataclasses
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rave_tools.criteria.frechet import Gaussian, frechet_distance
from rave_tools.criteria.measures import Measure, Undefined
from rave_tools.data.audio_io import BLOCK, open_audio, resample
from rave_tools.errors import UserError
from rave_tools.inference.embeddings import Embedding
from rave_tools.inference.files import lay_out
from rave_tools.inference.reconstruct import Machine, reconstruct

WARM_UP = 1.0
"""Seconds of silence played before the first file; what a compiler and caches do then is not the model's pace."""


@dataclass
class Contestant:
    """A model that is to be measured.

    Attributes:
        name: in tables; no two share one.
        path: where it came from.
        machine: plays it.
        step: updates of its training; None if unknown.
        bitrate: kilobits per second of its codes; None if it has none, or does not tell.
        notes: what a reader of its numbers ought to know.
    """

    name: str
    path: str
    machine: Machine
    step: int | None = None
    bitrate: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Row:
    """One file through one model.

    Attributes:
        model, file: names.
        seconds: measured.
        channels: measured.
        length_difference: samples that the model gave more (or, negative, fewer) than it got, at the rate measured at.
        values: by the measures' names; those missing are in `undefined`.
        undefined: reasons, by the measures' names.
        spent: seconds of encoding and decoding.
        notes: conversions.
        problem: why there are no values, or why they are of a part of the file; empty if all went well.
        sounds: (reference, estimate), each (C, n) at the rate measured at, if they were to be kept.
    """

    model: str
    file: str
    seconds: float = 0.0
    channels: int = 0
    length_difference: int = 0
    values: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    spent: float = 0.0
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    sounds: tuple[Tensor, Tensor] | None = None

    @property
    def realtime(self) -> float | None:
        """Seconds of sound per second of encoding and decoding."""
        return self.seconds / self.spent if self.spent and self.seconds else None


@dataclass(frozen=True)
class Settings:
    """What a person may choose.

    Attributes:
        rate: in hertz, that everything is compared at.
        seconds: at most, from the middle of each file; None takes all of it.
        seed: of everything random, set anew for each file and model.
    """

    rate: int
    seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Clip:
    """A file, or the middle of it, in memory.

    Attributes:
        samples: (F, n) float32 at the file's rate.
        rate: in hertz.
        notes: what was done to it.
        damage: why it ends early; empty if it does not.
    """

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...]
    damage: str


def read_clip(path: Path, seconds: float | None) -> Clip:
    """Read a file, or its middle.

    Args:
        path: the file.
        seconds: at most; None reads all.

    Raises:
        UserError: not readable, or no sound in it.
    """
    with open_audio(path) as reader:
        rate, frames = reader.facts.sampling_rate, reader.facts.frames
        wanted = None if seconds is None else max(1, round(seconds * rate))
        if wanted is not None and frames is not None and frames > wanted:
            reader.seek((frames - wanted) // 2)
        blocks = [np.empty((reader.facts.channels, 0), np.float32)]
        left = wanted if wanted is not None and frames is not None else 1 << 62
        while left > 0 and (samples := reader.read(min(left, BLOCK))).shape[1]:
            blocks.append(samples)
            left -= samples.shape[1]
        damage = reader.damage
    samples = np.concatenate(blocks, axis=1)
    if wanted is not None and samples.shape[1] > wanted:  # a container that does not tell its length
        start = (samples.shape[1] - wanted) // 2
        samples = samples[:, start : start + wanted]
    if not samples.shape[1]:
        raise UserError(damage or "holds no sound")
    notes = []
    broken = int((~np.isfinite(samples)).sum())
    if broken:
        samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        notes.append(f"{broken} samples that are not finite made silent")
    return Clip(np.ascontiguousarray(samples), rate, tuple(notes), damage)


def choose(files: Sequence[Path], limit: int | None, seed: int) -> list[Path]:
    """At most so many files, drawn at random by the seed, in their order."""
    if limit is None or limit >= len(files):
        return list(files)
    drawn = random.Random(seed).sample(range(len(files)), limit)
    return [files[index] for index in sorted(drawn)]


class Evaluation:
    """Measures files one by one, all models on each, and keeps what summaries need.

    Args:
        contestants: models, with different names.
        measures: to take.
        settings: rate, length, seed.
        embedding: of the Frechet distance; None leaves it out.

    Attributes:
        rows: of every file and model so far.
        embedding_problems: reasons why files take no part in the Frechet distance, by model.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        *,
        measures: Sequence[Measure],
        settings: Settings,
        embedding: Embedding | None = None,
    ) -> None:
        for contestant in contestants:
            machine = contestant.machine
            if machine.channels != machine.out_channels:
                raise UserError(
                    f"{contestant.path} makes {machine.out_channels} channels of {machine.channels}; there is nothing "
                    "to compare them with"
                )
        self.contestants = list(contestants)
        self.measures = list(measures)
        self.settings = settings
        self.embedding = embedding
        self.rows: list[Row] = []
        self.embedding_problems: dict[str, Counter[str]] = {c.name: Counter() for c in contestants}
        self._clouds = {c.name: (Gaussian(), Gaussian()) for c in contestants}
        self._stopwatches = {c.name: Stopwatch(c.machine) for c in contestants}

    @property
    def files(self) -> list[str]:
        """Names of the files that have rows."""
        return list(dict.fromkeys(row.file for row in self.rows))

    def warm_up(self) -> None:
        """Play silence through every model, so that the first file is timed as the others are."""
        for contestant in self.contestants:
            machine = contestant.machine
            samples = max(1, round(WARM_UP * machine.sample_rate / machine.hop)) * machine.hop
            torch.manual_seed(self.settings.seed)
            for _ in range(2):
                machine.process(torch.zeros(1, machine.channels, samples))
            machine.restart()

    def measure(self, path: Path, name: str, *, keep: bool = False) -> Iterator[Row]:
        """One file through every model.

        Args:
            path: the file.
            name: of it, in tables.
            keep: leave the sounds in the rows.

        Yields:
            A row per model as soon as it is known. What cannot be read or played is a row with a problem.
        """
        clip: Clip | None = None
        problem = ""
        try:
            clip = read_clip(path, self.settings.seconds)
        except UserError as error:
            problem = str(error).removeprefix(f"{path}: ")
        for contestant in self.contestants:
            row = Row(contestant.name, name, problem=problem)
            if clip is not None:
                self._play(contestant, clip, row, keep)
            self.rows.append(row)
            yield row

    def _play(self, contestant: Contestant, clip: Clip, row: Row, keep: bool) -> None:
        machine, rate = contestant.machine, self.settings.rate
        try:
            layout = lay_out(len(clip.samples), machine)
        except UserError as error:
            row.problem = str(error)
            return
        row.notes += clip.notes
        row.problem = clip.damage
        if layout.note:
            row.notes.append(layout.note)
        if clip.rate != machine.sample_rate:
            row.notes.append(f"resampled from {clip.rate} to {machine.sample_rate} Hz")
        watch = self._stopwatches[contestant.name]
        torch.manual_seed(self.settings.seed)
        watch.spent = 0.0
        try:
            heard = layout.arrange(torch.from_numpy(resample(clip.samples, clip.rate, machine.sample_rate)))
            if not heard.shape[-1]:
                raise UserError(f"too short: no sample is left at {machine.sample_rate} Hz")
            answer = torch.cat(list(reconstruct([heard], watch.machine)), -1)
        except UserError as error:
            row.problem = str(error)
            return
        except (RuntimeError, ValueError) as error:
            row.problem = f"the model failed: {str(error).strip().splitlines()[-1]}"
            return
        row.spent = watch.spent
        broken = int((~torch.isfinite(answer)).sum())
        if broken:
            row.problem = f"the model answered {broken} samples that are not finite"
            return
        if rate == machine.sample_rate:
            reference, estimate = heard.flatten(0, 1), answer.flatten(0, 1)
        else:
            reference = layout.arrange(torch.from_numpy(resample(clip.samples, clip.rate, rate))).flatten(0, 1)
            estimate = torch.from_numpy(resample(answer.flatten(0, 1).numpy(), machine.sample_rate, rate))
            row.notes.append(f"compared at {rate} Hz")
        row.length_difference = estimate.shape[-1] - reference.shape[-1]
        if row.length_difference:
            row.notes.append(f"{row.length_difference:+d} samples; compared over the length in common")
        length = min(estimate.shape[-1], reference.shape[-1])
        reference, estimate = reference[..., :length].contiguous(), estimate[..., :length].contiguous()
        row.seconds, row.channels = length / rate, len(reference)
        for measure in self.measures:
            try:
                value = measure.compute(reference, estimate, rate)
                if not math.isfinite(value):
                    raise Undefined("not finite")
                row.values[measure.name] = value
            except Undefined as reason:
                row.undefined[measure.name] = str(reason)
        self._embed(contestant.name, reference, estimate)
        if keep:
            row.sounds = reference, estimate

    def _embed(self, name: str, reference: Tensor, estimate: Tensor) -> None:
        if self.embedding is None:
            return
        try:
            both = [self.embedding(sound, self.settings.rate) for sound in (reference, estimate)]
            if not all(vectors.isfinite().all() for vectors in both):
                raise Undefined("the embedding gave numbers that are not finite")
            for cloud, vectors in zip(self._clouds[name], both, strict=True):
                cloud.add(vectors)
        except (Undefined, ValueError) as reason:
            self.embedding_problems[name][str(reason)] += 1

    def frechet(self, name: str) -> "Frechet":
        """The Frechet distance of a model's reconstructions from the originals, over all files so far."""
        original, made = self._clouds[name]
        left_out = dict(self.embedding_problems[name])
        if min(original.count, made.count) < 2:
            reason = f"{made.count} embedding vectors are too few, at least 2 are needed"
            return Frechet(None, made.count, made.dimension, reason, left_out)
        score = frechet_distance(*original.moments(), *made.moments())
        caution = ""
        if made.count <= made.dimension:
            caution = (
                f"{made.count} vectors for {made.dimension} dimensions: the covariances are singular and the score is "
                "biased upwards; use more or longer files"
            )
        return Frechet(score, made.count, made.dimension, caution, left_out)


@dataclass(frozen=True)
class Frechet:
    """A Frechet distance and what it rests on.

    Attributes:
        value: the score; None if there are too few vectors.
        count: vectors of the reconstructions (and as many of the originals).
        dimension: of them.
        caution: why not to trust it; may be empty.
        left_out: reasons and counts of files without a vector.
    """

    value: float | None
    count: int
    dimension: int
    caution: str
    left_out: dict[str, int]


class Stopwatch:
    """A machine whose calls are timed.

    Args:
        machine: to be timed.

    Attributes:
        machine: the same, timed.
        spent: seconds so far; may be set.
    """

    def __init__(self, machine: Machine) -> None:
        self.spent = 0.0
        self.machine = dataclasses.replace(machine, process=self._timed(machine.process))

    def _timed(self, process: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def timed(x: Tensor) -> Tensor:
            started = time.perf_counter()
            y = process(x)  # a machine answers in main memory, so an accelerator has finished by then
            self.spent += time.perf_counter() - started
            return y

        return timed


@dataclass(frozen=True)
class Summary:
    """A measure of one model over all files.

    Attributes:
        mean, median, worst: None if no file has a value.
        worst_file: its name.
        count: files with a value.
        undefined: counts by reason of files without.
    """

    mean: float | None
    median: float | None
    worst: float | None
    worst_file: str
    count: int
    undefined: dict[str, int]


def summarize(rows: Sequence[Row], measure: Measure) -> Summary:
    """One model's rows, seen through one measure."""
    undefined = Counter(row.undefined[measure.name] for row in rows if measure.name in row.undefined)
    valued = [(row.values[measure.name], row.file) for row in rows if measure.name in row.values]
    if not valued:
        return Summary(None, None, None, "", 0, dict(undefined))
    values = [value for value, _ in valued]
    worst, worst_file = (min if measure.higher else max)(valued, key=lambda pair: pair[0])
    return Summary(
        statistics.fmean(values), statistics.median(values), worst, worst_file, len(values), dict(undefined)
    )


def pace(rows: Sequence[Row]) -> float | None:
    """Seconds of sound per second of encoding and decoding, over all rows; None if nothing was played."""
    timed = [row for row in rows if row.spent]
    spent = sum(row.spent for row in timed)
    return sum(row.seconds for row in timed) / spent if spent else None
