"""``rave_tools export``: a run becomes a verified file for nn~, the RAVE VST and other realtime hosts."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from ..errors import UserError
from .opening import open_codec, open_prior, run_name

if TYPE_CHECKING:
    from ..export.neutone import Card

HELP = "make a file of a run that plays live: for nn~ and the RAVE VST, Neutone, onnxruntime or torch.export"
INTERRUPTED = "; nothing was written"

SUFFIXES = {"nn_tilde": ".ts", "neutone": ".nm", "onnx": ".onnx", "pt2": ".pt2"}
"""Formats, and the ends of their files' names."""

READERS = {
    "block": ("onnx", "pt2"),
    "prior": ("nn_tilde",),
    "author": ("neutone",),
    "description": ("neutone",),
    "tag": ("neutone",),
    "model_version": ("neutone",),
}
"""Flags that not every format reads."""


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command; RAVE's names where RAVE has the flag."""
    absl_flags.DEFINE_string("run", None, "run folder or checkpoint to export", required=True, flag_values=flags)
    absl_flags.DEFINE_string(
        "prior", None, "run folder or checkpoint of a prior of the run, for the method prior", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "streaming", True, "keep state between blocks; without it a host hears a click at each block", flag_values=flags
    )
    absl_flags.DEFINE_float(
        "fidelity", None, "share of the latents' variance that the exported latents carry; the others are random "
        "(default: 0.95, or all of a codec like encodec_baseline, whose latents follow no distribution)",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer("latent_size", None, "exact number of latents, instead of --fidelity", flag_values=flags)
    absl_flags.DEFINE_string("name", None, "name of the file (default: that of the run)", flag_values=flags)
    absl_flags.DEFINE_string(
        "output", None, "folder for the file, or the file itself, with the ending of its format (default: the run)",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum(
        "format", "nn_tilde", list(SUFFIXES), "nn_tilde is for nn~ and the RAVE VST", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "block", None, "onnx, pt2: samples of every block, for runtimes that want fixed sizes (default: any hops)",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_multi_string("author", None, "neutone: who made the model", flag_values=flags)
    absl_flags.DEFINE_string("description", None, "neutone: one sentence for players", flag_values=flags)
    absl_flags.DEFINE_multi_string("tag", None, "neutone: what kind of model it is", flag_values=flags)
    absl_flags.DEFINE_string("model_version", None, "neutone: version of the model", flag_values=flags)
    absl_flags.DEFINE_bool("ema_weights", False, "export the averaged weights", flag_values=flags)
    absl_flags.DEFINE_string("checkpoint", "last", "checkpoint of the run: last, best or step_N", flag_values=flags)
    absl_flags.DEFINE_integer(
        "sr", None, "sample rate of the host, multiple or divisor of the model's (default: that)", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "channels", None, "output channels; more than the model's are further decodings of it", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "buffered", False, "forward takes blocks of any length from the start, one hop later", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "precision", "fp32", ["fp32", "bf16", "fp16"], "of the weights; fp16 with --processor x86", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "processor", "any", ["any", "x86"], "of the host; x86 is faster and plays on no other", flag_values=flags
    )
    absl_flags.DEFINE_bool("speed", True, "measure the speed of the file (some seconds)", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> int:
    """Export, verify, print the table."""
    from ..export.deliver import describe, export
    from ..export.prepare import ExportOptions

    name = flags["format"].value
    check_flags(flags, name)
    codec, opened = open_codec(flags["run"].value, which=flags["checkpoint"].value, ema=flags["ema_weights"].value)
    prior = None
    if flags["prior"].value:
        if flags["fidelity"].present:
            raise UserError("--fidelity: the prior decides how many latents there are; leave --fidelity or --prior out")
        prior, dreamt = open_prior(flags["prior"].value, codec)
    path = target_path(flags["output"].value, flags["name"].value, opened.path, suffix=SUFFIXES[name])
    options = ExportOptions(
        streaming=flags["streaming"].value,
        fidelity=flags["fidelity"].value,
        latent_size=flags["latent_size"].value,
        sample_rate=flags["sr"].value,
        channels=flags["channels"].value,
        buffered=flags["buffered"].value,
        precision=flags["precision"].value,
        processor=flags["processor"].value,
    )
    weights = ", averaged weights" if flags["ema_weights"].value else ""
    print(f"exporting {opened.path} ({opened.step} generator updates{weights})")
    if prior is not None:
        print(f"with the prior {dreamt.path} ({dreamt.step} updates)")
    time_it = flags["speed"].value
    if name in ("onnx", "pt2"):
        from ..export.stateless import describe_written

        if name == "onnx":
            from ..export.onnx import export_onnx as export_steps
        else:
            from ..export.program import export_program as export_steps
        block = flags["block"].value
        delivered = export_steps(codec, path, options=options, block=block, time_it=time_it, report=print)
        table = describe_written(delivered)
    elif name == "neutone":
        from ..export.neutone import export_neutone

        card = make_card(flags, path)
        delivered = export_neutone(codec, path, options=options, card=card, time_it=time_it, report=print)
        table = describe(delivered)
    else:
        delivered = export(codec, path, options=options, prior=prior, time_it=time_it, report=print)
        table = describe(delivered)
    for warning in delivered.warnings:
        print(f"warning: {warning}")
    print("\n".join(table))
    facts = delivered.facts
    latency = facts.latency + facts.hop * facts.buffered
    late = f"{latency} samples = {1000 * latency / facts.sample_rate:.1f} ms late"
    print(f"exported {path}, {late if facts.streaming else 'not streaming'}")
    return 0


def check_flags(flags: absl_flags.FlagValues, name: str) -> None:
    """Refuse flags that a format does not read.

    Raises:
        UserError: names the flag and the format that reads it.
    """
    for flag, readers in READERS.items():
        if flags[flag].value is not None and name not in readers:
            raise UserError(f"--{flag} is for --format {' or '.join(readers)}, not for {name}; leave it out")


def make_card(flags: absl_flags.FlagValues, path: Path) -> "Card":
    """What Neutone shows about the model: the flags that were given, and defaults."""
    from ..export.neutone import Card

    card = Card(path.stem)
    return replace(
        card,
        authors=flags["author"].value or card.authors,
        description=flags["description"].value or card.description,
        tags=flags["tag"].value or card.tags,
        version=flags["model_version"].value or card.version,
    )


def target_path(output: str | None, name: str | None, checkpoint: Path, *, suffix: str = ".ts") -> Path:
    """Where the file goes.

    Args:
        output: ``--output``.
        name: ``--name``.
        checkpoint: that is exported.
        suffix: of the format.

    Raises:
        UserError: a name that Pd could not load, or one with the ending of another format.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    for other in SUFFIXES.values():
        if output is not None and output.endswith(other) and other != suffix:
            raise UserError(f"--output {output}: a file of this --format ends in {suffix}")
    if output is not None and output.endswith(suffix):
        if name is not None:
            raise UserError(f"--output {output} already names the file; leave --name {name} out")
        path = Path(output)
    else:
        path = Path(output or folder) / f"{name or run_name(checkpoint)}{suffix}"
    if " " in path.name and suffix == ".ts":
        raise UserError(f"nn~ cannot load a file with a space in its name: {path.name!r}; choose another with --name")
    return path
