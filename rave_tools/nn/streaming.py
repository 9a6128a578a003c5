"""Streaming without a global: delay flows through a model like the signal.

A model is built once, plain. ``streaming(model)`` returns a copy that works block by block and equals the plain model,
late by an announced number of samples. Every block with extent in time answers one question: *given the delay at my
input, in my input's samples, switch me to streaming and return the delay at my output.*

What a delay means: sample ``t`` of the stream is sample ``t - delay`` of the plain model's signal at the same place.
Blocks arrive whole, so a strided layer whose window ends inside the current block costs nothing: the delay behind a
stride ``s`` is ``floor((lookahead + delay) / s)``. A delay may be negative: the stream then runs ahead of the plain
model's grid.

The plain model's grid may start anywhere within a hop. ``streaming`` moves it by an ``offset`` of k samples
(0 <= k < hop) to the place where the whole latency is least:
``stream(x) == delay(plain(delay(x, k)), latency - k)``.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

POINTWISE = (
    nn.Identity, nn.LeakyReLU, nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Dropout,
    nn.BatchNorm1d,
)  # fmt: skip

Model = TypeVar("Model", bound=nn.Module)


class NotStreamable(TypeError):
    """A module with unknown extent in time stands in a model that should stream."""


class Streamable:
    """A module that knows how to work block by block."""

    def enable_streaming(self, delay: int) -> int:
        """Switch to streaming.

        Args:
            delay: at the input, in input samples.

        Returns:
            The delay at the output, in output samples.
        """
        raise NotImplementedError


class Pointwise:
    """Mark of a module whose output at one instant depends on the input at that instant alone."""


@dataclass(frozen=True)
class StreamInfo:
    """How a stream relates to the plain model: ``stream(x) == delay(plain(delay(x, offset)), latency - offset)``.

    Attributes:
        offset: by how many samples the analysis grid is shifted, 0 <= offset < hop.
        latency: from an input sample to the output sample that the plain model aligns with it, in samples.
    """

    offset: int
    latency: int


def stream_through(module: nn.Module, delay: int, path: str = "") -> int:
    """Switch one module of a chain to streaming and return the delay behind it.

    Raises:
        NotStreamable: the module is neither Streamable nor known to be point-wise in time.
    """
    if isinstance(module, Streamable):
        return module.enable_streaming(delay)
    if isinstance(module, (Pointwise, *POINTWISE)):
        return delay
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    raise NotStreamable(
        f"{path or 'the model'} is a {name}, which has no streaming form: give it enable_streaming(delay), or derive "
        "it from rave_tools.nn.streaming.Pointwise if its output at an instant depends on its input there alone"
    )


def find_offset(model: nn.Module, hop: int) -> StreamInfo:
    """Offset with the least latency among those for which the plain model need not be run ahead of its input.

    The delay behind a model never rises as the offset does, and falls a few times within a hop: the only offsets that
    can win are those where it has just fallen, and halving intervals finds them.
    """

    def falls(low: int, high: int, rest_low: int, rest_high: int) -> list[tuple[int, int]]:
        """(offset, delay) wherever low < offset <= high and the delay is less than one offset before."""
        if rest_low == rest_high:
            return []
        if high - low == 1:
            return [(high, rest_high)]
        middle = (low + high) // 2
        rest = stream_through(model, -middle)
        return falls(low, middle, rest_low, rest) + falls(middle, high, rest, rest_high)

    first, last = stream_through(model, 0), stream_through(model, 1 - hop)
    found = [(0, first), *falls(0, hop - 1, first, last)]
    candidates = [StreamInfo(offset, offset + rest) for offset, rest in found if rest >= 0]
    return min(candidates, key=lambda info: (info.latency, info.offset))


def streaming(model: Model, hop: int = 1) -> tuple[Model, StreamInfo]:
    """Copy a model into its streaming form.

    The copy is in evaluation mode, shares nothing with the model and keeps its state-dict keys. Blocks may have any
    length that is a multiple of the hop; the state adapts to the batch size of the first block and is forgotten when
    that size changes.

    Args:
        model: a plain model, or one that streams already (its state is cleared).
        hop: input samples per frame of the coarsest grid inside the model.

    Returns:
        The streaming copy and how it relates to the plain model.

    Raises:
        NotStreamable: names the module that has no streaming form.
    """
    twin = copy.deepcopy(model).eval()
    info = find_offset(twin, hop)
    stream_through(twin, -info.offset)
    reset(twin)
    return twin, info


def reset(model: nn.Module) -> None:
    """Forget everything that a streaming model has heard."""
    for module in model.modules():
        if isinstance(module, Stateful):
            module.forget()


class Stateful:
    """A module with a state: one row per row of the batch, made anew when the batch size changes.

    A block without rows therefore resets a model too, also where ``reset`` cannot reach (inside TorchScript).

    Attributes:
        state_names: of the tensors that are the state, each (rows, ...) with rows a multiple of the batch's, all zeros
            before anything was heard.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def forget(self) -> None:
        """Forget everything heard."""
        raise NotImplementedError


class Memory(nn.Module, Stateful):
    """The last samples of a signal, put in front of its next block.

    The state is a fresh tensor after each block (never a view of the input, which hosts reuse, and never modified in
    place, which inference tensors forbid).

    Attributes:
        length: how many samples are kept; negative drops that many from the front of each block.
        past: (B, C, length), or no rows before the first block.
    """

    state_names = ("past",)
    past: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.register_buffer("past", torch.zeros(0, 0, 0), persistent=False)

    def forget(self) -> None:
        self.past = torch.zeros_like(self.past[:0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, length + T)."""
        if self.length <= 0:
            return x[..., -self.length :]
        if self.past.shape[0] != x.shape[0]:
            self.past = torch.zeros(x.shape[0], x.shape[1], self.length, dtype=x.dtype, device=x.device)
        x = torch.cat([self.past, x], -1)
        self.past = x[..., x.shape[-1] - self.length :].clone()
        return x


class Delay(nn.Module, Streamable):
    """A delay line that exists in the streaming form only; plain, it is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0
        self.memory = Memory()

    def set(self, samples: int) -> None:
        """Delay a stream by that many samples from now on."""
        if samples < 0:
            raise ValueError(f"a signal cannot be delayed by {samples} samples")
        self.samples = samples
        self.memory.length = samples

    def enable_streaming(self, delay: int) -> int:
        return delay + self.samples

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        if self.samples == 0:
            return x
        return self.memory(x)[..., : x.shape[-1]]
