"""``rave_tools generate``: sound files through a trained or exported model."""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from ..errors import UserError
from .opening import open_codec, open_prior, run_name

if TYPE_CHECKING:
    from ..codec.autoencoder import Autoencoder
    from ..inference.files import Job, Outcome
    from ..inference.reconstruct import Machine

HELP = "play sound files through a run or an exported model, or let a prior play"
INTERRUPTED = "; files that were finished are kept, the one at work is not there"
SHOWN = 30


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command; RAVE's names where RAVE has the flag."""
    absl_flags.DEFINE_string(
        "model", None, "run folder, checkpoint, or .ts (ours or acids-rave's)", required=True, flag_values=flags
    )
    absl_flags.DEFINE_multi_string(
        "input", None, "file, or folder with all below it; may be given several times; or a database of "
        "rave_tools encode", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "prior",
        None,
        "run folder or checkpoint of the model's prior, which plays instead of files",
        flag_values=flags,
    )
    absl_flags.DEFINE_float("seconds", 10.0, "length of what the prior plays", lower_bound=0.001, flag_values=flags)
    absl_flags.DEFINE_string(
        "out_path", "generations", "folder for the wav files, same tree as the input", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "stream", False, "play block by block as a host does (a .ts that streams always does)", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "chunk_size", None, "samples at once (default: one latent frame with --stream, else some seconds)",
        lower_bound=1, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum("bits", "16", ["16", "24", "float"], "sample format of the wav files", flag_values=flags)
    absl_flags.DEFINE_bool("keep_rate", False, "write at the input's sample rate, not the model's", flag_values=flags)
    absl_flags.DEFINE_float(
        "temperature", None, "scale of random latents (default: 0 for a run, 1 with --prior, as exported for a .ts)",
        lower_bound=0.0, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_float(
        "noise", None, "gain of the noise branch of our own .ts (default: 1)", lower_bound=0.0, flag_values=flags
    )
    absl_flags.DEFINE_float(
        "bandwidth", None, "kilobits per second, of a run that has several (default: all codebooks)", flag_values=flags
    )
    absl_flags.DEFINE_integer("seed", 0, "of everything random, the same for each file", flag_values=flags)
    absl_flags.DEFINE_string("checkpoint", "last", "checkpoint of a run: last, best or step_N", flag_values=flags)
    absl_flags.DEFINE_bool("ema_weights", False, "play the averaged weights of a run", flag_values=flags)
    absl_flags.DEFINE_integer(
        "sampling_rate", None, "of the model in hertz, for a .ts that does not tell", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_string("device", "cpu", "where to compute: cpu, cuda, cuda:1, mps", flag_values=flags)
    absl_flags.DEFINE_bool("progress", True, "show a progress bar", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> int:
    """Process every file; the exit code is 1 if one is missing or incomplete."""
    from ..data.tokens import is_database
    from ..inference.files import SUBTYPES, Choices, plan, process_files

    if flags["prior"].value:
        return play_prior(flags)
    if not flags["input"].value:
        raise UserError("--input is required: a sound file or a folder of them (or --prior, which needs none)")
    databases = [given for given in flags["input"].value if is_database(given)]
    if databases:
        return play_database(flags, databases)
    jobs = plan(flags["input"].value, flags["out_path"].value)
    machine = open_machine(flags)
    chunk = flags["chunk_size"].value
    if chunk is None and flags["stream"].value:
        chunk = machine.hop
    print("\n".join(describe_machine(machine, chunk)))
    choices = Choices(chunk, SUBTYPES[flags["bits"].value], flags["keep_rate"].value, flags["seed"].value)
    outcomes = []
    with Bar(len(jobs), enabled=flags["progress"].value) as bar:
        for outcome in process_files(jobs, machine, choices=choices, progress=bar.show):
            outcomes.append(outcome)
            bar.finish(outcome)
    print("\n".join(table(outcomes)))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def play_database(flags: absl_flags.FlagValues, databases: list[str]) -> int:
    """Decode a database of tokens or latents; the exit code is 1 if a file is missing or incomplete.

    Raises:
        UserError: flags that have no meaning here, or a database of another codec.
    """
    from ..data.tokens import TokenStore
    from ..inference.tokens import decode_database, match

    if len(flags["input"].value) > 1:
        raise UserError(f"--input {databases[0]} is a database; give it alone, and other inputs in a call of their own")
    path = flags["model"].value
    if path.endswith(".ts"):
        raise UserError(f"{path}: an exported model does not tell what it is; give the run it was exported from")
    for name in ("stream", "chunk_size", "temperature", "noise", "sampling_rate", "bandwidth"):
        if flags[name].present:
            raise UserError(f"--{name} has no meaning for a database of tokens, decoded as it is; leave it out")
    store = TokenStore(databases[0])
    device = take_device(flags["device"].value)
    codec, _ = open_codec(path, which=flags["checkpoint"].value, ema=flags["ema_weights"].value)
    match(codec, store, path=path)
    print(f"{databases[0]}: {store.facts.kind} of codec {store.facts.hash}, {store.facts.width} per frame")
    outcomes = []
    with Bar(len(store.items), enabled=flags["progress"].value) as bar:
        for outcome in decode_database(
            store, codec, Path(flags["out_path"].value), bits=flags["bits"].value, keep_rate=flags["keep_rate"].value,
            seed=flags["seed"].value, device=device, progress=bar.show,
        ):  # fmt: skip
            outcomes.append(outcome)
            bar.finish(outcome)
    print("\n".join(table(outcomes)))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def play_prior(flags: absl_flags.FlagValues) -> int:
    """Let a prior play into a wav file that is called after its run.

    Raises:
        UserError: flags that contradict each other, or a prior of another model.
    """
    import torch

    from ..inference.files import SUBTYPES, WavWriter
    from ..inference.prior import dream

    if flags["input"].value:
        raise UserError("--prior plays from nothing; leave --input out, or leave --prior out")
    if flags["bandwidth"].value is not None:
        raise UserError("--bandwidth has no meaning for a prior, which knows its codec; leave it out")
    if flags["model"].value.endswith(".ts"):
        raise UserError(
            "--prior needs the run it was trained on as --model; a .ts has its prior inside, for hosts"
        )
    device, ema, which = take_device(flags["device"].value), flags["ema_weights"].value, flags["checkpoint"].value
    codec, _ = open_codec(flags["model"].value)
    prior, opened = open_prior(flags["prior"].value, codec, which=which, ema=ema)
    temperature = 1.0 if flags["temperature"].value is None else flags["temperature"].value
    samples = round(flags["seconds"].value * codec.sample_rate)
    path = Path(flags["out_path"].value) / f"{run_name(opened.path)}.wav"
    print(f"prior: {opened.path} ({opened.step} updates), {prior.latent_size} latents, temperature {temperature:g}")
    torch.manual_seed(flags["seed"].value)
    writer = WavWriter(
        path,
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        subtype=SUBTYPES[flags["bits"].value],
        frames=samples,
    )
    try:
        for block in dream(prior, codec, samples=samples, temperature=temperature, device=device):
            writer.write(block[0].numpy())
        writer.finish()
    finally:
        writer.abandon()
    print(f"  {path}  {samples / codec.sample_rate:.1f} s")
    return 0


def open_machine(flags: absl_flags.FlagValues) -> "Machine":
    """The model that the flags name.

    Raises:
        UserError: there is none, or a flag asks of it what it cannot do.
    """
    from ..inference.exported import machine_of_file
    from ..inference.reconstruct import machine_of

    path, live, device = flags["model"].value, flags["stream"].value, take_device(flags["device"].value)
    temperature, noise = flags["temperature"].value, flags["noise"].value
    if path.endswith(".ts"):
        if flags["bandwidth"].value is not None:
            raise UserError("--bandwidth is for a run; an exported .ts has the codebooks that --latent_size gave it")
        machine = machine_of_file(
            Path(path),
            temperature=temperature,
            noise=noise,
            sample_rate=flags["sampling_rate"].value,
            device=device,
        )
        if live and not machine.streaming:
            raise UserError(f"{path} was exported without streaming and cannot play in blocks; leave --stream out")
        return machine
    if noise is not None:
        raise UserError("--noise is for an exported .ts; a run plays its noise branch as it was trained")
    codec, _ = open_codec(path, which=flags["checkpoint"].value, ema=flags["ema_weights"].value)
    choose_bandwidth(codec, flags["bandwidth"].value)
    return machine_of(codec, live=live, temperature=temperature or 0.0, device=device)


def choose_bandwidth(codec: "Autoencoder", kbps: float | None) -> None:
    """Use as many codebooks as a bandwidth pays for.

    Raises:
        UserError: the codec has no such bandwidth, or no choice of them.
    """
    if kbps is None:
        return
    if not codec.num_codebooks or not hasattr(codec, "set_bandwidth"):
        raise UserError("--bandwidth is for codecs whose number of codebooks can be chosen, this is none; leave it out")
    try:
        codec.set_bandwidth(kbps)
    except ValueError as error:
        raise UserError(f"--bandwidth {kbps:g}: {error}") from error


def take_device(name: str) -> str:
    """The device, if torch can use it; a processor is told to keep freed memory.

    Raises:
        UserError: it cannot.
    """
    import torch

    from ..training.memory import keep_freed_memory

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name} cannot be used: {reason}") from error
    if torch.device(name).type == "cpu":
        keep_freed_memory()
    return name


def describe_machine(machine: "Machine", chunk: int | None) -> list[str]:
    """What is about to play, in words."""
    channels = f"{machine.channels} in, {machine.out_channels} out"
    lines = [f"model: {machine.sample_rate} Hz, {channels}, {machine.hop} samples per latent"]
    if machine.segments is not None and not machine.streaming:
        from ..inference.reconstruct import WHOLE

        length, stride = machine.segments
        if length == WHOLE:
            lines.append("plays whole files at once, however long, for it normalises over all of a sound")
        else:
            seconds, shared = length / machine.sample_rate, (length - stride) / machine.sample_rate
            lines.append(f"plays segments of {seconds:g} s on their own, {shared:g} s of each faded into the next")
        if chunk is not None:
            lines.append(f"--chunk_size {chunk} is not used: the segments of this model are fixed")
        return lines
    if not machine.streaming:
        lines.append("plays whole files; long ones in overlapping parts that sound as one")
        return lines
    if chunk is not None and chunk % machine.unit:
        rounded = -(-chunk // machine.unit) * machine.unit
        lines.append(f"--chunk_size {chunk} rounded up to {rounded}, whole latent frames")
    if machine.latency is None:
        lines.append("streams; the file does not announce its latency, so the output is as late as in a host")
    else:
        late = f"{machine.latency} samples ({1000 * machine.latency / machine.sample_rate:.1f} ms)"
        lines.append(f"streams; its latency of {late} is taken out of the files")
    return lines


class Bar:
    """A progress bar over files, with the seconds of the current one.

    Args:
        files: how many.
        enabled: show it where there is a terminal.
    """

    def __init__(self, files: int, *, enabled: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=files, unit="file", disable=None if enabled else True, dynamic_ncols=True)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, job: "Job", seconds: float) -> None:
        """A block of a file is done."""
        self._bar.set_postfix_str(f"{job.source.name} {seconds:.0f} s")

    def finish(self, outcome: "Outcome") -> None:
        """A file is done."""
        if outcome.problem:
            self._bar.write(f"problem: {outcome.job.source}: {outcome.problem}")
        self._bar.update(1)


def table(outcomes: list["Outcome"]) -> list[str]:
    """What became of the files: each of a few, a summary of many, every problem."""
    lines = []
    for outcome in outcomes[:SHOWN]:
        if outcome.written:
            notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
            lines.append(f"  {outcome.job.target}  {outcome.seconds:.1f} s in {outcome.spent:.1f} s{notes}")
    if len(outcomes) > SHOWN:
        lines.append(f"  ... and {len(outcomes) - SHOWN} more")
    problems = [outcome for outcome in outcomes if outcome.problem]
    written = sum(outcome.written for outcome in outcomes)
    seconds, spent = sum(outcome.seconds for outcome in outcomes), sum(outcome.spent for outcome in outcomes)
    lines.append(f"files found    {len(outcomes)}")
    lines.append(f"files written  {written} ({seconds:.1f} s of sound in {spent:.1f} s)")
    lines.append(f"problems       {len(problems)}")
    for outcome in problems:
        state = "incomplete" if outcome.written else "no output"
        lines.append(f"  {outcome.job.source}: {outcome.problem} [{state}]")
    return lines
