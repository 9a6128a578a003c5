"""``rave_tools encode``: sound files to a database of a codec's tokens or latents."""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from ..errors import UserError
from .generate import Bar, choose_bandwidth, take_device
from .opening import open_codec

if TYPE_CHECKING:
    from ..codec.autoencoder import Autoencoder
    from ..inference.files import Outcome

HELP = "write the tokens or latents of sounds into a database, for language models and generate"
INTERRUPTED = "; files that were finished are in the database, and the same command goes on with the others"
SHOWN = 30


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command."""
    absl_flags.DEFINE_string("model", None, "run folder or checkpoint of a codec", required=True, flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "input", None, "file, or folder with all below it; may be given several times", required=True, flag_values=flags
    )
    absl_flags.DEFINE_string("output", None, "folder of the database", required=True, flag_values=flags)
    absl_flags.DEFINE_float(
        "bandwidth", None, "kilobits per second, of a codec that has several (default: all codebooks)",
        lower_bound=0.0, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_bool(
        "latents", False, "write latents of a codec that has codes, too (one without always does)", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "dtype", None, ["float32", "float16"], "of latents (default: float32); codes are whole numbers",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string("checkpoint", "last", "checkpoint of a run: last, best or step_N", flag_values=flags)
    absl_flags.DEFINE_bool("ema_weights", False, "the averaged weights of a run", flag_values=flags)
    absl_flags.DEFINE_string("device", "cpu", "where to compute: cpu, cuda, cuda:1, mps", flag_values=flags)
    absl_flags.DEFINE_bool("progress", True, "show a progress bar", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> int:
    """Encode every file that is not there yet; the exit code is 1 if one is missing or incomplete."""
    from ..data.tokens import CODES, LATENTS, TokenWriter, check_place
    from ..inference.files import find_sounds
    from ..inference.tokens import encode_files, identity

    path, output, device = flags["model"].value, flags["output"].value, take_device(flags["device"].value)
    if path.endswith(".ts"):
        raise UserError(f"{path}: an exported model does not tell what it is; give the run it was exported from")
    check_place(Path(output))
    sounds = find_sounds(flags["input"].value, output)
    codec, opened = open_codec(path, which=flags["checkpoint"].value, ema=flags["ema_weights"].value)
    choose_bandwidth(codec, flags["bandwidth"].value)
    kind = CODES if codec.num_codebooks and not flags["latents"].value else LATENTS
    if kind == CODES and not getattr(codec.bottleneck, "placed", True):
        raise UserError(f"{path}: its codebooks were never placed, so it makes no codes; train it, or write --latents")
    if kind == CODES and flags["dtype"].value:
        raise UserError("--dtype is for latents, and codes are whole numbers; add --latents, or leave --dtype out")
    facts = identity(codec, kind=kind, dtype=flags["dtype"].value or "float32", run=str(Path(opened.path).resolve()))
    writer = TokenWriter(output, facts)
    outcomes = []
    try:
        print("\n".join(describe(codec, kind, facts.dtype, facts.hash)))
        with Bar(len(sounds), enabled=flags["progress"].value) as bar:
            for outcome in encode_files(sounds, codec, writer, device=device, progress=bar.show):
                outcomes.append(outcome)
                bar.finish(outcome)
        total = len(writer.items)
    finally:
        writer.close()
    print("\n".join(table(outcomes, total)))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def describe(codec: "Autoencoder", kind: str, dtype: str, identity: str) -> list[str]:
    """What is about to be written, in words."""
    channels = f"{codec.channels} channel{'s' * (codec.channels > 1)}"
    frames = codec.sample_rate / codec.hop
    lines = [f"codec {identity}: {codec.sample_rate} Hz, {channels}, {frames:.4g} frames per second"]
    if kind == "codes":
        lines.append(f"writes codes ({dtype}), {codec.num_codebooks} per frame, each of {codec.codebook_size}")
    else:
        lines.append(f"writes latents ({dtype}), {codec.latent_dim} per frame")
    return lines


def table(outcomes: list["Outcome"], total: int) -> list[str]:
    """What became of the files: each of a few, a summary of many, every problem."""
    lines = []
    for outcome in outcomes[:SHOWN]:
        if outcome.written:
            notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
            lines.append(f"  {outcome.job.target}  {outcome.seconds:.1f} s in {outcome.spent:.1f} s{notes}")
    if len(outcomes) > SHOWN:
        lines.append(f"  ... and {len(outcomes) - SHOWN} more")
    problems = [outcome for outcome in outcomes if outcome.problem]
    written = [outcome for outcome in outcomes if outcome.written]
    there = sum("already there" in outcome.notes for outcome in outcomes)
    seconds, spent = sum(outcome.seconds for outcome in written), sum(outcome.spent for outcome in written)
    lines.append(f"files found    {len(outcomes)}")
    lines.append(f"files encoded  {len(written)} ({seconds:.1f} s of sound in {spent:.1f} s)")
    lines.append(f"already there  {there}")
    lines.append(f"in the database {total}")
    lines.append(f"problems       {len(problems)}")
    for outcome in problems:
        state = "incomplete" if outcome.written or "already there" in outcome.notes else "not encoded"
        lines.append(f"  {outcome.job.source}: {outcome.problem} [{state}]")
    return lines
