"""``rave_tools demo``: the whole chain on seconds of synthetic sound, in about two minutes on two cores.

It types the commands that a person would type, prints each before it runs it, and leaves a folder of sounds and
pictures.
"""

import shlex
from pathlib import Path

from absl import flags as absl_flags

from ..errors import UserError

HELP = "run the whole chain on a synthetic tune: preprocess, train, export, play in blocks"

SAMPLING_RATE = 44100
TUNES = 4
TUNE_SECONDS = 20.0
TRAIN = ("--config", "demo", "--n_signal", "32768", "--batch", "4", "--workers", "0", "--val_every", "100")


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command."""
    absl_flags.DEFINE_string(
        "output", "demo", "folder for everything that the demo makes; must be new", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "max_steps", 400, "generator updates; 400 are about a minute on two cores", flag_values=flags, lower_bound=2
    )
    absl_flags.DEFINE_enum("accelerator", "cpu", ["auto", "cpu", "cuda", "mps"], "where to train", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> int:
    """Make the sounds, run the commands, draw the picture, say what lies where."""
    folder = Path(flags["output"].value)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"the folder {folder} is not empty; remove it, or choose another with --output")
    sounds, played = folder / "sounds", folder / "played"
    held_out = _write_sounds(sounds, folder / "unheard")
    model, name = folder / "demo.ts", "demo"
    for words in (
        ["preprocess", "--input_path", str(sounds), "--output_path", str(folder / "database"), "--num_signal", "32768"],
        [
            "train", *TRAIN, "--db_path", str(folder / "database"), "--out_path", str(folder / "runs"), "--name", name,
            "--max_steps", str(flags["max_steps"].value), "--accelerator", flags["accelerator"].value,
        ],
        ["export", "--run", str(folder / "runs" / name), "--streaming", "--output", str(folder), "--name", model.stem],
        ["generate", "--model", str(model), "--input", str(held_out), "--out_path", str(played), "--stream",
         "--chunk_size", "512"],
    ):  # fmt: skip
        _type(words)
    output = _only_wav(played)
    picture = folder / "spectrogram.png"
    _draw(held_out, output, picture)
    print(_directions(folder, held_out, output, model, picture, folder / "runs" / name))
    return 0


def _write_sounds(sounds: Path, unheard: Path) -> Path:
    """Tunes to train on, and one that the model never hears before it plays it; returns the latter."""
    from ..data.audio_io import write_wav
    from ..dsp.synthesis import tune

    for target in (sounds, unheard):
        target.mkdir(parents=True, exist_ok=True)
    print(f"making {TUNES + 1} tunes of plucked strings and drums, {TUNE_SECONDS:.0f} s each")
    for seed in range(TUNES):
        write_wav(sounds / f"tune_{seed}.wav", tune(TUNE_SECONDS, SAMPLING_RATE, seed), SAMPLING_RATE)
    held_out = unheard / "tune.wav"
    write_wav(held_out, tune(TUNE_SECONDS / 2, SAMPLING_RATE, TUNES), SAMPLING_RATE)
    return held_out


def _type(words: list[str]) -> None:
    """Run one of our own commands as if typed.

    Raises:
        UserError: the command failed; it has said why.
    """
    from .main import main

    line = shlex.join(["rave_tools", *words])
    print(f"\n$ {line}", flush=True)
    code = main(words)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"`{line}` ended with exit code {code}; see its message above")


def _only_wav(folder: Path) -> Path:
    found = sorted(folder.rglob("*.wav"))
    if len(found) != 1:
        raise UserError(f"{folder} should hold the one file that was played, and holds {len(found)}")
    return found[0]


def _draw(target: Path, estimate: Path, picture: Path) -> None:
    """Spectrograms of what went in and what came out, one above the other."""
    import numpy as np
    from matplotlib.figure import Figure

    from ..data.audio_io import read

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for axis, path, title in (
        (axes[0], target, "in"),
        (axes[1], estimate, "out of the streaming .ts, in blocks of 512"),
    ):
        # The smallest float keeps the logarithm of digital silence finite.
        audio = read(path, sampling_rate=SAMPLING_RATE).mean(0) + np.finfo(np.float32).eps
        image = axis.specgram(audio, NFFT=2048, Fs=SAMPLING_RATE, noverlap=1536, cmap="magma", vmin=-140, vmax=-30)[-1]
        axis.set(title=f"{title}: {path.name}", ylabel="hertz")
    axes[1].set(xlabel="seconds")
    figure.colorbar(image, ax=axes, label="dB")
    figure.savefig(picture, dpi=100)


def _directions(folder: Path, held_out: Path, output: Path, model: Path, picture: Path, run: Path) -> str:
    lines = [
        "",
        f"Everything is in {folder}:",
        f"  listen   {held_out}  (what went in)",
        f"           {output}  (what came out; a minute of training only gets the outline)",
        f"  look     {picture}",
        f"           tensorboard --logdir {run.parent}",
        f"  play     {model}  in nn~ (Max, Pd), or in a host that loads RAVE models",
        f"  read     {run / 'config.gin'}, {run / 'command.txt'}",
    ]
    return "\n".join(lines)
