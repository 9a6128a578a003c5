"""A run in Weights & Biases, for those who have it: the numbers, sounds and pictures that TensorBoard has."""

import importlib
import os
from collections.abc import Callable, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from torch import Tensor

from rave_tools.errors import UserError
from rave_tools.training.pictures import comparison
from rave_tools.training.tensorboard import group_of
from rave_tools.training.validation import Verdict

Mode = Literal["online", "offline"]
MODES = ("off", "auto", "online", "offline")


def choose_mode(wanted: str, report: Callable[[str], None]) -> Mode | None:
    """How to log, given what is installed and who is logged in; every choice that was not asked for is said.

    Args:
        wanted: ``off``, ``online``, ``offline``, or ``auto``: online with a login, offline without one, off without
            the package.
        report: takes a sentence.

    Returns:
        None for not at all.

    Raises:
        UserError: the package, or for ``online`` the login, is missing.
    """
    if wanted == "off":
        return None
    if wanted not in MODES:
        raise UserError(f"--wandb {wanted} is none of {', '.join(MODES)}")
    try:
        importlib.import_module("wandb")
    except ImportError as error:
        if wanted == "auto":
            report("wandb: not installed, so this run is in TensorBoard alone (pip install 'rave_tools[wandb]')")
            return None
        raise UserError(f"--wandb {wanted} needs the extra 'wandb': pip install 'rave_tools[wandb]'") from error
    if wanted == "offline" or os.environ.get("WANDB_MODE") == "offline":
        return "offline"
    if os.environ.get("WANDB_MODE") == "disabled":
        report("wandb: disabled by WANDB_MODE")
        return None
    if os.environ.get("WANDB_API_KEY") or _stored_key():
        return "online"
    if wanted == "online":
        raise UserError("--wandb online needs a login: run `wandb login`, or take --wandb offline")
    report("wandb: no login found, so the run is kept on this disk; `wandb login`, then `wandb sync` sends it")
    return "offline"


def _stored_key() -> str | None:
    """The key that `wandb login` has left, without asking the network or the person."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        found = netrc(str(path)).authenticators(host)
    except (OSError, NetrcParseError):
        return None
    return found[2] if found else None


class WandB:
    """Shows a run in Weights & Biases; a failure of the service is said once and ends nothing.

    Args:
        folder: the run's; offline runs lie in it.
        mode: whether to send at once.
        project: name of the project there.
        sample_rate: in hertz, of the audio.
        config: plain values to show beside the run.
        resume: whether the run goes on under the identity that is kept in its folder.
        listen: see TensorBoard.
        report: takes a sentence.
    """

    IDENTITY = "wandb_id.txt"

    def __init__(
        self,
        folder: Path,
        *,
        mode: Mode,
        project: str,
        sample_rate: int,
        config: Mapping[str, Any],
        resume: bool,
        report: Callable[[str], None],
        listen: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._wandb = importlib.import_module("wandb")
        self._rate = sample_rate
        self._listen = listen or (lambda audio: audio)
        self._report = report
        self._run: Any = None
        identity = folder / self.IDENTITY
        known = identity.read_text().strip() if resume and identity.exists() else None
        try:
            self._run = self._wandb.init(
                project=project, name=folder.name, dir=str(folder), mode=mode, config=dict(config), id=known,
                resume="allow" if known else None,
            )  # fmt: skip
            identity.write_text(f"{self._run.id}\n")
        except Exception as error:  # the service, its client or the network: none of them is worth a training
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._report(f"warning: wandb: {error}; training goes on, and everything is in TensorBoard as well")
        self._run = None

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.log({"updates": step, **values}, step=step)
        except Exception as error:  # as above
            self._give_up(error)

    def scalars(self, step: int, values: dict[str, float], phase: str) -> None:
        """One curve per name, in groups."""
        self._log(step, {f"{group_of(name)}/{name}": value for name, value in values.items()})

    def verdict(self, step: int, verdict: Verdict) -> None:
        """The distance, and each example: the reconstruction, then the original."""
        if self._run is None:
            return
        values: dict[str, Any] = {"validation/distance": verdict.distance}
        values |= {f"validation/{name}": value for name, value in verdict.named.items()}
        for number, (target, estimate) in enumerate(verdict.examples):
            pair = torch.cat([self._listen(estimate), self._listen(target)], -1).clamp(-1, 1).mean(0)
            values[f"reconstruction_then_original/{number}"] = self._wandb.Audio(pair.numpy(), sample_rate=self._rate)
            picture = comparison(target, estimate).permute(1, 2, 0).numpy()
            values[f"reconstruction_above_original/{number}"] = self._wandb.Image(picture)
        self._log(step, values)

    def close(self) -> None:
        """Ends the run there."""
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish()
            except Exception as error:  # as above
                self._give_up(error)
