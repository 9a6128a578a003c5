"""Gated residual blocks of a causal network over latent frames (van den Oord et al., "WaveNet", arXiv 1609.03499)."""

import torch
from torch import Tensor, nn

from rave_tools.nn.conv import Conv1d
from rave_tools.nn.streaming import Streamable


class GatedBlock(nn.Module, Streamable):
    """A dilated causal convolution through a gate; one branch goes on, the other goes out.

    State-dict keys as in acids-rave's prior.

    Args:
        res_size: channels of the way on.
        skp_size: channels of the way out.
        kernel_size: taps of the dilated convolution.
        dilation: frames between them.
    """

    def __init__(self, res_size: int, skp_size: int, *, kernel_size: int, dilation: int) -> None:
        super().__init__()
        past = (kernel_size - 1) * dilation
        self.dconv = Conv1d(res_size, 2 * res_size, kernel_size, padding=(past, 0), dilation=dilation)
        self.rconv = Conv1d(res_size, res_size, 1)
        self.sconv = Conv1d(res_size, skp_size, 1)

    def enable_streaming(self, delay: int) -> int:
        """Causal: nothing has to wait, so the skips of all blocks meet in time."""
        for layer in (self.dconv, self.rconv, self.sconv):
            layer.enable_streaming(delay)
        return delay

    def forward(self, x: Tensor, skips: Tensor) -> tuple[Tensor, Tensor]:
        """(B, res, N) and the sum of the skips so far, (B, skp, N) -> both behind this block."""
        gate, value = self.dconv(x).chunk(2, 1)
        hidden = torch.sigmoid(gate) * torch.tanh(value)
        return x + self.rconv(hidden), skips + self.sconv(hidden)
