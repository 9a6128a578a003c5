"""Training a prior on the latents of a codec that is trained already and stays as it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rave_tools.contracts import AudioBatch
from rave_tools.errors import UserError
from rave_tools.generative.latent_prior import LatentPrior
from rave_tools.generative.latent_space import LatentSpace
from rave_tools.training.parallel import gather, rank
from rave_tools.training.schedules import OnePhase
from rave_tools.training.validation import Verdict
from rave_tools.training.wrapper import (
    Factor,
    GradientGuard,
    Meeting,
    OptimizerFactory,
    Player,
    TrainingWrapper,
    step_seed,
)

LONGEST_SAMPLE = 512
"""Frames of the sample that a validation lets one hear, at most."""


class PriorValidation:
    """Collects the likelihood of fixed segments.

    Attributes:
        verdict: of the last validation; its distance is the cross-entropy in nats per latent and frame.
    """

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.begin()

    def begin(self) -> None:
        """Forgets what an earlier validation collected."""
        self._segments: list[Tensor] = []

    def add(self, log_likelihood: Tensor) -> None:
        """Takes the segments of a batch: (B, D, N)."""
        self._segments += list(-log_likelihood.float().mean(2).cpu())

    def finish(self, generated: Sequence[Tensor]) -> Verdict | None:
        """Closes this validation, over all processes.

        Args:
            generated: what the prior made of silence, each (C, T).

        Returns:
            The verdict; None when there was nothing to validate.
        """
        segments = gather(self._segments)
        if not segments:
            return None
        per_latent = torch.stack(segments).mean(0)
        named = {f"cross_entropy_latent_{d + 1}": float(value) for d, value in enumerate(per_latent)}
        self.verdict = Verdict(float(per_latent.mean()), named, [], generated=list(generated))
        self.begin()
        return self.verdict


class PriorTrainingWrapper(TrainingWrapper):
    """Trains a prior: encode without gradients, quantise, maximise the likelihood.

    The latents are those that a plug-in shows: principal axes drawn from the codec's posterior, as the decoder knows
    them, or the codebook indices of a discrete codec. The codec is part of the checkpoint, so that the run alone can be
    continued and listened to.

    Args:
        codec: trained; its weights come through `load_codec` or with a checkpoint.
        prior: the network.
        optimizer: parameters of the prior -> optimiser.
        learning_rate: factor on the learning rate, as a function of the updates.
        standardize: measure mean and deviation of the latents on the validation segments before the first update, so
            that the classes lie where the latents do. Without it they lie as for a standard normal, which is what
            acids-rave assumes.
        posterior: train on draws from the posterior; without it on its means.
        seconds: of the sample that each validation lets one hear; 0 makes none.
        clip_norm: longest gradient allowed in an update, or None.
        guard: decides what happens to gradients that are not finite.

    Raises:
        ValueError: a codec whose latents this prior cannot predict.
    """

    def __init__(
        self,
        codec: nn.Module,
        prior: LatentPrior,
        *,
        optimizer: OptimizerFactory,
        learning_rate: Factor | None = None,
        standardize: bool = True,
        posterior: bool = True,
        seconds: float = 10.0,
        clip_norm: float | None = None,
        guard: GradientGuard | None = None,
    ) -> None:
        super().__init__(
            [Player(optimizer, learning_rate)], schedule=OnePhase("prior"), clip_norm=clip_norm, guard=guard
        )
        self.codec = codec.requires_grad_(False).eval()
        self.prior = prior
        self.judges: tuple[()] = ()
        self.adversary = None
        self.standardize = standardize
        self.posterior = posterior
        self.seconds = seconds
        self.validation = PriorValidation()
        space = LatentSpace(codec, prior.latent_size)
        if prior.discrete != space.discrete or (space.discrete and prior.resolution != codec.codebook_size):
            kind = f"{codec.codebook_size} codes per codebook" if space.discrete else "continuous latents"
            own = f"{prior.resolution} codes per codebook" if prior.discrete else "continuous latents"
            raise ValueError(
                f"the prior is made for {own} and the codec has {kind}; "
                f"set DISCRETE = {space.discrete}" + (f" and RESOLUTION = {codec.codebook_size}" * space.discrete)
            )

    def combiner(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The only loss there is."""
        return losses["cross_entropy"]

    def train(self, mode: bool = True) -> "PriorTrainingWrapper":
        """The codec stays in evaluation mode whatever the prior does."""
        super().train(mode)
        self.codec.eval()
        return self

    def load_codec(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights of the trained codec.

        Raises:
            UserError: they are of another model.
        """
        try:
            self.codec.load_state_dict(dict(weights))
        except RuntimeError as error:
            detail = " ".join(str(error).split())
            raise UserError(f"the codec's weights do not fit its configuration: {detail}") from error

    @property
    def space(self) -> LatentSpace:
        """The latents as they are with the codec's present weights."""
        return LatentSpace(self.codec, self.prior.latent_size)

    def learners(self) -> list[list[nn.Parameter]]:
        """The prior's weights."""
        return [list(self.prior.parameters())]

    def averaged(self) -> dict[str, nn.Module]:
        """The prior."""
        return {"prior": self.prior}

    def networks(self) -> list[nn.Module]:
        """The prior."""
        return [self.prior]

    def parts(self) -> list[tuple[str, nn.Module]]:
        """The codec's parts, then the prior."""
        return [*self.codec.named_children(), ("prior", self.prior)]

    def declared_losses(self) -> list[str]:
        """The cross-entropy."""
        return ["cross_entropy"]

    def measure_receptive_field(self, earlier: Sequence[int] | None = None) -> tuple[int, int]:
        """Samples of the past that the next frame depends on; none of the future."""
        self._receptive_field = (self.prior.receptive_field * self.codec.hop, 0)
        return self._receptive_field

    def check_window(self, n_signal: int) -> None:
        """Refuses windows in which no frame has all its latents, and codecs without codes.

        Raises:
            UserError: fewer latent frames than latents, or codebooks that were never placed.
        """
        try:
            self.encode(torch.zeros(1, self.codec.channels, self.codec.hop * 8, device=self.device))
        except ValueError as error:
            raise UserError(str(error)) from error
        if n_signal // self.codec.hop <= self.prior.latent_size:
            needed = 2 * self.prior.latent_size * self.codec.hop
            raise UserError(
                f"--n_signal {n_signal} is {n_signal // self.codec.hop} latent frames, and the prior spreads its "
                f"{self.prior.latent_size} latents over as many frames; use at least {needed}"
            )

    def encode(self, audio: Tensor) -> Tensor:
        """Audio to what the prior predicts: (B, C, T) -> (B, D, T / hop), in float32 whatever the precision."""
        with torch.autocast(self.device.type, enabled=False):
            return self.space.encode(audio.float(), deterministic=not self.posterior)

    def generator_losses(self, audio: Tensor, *, meet: Meeting | None = None) -> dict[str, Tensor]:
        """The cross-entropy in nats per latent and frame; audio of shape (B, C, T). There is no adversary to meet."""
        return {"cross_entropy": -self.prior.log_likelihood(self.encode(audio)).mean()}

    def on_train_start(self) -> None:
        """Measures the latents once, before the first batch of a run."""
        if self.standardize and not self.prior.discrete and self.counters.batches == 0:
            torch.manual_seed(step_seed(self.seed, 0, rank()))
            self.measure_latents(self.trainer.datamodule.val_dataloader())

    @torch.no_grad()
    def measure_latents(self, batches: Any) -> None:
        """Sets the prior's standardisation to mean and deviation of the latents of some batches, over all processes."""
        rows: list[Tensor] = []
        for batch in batches:
            controls = self.encode(batch.audio.to(self.device)).double()
            ones = torch.ones_like(controls)
            rows.append(torch.stack([controls, controls.square(), ones]).sum((1, 3)).cpu())
        rows = gather(rows)
        if not rows:
            return
        total, squares, count = torch.stack(rows).sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        if bool(torch.isfinite(deviation).all()):
            self.prior.standardize(mean.float(), deviation.float())

    def on_validation_start(self) -> None:
        """Starts a fresh verdict, with the same noise every time."""
        torch.manual_seed(step_seed(self.seed, 0, rank()))
        self.validation.begin()

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """The likelihood of a batch of segments."""
        self.validation.add(self.prior.log_likelihood(self.encode(batch.audio)))

    def on_validation_epoch_end(self) -> None:
        """Closes the verdict, with something to hear."""
        torch.manual_seed(step_seed(self.seed, 0, 0))
        generated = [self.sample()] if self.seconds > 0 and rank() == 0 else []
        self.validation.finish(generated)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """What the prior makes of silence at temperature 1, through the decoder, on the CPU: (C, T)."""
        frames = min(LONGEST_SAMPLE, max(1, round(self.seconds * self.codec.sample_rate / self.codec.hop)))
        sampler = self.prior.sampler()
        frames += sampler.delay
        device = self.device
        noise = torch.rand(1, self.prior.latent_size, frames, device=device)
        with torch.autocast(device.type, enabled=False):
            controls, _ = sampler(torch.ones(1, 1, frames, device=device), noise, sampler.silence(1))
            return self.codec.decode(self.space.to_latents(controls[..., sampler.delay :]))[0].float().cpu()
