"""The streaming step in eager torch as a pure function: (x, knobs, state) -> (y, state), with the state in one tensor.

``nn~`` keeps the state inside of the file. Formats without a memory of their own (ONNX, torch.export) hand it to the
host: what comes out with one block goes in with the next, zeros forget everything. One tensor per row of the batch is
what a host can carry without knowing the model.
"""

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rave_tools.codec.pretransforms.pqmf import SpectralFlip
from rave_tools.errors import UserError
from rave_tools.export.parts import NoiseSynthesis, Parts, ScaledNoise
from rave_tools.export.player import LARGEST_CONTROL, LOUDEST, HostFacts
from rave_tools.export.prepare import Assembled
from rave_tools.export.step import TEMPERATURE, Turnable, find_state, run_chain, still_knobs
from rave_tools.nn.activations import shifted_power_sigmoid
from rave_tools.nn.noise import amplitudes_to_impulse_response
from rave_tools.nn.normalization import AdaptiveInstanceNormalization
from rave_tools.nn.recurrent import GRU, LSTM

METHODS = ("encode", "decode", "forward")


class MatrixNoise(NoiseSynthesis):
    """Noise synthesis without Fourier transforms: what they compute is linear, and a frame is a few samples long.

    Equal to NoiseSynthesis for the same random numbers.

    Args:
        channels: independent noises.
        samples: per frame.
        bands: amplitudes per filter.
    """

    def __init__(self, channels: int, samples: int, *, bands: int) -> None:
        super().__init__(channels, samples)
        self.register_buffer("responses", amplitudes_to_impulse_response(torch.eye(bands), samples))
        # Sample n of a filtered frame is the sum over m of response[n - m] noise[m]; with L - 1 zeros in front of the
        # response, which it has not heard yet, n - m becomes the place L - 1 + n - m.
        index = torch.arange(samples)
        self.register_buffer("places", (samples - 1 + index[:, None] - index[None]).flatten())

    def forward(self, amplitudes: Tensor) -> Tensor:
        """(B, channels * bands, N) -> (B, channels, N * samples)."""
        batch, rows, frames = amplitudes.shape
        amplitudes = shifted_power_sigmoid(amplitudes - 5).permute(0, 2, 1)
        amplitudes = amplitudes.reshape(batch, frames, self.channels, rows // self.channels)
        response = torch.matmul(amplitudes, self.responses)
        noise = torch.rand_like(response) * 2 - 1
        padded = torch.cat([torch.zeros_like(response[..., 1:]), response], -1)
        filters = padded.index_select(-1, self.places)
        filters = filters.reshape(batch, frames, self.channels, self.samples, self.samples)
        y = torch.matmul(filters, noise.unsqueeze(-1)).squeeze(-1) * self.gain
        return y.permute(0, 2, 1, 3).reshape(batch, self.channels, frames * self.samples)


def use_matrix_noise(model: nn.Module) -> None:
    """Replace every noise synthesis of a model, in place."""
    for module in model.modules():
        if isinstance(module, ScaledNoise):
            widths = [layer.out_channels for layer in module.net.modules() if isinstance(layer, nn.Conv1d)]
            old = module.synthesis
            module.synthesis = MatrixNoise(old.channels, old.samples, bands=widths[-1] // old.channels)


class _Used(TorchFunctionMode):
    """Remembers every tensor that an operation was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.update(id(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


class PureStep(nn.Module):
    """One method of a host as a function of block, knobs and state.

    Args:
        parts: streaming halves; copied.
        controls: latents as a host sees them; copied.
        facts: numbers of the model.
        method: ``encode``, ``decode`` or ``forward``.

    Audio comes and goes as whole hops, (B, C, N, hop): a graph then needs no condition on the number of samples, and
    no reasoning about what a stride leaves of it.

    Attributes:
        state_size: numbers of state per row of the batch.

    Raises:
        UserError: a part of the model keeps something from block to block that is no tensor.
    """

    def __init__(
        self, parts: Parts, controls: nn.Module, *, facts: HostFacts, method: str
    ) -> None:
        super().__init__()
        self.parts, self.controls = copy.deepcopy((parts, controls))
        self.eval()
        self.facts = facts
        self.method = method
        use_matrix_noise(self.parts)
        self._refuse_odd_frames()
        self.places: list[tuple[nn.Module, str]] = []
        self.shapes: list[tuple[int, int, int]] = []
        self._find_places()
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.state_size = sum(self.sizes)
        self._drop_unused()

    def _refuse_odd_frames(self) -> None:
        for name, module in self.parts.named_modules():
            if isinstance(module, SpectralFlip) and (self.facts.hop // module.signs.shape[0]) % 2:
                raise UserError(
                    f"{name or 'the model'} is a {type(module).__name__} that counts frames from block to block, "
                    f"because a hop of {self.facts.hop} samples is an odd number of them; "
                    "only the format nn_tilde keeps such a count"
                )

    @torch.no_grad()
    def _find_places(self) -> None:
        """What one block fills is state, the encoder's first; the rest has no extent in time."""
        facts, knobs = self.facts, still_knobs(self.facts.adaptive)
        halves = []
        if self.takes_audio:
            halves.append(lambda: self.encode(torch.zeros(1, facts.channels, facts.hop), knobs))
        if self.gives_audio:
            halves.append(lambda: self.decode(torch.zeros(1, facts.latent_size, 1), knobs))
        for half in halves:
            half()
            for place in find_state(self.parts):
                value = getattr(*place)
                if value.numel() and place not in self.places:
                    self.places.append(place)
                    self.shapes.append((value.shape[0], value.shape[1], value.shape[2]))
        for module, name in self.places:
            setattr(module, name, torch.zeros_like(getattr(module, name)))

    @torch.no_grad()
    def _drop_unused(self) -> None:
        """Weights of the other half would only make the file larger."""
        with _Used() as used:
            self(self.example(1, 1), still_knobs(self.facts.adaptive), self.silence(1))
        for module in self.modules():
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if id(value) not in used.seen and (module, name) not in self.places:
                    empty = torch.zeros(0, dtype=value.dtype)
                    setattr(module, name, nn.Parameter(empty, False) if isinstance(value, nn.Parameter) else empty)

    @property
    def takes_audio(self) -> bool:
        """Whether the input is audio, not latents."""
        return self.method != "decode"

    @property
    def gives_audio(self) -> bool:
        """Whether the output is audio, not latents."""
        return self.method != "encode"

    def example(self, rows: int, hops: int) -> Tensor:
        """A silent input."""
        facts = self.facts
        if not self.takes_audio:
            return torch.zeros(rows, facts.latent_size, hops)
        return torch.zeros(rows, facts.channels, hops, facts.hop)

    def silence(self, rows: int) -> Tensor:
        """The state before anything was heard. Shape (rows, state_size)."""
        return torch.zeros(rows, self.state_size)

    def encode(self, x: Tensor, knobs: Tensor) -> Tensor:
        """Audio (B, C, T) -> controls (B, L, T / hop)."""
        x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).clamp(-LOUDEST, LOUDEST)
        return run_chain(self.parts.encoding, x, knobs)

    def decode(self, z: Tensor, knobs: Tensor) -> Tensor:
        """Controls (B, L, N) -> audio (B, C', N * hop)."""
        facts = self.facts
        rows, size, frames = z.shape
        copies = -(-facts.target_channels // facts.channels)
        z = torch.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0).clamp(-LARGEST_CONTROL, LARGEST_CONTROL)
        if copies > 1:
            z = z.unsqueeze(1).expand(rows, copies, size, frames).reshape(rows * copies, size, frames)
        self.controls.temperature = knobs[TEMPERATURE]
        y = run_chain(self.parts.decoding, self.controls.hidden(z), knobs)
        return y.reshape(rows, copies * facts.channels, y.shape[2])[:, : facts.target_channels]

    def _method(self, x: Tensor, knobs: Tensor) -> Tensor:
        facts = self.facts
        rows, frames = x.shape[0], x.shape[2]
        if self.takes_audio:
            x = self.encode(x.reshape(rows, facts.channels, frames * facts.hop), knobs)
        if self.gives_audio:
            x = self.decode(x, knobs).reshape(rows, facts.target_channels, frames, facts.hop)
        return x

    def forward(self, x: Tensor, knobs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            x: audio (B, C, N, hop); latents (B, L, N) for ``decode``.
            knobs: temperature, gain of the noise branch, switches of adaptive normalisation. Shape (2 or 6,).
            state: shape (B, state_size).

        Returns:
            The block's answer, and the state for the next block.
        """
        rows = x.shape[0]
        kept = [getattr(module, name) for module, name in self.places]
        turned = [
            (module, dict(vars(module)))
            for module in self.modules()
            if isinstance(module, Turnable) or module is self.controls
        ]
        norms = [module for module in self.modules() if isinstance(module, AdaptiveInstanceNormalization)]
        switches = [norm.switches for norm in norms]
        start = 0
        for (module, name), shape, size in zip(self.places, self.shapes, self.sizes, strict=True):
            value = state[:, start : start + size].reshape(rows * shape[0], shape[1], shape[2])
            setattr(module, name, value)
            start += size
        y = self._method(x, knobs)
        after = [
            getattr(module, name).reshape(rows, size)
            for (module, name), size in zip(self.places, self.sizes, strict=True)
        ]
        # The modules are left as they were: the function has no other memory than its argument.
        for (module, name), value in zip(self.places, kept, strict=True):
            setattr(module, name, value)
        for norm, values in zip(norms, switches, strict=True):
            norm.switches = values
        for module, attributes in turned:
            vars(module).update(attributes)
        return y, torch.cat(after, 1) if after else state.clone()


def make_steps(assembled: Assembled) -> dict[str, PureStep]:
    """The methods of a host as functions of the halves of a streaming codec."""
    return {
        method: PureStep(assembled.parts, assembled.controls, facts=assembled.facts, method=method)
        for method in METHODS
    }


def refuse_recurrence(step: PureStep) -> None:
    """Refuse layers that a graph for blocks of any length cannot hold.

    Raises:
        UserError: names the layer and the mend.
    """
    for name, module in step.parts.named_modules():
        if isinstance(module, (GRU, LSTM)):
            kind = "a GRU (hybrid.gin)" if isinstance(module, GRU) else "an LSTM"
            raise UserError(
                f"{name or 'the model'} is {kind}, whose steps in time a graph writes "
                f"out one by one: blocks need a fixed length, for example --block {step.facts.hop}"
            )


@torch.no_grad()
def trace(step: PureStep, *, block: int | None = None) -> torch.export.ExportedProgram:
    """A step as a graph of torch.export.

    Args:
        step: the function.
        block: samples of every block, one row; None takes any number of hops and rows.

    Raises:
        UserError: a module that torch.export cannot follow; names the method.
    """
    facts = step.facts
    if block is None:
        refuse_recurrence(step)
    rows, hops = (1, block // facts.hop) if block else (3, 5)
    shapes = None
    if block is None:
        # Three rows and five hops: sizes of an example that agree with no other size are not taken for constants.
        batch = torch.export.Dim("batch", min=1, max=64)
        frames = torch.export.Dim("frames", min=1, max=4096)
        shapes = ({0: batch, 2: frames}, None, {0: batch})
    example = (step.example(rows, hops), still_knobs(facts.adaptive), step.silence(rows))
    try:
        with warnings.catch_warnings():
            # Weights of a recurrent layer in a list and a temperature, both put back, are taken for a memory.
            warnings.filterwarnings("ignore", "The tensor attributes? ", UserWarning)
            return torch.export.export(step, example, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"torch.export cannot follow {step.method} of this model: {first}") from error
