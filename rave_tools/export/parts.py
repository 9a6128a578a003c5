"""The two halves of a codec as modules in a row, with everything random under the host's control."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.pretransforms.pqmf import CachedPQMF
from rave_tools.export.step import NOISE, TEMPERATURE, Turnable
from rave_tools.nn.noise import NoiseGenerator, NoiseGeneratorV2, synthesize_noise


class Analysis(nn.Module):
    """Audio to bands.

    Args:
        pqmf: a filter bank.
    """

    def __init__(self, pqmf: CachedPQMF) -> None:
        super().__init__()
        self.pqmf = pqmf

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C*M, T / M)."""
        return self.pqmf.encode(x)


class Synthesis(nn.Module):
    """Bands to audio.

    Args:
        pqmf: a filter bank.
    """

    def __init__(self, pqmf: CachedPQMF) -> None:
        super().__init__()
        self.pqmf = pqmf

    def forward(self, x: Tensor) -> Tensor:
        """(B, C*M, T / M) -> (B, C, T)."""
        return self.pqmf.decode(x)


class Posterior(nn.Module, Turnable):
    """A network's answer to what a host sees: a draw from the bottleneck, as controls.

    Args:
        bottleneck: with ``sample(statistics, temperature)``.
        controls: with ``shown(z)``.
    """

    def __init__(self, bottleneck: nn.Module, controls: nn.Module) -> None:
        super().__init__()
        # Not as a submodule: the network inside the bottleneck belongs to another link of the chain.
        self.sample = bottleneck.sample
        self.controls = controls
        self.temperature = torch.ones(())

    @property
    def bottleneck(self) -> Any:
        """Whose draw it is."""
        return self.sample.__self__

    def turn(self, knobs: Tensor) -> None:
        self.temperature = knobs[TEMPERATURE]

    def forward(self, statistics: Tensor) -> Tensor:
        """(B, 2D, N) -> (B, L, N)."""
        return self.controls.shown(self.sample(statistics, self.temperature))


class NoiseSynthesis(nn.Module, Turnable):
    """Noise of given band amplitudes, with a gain.

    Args:
        channels: independent noises.
        samples: per frame.

    Attributes:
        gain: one number.
    """

    def __init__(self, channels: int, samples: int) -> None:
        super().__init__()
        self.channels = channels
        self.samples = samples
        self.gain = torch.ones(())

    def turn(self, knobs: Tensor) -> None:
        self.gain = knobs[NOISE]

    def forward(self, amplitudes: Tensor) -> Tensor:
        """(B, channels * bands, N) -> (B, channels, N * samples)."""
        return synthesize_noise(amplitudes, self.channels, self.samples) * self.gain


class ScaledNoise(nn.Module):
    """A noise branch with a gain.

    Args:
        branch: its network and its numbers are taken over.
    """

    def __init__(self, branch: NoiseGenerator | NoiseGeneratorV2) -> None:
        super().__init__()
        self.net = branch.net
        self.synthesis = NoiseSynthesis(branch.channels, branch.samples)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T)."""
        return self.synthesis(self.net(x))


def scale_noise(model: nn.Module) -> list[ScaledNoise]:
    """Give every noise branch of a model, in place, a gain; returns the branches."""
    branches = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (NoiseGenerator, NoiseGeneratorV2)):
                branches.append(ScaledNoise(child))
                setattr(module, name, branches[-1])
    return branches


class Parts(nn.Module):
    """Two halves of a model, each a chain of modules.

    Attributes:
        encoding: audio (B, C, T) to controls (B, L, T / hop).
        decoding: latents (B, D, N) to audio (B, C, N * hop).
    """

    def __init__(self, encoding: Iterable[Any], decoding: Iterable[Any]) -> None:
        super().__init__()
        self.encoding = nn.ModuleList(encoding)
        self.decoding = nn.ModuleList(decoding)


def codec_parts(codec: Autoencoder, controls: nn.Module) -> Parts:
    """The halves of a codec.

    Args:
        codec: streaming or plain, with a network, a bottleneck and a decoder, and what stands around them; its noise
            branches get gains, in place.
        controls: latents as a host sees them.
    """
    scale_noise(codec.decoder)
    entrance: list[Any] = []
    if codec.input_mode == "pqmf":
        entrance = [Analysis(codec.pqmf)]
    elif codec.input_mode == "mel":
        entrance = [codec.spectrogram]
    way_out: list[Any] = [Synthesis(codec.pqmf)] if codec.output_mode == "pqmf" else []
    return Parts(
        [*entrance, codec.network, Posterior(codec.bottleneck, controls)],
        [codec.decoder, *way_out],
    )
