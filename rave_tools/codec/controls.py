"""A bottleneck's latents as knobs of a plug-in: few, ordered, named; scriptable.

Every kind has attributes ``size`` (knobs shown), ``full_size`` (the most that `hidden` takes), ``decoder_size``
(channels that it returns), ``temperature`` (scale of what is drawn at random on the way back; 0 for nothing) and
``caution`` (what a person should know before using them, or nothing), and methods ``labels``, ``shown`` and ``hidden``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrincipalControls(nn.Module):
    """Latents turned into their principal axes, the most telling first; the rest is drawn at random on the way back.

    Args:
        components: rows are axes. Shape (D, D).
        mean: of the latents. Shape (D,).
        size: how many axes are shown.
        noise_augmentation: channels of noise that the decoder hears beside the latents.
        caution: what a person should know before using them.

    Attributes:
        temperature: scale of the random axes that are not shown, and of the noise; 0 keeps them at their mean.
    """

    def __init__(
        self, components: Tensor, mean: Tensor, size: int, *, noise_augmentation: int = 0, caution: str = ""
    ) -> None:
        super().__init__()
        self.caution = caution
        full = components.shape[0]
        if not 1 <= size <= full:
            raise ValueError(
                f"{size} latents were asked for, but this model has {full} latents; choose between 1 and {full}"
            )
        self.size = size
        self.full_size = full
        self.noise_augmentation = noise_augmentation
        self.decoder_size = full + noise_augmentation
        self.temperature = 1.0
        self.register_buffer("components", components.clone())
        self.register_buffer("mean", mean.clone())

    def labels(self) -> list[str]:
        """One label per control."""
        return [f"(signal) Latent dimension {i + 1}" for i in range(self.size)]

    def shown(self, z: Tensor) -> Tensor:
        """Latents to controls: (B, D, N) -> (B, size, N)."""
        return torch.matmul(self.components[: self.size], z - self.mean.unsqueeze(-1))

    def hidden(self, controls: Tensor) -> Tensor:
        """Controls to what the decoder hears: (B, L, N) -> (B, decoder_size, N), for any 1 <= L <= D."""
        shown = torch.matmul(self.components[: controls.shape[1]].t(), controls)
        missing = self.full_size - controls.shape[1]
        if missing > 0:
            rest = white_noise(controls, missing) * self.temperature
            shown = shown + torch.matmul(self.components[controls.shape[1] :].t(), rest)
        return beside_noise(shown + self.mean.unsqueeze(-1), self.noise_augmentation, self.temperature)


class SphericalControls(nn.Module):
    """Directions as angles, each between -1 and 1; the last goes once around, the others from pole to pole.

    Args:
        dimensions: D.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.caution = ""
        self.size = self.full_size = dimensions - 1
        self.decoder_size = dimensions
        self.temperature = 1.0

    def labels(self) -> list[str]:
        """One label per control."""
        return [f"(signal) Angle {i + 1}" for i in range(self.size)]

    def shown(self, z: Tensor) -> Tensor:
        """Directions to angles: (B, D, N) -> (B, D - 1, N)."""
        return direction_to_angles(z)

    def hidden(self, controls: Tensor) -> Tensor:
        """Angles to directions: (B, L, N) -> (B, D, N), for 1 <= L <= D - 1; missing angles stand in the middle."""
        missing = self.size - controls.shape[1]
        return angles_to_direction(F.pad(controls, (0, 0, 0, missing)))


class CodeControls(nn.Module):
    """Codebook indices as signals, coarsest codebook first.

    Args:
        quantizer: with ``encode``, (B, D, N) -> (B, K, N).
        tables: what each code of each codebook stands for. Shape (K, codebook size, D).
        size: how many codebooks are shown; fewer are a coarser sound.
        noise_augmentation: channels of noise that the decoder hears beside the latents.
        caution: what a person should know before using them.
    """

    def __init__(
        self, quantizer: nn.Module, tables: Tensor, size: int, *, noise_augmentation: int = 0, caution: str = ""
    ) -> None:
        super().__init__()
        full = tables.shape[0]
        if not 1 <= size <= full:
            raise ValueError(f"{size} were asked for, but this model has {full} codebooks; choose between 1 and {full}")
        self.size = size
        self.full_size = full
        self.noise_augmentation = noise_augmentation
        self.decoder_size = tables.shape[2] + noise_augmentation
        self.temperature = 1.0
        self.caution = caution
        self.quantize = quantizer.encode
        self.register_buffer("tables", tables.clone())

    def labels(self) -> list[str]:
        """One label per control."""
        return [f"(signal) Codebook {i + 1}" for i in range(self.size)]

    @torch.jit.unused
    def shown(self, z: Tensor) -> Tensor:
        """Latents before quantisation to codes: (B, D, N) -> (B, size, N)."""
        return self.quantize(z)[:, : self.size].to(z.dtype)

    def hidden(self, controls: Tensor) -> Tensor:
        """Codes, rounded and clamped, to what the decoder hears: (B, L, N) -> (B, decoder_size, N), any 1 <= L <= K."""
        controls = torch.nan_to_num(controls, 0.0, 0.0, 0.0)
        used, size = min(controls.shape[1], self.full_size), self.tables.shape[1]
        codes = controls[:, :used].round().clamp(0, size - 1).long()
        starts = size * torch.arange(used, device=codes.device).reshape(1, used, 1)
        z = F.embedding(codes + starts, self.tables.flatten(0, 1)).sum(1)
        return beside_noise(z.transpose(1, 2), self.noise_augmentation, self.temperature)


def white_noise(like: Tensor, channels: int) -> Tensor:
    """Noise of deviation 1 as long as a signal: (B, D, N) -> (B, channels, N)."""
    return torch.randn_like(like[:, :1].expand(like.shape[0], channels, like.shape[2]))


def beside_noise(z: Tensor, channels: int, temperature: float) -> Tensor:
    """Latents with white noise beside them.

    Args:
        z: shape (B, D, N).
        channels: of noise.
        temperature: deviation of the noise; 0 for silence.

    Returns:
        Shape (B, D + channels, N).
    """
    if channels == 0:
        return z
    return torch.cat([z, white_noise(z, channels) * temperature], 1)


def direction_to_angles(x: Tensor) -> Tensor:
    """Spherical coordinates of unit vectors, scaled so that each angle covers -1 to 1.

    Every angle is that between an axis and what is left of the vector, the last one signed. By the arc tangent of two
    numbers it exists for any vector, also where nothing is left.

    Args:
        x: shape (B, D, N).

    Returns:
        Shape (B, D - 1, N).
    """
    rest = torch.sqrt(torch.cumsum(x.square().flip(1), 1).flip(1))
    polar = torch.atan2(rest[:, 1:-1], x[:, :-2]) / math.pi
    around = torch.atan2(x[:, -1:], x[:, -2:-1]) / (2 * math.pi)
    around = torch.where(around < 0, around + 1, around)
    return 2 * torch.cat([polar, around], 1) - 1


def angles_to_direction(angles: Tensor) -> Tensor:
    """Unit vectors from their scaled spherical coordinates.

    Beyond -1 to 1 the last angle goes on around the circle; the others stop at the pole.

    Args:
        angles: shape (B, D - 1, N).

    Returns:
        Shape (B, D, N).
    """
    polar = (angles[:, :-1].clamp(-1, 1) + 1) / 2
    radians = math.pi * torch.cat([polar, angles[:, -1:] + 1], 1)
    # A product after the other, not cumprod, which ONNX does not have.
    sines = [torch.ones_like(radians[:, :1])]
    for k in range(radians.shape[1]):
        sines.append(sines[k] * radians[:, k : k + 1].sin())
    return torch.cat([radians.cos(), sines[0]], 1) * torch.cat(sines, 1)


def principal_controls(
    components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None, noise_augmentation: int = 0
) -> PrincipalControls:
    """As many principal axes as asked for, or as carry a share of the variance.

    Args:
        components, mean: see PrincipalControls.
        fidelity: cumulative share of variance per axis; all zeros when nothing was analysed. Shape (D,).
        share: between 0 and 1.
        size: exact number of axes instead, or None.
        noise_augmentation: see PrincipalControls.
    """
    caution = ""
    if size is None and not bool(fidelity.any()):
        caution = (
            "the latents of this run were never analysed (no validation happened yet), so all of them are exported and "
            "--fidelity has no effect; train longer, or set --latent_size"
        )
    if size is None:
        size = size_for_fidelity(fidelity, share)
    return PrincipalControls(components, mean, size, noise_augmentation=noise_augmentation, caution=caution)


def size_for_fidelity(fidelity: Tensor, share: float) -> int:
    """How many axes carry a share of the variance, rounded up to a power of two as RAVE does.

    Args:
        fidelity: cumulative share of variance per axis. Shape (D,).
        share: between 0 and 1.

    Returns:
        Between 1 and D; D when nothing was analysed yet (all zeros).
    """
    enough = torch.nonzero(fidelity > share).flatten()
    if enough.numel() == 0:
        return fidelity.shape[0]
    return min(2 ** math.ceil(math.log2(max(int(enough[0]), 1))), fidelity.shape[0])
