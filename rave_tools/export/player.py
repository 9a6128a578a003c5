"""A model at work in a host: two halves, a queue for blocks of any length, and the switches between them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rave_tools.export.step import TEMPERATURE, still_knobs

LOUDEST = 64.0
"""Full scales (+36 dB) at which input audio is cut: a host's uninitialised memory is louder, no music is."""

LARGEST_CONTROL = 65536.0
"""Latents are cut there; codebook indices and audible latents are far smaller."""


@dataclass(frozen=True)
class HostFacts:
    """What a host, and a person, may know about an exported model.

    Attributes:
        sample_rate: in hertz, at which the host should run.
        channels: of the encoder's input.
        target_channels: of the decoder's output.
        hop: samples per latent frame at ``sample_rate``.
        latent_size: controls that a host sees.
        full_latent_size: the most controls that ``decode`` accepts.
        latency: of ``forward``, from an input sample to the output sample that belongs to it, in samples, without
            queue.
        offset: by how many samples the analysis grid is shifted; part of the latency.
        streaming: keeps state from block to block.
        buffered: start with the queue that makes blocks of any length possible.
        has_noise: the decoder draws noise whose level is an attribute.
        adaptive: there is adaptive instance normalisation whose switches are attributes.
        precision: in which matrices are stored.
        processor: that the file plays on, or ``any``.
        labels: names of the controls, one per control.
        has_prior: there is a method ``prior`` that draws controls.
    """

    sample_rate: int
    channels: int
    target_channels: int
    hop: int
    latent_size: int
    full_latent_size: int
    labels: tuple[str, ...]
    latency: int
    offset: int
    streaming: bool = True
    buffered: bool = False
    has_noise: bool = False
    adaptive: bool = False
    precision: str = "fp32"
    processor: str = "any"
    has_prior: bool = False


@torch.jit.interface
class Half(nn.Module):
    """What a half of a model can do. Called through this interface, it keeps one compiled form for all methods."""

    def forward(self, x: Tensor, knobs: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass

    def forget(self) -> None:
        pass


class Player(nn.Module):
    """Encode, decode, and both in a row.

    Args:
        encode: module ``(audio, knobs) -> controls`` that keeps its own state and can ``forget()`` it.
        decode: likewise ``(latents, knobs) -> audio``.
        controls: what a host sends to what the decoder wants; TorchScript-able method ``hidden(controls)``, attribute
            ``temperature``.
        facts: numbers of the contract.
    """

    encoding: Half
    decoding: Half

    def __init__(self, encode: nn.Module, decode: nn.Module, *, controls: nn.Module, facts: HostFacts) -> None:
        super().__init__()
        # Compiled each on its own: an interface would have torch look for its methods in all submodules too.
        self.encoding = torch.jit.script(encode.eval())
        self.decoding = torch.jit.script(decode.eval())
        self.controls = controls
        self.knobs = still_knobs(facts.adaptive)
        self.temperature_place = TEMPERATURE
        self.touched = False
        self.n_channels = facts.channels
        self.target_channels = facts.target_channels
        self.copies = -(-facts.target_channels // facts.channels)
        self.hop = facts.hop
        self.stereo_mode = False
        self.queue = facts.buffered
        self.queued_input = torch.zeros(1, facts.channels, 0)
        self.queued_output = torch.zeros(1, facts.target_channels, facts.hop)

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:  # type: ignore[empty-body]
        """Audio (B, C, T) -> controls (B, L, T / hop)."""
        self.touched = True
        if self.stereo_mode and x.shape[1] > self.n_channels:
            x = x[:, : self.n_channels]
        if x.shape[1] != self.n_channels or x.shape[2] % self.hop != 0:
            raise ValueError(
                f"encode: {x.shape[1]} channels and {x.shape[2]} samples came, but it takes {self.n_channels} channels "
                f"and whole latent frames of {self.hop} samples; play forward, which takes blocks of any length"
            )
        return self.encoding(x, self.knobs)

    @torch.jit.export
    def decode(self, z: Tensor) -> Tensor:  # type: ignore[empty-body]
        """Controls (B, L or full, N) -> audio (B, C', N * hop); in stereo mode two rows become left and right."""
        self.touched = True
        rows = z.shape[0]
        if self.copies > 1 and not self.stereo_mode:
            z = z.repeat_interleave(self.copies, 0)
        y = self.decoding(self.controls.hidden(z), self.knobs)
        if self.stereo_mode:
            if self.n_channels == 1 and rows % 2 == 0:
                return torch.cat([y[: rows // 2], y[rows // 2 :]], 1)
            elif rows % 2 == 0:
                return torch.cat([y[: rows // 2, :1], y[rows // 2 :, 1:2]], 1)
            else:
                return y.expand(rows, 2, y.shape[2]) if self.n_channels == 1 else y
        if self.copies == 1 and self.target_channels == self.n_channels:
            return y
        return y.reshape(rows, self.copies * self.n_channels, y.shape[2])[:, : self.target_channels]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[empty-body]
        """Audio (B, C, T) -> audio (B, C', T); other lengths than whole hops pass a queue from then on, one hop later.

        The queue collects samples to whole hops; what waits in front of the model and behind it is together always one
        hop.
        """
        samples = x.shape[2]
        if not self.queue and samples % self.hop != 0:
            self.set_queue(True)
        if self.queue:
            if self.queued_input.shape[0] != x.shape[0]:
                self.clear_queue(x.shape[0])
            x = torch.cat([self.queued_input, x], 2)
            whole = x.shape[2] // self.hop * self.hop
            self.queued_input = x[..., whole:].clone()
            x = x[..., :whole]
        if x.shape[2] > 0:
            y = self.decode(self.encode(x))
        else:
            y = torch.zeros([x.shape[0], self.target_channels, 0], dtype=x.dtype)
        if self.queue:
            ready = torch.cat([self.queued_output, y], 2)
            self.queued_output = ready[..., samples:].clone()
            y = ready[..., :samples].clone()
        return y

    def clear_queue(self, rows: int) -> None:
        self.queued_input = torch.zeros([rows, self.n_channels, 0])
        self.queued_output = torch.zeros([rows, self.target_channels, self.hop])

    @torch.jit.export
    def forget(self) -> None:
        """Forget everything heard."""
        self.encoding.forget()
        self.decoding.forget()
        self.clear_queue(1)

    @torch.jit.export
    def turn(self, place: int, value: float) -> None:
        """Take a number that a host turns."""
        knobs = self.knobs.clone()
        knobs[place] = value
        self.knobs = knobs
        if place == self.temperature_place:
            self.controls.temperature = value

    @torch.jit.export
    def set_stereo(self, stereo: bool) -> None:
        """Whether two rows become left and right."""
        self.stereo_mode = stereo

    @torch.jit.export
    def set_queue(self, queue: bool) -> None:
        """Whether ``forward`` takes blocks of any length; what waited is dropped."""
        self.queue = queue
        self.clear_queue(1)

    @torch.jit.export
    def queues(self) -> bool:
        """Whether it does."""
        return self.queue

    @torch.jit.export
    def is_touched(self) -> bool:
        """Whether anything was ever played."""
        return self.touched

    @torch.jit.export
    def rest(self) -> None:
        """As if nothing had ever been played."""
        self.forget()
        self.touched = False
