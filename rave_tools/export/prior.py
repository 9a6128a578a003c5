"""A prior in the file: the method ``prior``, which turns temperatures into latents as RAVE's exports do."""

import torch
from torch import Tensor, nn

from rave_tools.export.nn_tilde import HostModel
from rave_tools.export.player import HostFacts
from rave_tools.generative.latent_prior import PriorSampler

HOTTEST = 100.0
"""Temperatures are cut there: everything is as good as equally probable long before."""


@torch.jit.interface
class Dreaming(nn.Module):
    """What a prior can do. Called through this interface, it keeps one compiled form for all methods."""

    def forward(self, temperature: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass

    def forget(self) -> None:
        pass


class PriorPlayer(nn.Module):
    """A sampler with its state and its noise.

    Args:
        sampler: ``(temperature, noise, state) -> (latents, state)``.
    """

    def __init__(self, sampler: PriorSampler) -> None:
        super().__init__()
        self.sampler = sampler
        self.latent_size = sampler.latent_size
        self.hottest = HOTTEST
        self.state = sampler.silence(1)
        self.rows = 0

    @torch.jit.export
    def forget(self) -> None:
        """Forget everything drawn."""
        self.rows = 0

    def forward(self, temperature: Tensor) -> Tensor:
        """Temperatures (B, 1, N) -> latents (B, D, N)."""
        if temperature.shape[1] != 1:
            raise ValueError("prior: expected (batch, 1, frames) temperatures")
        if temperature.shape[0] != self.rows:
            self.rows = temperature.shape[0]
            self.state = self.sampler.silence(self.rows)
        temperature = torch.nan_to_num(temperature, 0.0, 0.0, 0.0).clamp(0.0, self.hottest)
        noise = torch.rand([temperature.shape[0], self.latent_size, temperature.shape[2]])
        latents, state = self.sampler(temperature, noise, self.state)
        self.state = state
        return latents


class HostModelWithPrior(HostModel):
    """The module that is scripted when a prior comes along: one more method, ``prior``.

    Its input is one channel of temperatures, one per latent frame: 1 draws as the prior has learned, lower is more
    orderly, 0 takes the most probable latents. Its output are the latents that ``decode`` takes. ``reset`` lets it
    begin anew. (RAVE's own exports put a softplus in front of the temperature and take one per block.)

    Args:
        encode, decode, controls, facts: as for HostModel; ``facts.latent_size`` is the prior's.
        sampler: of the prior.
    """

    dreamer: Dreaming
    prior_params: Tensor

    def __init__(
        self, encode: nn.Module, decode: nn.Module, *, controls: nn.Module, facts: HostFacts, sampler: PriorSampler
    ) -> None:
        super().__init__(encode, decode, controls=controls, facts=facts)
        self.dreamer = torch.jit.script(PriorPlayer(sampler).eval())
        self.drawn = False
        self.register_buffer("prior_params", torch.tensor([1, facts.hop, facts.latent_size, facts.hop]))
        self.prior_input_labels = ["(signal) Temperature"]
        self.prior_output_labels = list(facts.labels)
        self.method_names = [*self.method_names, "prior"]

    @torch.jit.export
    def prior(self, temperature: Tensor) -> Tensor:
        """Temperatures (B, 1, N) -> controls (B, L, N)."""
        self.drawn = True
        return self.dreamer.forward(temperature)

    def is_untouched(self) -> bool:
        return not self.player.is_touched() and not self.drawn

    def rest(self) -> None:
        self.player.rest()
        self.dreamer.forget()

    def play_silence(self) -> None:
        silence = torch.zeros([1, self.n_channels, self.hop])
        for _ in range(3):
            self.player.decode(self.player.encode(silence))
            self.player.forward(silence)
            self.dreamer.forward(torch.zeros([1, 1, 1]))

    @torch.jit.export
    def set_reset(self, reset: int) -> int:
        if reset != 0:
            self.player.forget()
            self.dreamer.forget()
        return 0
