"""A trained codec, and a prior of it, from a run folder or a lone checkpoint: what export and generate begin with."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from ..codec.autoencoder import Autoencoder
    from ..generative.latent_prior import LatentPrior
    from ..runs import OpenedRun

NEVER = 1 << 30


def open_codec(path: str, *, which: str = "last", ema: bool = False) -> tuple["Autoencoder", "OpenedRun"]:
    """Rebuild a run's codec and load its weights.

    Args:
        path: a run folder or a ``.ckpt``.
        which: checkpoint of a folder: ``last``, ``best`` or ``step_N``.
        ema: take the averaged weights.

    Returns:
        The codec in evaluation mode, and the run it came from.

    Raises:
        UserError: there is no such run, or its weights do not fit its configuration.
    """
    from .. import config, runs

    opened = runs.open_run(path, which=which, ema=ema)
    codec = config.load([], text=opened.config_text).build("CODEC")
    weights = opened.part("codec")
    if not weights:
        raise UserError(f"{opened.path} holds no codec; only autoencoder runs can be exported or played")
    try:
        codec.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"the weights in {opened.path} do not fit the configuration beside them: {detail}") from error
    _silence_unlearnt_noise(codec, int(opened.facts.get("phase", 2)))
    return codec.eval(), opened


LARGEST_DISAGREEMENT = 0.1
"""Share by which two codecs' latents of one sound may differ for a prior to serve both; averaged weights do a bit."""


def open_prior(
    path: str, codec: "Autoencoder", *, which: str = "last", ema: bool = False
) -> tuple["LatentPrior", "OpenedRun"]:
    """Rebuild a run's prior, load its weights, and see that it belongs to a codec.

    Args:
        path: a run folder or a ``.ckpt`` made by ``rave_tools train --model``.
        codec: trained, whose latents the prior is to predict.
        which: checkpoint of a folder: ``last``, ``best`` or ``step_N``.
        ema: take the averaged weights.

    Returns:
        The prior in evaluation mode, and the run it came from.

    Raises:
        UserError: there is no such prior, or it was trained on the latents of another codec.
    """
    from .. import config, runs
    from ..generative.latent_space import disagreement

    opened = runs.open_run(path, which=which, ema=ema)
    weights = opened.part("prior")
    if not weights:
        raise UserError(f"{opened.path} holds no prior; train one with rave_tools train --model RUN")
    loaded = config.load([], text=opened.config_text)
    prior = loaded.build("PRIOR")
    own = loaded.build("CODEC").eval()
    try:
        prior.load_state_dict(weights)
        own.load_state_dict(opened.part("codec"))
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"the weights in {opened.path} do not fit the configuration beside them: {detail}") from error
    try:
        difference = disagreement(codec, own, prior.latent_size)
    except ValueError as error:
        raise UserError(f"{opened.path}: {error}") from error
    if difference > LARGEST_DISAGREEMENT:
        origin = opened.facts.get("model", "unknown")
        raise UserError(
            f"{opened.path} is the prior of another codec ({origin}): the latents of one sound differ by "
            f"{difference:.0%} of their size; train a prior on this one with rave_tools train --model"
        )
    return prior.eval(), opened
def _silence_unlearnt_noise(codec: "Autoencoder", phase: int) -> None:
    """The noise branch of RAVE v1 learns from the second phase on; a run that is not there yet is heard without it."""
    decoder = getattr(codec, "decoder", None)
    if getattr(decoder, "noise_from_phase", phase) > phase:
        decoder.noise_from_phase = NEVER


def run_name(path: Path) -> str:
    """The name of the run that a checkpoint belongs to; a lone checkpoint's own name."""
    return path.parent.parent.name if path.parent.name == "checkpoints" and path.parent.parent.name else path.stem
