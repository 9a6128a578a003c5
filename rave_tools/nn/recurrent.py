"""Recurrent layers, whose hidden state is streaming state."""

from typing import Any

import torch
from torch import Tensor, nn

from rave_tools.nn.streaming import Stateful, Streamable


class GRU(nn.Module, Streamable, Stateful):
    """Gated recurrent units over time, as wide as their input (Cho et al., arXiv 1406.1078).

    A plain layer starts from zeros; a streaming one goes on from where the last block ended (acids-rave's starts anew
    with every block).

    Args:
        latent_size: channels in and out.
        num_layers: one above the other.

    Attributes:
        hidden: what each unit remembers. Shape (B, num_layers * latent_size, 1).
        forgetful: begin anew at every instant; to measure how far the layers around this one look.
    """

    state_names = ("hidden",)
    hidden: Tensor

    def __init__(self, latent_size: int, num_layers: int = 1) -> None:
        super().__init__()
        self.gru = nn.GRU(latent_size, latent_size, num_layers, batch_first=True)
        self.num_layers = num_layers
        self.streaming = False
        self.forgetful = False
        self.register_buffer("hidden", torch.zeros(0, 0, 0), persistent=False)

    def enable_streaming(self, delay: int) -> int:
        self.streaming = True
        return delay

    def forget(self) -> None:
        self.hidden = torch.zeros_like(self.hidden[:0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        rows, channels = x.shape[0], x.shape[1]
        if self.forgetful:
            alone = x.transpose(1, 2).reshape(rows * x.shape[2], 1, channels)
            return self.gru(alone)[0].reshape(rows, x.shape[2], channels).transpose(1, 2)
        if not self.streaming:
            return self.gru(x.transpose(1, 2))[0].transpose(1, 2)
        if self.hidden.shape[0] != rows:
            self.hidden = torch.zeros(rows, self.num_layers * channels, 1, dtype=x.dtype, device=x.device)
        if rows == 0:
            return x
        hidden = self.hidden.reshape(rows, self.num_layers, channels).transpose(0, 1).contiguous()
        y, hidden = self.gru(x.transpose(1, 2), hidden)
        self.hidden = hidden.transpose(0, 1).reshape(rows, self.num_layers * channels, 1)
        return y.transpose(1, 2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint of acids-rave has a place for a state there, which nothing ever uses."""
        state_dict.pop(prefix + "gru_state", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class LSTM(nn.Module, Streamable, Stateful):
    """Long short-term memory over time, as wide as its input, with a skip around it (Hochreiter and Schmidhuber, 1997).

    A plain layer starts from zeros; a streaming one goes on from where the last block ended. Keys are those of EnCodec
    and AudioCraft: ``lstm.weight_ih_l0``, ...

    Args:
        dimension: channels in and out.
        num_layers: one above the other.
        skip: add the input to the output.

    Attributes:
        hidden, cell: what each unit says, and what it remembers. Shape (B, num_layers * dimension, 1).
        forgetful: begin anew at every instant; to measure how far the layers around this one look.
    """

    state_names = ("hidden", "cell")
    hidden: Tensor
    cell: Tensor

    def __init__(self, dimension: int, num_layers: int = 2, *, skip: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dimension, dimension, num_layers)
        self.num_layers = num_layers
        self.skip = skip
        self.streaming = False
        self.forgetful = False
        self.register_buffer("hidden", torch.zeros(0, 0, 0), persistent=False)
        self.register_buffer("cell", torch.zeros(0, 0, 0), persistent=False)

    def enable_streaming(self, delay: int) -> int:
        self.streaming = True
        return delay

    def forget(self) -> None:
        self.hidden = torch.zeros_like(self.hidden[:0])
        self.cell = torch.zeros_like(self.cell[:0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        y = self.remember(x)
        return x + y if self.skip else y

    def remember(self, x: Tensor) -> Tensor:
        """The layer without its skip."""
        rows, channels = x.shape[0], x.shape[1]
        if self.forgetful:
            alone = x.transpose(1, 2).reshape(1, rows * x.shape[2], channels)
            return self.lstm(alone)[0].reshape(rows, x.shape[2], channels).transpose(1, 2)
        if not self.streaming:
            return self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        if self.hidden.shape[0] != rows:
            self.hidden = torch.zeros(rows, self.num_layers * channels, 1, dtype=x.dtype, device=x.device)
            self.cell = torch.zeros(rows, self.num_layers * channels, 1, dtype=x.dtype, device=x.device)
        if rows == 0:
            return x
        hidden = self.hidden.reshape(rows, self.num_layers, channels).transpose(0, 1).contiguous()
        cell = self.cell.reshape(rows, self.num_layers, channels).transpose(0, 1).contiguous()
        y, (hidden, cell) = self.lstm(x.permute(2, 0, 1), (hidden, cell))
        self.hidden = hidden.transpose(0, 1).reshape(rows, self.num_layers * channels, 1)
        self.cell = cell.transpose(0, 1).reshape(rows, self.num_layers * channels, 1)
        return y.permute(1, 2, 0)
