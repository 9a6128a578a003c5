"""One training step for the three parents of the house: RAVE, stable-audio's autoencoders and EnCodec's baseline."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.contracts import AudioBatch, Latent, Reconstruction
from rave_tools.training.adversary import Adversary
from rave_tools.training.parallel import average_gradients, rank, world_size
from rave_tools.training.schedules import Constant, OnePhase, Phase, Schedule
from rave_tools.training.validation import Validation
from rave_tools.training.wrapper import (
    Counters,
    Factor,
    GradientGuard,
    Judge,
    OptimizerFactory,
    ScalarMeans,
    gradient_norm,
    hyperparameters,
    scale_gradients,
    step_seed,
)

Combiner = Callable[[Mapping[str, Tensor]], Tensor]


class AutoencoderTrainingWrapper(LightningModule):
    """Trains a codec: encode, decode, let the judges and the adversary speak, combine, step.

    Every batch belongs either to the generator (encoder and decoder) or to the discriminator; the schedule says to
    whom, from counters that are saved with the weights. Noise is a function of (seed, batch), so a resumed run goes on
    bit for bit.

    Args:
        codec: the model to train.
        judges: opinions about the reconstruction, each through its view. The first one's criterion, on the whole
            waveform, is the validation distance.
        combiner: named losses -> the scalar to minimise. It owns the weights.
        adversary: discriminator and its losses, or None.
        schedule: phases and turns; without one, a single phase.
        betas: factor of each of the codec's penalties by name, as functions of the generator's updates; 1 when absent.
        generator_optimizer: parameters -> optimiser of encoder and decoder.
        discriminator_optimizer: likewise for the adversary.
        learning_rate: factor on the generator's learning rate, as a function of its updates.
        discriminator_learning_rate: likewise for the discriminator's.
        clip_norm: longest gradient allowed in an update, or None.
        guard: decides what happens to gradients that are not finite.

    Attributes:
        accumulate: batches whose gradients make one update; the run sets it.
        seed: of the noise that the model draws while training; the run sets it.
    """

    def __init__(
        self,
        codec: Autoencoder,
        *,
        judges: Sequence[Judge],
        combiner: Combiner,
        generator_optimizer: OptimizerFactory,
        adversary: Adversary | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        betas: Mapping[str, Factor] | None = None,
        learning_rate: Factor | None = None,
        discriminator_learning_rate: Factor | None = None,
        clip_norm: float | None = None,
        guard: GradientGuard | None = None,
    ) -> None:
        super().__init__()
        if not judges:
            raise ValueError("a codec needs at least one judge of its reconstructions; bind judges = [...]")
        if adversary is not None and discriminator_optimizer is None:
            raise ValueError("an adversary needs an optimiser; bind discriminator_optimizer")
        self.automatic_optimization = False
        self.codec = codec
        self.judges = nn.ModuleList(judges)
        self.adversary = adversary
        self.combiner = combiner
        self.schedule = schedule or OnePhase()
        self.betas = dict(betas or {})
        self.accumulate = 1
        self.clip_norm = clip_norm
        self.guard = guard or GradientGuard()
        self.seed = 0
        self.counters = Counters()
        self.means = ScalarMeans()
        self.gradient_norms: dict[str, float] = {}
        self.validation = Validation(judges[0].criterion)
        self._optimizer_factories = [generator_optimizer]
        self._factors: list[Factor] = [learning_rate or Constant()]
        if adversary is not None:
            self._optimizer_factories.append(discriminator_optimizer)
            self._factors.append(discriminator_learning_rate or Constant())
        self._micro_batch = 0
        # False while weights, counters and averages do not belong together: within an update, while averages are heard.
        self.settled = True

    @property
    def phase(self) -> Phase:
        """The phase in force."""
        return self.schedule.at(self.counters.generator_updates)

    @property
    def discriminator_turn(self) -> bool:
        """Whether the next batch belongs to the discriminator."""
        return self.adversary is not None and self.schedule.discriminator_turn(
            self.counters.generator_updates, self.counters.discriminator_updates
        )

    @property
    def at_boundary(self) -> bool:
        """Whether no accumulated gradient is pending: only here a checkpoint holds the whole state."""
        return self._micro_batch == 0 and self.settled

    def learners(self) -> list[list[nn.Parameter]]:
        """Parameters of the generator, then those of the adversary if there is one."""
        modules = [self.codec, *([self.adversary] if self.adversary is not None else [])]
        return [[p for p in module.parameters() if p.requires_grad] for module in modules]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser per player."""
        made = [factory(group) for factory, group in zip(self._optimizer_factories, self.learners(), strict=True)]
        self._settings = [hyperparameters(optimizer) for optimizer in made]
        return made

    def learning_rates(self) -> list[float]:
        """Of the generator and, if there is one, of the discriminator, now."""
        updates = (self.counters.generator_updates, self.counters.discriminator_updates)
        return [
            settings[0]["lr"] * factor(count)
            for settings, factor, count in zip(self._settings, self._factors, updates, strict=False)
        ]

    def beta(self, penalty: str) -> float:
        """Factor of a penalty, now."""
        factor = self.betas.get(penalty)
        return 1.0 if factor is None else factor(self.counters.generator_updates)

    def training_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """One micro-batch for whoever's turn it is; an update when enough of them have been seen."""
        torch.manual_seed(step_seed(self.seed, self.counters.batches, rank()))
        turn = 1 if self.discriminator_turn else 0
        optimizers = self.optimizers()
        optimizer = optimizers[turn] if isinstance(optimizers, list) else optimizers
        if self._micro_batch == 0:
            optimizer.zero_grad(set_to_none=True)
        if turn:
            losses = self.discriminator_losses(batch.audio)
            total = losses["discriminator"]
        else:
            losses = self.generator_losses(batch.audio)
            total = self.combiner(losses)
        self.manual_backward(total / self.accumulate)
        # Until here nothing but gradients has changed: an exception leaves a whole state behind.
        self.settled = False
        self.counters.batches += 1
        self._micro_batch = (self._micro_batch + 1) % self.accumulate
        self.means.add({**losses, ("loss_discriminator" if turn else "loss"): total})
        if self._micro_batch == 0:
            self._update(turn, optimizer, losses)
        self.settled = True

    def generator_losses(self, audio: Tensor) -> dict[str, Tensor]:
        """Everything that the generator minimises, by name: penalties times beta, judges, adversary.

        Args:
            audio: shape (B, C, T).
        """
        phase = self.phase
        reconstruction, latent = self.reconstruct(audio, encoder_frozen=phase.encoder_frozen)
        with self._float32():
            losses = {name: self.beta(name) * value.float() for name, value in latent.penalties.items()}
            for judge in self.judges:
                losses.update(judge(reconstruction))
        if self.adversary is not None and phase.adversarial:
            losses.update(self.adversary.generator_losses(reconstruction.target, reconstruction.estimate))
        return losses

    def discriminator_losses(self, audio: Tensor) -> dict[str, Tensor]:
        """What the discriminator minimises; the generator runs without gradients and nobody judges it.

        Args:
            audio: shape (B, C, T).
        """
        with torch.no_grad():
            reconstruction, _ = self.reconstruct(audio)
        return self.adversary.discriminator_losses(reconstruction.target, reconstruction.estimate)

    @torch.no_grad()
    def declared_losses(self) -> list[str]:
        """Names of everything that any phase will minimise, for a combiner to compare with its weights.

        Raises:
            ValueError: a beta for a penalty that the codec does not have.
        """
        window = torch.zeros(1, self.codec.channels, 8 * self.codec.hop, device=self.device)
        # In evaluation mode: a window of silence must not move the statistics of a batch normalisation.
        was_training = self.codec.training
        self.codec.eval()
        names = list(self.codec.encode(window).penalties)
        self.codec.train(was_training)
        if unknown := sorted(self.betas.keys() - set(names)):
            raise ValueError(
                f"betas has {', '.join(unknown)}, but the codec's penalties are {', '.join(names) or 'none'}; "
                "mend AutoencoderTrainingWrapper.betas"
            )
        for judge in self.judges:
            names += [f"{judge.name}_{key}" for key in getattr(judge.criterion, "losses", ())]
        if self.adversary is not None:
            names += ["adversarial", *(["feature_matching"] if self.adversary.feature_matching is not None else [])]
        return names

    def reconstruct(
        self, audio: Tensor, *, encoder_frozen: bool = False, deterministic: bool = False
    ) -> tuple[Reconstruction, Latent]:
        """There and back.

        Bands are made and joined in float32 whatever the precision: a filter bank that attenuates by 100 dB has
        nothing to gain from 8 bits of mantissa.

        Args:
            audio: shape (B, C, T).
            encoder_frozen: whether the encoder runs without gradients.
            deterministic: the posterior's mean instead of a sample.
        """
        with self._float32(), torch.no_grad():
            bands = self.codec.to_bands(audio.float())
            heard = self.codec.encoder_input(audio.float(), bands)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not encoder_frozen):
            latent = self.codec.encode_bands(
                heard,
                deterministic=deterministic,
                noise=None if deterministic else self._latent_noise(audio),
                step=self.counters.generator_updates,
            )
        decoded = self.codec.decode_bands(latent.z, self.phase.number)
        with self._float32():
            decoded = decoded.float()
            estimate = self.codec.from_bands(decoded)[..., : audio.shape[-1]]
            decoded = self.codec.decoded_bands(decoded, estimate)[..., : bands.shape[-1]]
        return Reconstruction(audio, estimate, bands, decoded, self.receptive_field), latent

    def _latent_noise(self, audio: Tensor) -> Tensor | None:
        """With several processes, this one's rows of the noise that a single process would draw for the whole batch."""
        if world_size() == 1 or self.codec.num_codebooks:
            return None
        rows, frames = audio.shape[0] * world_size(), audio.shape[-1] // self.codec.hop
        torch.manual_seed(step_seed(self.seed, self.counters.batches, 0))
        noise = torch.randn(rows, self.codec.latent_dim, frames, device=audio.device)[rank() :: world_size()]
        torch.manual_seed(step_seed(self.seed, self.counters.batches, rank()))
        return noise

    def _float32(self) -> torch.autocast:
        """An island of float32 in whatever precision the trainer chose."""
        return torch.autocast(self.device.type, enabled=False)

    def _update(self, turn: int, optimizer: Any, losses: Mapping[str, Tensor]) -> None:
        """Average over processes, measure, guard, step, count."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        norm = float(gradient_norm(parameters)) / scale
        searching = scaler is not None and scale > 1  # a scaler finds its scale by overflowing
        admitted = searching or self.guard.admit(norm, losses)
        finite = norm == norm and norm != float("inf")
        if admitted:
            if self.clip_norm is not None and finite and norm > self.clip_norm:
                scale_gradients(parameters, self.clip_norm / norm)
            for group, lr in zip(optimizer.param_groups, self._rates(turn), strict=True):
                group["lr"] = lr
            optimizer.step()
        self._count(turn, finite, norm)

    def _rates(self, turn: int) -> list[float]:
        """Learning rate of each parameter group of one player, now."""
        updates = self.counters.discriminator_updates if turn else self.counters.generator_updates
        return [settings["lr"] * self._factors[turn](updates) for settings in self._settings[turn]]

    def _count(self, turn: int, finite: bool, norm: float) -> None:
        self.gradient_norms["discriminator" if turn else "generator"] = norm
        if not finite:
            self.counters.skipped += 1
        elif turn:
            self.counters.discriminator_updates += 1
        else:
            self.counters.generator_updates += 1

    def on_fit_start(self) -> None:
        """Measures once how far the codec looks, for the judges' valid crop."""
        self.measure_receptive_field()

    def measure_receptive_field(self, earlier: Sequence[int] | None = None) -> tuple[int, int]:
        """Samples left and right that an output sample depends on; measured once, then remembered.

        Args:
            earlier: what the run measured when it began. It stays in force as long as the model looks as far, but for
                the fringe where a gradient is zero by chance: a resumed run must crop as it did before.
        """
        if not hasattr(self, "_receptive_field"):
            left, right = self.codec.receptive_field(recurrence=False)
            if earlier is not None and max(abs(earlier[0] - left), abs(earlier[1] - right)) < self.codec.hop:
                left, right = earlier
            self._receptive_field = (int(left), int(right))
        return self._receptive_field

    @property
    def receptive_field(self) -> tuple[int, int]:
        """See `measure_receptive_field`; zero before it was measured."""
        return getattr(self, "_receptive_field", (0, 0))

    def on_validation_start(self) -> None:
        """Starts a fresh verdict, with the same noise every time."""
        torch.manual_seed(step_seed(self.seed, 0, rank()))
        self.validation.begin()

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """The fixed reconstruction distance, and the material for the latent analysis and the pictures."""
        reconstruction, latent = self.reconstruct(batch.audio, deterministic=True)
        with self._float32():
            self.validation.add(reconstruction, latent)

    def on_validation_epoch_end(self) -> None:
        """Closes the verdict and analyses the latents."""
        self.validation.finish(self.codec)
