"""One training step for the three parents of the house: RAVE, stable-audio's autoencoders and EnCodec's baseline."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.contracts import AudioBatch, Criterion, Latent, Losses, Reconstruction
from rave_tools.training.adversary import Adversary
from rave_tools.training.parallel import rank, world_size
from rave_tools.training.schedules import Schedule
from rave_tools.training.validation import Validation
from rave_tools.training.wrapper import (
    Factor,
    GradientGuard,
    Judge,
    Meeting,
    OptimizerFactory,
    Player,
    TrainingWrapper,
    step_seed,
)

Combiner = Callable[[Mapping[str, Tensor]], Tensor]


class AutoencoderTrainingWrapper(TrainingWrapper):
    """Trains a codec: encode, decode, let the judges and the adversary speak, combine, step.

    Every batch belongs either to the generator (encoder and decoder) or to the discriminator; the schedule says to
    whom, from counters that are saved with the weights. Noise is a function of (seed, batch), so a resumed run goes on
    bit for bit.

    Args:
        codec: the model to train.
        judges: opinions about the reconstruction, each through its view. The first one's criterion, on the whole
            waveform, is the validation distance, unless ``validation_weights`` says otherwise.
        combiner: named losses -> the scalar to minimise. It owns the weights.
        adversary: discriminator and its losses, or None.
        schedule: phases and turns; without one, a single phase.
        betas: factor of each of the codec's penalties by name, as functions of the generator's updates; 1 when absent.
        generator_optimizer: parameters -> optimiser of encoder and decoder.
        discriminator_optimizer: likewise for the adversary.
        learning_rate: factor on the generator's learning rate, as a function of its updates.
        discriminator_learning_rate: likewise for the discriminator's.
        validation_weights: of judges' losses by name: their weighted sum on whole waveforms is the validation distance.
        clip_norm: longest gradient allowed in an update, or None.
        discriminator_clip_norm: that of the discriminator's, where it is another.
        guard: decides what happens to gradients that are not finite.
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
        validation_weights: Mapping[str, float] | None = None,
        clip_norm: float | None = None,
        discriminator_clip_norm: float | None = None,
        guard: GradientGuard | None = None,
    ) -> None:
        if not judges:
            raise ValueError("a codec needs at least one judge of its reconstructions; bind judges = [...]")
        if adversary is not None and discriminator_optimizer is None:
            raise ValueError("an adversary needs an optimiser; bind discriminator_optimizer")
        players = [Player(generator_optimizer, learning_rate)]
        if adversary is not None:
            players.append(Player(discriminator_optimizer, discriminator_learning_rate, discriminator_clip_norm))
        super().__init__(players, schedule=schedule, betas=betas, clip_norm=clip_norm, guard=guard)
        self.codec = codec
        self.judges = nn.ModuleList(judges)
        self.adversary = adversary
        self.combiner = combiner
        self.validation = Validation(*_validated(judges, validation_weights))

    def learners(self) -> list[list[nn.Parameter]]:
        """Parameters of the generator, then those of the adversary if there is one."""
        modules = [self.codec, *([self.adversary] if self.adversary is not None else [])]
        return [[p for p in module.parameters() if p.requires_grad] for module in modules]

    def averaged(self) -> dict[str, nn.Module]:
        """The codec."""
        return {"codec": self.codec}

    def networks(self) -> list[nn.Module]:
        """Encoder, decoder and discriminator."""
        encoder = self.codec.encoder
        discriminators = [self.adversary.discriminator] if self.adversary is not None else []
        return [getattr(encoder, "encoder", encoder), self.codec.decoder, *discriminators]

    def watched(self) -> dict[str, Tensor]:
        """The combiner's factors, and what the codebooks of the codec tell of their use."""
        statistics = getattr(getattr(self.codec, "quantizer", None), "statistics", dict)
        return {**super().watched(), **{f"codebook_{name}": value for name, value in statistics().items()}}

    def parts(self) -> list[tuple[str, nn.Module]]:
        """The codec's parts in the order in which audio meets them, then the discriminator, then the judges."""
        found: list[tuple[str, Any]] = list(self.codec.named_children())
        if self.adversary is not None:
            found.append(("discriminator", self.adversary.discriminator))
        for judge in self.judges:
            prefix = "" if judge.name == "fullband" else f"{judge.name} "
            found.append((f"{prefix}audio distance", judge.criterion))
        return [(name, module) for name, module in found if isinstance(module, nn.Module)]

    def generator_losses(self, audio: Tensor, *, meet: Meeting | None = None) -> Losses:
        """Everything that the generator minimises, by name: penalties times beta, judges, adversary.

        Args:
            audio: shape (B, C, T).
            meet: told of the reconstruction before the adversary judges it.
        """
        phase = self.phase
        reconstruction, latent = self.reconstruct(audio, encoder_frozen=phase.encoder_frozen)
        if meet is not None:
            meet(reconstruction)
        with self._float32():
            losses = {name: self.beta(name) * value.float() for name, value in latent.penalties.items()}
            for judge in self.judges:
                losses.update(judge(reconstruction))
        if self.adversary is not None and phase.adversarial:
            losses.update(self.adversary.generator_losses(reconstruction.target, reconstruction.estimate))
        return Losses(losses, output=reconstruction.decoded)

    def discriminator_losses(self, audio: Tensor, *, estimate: Tensor | None = None) -> dict[str, Tensor]:
        """What the discriminator minimises; the generator runs without gradients and nobody judges it.

        Args:
            audio: shape (B, C, T).
            estimate: what the generator made of it, where that is known already. Shape (B, C, T).
        """
        if estimate is None:
            with torch.no_grad():
                estimate = self.reconstruct(audio)[0].estimate
        return self.adversary.discriminator_losses(audio, estimate)

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
            names += _losses_of(judge)
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
        decoded = self.codec.decode_latent(latent, self.phase.number)
        with self._float32():
            decoded = decoded.float()
            estimate = self.codec.from_bands(decoded)[..., : audio.shape[-1]]
            estimate_bands = self.codec.decoded_bands(decoded, estimate)[..., : bands.shape[-1]]
        return Reconstruction(audio, estimate, bands, estimate_bands, self.receptive_field, decoded), latent

    def _latent_noise(self, audio: Tensor) -> Tensor | None:
        """With several processes, this one's rows of the noise that a single process would draw for the whole batch."""
        if world_size() == 1 or self.codec.num_codebooks:
            return None
        rows, frames = audio.shape[0] * world_size(), audio.shape[-1] // self.codec.hop
        torch.manual_seed(step_seed(self.seed, self.counters.batches, 0))
        noise = torch.randn(rows, self.codec.latent_dim, frames, device=audio.device)[rank() :: world_size()]
        torch.manual_seed(step_seed(self.seed, self.counters.batches, rank()))
        return noise

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


def _validated(
    judges: Sequence[Judge], weights: Mapping[str, float] | None
) -> tuple[Criterion, Mapping[str, float] | None]:
    """The criterion of the validation, and the weights of what it says.

    Raises:
        ValueError: a weight for a loss that no judge gives.
    """
    if weights is None:
        return judges[0].criterion, None
    asked = [judge for judge in judges if any(name in weights for name in _losses_of(judge))]
    given = [name for judge in asked for name in _losses_of(judge)]
    if unknown := sorted(set(weights) - set(given)):
        known = [name for judge in judges for name in _losses_of(judge)]
        raise ValueError(
            f"AutoencoderTrainingWrapper.validation_weights has {', '.join(unknown)}; the judges' losses are "
            f"{', '.join(known)}"
        )

    def criterion(target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        return {
            f"{judge.name}_{key}": value
            for judge in asked
            for key, value in judge.criterion(target, estimate).items()
        }

    return criterion, weights


def _losses_of(judge: Judge) -> list[str]:
    return [f"{judge.name}_{key}" for key in getattr(judge.criterion, "losses", ())]
