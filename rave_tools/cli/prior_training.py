"""What ``rave_tools train`` does for a prior: the codec that it learns from, and a configuration on top of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .opening import open_codec

if TYPE_CHECKING:
    from ..config import Config

DEFAULT_PRIOR = "prior/rave_prior"


@dataclass(frozen=True)
class TrainedCodec:
    """A codec whose latents a prior is to learn.

    Attributes:
        path: of its run folder or checkpoint, as given.
        text: configuration that rebuilds it.
        weights: of it.
        hop: samples per latent frame.
        controls: latents that an export of it shows.
        codebook_size: codes per codebook, 0 for continuous latents.
    """

    path: Path
    text: str
    weights: Mapping[str, Any]
    hop: int
    controls: int
    codebook_size: int

    def overrides(self) -> list[str]:
        """What the configuration of a prior must know of it, as gin statements."""
        found = [f"CONTROLS = {self.controls}"]
        if self.codebook_size:
            found += ["DISCRETE = True", f"RESOLUTION = {self.codebook_size}"]
        return found


def open_model(path: str | None, *, resuming: bool, report: Callable[[str], None]) -> TrainedCodec | None:
    """The codec that ``--model`` names, if it does.

    Args:
        path: a run folder or a checkpoint.
        resuming: a run is being continued, which keeps its codec.
        report: told what was found.

    Raises:
        UserError: there is no such codec, or the run has one already.
    """
    from .. import config

    if not path:
        return None
    if resuming:
        raise UserError("--resume goes on with the codec that the run was begun on; leave --model out")
    codec, run = open_codec(path)
    text = config.load([], text=run.config_text).excerpt("CODEC", "SAMPLING_RATE", "CHANNELS")
    controls = codec.controls().size
    there = f"{codec.num_codebooks} codebooks" if codec.num_codebooks else f"{codec.latent_dim} latents"
    report(
        f"codec: {run.path} ({run.step} generator updates), {controls} of {there} to predict, "
        "as many as an export shows (--override 'CONTROLS = ...' changes it)"
    )
    if not codec.num_codebooks and not codec.fidelity.any():
        report("codec: warning: its latents were never analysed (no validation happened yet), so all of them count")
    return TrainedCodec(Path(path).resolve(), text, run.part("codec"), codec.hop, controls, codec.codebook_size)


def load_configuration(names: Sequence[str], overrides: Sequence[str], model: TrainedCodec | None) -> "Config":
    """A configuration that trains a codec, or on top of a trained codec's one that trains a prior.

    Args:
        names: as ``--config`` gives them.
        overrides: gin statements applied last.
        model: the trained codec, if there is one.

    Raises:
        UserError: it is the one, and ``--model`` asks for the other.
    """
    from .. import config
    from ..training.prior import PriorTrainingWrapper
    from ..training.run import train

    named = " ".join(names)
    lacking = f"{named} trains a prior on the latents of a codec: give --model, the run folder of a trained codec"
    try:
        loaded = config.load(names, overrides, text=None if model is None else model.text, text_name="the codec's")
    except config.ConfigError as error:
        if model is None and "%CODEC, which is not defined" in str(error):
            raise UserError(lacking) from error
        raise
    trains_prior = loaded.uses(train, PriorTrainingWrapper)
    if trains_prior and model is None:
        raise UserError(lacking)
    if model is not None and not trains_prior:
        raise UserError(
            f"{named} trains a codec itself, and --model is for a prior on the latents of a trained one: "
            f"take --config {DEFAULT_PRIOR}, or --init_from to begin with a codec's weights"
        )
    return loaded


def window(loaded: "Config", model: TrainedCodec) -> int:
    """Samples in which a prior sees as far as it can, rounded up to a power of two of latent frames."""
    prior = loaded.build("PRIOR")
    frames = prior.receptive_field + prior.latent_size
    return int(2 ** (frames - 1).bit_length() * model.hop)
