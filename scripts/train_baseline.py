"""Train the baseline autoencoder on one channel or on all channels of long multichannel recordings.

    python scripts/train_baseline.py --1ch  --audio_path /scratch/eigenscape
    python scripts/train_baseline.py --32ch --audio_path /scratch/eigenscape
    python scripts/train_baseline.py --channels 25 --audio_path /scratch/eigenscape

A thin door onto ``rave_tools train``: it chooses the recipe and the channels, and hands everything else on, so every
flag of that command works here (``rave_tools train --help``). With one channel, each row of a batch is a random channel
of a random file. Weights & Biases shows the run when it is installed (--wandb off for TensorBoard alone).
"""

import argparse
import sys
from collections.abc import Sequence

from rave_tools.cli.main import main as rave_tools

AUDIO = "/scratch/eigenscape/"


def words(argv: Sequence[str]) -> list[str]:
    """The command line of ``rave_tools`` that is meant.

    Args:
        argv: words after the script's name.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--1ch", dest="channels", action="store_const", const=1, help="one random channel, batch 32")
    mode.add_argument("--32ch", dest="channels", action="store_const", const=32, help="all 32 channels, batch 4")
    mode.add_argument("--channels", type=int, metavar="N", help="all N channels of files that have N; 1 is --1ch")
    parser.add_argument("--audio_path", action="append", help=f"folder of sound files, as often as wanted ({AUDIO})")
    parser.add_argument("--db_path", help="database made by rave_tools preprocess, instead of a folder")
    parser.add_argument("--name", help="name of the run (baseline_Nch)")
    parser.add_argument("--resume", help="run to go on with")
    known, rest = parser.parse_known_args(argv)
    if known.channels < 1:
        parser.error(f"--channels {known.channels}: a sound has at least one channel")
    if not any(word.lstrip("-").split("=")[0] == "wandb" for word in rest):
        rest += ["--wandb", "auto"]
    if known.resume:
        return ["train", "--resume", known.resume, *_given("--audio_path", known.audio_path), *rest]
    found = ["train", "--config", f"encodec_baseline_{'1ch' if known.channels == 1 else '32ch'}"]
    found += ["--channels", str(known.channels), "--name", known.name or f"baseline_{known.channels}ch"]
    if known.db_path:
        choice = ["--channel_choice", "random"] if known.channels == 1 else []
        return [*found, "--db_path", known.db_path, *choice, *rest]
    return [*found, *_given("--audio_path", known.audio_path or [AUDIO]), *rest]


def _given(flag: str, values: Sequence[str] | None) -> list[str]:
    return [word for value in values or () for word in (flag, value)]


if __name__ == "__main__":
    sys.exit(rave_tools(words(sys.argv[1:])))
