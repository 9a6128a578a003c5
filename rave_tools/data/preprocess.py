"""Audio files -> database: every file decoded once, in worker processes, records in the same order in every run.

Workers decode ahead of their turn into a bounded buffer; the file whose turn it is streams straight through, so that a
file of any size passes in constant memory. A thread writes: while it waits for the disk, decoding goes on.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rave_tools.data.decoding import DOWNMIXES, Chunk, Recipe, outcome
from rave_tools.data.recording import Decoding, Recorder
from rave_tools.data.sources import (
    BOOK_FILE,
    EXTENSIONS,
    JOURNAL_FILE,
    Journal,
    Search,
    Source,
    check_same_settings,
    divide,
    read_book,
    search,
    write_book,
)
from rave_tools.data.store import METADATA_FILE, DatabaseFacts, ExampleWriter, write_facts
from rave_tools.errors import UserError

FORMAT = 1
LOCK_FILE = "preprocess.lock"


class PreprocessError(UserError):
    """The files that were given do not make a database; the message says what was searched and found."""


@dataclass(frozen=True)
class Settings:
    """What a database is made from, and how.

    Attributes:
        input_path: folders or files.
        output_path: the database's folder.
        num_signal: samples that training takes at once; a record holds twice as many.
        channels: of the records.
        sampling_rate: of the records, in hertz.
        ext: extensions that count as audio.
        lazy: store references to the files in place of samples.
        downmix: mean, first or random: how one channel is made of several.
        validation_share: percent of the seconds set aside, by file.
    """

    input_path: tuple[str, ...]
    output_path: str
    num_signal: int = 131072
    channels: int = 1
    sampling_rate: int = 44100
    ext: tuple[str, ...] = EXTENSIONS
    lazy: bool = False
    downmix: str = "mean"
    validation_share: float = 2.0

    def __post_init__(self) -> None:
        for name in ("num_signal", "channels", "sampling_rate"):
            if getattr(self, name) < 1:
                raise PreprocessError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if self.downmix not in DOWNMIXES:
            raise PreprocessError(f"--downmix is {self.downmix!r}; choose one of {', '.join(DOWNMIXES)}")
        if not 0 <= self.validation_share < 100:
            raise PreprocessError(
                f"--validation_share is {self.validation_share}; it is a percentage from 0 to below 100"
            )

    @property
    def recipe(self) -> Recipe:
        """The part that a worker needs."""
        return Recipe(self.channels, self.sampling_rate, 2 * self.num_signal, self.num_signal, self.downmix, self.lazy)

    def identity(self) -> dict[str, Any]:
        """What must be equal for two runs to mean the same database."""
        return {
            "input_path": [os.path.abspath(os.path.expanduser(path)) for path in self.input_path],
            "num_signal": self.num_signal,
            "channels": self.channels,
            "sampling_rate": self.sampling_rate,
            "ext": sorted({extension.lower().lstrip(".") for extension in self.ext}),
            "lazy": self.lazy,
            "downmix": self.downmix,
            "validation_share": self.validation_share,
        }


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        files_done: finished, of `files`.
        files: in all.
        bytes_done: size of what is finished, of `bytes`.
        bytes: in all.
        seconds: stored so far.
        resumed: files that an earlier run had finished.
    """

    files_done: int
    files: int
    bytes_done: int
    bytes: int
    seconds: float
    resumed: int


@dataclass(frozen=True)
class Summary:
    """The result of a run, for the table at its end.

    Attributes:
        settings: of the run.
        sources: every file that was found.
        passed_over: other files by extension.
        already_complete: the same command had made this database before.
    """

    settings: Settings
    sources: list[Source]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    already_complete: bool = False

    @property
    def used(self) -> list[Source]:
        """Files that are in the database."""
        return [source for source in self.sources if source.records]

    @property
    def skipped(self) -> list[Source]:
        """Files that are not, each with its reason."""
        return [source for source in self.sources if source.skipped]

    @property
    def stored_seconds(self) -> float:
        """Seconds of sound in the database, padding not counted."""
        return sum(source.samples for source in self.sources) / self.settings.sampling_rate

    @property
    def found_seconds(self) -> float:
        """Seconds of sound in all files whose length is known."""
        return sum(source.found_seconds for source in self.sources)

    def split_seconds(self) -> tuple[float, float]:
        """Seconds for training and for validation."""
        train = sum(source.train_samples for source in self.used)
        return train / self.settings.sampling_rate, self.stored_seconds - train / self.settings.sampling_rate


def _matching_prefix(entries: Sequence[Source], sources: Sequence[Source]) -> list[Source]:
    """The finished files that the present search finds again, unchanged, in the same places."""
    kept = []
    for entry, source in zip(entries, sources, strict=False):
        if not entry.same_file(source):
            break
        kept.append(entry)
    return kept


def _search(settings: Settings) -> Search:
    found = search(settings.input_path, settings.ext)
    if not found.sources:
        others = ", ".join(
            f"{count} .{extension}" if extension != "no extension" else f"{count} without extension"
            for extension, count in found.passed_over.most_common(6)
        )
        raise PreprocessError(
            f"no audio found: searched {', '.join(settings.input_path)} for {', '.join(settings.ext)}; there "
            f"{'are only ' + others + ' (name others with --ext)' if others else 'are no files at all'}"
        )
    return found


def _refuse_foreign_folder(database: Path) -> None:
    """Never write into a folder that holds something else, in particular the user's own files."""
    if database.exists() and not database.is_dir():
        raise PreprocessError(f"{database}: is a file; --output_path must name a folder")
    if not database.is_dir():
        return
    if (database / METADATA_FILE).is_file() and not (database / BOOK_FILE).is_file():
        raise PreprocessError(f"{database}: holds a database that another tool made; choose another --output_path")
    ours = (database / JOURNAL_FILE).is_file() or (database / BOOK_FILE).is_file()
    if not ours and (database / "data.mdb").is_file():
        raise PreprocessError(
            f"{database}: holds an unfinished database that another tool made; "
            "delete it or choose another --output_path"
        )
    if not ours and any(path.name not in (LOCK_FILE, f"{JOURNAL_FILE}.draft") for path in database.iterdir()):
        raise PreprocessError(f"{database}: this folder is not empty; --output_path must name a new or empty one")


def survey(settings: Settings) -> Summary:
    """Say what a run would do, from headers only; nothing is written.

    Args:
        settings: of the run.

    Returns:
        A summary with estimated lengths.

    Raises:
        PreprocessError: nothing to do.
    """
    found = _search(settings)
    recipe = replace(settings.recipe, lazy=True)

    def estimate(source: Source) -> Source:
        entry = next(item for item in outcome(source, recipe, seed=0) if isinstance(item, Source))
        records = -(-entry.samples // recipe.chunk) if not settings.lazy else entry.records
        return replace(entry, records=records)

    with ThreadPoolExecutor(8) as threads:
        entries = list(threads.map(estimate, found.sources))
    return Summary(settings, _divide(entries, settings), dict(found.passed_over))


def preprocess(
    settings: Settings,
    *,
    workers: int | None = None,
    strict: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> Summary:
    """Make a database, or go on with one that an interrupted run of the same settings left.

    Args:
        settings: what to make.
        workers: processes that decode; None for one per core, 0 to decode in this one.
        strict: a file that cannot be used whole is an error.
        report: called as the run proceeds.

    Returns:
        What became of each file.

    Raises:
        PreprocessError: nothing usable was found, or, if strict, something was not usable.
        StoreError: the folder holds something else, or the disk is full.
        KeyboardInterrupt: what was finished is kept; the same call goes on.
    """
    database = Path(settings.output_path)
    _refuse_foreign_folder(database)
    if (database / METADATA_FILE).is_file():
        made_with, sources = read_book(database)
        check_same_settings(database, made_with, settings.identity())
        return Summary(settings, sources, already_complete=True)
    found = _search(settings)
    with _alone(database):
        if (database / METADATA_FILE).is_file():
            raise PreprocessError(f"{database}: another run has just completed it")
        sources = _make(settings, found, _cores() if workers is None else workers, report)
        summary = Summary(settings, _divide(sources, settings), dict(found.passed_over))
        _check(summary, strict=strict)
        _complete(summary)
    return summary


@contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the system lifts the lock when a process ends, however it ends."""
    try:
        database.mkdir(parents=True, exist_ok=True)
        file = open(database / LOCK_FILE, "w")  # noqa: SIM115 (closed below; only opening it is guarded)
    except OSError as error:
        raise PreprocessError(f"{database}: cannot write here ({error.strerror or error})") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows has no flock, and forbids by itself what a second run would do
        except BlockingIOError as error:
            raise PreprocessError(f"{database}: another run is writing here; wait for it to end") from error
        yield
        # While the lock is held: after that the file may be another run's. (Windows cannot unlink what is open.)
        if os.name != "nt":
            (database / LOCK_FILE).unlink(missing_ok=True)


def _make(settings: Settings, found: Search, workers: int, report: Callable[[Progress], None] | None) -> list[Source]:
    """Fill the database, going on where an earlier run stopped."""
    database = Path(settings.output_path)
    journal = Journal(database, settings.identity())
    earlier = _matching_prefix(journal.entries() or [], found.sources)
    journal.restart(earlier)
    writer = ExampleWriter(database)
    try:
        writer.truncate(sum(entry.records for entry in earlier))
        return _record(settings, found, journal, writer, earlier, workers, report)
    finally:
        writer.close()


def _record(
    settings: Settings,
    found: Search,
    journal: Journal,
    writer: ExampleWriter,
    earlier: list[Source],
    workers: int,
    report: Callable[[Progress], None] | None,
) -> list[Source]:
    """Decode and write everything that is not yet there."""
    recorder = Recorder(settings.recipe, journal, writer, list(earlier))
    progress = Progress(
        files_done=len(earlier),
        files=len(found.sources),
        bytes_done=sum(source.size for source in earlier),
        bytes=sum(source.size for source in found.sources),
        seconds=sum(source.samples for source in earlier) / settings.sampling_rate,
        resumed=len(earlier),
    )
    bytes_before = progress.bytes_done

    def receive(source: Source, item: Chunk | Source) -> None:
        nonlocal progress, bytes_before
        if isinstance(item, Chunk):
            recorder.chunk(source, item)
            seconds = progress.seconds + item.valid / settings.sampling_rate
            progress = replace(progress, seconds=seconds, bytes_done=bytes_before + int(item.done * source.size))
        else:
            recorder.end(item)
            bytes_before += source.size
            progress = replace(progress, files_done=len(recorder.entries), bytes_done=bytes_before)
        if report is not None:
            report(progress)

    if workers == 0:
        try:
            for index, source in enumerate(found.sources[len(earlier) :], len(earlier)):
                for item in outcome(source, settings.recipe, seed=index):
                    receive(source, item)
        finally:
            recorder.close()
        return recorder.entries
    decoding = Decoding(found.sources, len(earlier), settings.recipe, workers)
    try:
        decoding.run(receive)
    finally:
        decoding.stop()
        recorder.close()
    return recorder.entries


def _divide(sources: Sequence[Source], settings: Settings) -> list[Source]:
    return divide(sources, settings.validation_share, chunk=None if settings.lazy else settings.recipe.chunk)


def _check(summary: Summary, *, strict: bool) -> None:
    reasons = [
        f"{source.path}: {source.skipped or '; '.join(source.notes)}"
        for source in summary.sources
        if source.skipped or any(note.startswith("damaged") for note in source.notes)
    ]
    shown = "\n  ".join(reasons[:20]) + (f"\n  and {len(reasons) - 20} more" if len(reasons) > 20 else "")
    if not summary.used:
        raise PreprocessError(
            f"nothing usable in {', '.join(summary.settings.input_path)}: {len(summary.sources)} files found, "
            f"all skipped:\n  {shown}"
        )
    if strict and reasons:
        raise PreprocessError(
            f"--strict: {len(reasons)} of {len(summary.sources)} files cannot be used whole:\n  {shown}\n"
            "mend or remove them, or leave out --strict; what is done is kept"
        )


def _complete(summary: Summary) -> None:
    settings = summary.settings
    database = Path(settings.output_path)
    train, validation = summary.split_seconds()
    write_book(database, settings.identity(), summary.sources)
    extra = {
        "format": FORMAT,
        "num_signal": settings.num_signal,
        "chunk": settings.recipe.chunk,
        "downmix": settings.downmix,
        "records": sum(source.records for source in summary.sources),
        "files": len(summary.used),
        "train_seconds": train,
        "validation_seconds": validation,
    }
    write_facts(
        database, DatabaseFacts(settings.channels, settings.sampling_rate, summary.stored_seconds, settings.lazy, extra)
    )
    (database / JOURNAL_FILE).unlink(missing_ok=True)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
