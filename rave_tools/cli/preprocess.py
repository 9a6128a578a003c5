"""``rave_tools preprocess``: a folder of sounds becomes a database to train on."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import flags as absl_flags
from tqdm import tqdm

from ..data.decoding import DOWNMIXES
from ..data.preprocess import Progress, Settings, Summary, preprocess, survey
from ..data.sources import EXTENSIONS, Source

HELP = "turn folders of sound files into a database to train on"
SHOWN = 30


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command; RAVE's names where RAVE has the flag."""
    absl_flags.DEFINE_multi_string(
        "input_path",
        None,
        "folder of sound files, with all below it, or a file; may be given several times",
        flag_values=flags,
        required=True,
    )
    absl_flags.DEFINE_string("output_path", None, "folder of the database", flag_values=flags, required=True)
    absl_flags.DEFINE_integer(
        "num_signal", 131072, "samples that training takes at once; a record holds twice as many", flag_values=flags
    )
    absl_flags.DEFINE_integer("channels", 1, "channels of the database", flag_values=flags)
    absl_flags.DEFINE_integer("sampling_rate", 44100, "sampling rate of the database in hertz", flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "ext",
        list(EXTENSIONS),
        "extensions to look for, in upper or lower case; repeat the flag or separate by commas",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "lazy", False, "store only where the files are, and decode them while training", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "downmix",
        "mean",
        list(DOWNMIXES),
        "how one channel is made of several: their mean, the first, or a random one in each record",
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "validation_share", 2.0, "percent of the sound set aside for validation, in whole files", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "workers",
        None,
        "processes that decode; one per core if not given, 0 for none",
        flag_values=flags,
        lower_bound=0,
    )
    absl_flags.DEFINE_bool("strict", False, "a file that cannot be used whole is an error", flag_values=flags)
    absl_flags.DEFINE_bool(
        "dry_run", False, "say what would be done, from the headers of the files, and write nothing", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "max_db_size", None, "accepted for RAVE's sake, not needed: the database grows by itself", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "dyndb", None, "accepted for RAVE's sake, not needed: the database grows by itself", flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> int:
    """Make the database, or go on making it, and print what became of every file."""
    for name in ("max_db_size", "dyndb"):
        if flags[name].value is not None:
            print(f"--{name} is not needed: the database grows by itself, as far as the disk goes")
    extensions = tuple(
        word.strip().lstrip(".") for value in flags["ext"].value for word in value.replace(",", " ").split()
    )
    settings = Settings(
        tuple(flags["input_path"].value),
        flags["output_path"].value,
        num_signal=flags["num_signal"].value,
        channels=flags["channels"].value,
        sampling_rate=flags["sampling_rate"].value,
        ext=extensions,
        lazy=flags["lazy"].value,
        downmix=flags["downmix"].value,
        validation_share=flags["validation_share"].value,
    )
    if flags["dry_run"].value:
        summary = survey(settings)
        print("\n".join([*table(summary), "dry run: lengths are those that the headers announce, nothing was written"]))
        return 0
    started = time.monotonic()
    bar = tqdm(
        unit="B",
        unit_scale=True,
        disable=None,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar}| {desc}, {rate_fmt}, {remaining} left",
    )
    try:
        with bar, _terminate_as_interrupt():
            summary = preprocess(
                settings, workers=flags["workers"].value, strict=flags["strict"].value, report=_show_on(bar)
            )
    except KeyboardInterrupt:
        print(f"stopped; what was finished is kept in {settings.output_path}, and the same command goes on from there")
        raise
    print("\n".join(table(summary, seconds=time.monotonic() - started)))
    return 0


def _show_on(bar: tqdm):
    def show(progress: Progress) -> None:
        if bar.total is None:
            bar.total = progress.bytes
            bar.initial = bar.n = progress.bytes_done
            if progress.resumed:
                bar.write(f"going on after {progress.resumed} of {progress.files} files, which an earlier run finished")
        bar.set_description_str(
            f"{progress.files_done}/{progress.files} files, {_clock(progress.seconds)} of sound", refresh=False
        )
        bar.update(progress.bytes_done - bar.n)

    return show


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM ends the run as Ctrl-C does: with everything finished kept."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}"


def _row(name: str, files: int, seconds: float) -> str:
    return f"  {name:<22}{files:>9,}{seconds:>15,.1f} s   {_clock(seconds)}"


def table(summary: Summary, *, seconds: float | None = None) -> list[str]:
    """What became of the files, as lines.

    Args:
        summary: result of a run.
        seconds: that the run took.

    Returns:
        The lines.
    """
    settings, used, skipped = summary.settings, summary.used, summary.skipped
    train, validation = summary.split_seconds()
    lost = sum(source.found_seconds for source in skipped)
    lines = [f"  {'':<22}{'files':>9}{'sound':>15}"]
    lines += [
        _row("found", len(summary.sources), summary.found_seconds),
        _row("used", len(used), summary.found_seconds - lost),
        _row("skipped", len(skipped), lost),
        _row("referred to" if settings.lazy else "stored", len(used), summary.stored_seconds),
    ]
    lines += [
        _row("  for training", sum(source.train_samples > 0 for source in used), train),
        _row("  for validation", sum(source.train_samples < source.samples for source in used), validation),
    ]
    if summary.passed_over:
        others = ", ".join(
            f"{count} {extension if extension == 'no extension' else '.' + extension}"
            for extension, count in Counter(summary.passed_over).most_common(6)
        )
        lines.append(f"  passed over: {others} (--ext says what counts as sound)")
    lines += _reasons("skipped", [(source, source.skipped) for source in skipped])
    lines += _reasons("noted", [(source, "; ".join(source.notes)) for source in used if source.notes])
    lines += [*_changes(summary), *_division(summary)]
    if summary.already_complete:
        lines.append(
            f"{settings.output_path} is complete already; nothing was done. To make it anew, delete the folder first"
        )
    elif seconds is not None:
        size = sum(path.stat().st_size for path in Path(settings.output_path).iterdir())
        lines.append(
            f"{settings.output_path}: {sum(source.records for source in used):,} records, {size / 1e6:,.1f} MB, "
            f"made in {seconds:.1f} s"
        )
    return lines


def _reasons(title: str, items: list[tuple[Source, str]]) -> list[str]:
    lines = [f"  {title}: {source.path}: {reason}" for source, reason in items[:SHOWN]]
    if len(items) > SHOWN:
        lines.append(f"  {title}: and {len(items) - SHOWN} more, all in sources.jsonl")
    return lines


def _changes(summary: Summary) -> list[str]:
    """What was done to channels and sampling rates; nothing of it is silent."""
    settings = summary.settings
    lines = []
    more = Counter(source.channels for source in summary.used if source.channels > settings.channels)
    for channels, count in sorted(more.items()):
        way = {
            "random": f"{settings.channels} of them, drawn for each record",
            "first": f"the first {settings.channels} kept",
        }.get(
            settings.downmix, "mixed to their mean" if settings.channels == 1 else f"the first {settings.channels} kept"
        )
        lines.append(f"  channels: {count:,} files of {channels}: {way} (--downmix {settings.downmix})")
    for channels, count in sorted(
        Counter(source.channels for source in summary.used if source.channels < settings.channels).items()
    ):
        lines.append(f"  channels: {count:,} files of {channels}: repeated to make {settings.channels}")
    for rate, count in sorted(
        Counter(source.rate for source in summary.used if source.rate != settings.sampling_rate).items()
    ):
        lines.append(
            f"  resampled: {count:,} files from {rate:,} to {settings.sampling_rate:,} Hz"
            f"{' while training' if settings.lazy else ''}"
        )
    return lines


def _division(summary: Summary) -> list[str]:
    held = [source for source in summary.used if source.train_samples < source.samples]
    if not summary.settings.validation_share:
        return ["  validation: no file set aside (--validation_share 0)"]
    if not held:
        return [
            "  validation: nothing could be set aside from a single record; training will be judged on what it has seen"
        ]
    if len(summary.used) == 1:
        return ["  validation: the end of the only file, as one file cannot be divided by file"]
    names = ", ".join(Path(source.path).name for source in held[:5])
    return [f"  validation: {names}{f' and {len(held) - 5} more' if len(held) > 5 else ''}"]
