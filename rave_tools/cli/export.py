"""``rave_tools export``: a run becomes a verified file for nn~ and the RAVE VST."""

from pathlib import Path

from absl import flags as absl_flags

from ..errors import UserError
from .opening import open_codec, open_prior, run_name

HELP = "make a TorchScript file of a run, for nn~ and the RAVE VST"


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
        "fidelity", 0.95, "share of the latents' variance that the exported latents carry", flag_values=flags
    )
    absl_flags.DEFINE_integer("latent_size", None, "exact number of latents, instead of --fidelity", flag_values=flags)
    absl_flags.DEFINE_string("name", None, "name of the file (default: that of the run)", flag_values=flags)
    absl_flags.DEFINE_string(
        "output", None, "folder for the file, or the file itself, ending in .ts (default: the run)", flag_values=flags
    )
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

    codec, opened = open_codec(flags["run"].value, which=flags["checkpoint"].value, ema=flags["ema_weights"].value)
    prior = None
    if flags["prior"].value:
        if flags["fidelity"].present:
            raise UserError("--fidelity: the prior decides how many latents there are; leave --fidelity or --prior out")
        prior, dreamt = open_prior(flags["prior"].value, codec)
    path = target_path(flags["output"].value, flags["name"].value, opened.path)
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
    delivered = export(codec, path, options=options, prior=prior, time_it=flags["speed"].value, report=print)
    for warning in delivered.warnings:
        print(f"warning: {warning}")
    print("\n".join(describe(delivered)))
    facts = delivered.facts
    late = f"{facts.latency} samples = {1000 * facts.latency / facts.sample_rate:.1f} ms late"
    print(f"exported {path}, {late if facts.streaming else 'not streaming'}")
    return 0


def target_path(output: str | None, name: str | None, checkpoint: Path) -> Path:
    """Where the file goes.

    Args:
        output: ``--output``.
        name: ``--name``.
        checkpoint: that is exported.

    Raises:
        UserError: a name that Pd could not load.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    if output is not None and output.endswith(".ts"):
        if name is not None:
            raise UserError(f"--output {output} already names the file; leave --name {name} out")
        path = Path(output)
    else:
        path = Path(output or folder) / f"{name or run_name(checkpoint)}.ts"
    if " " in path.name:
        raise UserError(f"nn~ cannot load a file with a space in its name: {path.name!r}; choose another with --name")
    return path
