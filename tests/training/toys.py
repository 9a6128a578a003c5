"""Small stand-ins with every property that the training wing relies on."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.controls import PrincipalControls
from rave_tools.contracts import AudioBatch, Features, Latent, Reconstruction
from rave_tools.training.adversary import Adversary
from rave_tools.training.autoencoder import AutoencoderTrainingWrapper
from rave_tools.training.schedules import LinearDecay, LogRamp, RAVESchedule
from rave_tools.training.wrapper import Judge

BANDS, FRAMES, LATENTS = 4, 2, 6
HOP = BANDS * FRAMES
N_SIGNAL = 64


class ToyCodec(Autoencoder):
    """Linear, variational, with a noisy decoder: every source of randomness of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.sample_rate, self.channels, self.hop, self.latent_dim, self.bands = 8000, 1, HOP, LATENTS, BANDS
        self.pqmf = nn.Conv1d(1, BANDS, BANDS, stride=BANDS, bias=False).requires_grad_(False)
        nn.init.orthogonal_(self.pqmf.weight.view(BANDS, BANDS))
        self.encoder = nn.Conv1d(BANDS, 2 * LATENTS, FRAMES, stride=FRAMES)
        self.decoder = nn.ConvTranspose1d(LATENTS, BANDS, FRAMES, stride=FRAMES)
        self.noise_level = nn.Parameter(torch.tensor(0.01))
        self.register_buffer("latent_pca", torch.eye(LATENTS))
        self.register_buffer("latent_mean", torch.zeros(LATENTS))
        self.register_buffer("fidelity", torch.zeros(LATENTS))
        self.noisy = True

    def to_bands(self, audio: Tensor) -> Tensor:
        return self.pqmf(audio)

    def encode_bands(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        mean, scale = self.encoder(bands).float().chunk(2, 1)
        std = nn.functional.softplus(scale) + 1e-4
        if noise is None:
            noise = torch.zeros_like(mean) if deterministic else torch.randn_like(mean)
        kl = (mean**2 + std**2 - 2 * std.log() - 1).sum(1).mean()
        return Latent(mean + noise * std, penalties={"kl": kl})

    def decode_bands(self, z: Tensor, phase: int = 2) -> Tensor:
        bands = self.decoder(z)
        if phase > 1 and self.noisy:
            bands = bands + self.noise_level * torch.rand_like(bands)
        return bands

    def from_bands(self, bands: Tensor) -> Tensor:
        return nn.functional.conv_transpose1d(bands, self.pqmf.weight, stride=BANDS)

    def controls(self, *, size: int) -> PrincipalControls:
        return PrincipalControls(self.latent_pca, self.latent_mean, size)


class ToyDiscriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.ModuleList([nn.Conv1d(1, 4, k), nn.Conv1d(4, 1, 3)]) for k in (5, 9))

    def forward(self, audio: Tensor) -> list[Features]:
        found = []
        for first, second in self.scales:
            hidden = nn.functional.leaky_relu(first(audio), 0.2)
            found.append(Features(second(hidden), [hidden]))
        return found


def squared(target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
    return {"distance": (target - estimate).square().mean()}


squared.losses = ("distance",)


def waveform(reconstruction: Reconstruction) -> tuple[Tensor, Tensor]:
    return reconstruction.target, reconstruction.estimate


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    return -fake.mean()


def match(real: list[Features], fake: list[Features]) -> Tensor:
    return sum(
        (a - b).abs().mean() for r, f in zip(real, fake, strict=True) for a, b in zip(r.maps, f.maps, strict=True)
    )


def adam(lr: float, eps: float = 1e-8):
    return lambda parameters: torch.optim.Adam(parameters, lr, (0.5, 0.9), eps)


def total(losses):
    return sum(losses.values())


def toy_adversary() -> Adversary:
    return Adversary(
        ToyDiscriminator(),
        discriminator_loss=hinge_discriminator,
        generator_loss=hinge_generator,
        feature_matching=match,
    )


def toy_wrapper(*, phase_1: int = 4, every: int = 3, **changes) -> AutoencoderTrainingWrapper:
    torch.manual_seed(1)
    arguments = dict(
        codec=ToyCodec(),
        judges=[Judge("fullband", waveform, squared)],
        combiner=total,
        adversary=toy_adversary(),
        schedule=RAVESchedule(phase_1, every),
        betas={"kl": LogRamp(1e-4, 1e-2, 6)},
        generator_optimizer=adam(1e-2),
        discriminator_optimizer=adam(1e-3),
        learning_rate=LinearDecay(1.0, 0.1, phase_1),
    )
    wrapper = AutoencoderTrainingWrapper(**{**arguments, **changes})
    wrapper.seed = 7
    return wrapper


class ToyData(LightningDataModule):
    """An endless stream in which batch i is a function of i."""

    def __init__(self, batch: int = 4, validation: int = 5, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.batch, self.n_signal, self.start_batch, self.waited = batch, N_SIGNAL, 0, 0.0
        self._validation, self.rank, self.world = validation, rank, world

    def describe(self) -> list[str]:
        return ["toy data"]

    def audio(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + index)
        time = torch.arange(N_SIGNAL) / N_SIGNAL
        frequency = 1 + 8 * torch.rand(self.batch * self.world, 1, 1, generator=generator)
        rows = 0.5 * torch.sin(2 * torch.pi * frequency * time)
        return rows[self.rank :: self.world].contiguous()

    def train_dataloader(self):
        return Stream(self)

    def val_dataloader(self):
        return Segments([to_batch(self.audio(10**6 + index)) for index in range(self._validation)])


class Stream:
    def __init__(self, data: ToyData) -> None:
        self._data = data

    def __iter__(self):
        index = self._data.start_batch
        while True:
            yield to_batch(self._data.audio(index))
            index += 1


class Segments:
    def __init__(self, batches: list[AudioBatch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self):
        return iter(self._batches)


def to_batch(audio: Tensor) -> AudioBatch:
    return AudioBatch(audio, torch.zeros(audio.shape[0], audio.shape[-1], dtype=torch.bool), [{}] * audio.shape[0])
