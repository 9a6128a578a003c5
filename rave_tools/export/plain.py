"""The plain model as a host should hear it: what every file is measured against."""

import copy

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.controls import CodeControls
from rave_tools.export.parts import scale_noise
from rave_tools.export.resampler import Decimator, Interpolator, rate_ratio


class PlainModel:
    """A codec without streams: posterior means, shown controls only, no noise, resampled without delay.

    Args:
        codec: plain; copied.
        controls: as in the host module; copied.
        sample_rate: of the host, in hertz.
        channels: of the output.

    Attributes:
        discrete: its controls are codes, which jump where two are equally near.
    """

    def __init__(self, codec: Autoencoder, controls: nn.Module, *, sample_rate: int, channels: int) -> None:
        self.controls = copy.deepcopy(controls)
        self.controls.temperature = 0.0
        self.codec = copy.deepcopy(codec).eval()
        for branch in scale_noise(self.codec):
            branch.synthesis.gain = torch.zeros(())
        self.enter: Decimator | Interpolator | None = None
        self.leave: Decimator | Interpolator | None = None
        if sample_rate != codec.sample_rate:
            ratio = rate_ratio(codec.sample_rate, sample_rate)
            up, down = Interpolator(ratio), Decimator(ratio)
            self.enter, self.leave = (down, up) if sample_rate > codec.sample_rate else (up, down)
        self.channels = channels
        self.discrete = isinstance(controls, CodeControls)

    @torch.no_grad()
    def shown(self, audio: Tensor) -> Tensor:
        """What a host sees of audio: (B, C, T) -> (B, L, T / hop)."""
        x = audio if self.enter is None else self.enter.offline(audio)
        statistics = self.codec.network(self.codec.encoder_input(x))
        return self.controls.shown(self.codec.bottleneck.sample(statistics, 0.0))

    @torch.no_grad()
    def heard(self, controls: Tensor) -> Tensor:
        """What a host hears of controls: (B, L, N) -> (B, C', N * hop)."""
        y = self.codec.decode(self.controls.hidden(controls))
        y = y if self.leave is None else self.leave.offline(y)
        return y.repeat(1, -(-self.channels // y.shape[1]), 1)[:, : self.channels]

    def __call__(self, audio: Tensor) -> Tensor:
        """Audio (B, C, T) -> audio (B, C', T)."""
        return self.heard(self.shown(audio))
