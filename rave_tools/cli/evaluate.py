"""``rave_tools evaluate``: reconstructions of several models measured, listened to and looked at side by side."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from ..errors import UserError
from .generate import Bar, take_device
from .main import EXIT_INTERRUPTED
from .opening import open_codec, run_name

if TYPE_CHECKING:
    from ..codec.autoencoder import Autoencoder
    from ..criteria.measures import Measure
    from ..inference.embeddings import Embedding
    from ..inference.evaluate import Contestant, Evaluation, Row
    from ..inference.report import Report

HELP = "measure reconstructions of runs, checkpoints and exported models side by side"
INTERRUPTED = "; no results were written"
NAMES = ("si_sdr", "l1", "mel", "stft", "frechet", "pesq", "stoi")
PLAIN = NAMES[:5]


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command; those of generate where it has them."""
    absl_flags.DEFINE_multi_string(
        "model", None, "run folder, checkpoint, or .ts (ours or acids-rave's); may be given several times",
        required=True, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_multi_string(
        "input", None, "file, or folder with all below it; may be given several times", required=True, flag_values=flags
    )
    absl_flags.DEFINE_string(
        "output", "evaluation", "folder for results.csv, summary.json and report.html", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "measures", list(PLAIN), f"which, with commas between: {', '.join(NAMES)}, or all; pesq and stoi are for "
        "speech and need the extra 'metrics'", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_float(
        "seconds", 30.0, "at most of each file, from its middle; 0 takes all of it", lower_bound=0.0, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "limit", None, "at most so many files, drawn by --seed", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_list(
        "bandwidth", [], "kilobits per second of models with codebooks, several with commas between: each is a model "
        "of its own in the tables", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer(
        "rate", None, "sample rate in hertz that all is compared at (default: the lowest of the models' rates)",
        lower_bound=1000, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "embedding", "log-mel", "of the Frechet distance: log-mel, a run whose latents to take, or a .ts that turns "
        "(B, 1, T) into (B, D) or (B, D, N)", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer(
        "embedding_rate", None, "of the embedding in hertz, for a .ts that does not tell", lower_bound=1,
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_bool(
        "stream", False, "play runs as a host does (a .ts that streams always does)", flag_values=flags
    )
    absl_flags.DEFINE_float(
        "temperature", None, "scale of random latents (default: 0 for a run, as exported for a .ts)", lower_bound=0.0,
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer("seed", 0, "of everything random, the same for each file", flag_values=flags)
    absl_flags.DEFINE_string("checkpoint", "last", "checkpoint of a run: last, best or step_N", flag_values=flags)
    absl_flags.DEFINE_bool("ema_weights", False, "take the averaged weights of a run", flag_values=flags)
    absl_flags.DEFINE_integer(
        "sampling_rate", None, "of the models in hertz, for a .ts that does not tell", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "players", 8, "files on the page to listen to and look at, evenly spread over all", lower_bound=0,
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_float(
        "clip_seconds", 6.0, "length of what can be heard on the page", lower_bound=0.1, flag_values=flags
    )
    absl_flags.DEFINE_string("device", "cpu", "where to compute: cpu, cuda, cuda:1, mps", flag_values=flags)
    absl_flags.DEFINE_bool("progress", True, "show a progress bar", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> int:
    """Measure, and write down; the exit code is 1 if a file could not be read or played, 130 after Ctrl-C."""
    from ..inference.evaluate import Evaluation, Settings, choose
    from ..inference.report import Report

    measures, with_frechet = chosen_measures(flags["measures"].value)
    found = named_files(flags["input"].value, flags["output"].value)
    files = choose(list(found), flags["limit"].value, flags["seed"].value)
    contestants = open_contestants(flags)
    rates = [contestant.machine.sample_rate for contestant in contestants]
    rate = flags["rate"].value or min(rates)
    seconds = flags["seconds"].value or None
    embedding = open_embedding(flags, rate) if with_frechet else None
    evaluation = Evaluation(
        contestants,
        measures=measures,
        settings=Settings(rate=rate, seconds=seconds, seed=flags["seed"].value),
        embedding=embedding,
    )
    settings = describe_settings(flags, files=len(files), found=len(found), rate=rate, rates=rates)
    report = Report(evaluation, settings)
    output = Path(flags["output"].value)
    output.mkdir(parents=True, exist_ok=True)
    print("\n".join([*map(describe, contestants), *(f"{key}: {value}" for key, value in settings.items())]))
    code = measure_files(evaluation, report, [(path, found[path]) for path in files], flags, output)
    print("\n".join(write_down(report, output)))
    return code or (1 if report.problems() else 0)


def measure_files(
    evaluation: "Evaluation",
    report: "Report",
    files: list[tuple[Path, str]],
    flags: absl_flags.FlagValues,
    output: Path,
) -> int:
    """Measure one file after the other until all are done or Ctrl-C: 0 or the exit code of an interruption."""
    from ..inference.files import Job, Outcome
    from ..inference.report import CsvWriter

    players = spread(len(files), flags["players"].value)
    done = 0
    with (
        open(output / "results.csv", "w", newline="", encoding="utf-8") as file,
        Bar(len(files), enabled=flags["progress"].value) as bar,
    ):
        writer = CsvWriter(file, evaluation.measures)
        try:
            evaluation.warm_up()
            for index, (path, name) in enumerate(files):
                problem = ""
                for row in evaluation.measure(path, name, keep=index in players):
                    writer.write(row)
                    keep_example(report, row, evaluation.settings.rate, flags["clip_seconds"].value)
                    problem = problem or row.problem
                done += 1
                bar.finish(Outcome(Job(path, path), problem=problem))
        except KeyboardInterrupt:
            report.interrupted = f"{done} of {len(files)} files were finished; the results are of those"
            if len(evaluation.rows) % len(evaluation.contestants):
                report.interrupted += f", and of {evaluation.files[-1]} with some of the models"
            return EXIT_INTERRUPTED
    return 0


def keep_example(report: "Report", row: "Row", rate: int, seconds: float) -> None:
    """Move the middle of a row's sounds, if it has some, to the page."""
    from ..inference.report import Example, number

    if row.sounds is None:
        return
    length = min(row.sounds[0].shape[-1], max(1, round(seconds * rate)))
    start = (row.sounds[0].shape[-1] - length) // 2
    original, made = (sound[..., start : start + length].clone() for sound in row.sounds)
    row.sounds = None
    if not report.examples or report.examples[-1].file != row.file:
        report.examples.append(Example(row.file, rate, original))
    example = report.examples[-1]
    example.made[row.model] = made
    shown = [m for m in report.evaluation.measures if m.name in row.values and m.name in ("si_sdr", "mel")]
    example.captions[row.model] = ", ".join(
        f"{m.title.removesuffix(' distance')} {number(row.values[m.name])}{' ' * bool(m.unit)}{m.unit}" for m in shown
    )


def spread(count: int, wanted: int) -> set[int]:
    """At most so many of the numbers below count, at even distances."""
    if wanted >= count:
        return set(range(count))
    return {math.floor((index + 0.5) * count / wanted) for index in range(wanted)}


def chosen_measures(names: list[str]) -> tuple[list["Measure"], bool]:
    """Measures of the names, in the order of the tables, and whether the Frechet distance is among them.

    Raises:
        UserError: an unknown name, or a package that is missing.
    """
    from ..criteria.measures import MEASURES
    from ..inference import speech

    wanted = set(NAMES) if "all" in names else {name.strip() for name in names}
    for name in sorted(wanted - set(NAMES)):
        raise UserError(f"--measures {name or 'nothing'}: there are {', '.join(NAMES)}, and all")
    if not wanted:
        raise UserError(f"--measures is empty; there are {', '.join(NAMES)}, and all")
    speech.need([name for name in NAMES if name in wanted])
    return [measure for measure in (*MEASURES, *speech.SPEECH) if measure.name in wanted], "frechet" in wanted


def named_files(inputs: list[str], output: str) -> dict[Path, str]:
    """The files of the inputs, each with its name in tables: its place below the input, where that is its own alone.

    Raises:
        UserError: an input does not exist, or there is no audio.
    """
    from ..inference.files import plan

    place = Path(output) / "played"  # Nothing is written there: it is the tree of names that is wanted.
    names = {}
    for job in plan(inputs, str(place)):
        own = job.target.relative_to(place)
        alone = own.stem == job.source.stem
        names[job.source] = str(own.with_name(job.source.name)) if alone else str(own).removesuffix(".wav")
    return names


def open_contestants(flags: absl_flags.FlagValues) -> list["Contestant"]:
    """The models, each bandwidth of one with codebooks as a model of its own.

    Raises:
        UserError: one cannot be opened, or cannot do what the flags ask.
    """
    from ..inference.evaluate import Contestant
    from ..inference.exported import machine_of_file

    device = take_device(flags["device"].value)
    bandwidths = [_kilobits(word) for word in flags["bandwidth"].value]
    contestants: list[Contestant] = []
    unmoved = []
    for path in flags["model"].value:
        if path.endswith(".ts"):
            machine = machine_of_file(
                Path(path),
                temperature=flags["temperature"].value,
                sample_rate=flags["sampling_rate"].value,
                device=device,
            )
            notes = []
            if flags["stream"].value and not machine.streaming:
                notes.append("exported without streaming: plays whole files in spite of --stream")
            if machine.streaming and machine.latency is None:
                notes.append("does not announce its latency: compared as late as it is, SI-SDR and L1 mean nothing")
            contestants.append(Contestant(Path(path).stem, path, machine, notes=notes))
            unmoved.append(contestants[-1])
            continue
        codec, opened = open_codec(path, which=flags["checkpoint"].value, ema=flags["ema_weights"].value)
        name = run_name(opened.path)
        if bandwidths and codec.num_codebooks and hasattr(codec, "set_bandwidth"):
            for bandwidth in bandwidths:
                try:
                    codec.set_bandwidth(bandwidth)
                except ValueError as error:
                    raise UserError(f"--bandwidth {bandwidth:g}: {path}: {error}") from error
                contestants.append(_contestant(codec, f"{name} @ {bandwidth:g} kb/s", path, opened.step, flags))
        else:
            contestants.append(_contestant(codec, name, path, opened.step, flags))
            unmoved.append(contestants[-1])
    if bandwidths and len(unmoved) == len(contestants):
        raise UserError("--bandwidth is for models whose number of codebooks can be chosen, and none of these is one")
    for contestant in unmoved if bandwidths else []:
        contestant.notes.append("--bandwidth does not concern it: its number of codebooks cannot be chosen")
    _tell_apart(contestants)
    return contestants


def _contestant(
    codec: "Autoencoder", name: str, path: str, step: int, flags: absl_flags.FlagValues
) -> "Contestant":
    from ..inference.evaluate import Contestant
    from ..inference.reconstruct import machine_of

    machine = machine_of(
        codec, live=flags["stream"].value, temperature=flags["temperature"].value or 0.0, device=flags["device"].value
    )
    return Contestant(name, path, machine, step, code_rate(codec))


def code_rate(codec: "Autoencoder") -> float | None:
    """Kilobits per second of the codes that a codec makes, counted on a short sound; None if it makes none."""
    import torch

    if not codec.num_codebooks:
        return None
    with torch.inference_mode():
        codes = codec.encode(torch.zeros(1, codec.channels, 16 * codec.hop), deterministic=True).codes
    if codes is None:
        return None
    return codes.shape[1] * math.log2(codec.codebook_size) * codec.sample_rate / codec.hop / 1000


def _kilobits(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--bandwidth {word}: kilobits per second are positive numbers, such as 1.5,6,24")
    return value


def _tell_apart(contestants: list["Contestant"]) -> None:
    """Models of one name get their paths beside it, and a number where that is the same too."""
    for same in (lambda c: c.path, lambda c: ""):
        names = [contestant.name for contestant in contestants]
        seen: dict[str, int] = {}
        for contestant, name in zip(contestants, names, strict=True):
            if names.count(name) > 1:
                seen[name] = seen.get(name, 0) + 1
                contestant.name = f"{name} ({same(contestant) or seen[name]})"


def open_embedding(flags: absl_flags.FlagValues, rate: int) -> "Embedding":
    """What the Frechet distance is measured in.

    Raises:
        UserError: the run or file cannot be opened.
    """
    from ..inference import embeddings

    given, device = flags["embedding"].value, flags["device"].value
    if given == "log-mel":
        return embeddings.log_mel(rate)
    if given.endswith(".ts"):
        return embeddings.exported(Path(given), rate=flags["embedding_rate"].value, device=device)
    codec, opened = open_codec(given)
    return embeddings.latents(codec, run_name(opened.path), device=device)


def describe(contestant: "Contestant") -> str:
    """A model in one line."""
    machine = contestant.machine
    words = [f"{machine.sample_rate} Hz", f"{machine.channels} ch", f"{machine.hop} samples per latent"]
    if contestant.step is not None:
        words.append(f"{contestant.step} updates")
    if contestant.bitrate is not None:
        words.append(f"{contestant.bitrate:.4g} kb/s")
    if machine.streaming and machine.latency is not None:
        words.append(f"streams, latency of {machine.latency} samples taken out")
    return f"model {contestant.name}: {', '.join([*words, *contestant.notes])}"


def describe_settings(
    flags: absl_flags.FlagValues, *, files: int, found: int, rate: int, rates: list[int]
) -> dict[str, Any]:
    """How it is measured, for the terminal, summary.json and the page."""
    import torch

    from .. import __version__

    seed, seconds = flags["seed"].value, flags["seconds"].value
    given = flags["rate"].value is not None
    why = "--rate" if given else "the models' rate" if len(set(rates)) == 1 else "the lowest of the models' rates"
    return {
        "input": ", ".join(flags["input"].value),
        "files": f"{files}" if files == found else f"{files} of {found}, drawn with seed {seed}",
        "length": f"at most {seconds:g} s from the middle of each file" if seconds else "whole files",
        "compared at": f"{rate} Hz ({why})",
        "weights": f"{flags['checkpoint'].value}{' (averaged)' if flags['ema_weights'].value else ''}",
        "seed": seed,
        "computed on": f"{flags['device'].value}, {torch.get_num_threads()} threads",
        "version": f"rave_tools {__version__}, torch {torch.__version__}",
    }


def write_down(report: "Report", output: Path) -> list[str]:
    """Write summary.json and report.html; what the terminal shows at the end."""
    from ..inference.report import terminal_table, write_json, write_page

    write_json(report, output / "summary.json")
    write_page(report, output / "report.html")
    lines = ["", *terminal_table(report), ""]
    problems = report.problems()
    lines.append(f"files     {len(report.evaluation.files)}")
    lines.append(f"problems  {len(problems)}")
    lines += [f"  {file}: {rows[0].problem}" for file, rows in problems.items()]
    if report.interrupted:
        lines.append(f"interrupted: {report.interrupted}")
    lines.append(f"written   {output / 'report.html'}, {output / 'summary.json'}, {output / 'results.csv'}")
    return lines
