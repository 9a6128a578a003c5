"""A run in TensorBoard: every number, the sound of it, its picture and its configuration."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rave_tools.training.pictures import comparison
from rave_tools.training.validation import Verdict

GROUPS = {
    "run": (
        "phase",
        "steps_per_second",
        "share_waiting_for_data",
        "peak_memory_GiB",
        "skipped_updates",
        "discriminator_updates",
    ),
    "optimisation": ("gradient_norm", "gradient_share", "gradient_weight", "learning_rate", "beta_"),
    "codebooks": ("codebook_",),
}


def group_of(name: str) -> str:
    """Under which heading a number is shown."""
    return next((group for group, heads in GROUPS.items() if name.startswith(heads)), "losses")


class TensorBoard:
    """Writes events into a run's folder.

    Args:
        folder: the run's.
        sample_rate: in hertz, of the audio.
        config_text: the effective configuration, shown as text.
        purge_step: on resume, events at and after this step are hidden: they will be written anew.
        listen: undoes what preprocessing did to the signal (a derivative, say) before it is heard. (C, T) -> (C, T).
    """

    def __init__(
        self,
        folder: Path,
        *,
        sample_rate: int,
        config_text: str,
        purge_step: int | None = None,
        listen: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step or None)
        self._rate = sample_rate
        self._listen = listen or (lambda audio: audio)
        fenced = "\n".join(["```", config_text, "```"])
        self._writer.add_text("config", fenced, purge_step or 0)

    def scalars(self, step: int, values: dict[str, float], phase: str) -> None:
        """One curve per name, in groups."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group_of(name)}/{name}", value, step)
        self._writer.flush()

    def verdict(self, step: int, verdict: Verdict) -> None:
        """The distance, and each example: the reconstruction, then the original."""
        self._writer.add_scalar("validation/distance", verdict.distance, step)
        for name, value in verdict.named.items():
            self._writer.add_scalar(f"validation/{name}", value, step)
        for share, dimensions in verdict.dimensions.items():
            self._writer.add_scalar(f"latents/dimensions_for_fidelity_{share}", dimensions, step)
        for number, (target, estimate) in enumerate(verdict.examples):
            pair = torch.cat([self._listen(estimate), self._listen(target)], -1).clamp(-1, 1)
            self._writer.add_audio(f"reconstruction_then_original/{number}", pair.mean(0), step, self._rate)
            self._writer.add_image(f"reconstruction_above_original/{number}", comparison(target, estimate), step)
        for number, sound in enumerate(verdict.generated):
            self._writer.add_audio(f"generated/{number}", self._listen(sound).clamp(-1, 1).mean(0), step, self._rate)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
