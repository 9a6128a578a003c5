"""From a streaming model to a program of matrix products: one small function per kind of block.

A block that has no function here is traced whole and called as it is, so nothing depends on this list but speed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rave_tools.codec.bottlenecks.discrete import DiscreteEncoder
from rave_tools.codec.bottlenecks.factorized import FactorizedResidualVQ
from rave_tools.codec.bottlenecks.latent import Unquantized
from rave_tools.codec.bottlenecks.quantization import ResidualVectorQuantization
from rave_tools.codec.bottlenecks.residual import ResidualVectorQuantizer
from rave_tools.codec.bottlenecks.variational import VariationalEncoder
from rave_tools.codec.bottlenecks.wasserstein import WasserteinEncoder
from rave_tools.codec.controls import CodeControls, PrincipalControls
from rave_tools.codec.nets.dac import DACDecoder, DACEncoder, DecoderBlock, EncoderBlock, ResidualUnit
from rave_tools.codec.nets.rave import GeneratorV1, GeneratorV2
from rave_tools.codec.nets.seanet import SEANetDecoder, SEANetEncoder, SEANetResnetBlock
from rave_tools.codec.pretransforms.pqmf import SpectralFlip
from rave_tools.export import engine
from rave_tools.export.engine import ALIGNMENT, ALWAYS, HOPS, ONE_ROW, ROWS, SEVERAL_ROWS, Instruction, Program, Signal
from rave_tools.export.parts import Analysis, NoiseSynthesis, Posterior, ScaledNoise, Synthesis
from rave_tools.export.step import NOISE, TEMPERATURE, make_step, run_chain
from rave_tools.nn.activations import Snake
from rave_tools.nn.compose import Branches, Residual, Sequential, Sum
from rave_tools.nn.conv import Conv1d, ConvTranspose1d
from rave_tools.nn.noise import amplitudes_to_impulse_response
from rave_tools.nn.normalization import AdaptiveInstanceNormalization
from rave_tools.nn.padded_conv import StreamableConv1d, StreamableConvTranspose1d
from rave_tools.nn.recurrent import LSTM
from rave_tools.nn.residual import Chain
from rave_tools.nn.streaming import Delay

LAST_PHASE = 2
"""Of training: that in which a model is heard."""


@dataclass(frozen=True)
class Wire:
    """What a block reads: some channels of a signal, some frames late.

    Attributes:
        signal: its number.
        width: channels.
        delay: in frames.
        first: channel.
    """

    signal: int
    width: int
    delay: int = 0
    first: int = 0

    def late(self, frames: int) -> "Wire":
        """The same, later; costs a longer past and no work."""
        return replace(self, delay=self.delay + frames)

    def channels(self, first: int, width: int) -> "Wire":
        """Some of its channels."""
        return replace(self, first=self.first + first, width=width)


@dataclass(frozen=True)
class Dim:
    """One dimension of a view.

    Attributes:
        size: multiplied by what ``times`` says.
        stride: in numbers.
        times: HOPS, ROWS, their sum, or 0.
        per_row: the stride is multiplied by the rows of the batch.
    """

    size: int
    stride: int
    times: int = 0
    per_row: bool = False

    def spec(self) -> list[int]:
        """As the engine reads it."""
        return [self.size, self.times, self.stride, int(self.per_row)]


class Builder:
    """Writes a program.

    Args:
        rate: samples or frames of the input per hop.
        width: channels of the input.
        loudest: input is cut there.
        storage: type in which the matrices of convolutions are stored.
        half: multiply in bfloat16, with plain operators.
        knobs: an example of what a host can turn, for blocks that are traced.
    """

    def __init__(
        self, rate: int, width: int, *, loudest: float, storage: torch.dtype, half: bool, knobs: Tensor
    ) -> None:
        self.program = Program(loudest=loudest)
        self.storage = storage
        self.half = half
        self.knobs = knobs
        self.input = self.signal(rate, width)
        self.program.inlet = self.view_for_modules(self.input)
        whole = self.block(self.input)
        self.instruct(engine.CLEAN, whole, whole, whole)

    def signal(self, rate: int, width: int, *, half: bool = False) -> Wire:
        """A new place in the workspace."""
        self.program.signals.append(Signal(rate, width, half=half))
        return Wire(len(self.program.signals) - 1, width)

    def rate(self, wire: Wire) -> int:
        """Frames per hop."""
        return self.program.signals[wire.signal].rate

    def full_width(self, wire: Wire) -> int:
        """Channels of the whole signal."""
        return self.program.signals[wire.signal].width

    def view(self, wire: Wire, *dims: Dim, start: int = 0, from_end: bool = False) -> int:
        """A window on a signal; its number.

        Args:
            wire: its signal, first channel and delay.
            dims: sizes and strides.
            start: frame, counted from the block's first, or from its end.
            from_end: which.
        """
        start -= wire.delay
        signal = self.program.signals[wire.signal]
        signal.past = max(signal.past, -start)
        spec = [wire.signal, wire.first, start * signal.width, signal.rate * signal.width * from_end]
        for dim in dims:
            spec += dim.spec()
        if spec not in self.program.views:
            self.program.views.append(spec)
        return self.program.views.index(spec)

    def block(self, wire: Wire) -> int:
        """The block of a wire: (T, B, C)."""
        return self.view(wire, *self.dims(wire))

    def view_for_modules(self, wire: Wire) -> int:
        """The block of a wire as modules see it: (B, C, T)."""
        time, rows, channels = self.dims(wire)
        return self.view(wire, rows, channels, time)

    def dims(self, wire: Wire) -> tuple[Dim, Dim, Dim]:
        """Time, rows, channels."""
        full = self.full_width(wire)
        return Dim(self.rate(wire), full, HOPS, True), Dim(1, full, ROWS), Dim(wire.width, 1)

    def constant(self, value: Tensor) -> int:
        """Put a tensor into the file, once; what an instruction calls it."""
        for number, other in enumerate(self.program.constants):
            if other.dtype == value.dtype and other.stride() == value.stride() and torch.equal(other, value):
                return -1 - number
        self.program.constants.append(value.detach().clone())
        return -len(self.program.constants)

    def instruct(self, code: int, first: int, second: int, out: int, **details: float) -> None:
        """Add a step."""
        self.program.instructions.append(Instruction(code, first, second, out, **details))

    def conv(
        self,
        wire: Wire,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        kernel: int = 1,
        dilation: int = 1,
        stride: int = 1,
        memory: int = 0,
        fold: int = 1,
        up: int = 1,
        into: Wire | None = None,
        exact: bool = False,
    ) -> Wire:
        """Matrix product over windows.

        Args:
            wire: input.
            weight: columns are (tap, channel), rows (output frame, channel). Shape (up * out, kernel * in).
            bias: shape (up * out,).
            kernel, dilation, stride: of the windows, in input frames.
            memory: frames in front of the block that the first window begins with.
            fold: groups of channels to be treated as rows of the batch.
            up: output frames per window.
            into: channels of an existing signal to write to.
            exact: keep full precision.
        """
        half = self.half and not exact
        frames = self.rate(wire) // stride
        rows, columns = weight.shape
        full, width = self.full_width(wire), wire.width // fold
        if kernel == 1 and stride == 1 and not half:
            windows = self.view(wire, Dim(frames * fold, full // fold, HOPS + ROWS), Dim(width, 1), start=-memory)
        else:
            room = self.signal(frames, columns * fold, half=half)
            group = Dim(fold, columns, ROWS)
            source = self.view(
                wire,
                Dim(frames, stride * full, HOPS, True),
                Dim(fold, full // fold, ROWS),
                Dim(kernel, dilation * full, 0, True),
                Dim(width, 1),
                start=-memory,
            )
            time = Dim(frames, columns * fold, HOPS, True)
            target = self.view(room, time, group, Dim(kernel, width), Dim(width, 1))
            self.instruct(engine.COPY, source, source, target)
            windows = self.view(room, Dim(frames * fold, columns, HOPS + ROWS), Dim(columns, 1))
        out = into or self.signal(frames * up, rows // up * fold)
        # Stored (out, in) and handed over transposed: the layout that a product of few frames reads fastest.
        matrix = self.constant((weight if exact else weight.to(self.storage)).contiguous().t())
        offset = None if bias is None else self.constant(bias.reshape(1, -1))
        if fold == 1:
            pitch = rows if up > 1 else self.full_width(out)
            product = self.view(out, Dim(frames, pitch, HOPS + ROWS), Dim(rows, 1))
            when = ONE_ROW if up > 1 else ALWAYS
            self.product(windows, matrix, offset, product, frames, when=when, exact=exact)
        if up > 1 or fold > 1:
            aside = self.signal(frames, rows * fold)
            product = self.view(aside, Dim(frames * fold, rows, HOPS + ROWS), Dim(rows, 1))
            when = SEVERAL_ROWS if fold == 1 else ALWAYS
            self.product(windows, matrix, offset, product, frames * fold, when=when, exact=exact)
            each = rows // up
            source = self.view(
                aside, Dim(frames, rows * fold, HOPS, True), Dim(up, each), Dim(fold, rows, ROWS), Dim(each, 1)
            )
            wide = self.full_width(out)
            target = self.view(
                out, Dim(frames, up * wide, HOPS, True), Dim(up, wide, 0, True), Dim(fold, each, ROWS), Dim(each, 1)
            )
            self.instruct(engine.COPY, source, source, target, when=when)
        return out

    def product(
        self, windows: int, matrix: int, bias: int | None, out: int, frames: int, *, when: int, exact: bool
    ) -> None:
        """Multiply, in the matrix's precision, and add the bias."""
        if self.half and not exact:
            rows = self.program.constants[-1 - matrix].shape[1]
            room = self.signal(frames, rows, half=True)
            product = self.view(room, Dim(frames, rows, HOPS + ROWS), Dim(rows, 1))
            self.instruct(engine.MATMUL, windows, matrix, product, when=when)
            self.instruct(engine.COPY, product, product, out, when=when)
        else:
            self.instruct(engine.MATMUL, windows, matrix, out, when=when, count=int(exact))
        if bias is not None:
            self.instruct(engine.ADD, out, bias, out, when=when)

    def unary(self, code: int, wire: Wire, value: float = 0.0) -> Wire:
        """One number to one number."""
        out = self.signal(self.rate(wire), wire.width)
        block = self.block(wire)
        self.instruct(code, block, block, self.block(out), value=value)
        return out

    def binary(self, code: int, a: Wire, b: Wire) -> Wire:
        """Two signals to one; a single channel of ``b`` serves all of ``a``."""
        out = self.signal(self.rate(a), a.width)
        self.instruct(code, self.block(a), self.block(b), self.block(out))
        return out

    def fixed(self, code: int, wire: Wire, value: Tensor) -> Wire:
        """A signal and one number per channel."""
        out = self.signal(self.rate(wire), wire.width)
        self.instruct(code, self.block(wire), self.constant(value.float().reshape(1, 1, -1)), self.block(out))
        return out

    def flip(self, wire: Wire, signs: Tensor, start: int) -> Wire:
        """Signs that alternate from frame to frame: signs (T = 2, 1, C), the first block begins with ``start``."""
        out = self.signal(self.rate(wire), wire.width)
        self.instruct(engine.SIGNS, self.block(wire), self.constant(signs), self.block(out), count=start)
        return out

    def lstm(self, gates: Wire, recurrent: Tensor) -> Wire:
        """Long short-term memory; its state is the last frame of what it says and of its cells.

        Args:
            gates: what the input says to the gates, in the order input, forget, output, cell: 4 D channels.
            recurrent: what the units say to each other. Shape (4 D, D).
        """
        rate, width = self.rate(gates), recurrent.shape[1]
        hidden, cell = self.signal(rate, width), self.signal(rate, width)
        matrix = self.constant(recurrent.contiguous().t())
        self.instruct(engine.CELL, self.block(cell.late(1)), self.block(hidden.late(1)), self.block(cell))
        self.instruct(engine.LSTM, self.block(gates), matrix, self.block(hidden))
        return hidden

    def call(self, module: nn.Module, wire: Wire, code: int = engine.CALL) -> Wire:
        """A block without a function of its own, traced with its state."""
        example = torch.zeros(1, wire.width, 2 * self.rate(wire))
        step = make_step(module, lambda x, knobs: run_chain([module], x, knobs), x=example, knobs=self.knobs)
        with torch.no_grad():
            answer, _ = step.function(example, self.knobs, step.silence)
        self.program.steps.append(step)
        out = self.signal(answer.shape[-1] // 2, answer.shape[1])
        view = self.view_for_modules(wire)
        self.instruct(code, view, view, self.view_for_modules(out), count=len(self.program.steps) - 1)
        return out

    def finish(self, wire: Wire) -> Program:
        """Close the program with what it answers, carry over pasts, and let signals that live briefly share memory."""
        self.program.outlet = self.view_for_modules(wire)
        for number, signal in enumerate(list(self.program.signals)):
            if signal.past:
                self.carry(Wire(number, signal.width), signal)
        share(self.program)
        return self.program

    def carry(self, wire: Wire, signal: Signal) -> None:
        """The newest frames of a signal become the oldest of the next block."""
        size = Dim(signal.past * signal.width, 1, ROWS)
        head = self.view(wire, size, start=-signal.past)
        tail = self.view(wire, size, start=-signal.past, from_end=True)
        self.program.heads.append(head)
        if signal.past > signal.rate:
            # In a block of one hop the two overlap: by way of a copy.
            aside = self.view(self.signal(1, signal.past * signal.width), size)
            self.instruct(engine.COPY, tail, tail, aside)
            tail = aside
        self.instruct(engine.COPY, tail, tail, head)


def share(program: Program) -> None:
    """Give signals without a past places in shared workspaces, so that those alive at one time do not overlap."""
    born = {0: -1}
    last = {program.views[program.outlet][0]: len(program.instructions)}
    for i, step in enumerate(program.instructions):
        for view in (step.first, step.second, step.out):
            if view >= 0:
                signal = program.views[view][0]
                born.setdefault(signal, i)
                last[signal] = max(last.get(signal, i), i)
    placed: dict[bool, list[tuple[int, int, int, int]]] = {False: [], True: []}
    for signal in sorted(born, key=lambda s: born[s]):
        facts = program.signals[signal]
        if facts.past:
            continue
        size = -(-facts.rate * facts.width // ALIGNMENT) * ALIGNMENT
        others = placed[facts.half]
        at = 0
        for start, end in sorted(
            (start, end) for start, end, birth, death in others if birth <= last[signal] and born[signal] <= death
        ):
            if start - at >= size:
                break
            at = max(at, end)
        facts.slot = at
        others.append((at, at + size, born[signal], last[signal]))
    sizes = [max((end for _, end, _, _ in placed[half]), default=0) for half in (False, True)]
    program.shared = (sizes[0], sizes[1])


def conv_matrix(weight: Tensor) -> Tensor:
    """(out, in, taps) -> (out, taps * in)."""
    return weight.permute(0, 2, 1).reshape(weight.shape[0], -1)


def upsampling_matrix(weight: Tensor, stride: int) -> Tensor:
    """A transposed convolution as a convolution with ``stride`` frames per window.

    Output frame i of window n is the sum over m of x[n - m] w[i + m stride].

    Args:
        weight: shape (in, out, kernel).
        stride: output frames per input frame.

    Returns:
        Shape (stride * out, taps * in), taps from the oldest to the newest.
    """
    width, out, kernel = weight.shape
    taps = -(-kernel // stride)
    padded = nn.functional.pad(weight, (0, taps * stride - kernel)).reshape(width, out, taps, stride)
    return padded.flip(2).permute(3, 1, 2, 0).reshape(stride * out, taps * width)


def lower_conv(layer: Conv1d, wire: Wire, builder: Builder) -> Wire:
    return convolve(layer, layer.memory.length, wire, builder)


def lower_padded_conv(module: StreamableConv1d, wire: Wire, builder: Builder) -> Wire:
    return convolve(module.conv.conv, module.memory.length, wire, builder)


def convolve(layer: Any, memory: int, wire: Wire, builder: Builder) -> Wire:
    """A convolution whose first window begins so many frames in front of the block."""
    weight, bias, groups = layer.kernel(), layer.bias, layer.groups
    stride, dilation, kernel = layer.stride[0], layer.dilation[0], layer.kernel_size[0]
    narrow, out = weight.shape[1], weight.shape[0] // groups
    target = builder.signal(builder.rate(wire) // stride, out * groups)
    for g in range(groups):
        builder.conv(
            wire.channels(g * narrow, narrow),
            conv_matrix(weight[g * out : (g + 1) * out]),
            None if bias is None else bias[g * out : (g + 1) * out],
            kernel=kernel,
            dilation=dilation,
            stride=stride,
            memory=memory,
            into=target.channels(g * out, out),
        )
    return target


def lower_padded_upsampling(module: StreamableConvTranspose1d, wire: Wire, builder: Builder) -> Wire:
    return lower_upsampling(module.convtr.convtr, wire, builder)


def lower_upsampling(layer: Any, wire: Wire, builder: Builder) -> Wire:
    """A transposed convolution; what it cuts at the left is delay, which the blocks around it know of."""
    stride = layer.stride[0]
    matrix = upsampling_matrix(layer.kernel(), stride)
    taps = matrix.shape[1] // wire.width
    bias = None if layer.bias is None else layer.bias.repeat(stride)
    return builder.conv(wire, matrix, bias, kernel=taps, memory=taps - 1, up=stride)


def lower_sequential(modules: Sequential, wire: Wire, builder: Builder) -> Wire:
    for module in modules:
        wire = lower(module, wire, builder)
    return wire


def lower_branches(branches: Branches, wire: Wire, builder: Builder) -> list[Wire]:
    return [
        lower(branch, wire, builder).late(delay.samples)
        for branch, delay in zip(branches.branches, branches.delays, strict=True)
    ]


def lower_residual(residual: Residual, wire: Wire, builder: Builder) -> Wire:
    branch, skip = lower_branches(residual.aligned, wire, builder)
    return builder.binary(engine.ADD, branch, skip)


def lower_sum(module: Sum, wire: Wire, builder: Builder) -> Wire:
    total, *others = lower_branches(module.net, wire, builder)
    for other in others:
        total = builder.binary(engine.ADD, total, other)
    return total


def lower_shortcut(block: SEANetResnetBlock, wire: Wire, builder: Builder) -> Wire:
    skip = lower(block.shortcut, wire, builder).late(block.late.samples)
    return builder.binary(engine.ADD, lower(block.block, wire, builder), skip)


def lower_unit(unit: ResidualUnit, wire: Wire, builder: Builder) -> Wire:
    return builder.binary(engine.ADD, lower(unit.block, wire, builder), wire.late(unit.skip.samples))


def lower_lstm(module: LSTM, wire: Wire, builder: Builder) -> Wire:
    """What the input says to the gates is one product for all frames; what the units say to each other, one each."""
    y = wire
    for layer in range(module.num_layers):
        into, recurrent, first, second = (
            gates_in_order(getattr(module.lstm, f"{name}_l{layer}"))
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        y = builder.lstm(builder.conv(y, into, first + second), recurrent)
    return builder.binary(engine.ADD, y, wire) if module.skip else y


def gates_in_order(values: Tensor) -> Tensor:
    """Rows of torch's input, forget, cell and output gates -> input, forget, output, cell: sigmoids side by side."""
    i, f, g, o = values.chunk(4)
    return torch.cat([i, f, o, g])


def lower_generator_v2(generator: GeneratorV2, wire: Wire, builder: Builder) -> Wire:
    wire = lower(generator.net, wire, builder)
    bands = wire
    if generator.waveform_module is not None:
        bands = lower(generator.waveform_module, wire, builder).late(generator.waveform_delay.samples)
    if generator.amplitude_modulation:
        half = bands.width // 2
        amplitude = builder.unary(engine.SIGMOID, bands.channels(half, half))
        bands = builder.binary(engine.MULTIPLY, bands.channels(0, half), amplitude)
    if generator.noise_module is not None:
        noise = lower(generator.noise_module, wire, builder).late(generator.noise_delay.samples)
        bands = builder.binary(engine.ADD, bands, noise)
    return builder.unary(engine.TANH, bands)


def lower_generator_v1(generator: GeneratorV1, wire: Wire, builder: Builder) -> Wire:
    wave, loudness, *noise = lower_branches(generator.synth, lower(generator.net, wire, builder), builder)
    bands = builder.unary(engine.TANH, wave)
    # The amplitude 2 sigmoid(x)^2.3 + 1e-7 of rave_tools.nn.activations.
    amplitude = builder.unary(engine.POWER, builder.unary(engine.SIGMOID, loudness), 2.3)
    amplitude = builder.fixed(
        engine.ADD, builder.fixed(engine.MULTIPLY, amplitude, torch.tensor(2.0)), torch.tensor(1e-7)
    )
    bands = builder.binary(engine.MULTIPLY, bands, amplitude)
    for branch in noise if generator.noise_from_phase <= LAST_PHASE else []:
        bands = builder.binary(engine.ADD, bands, branch)
    return bands


def lower_batch_norm(norm: nn.BatchNorm1d, wire: Wire, builder: Builder) -> Wire:
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    wire = builder.fixed(engine.MULTIPLY, wire, scale)
    return builder.fixed(engine.ADD, wire, norm.bias - norm.running_mean * scale)


def lower_noise(noise: ScaledNoise, wire: Wire, builder: Builder) -> Wire:
    return lower(noise.synthesis, lower(noise.net, wire, builder), builder)


def lower_noise_synthesis(synthesis: NoiseSynthesis, wire: Wire, builder: Builder) -> Wire:
    """Noise filtered per frame, in products: sample n is the sum over m of response[m] noise[n - m].

    With the response turned round and silence in front of the noise, that is a row times a matrix whose rows are the
    noise, each a sample further on.
    """
    channels, samples, frames = synthesis.channels, synthesis.samples, builder.rate(wire)
    # The amplitude 2 sigmoid(x - 5)^2.3 + 1e-7 of rave_tools.nn.activations, its numbers inside of the filters.
    wire = builder.unary(engine.SIGMOID, builder.fixed(engine.ADD, wire, torch.tensor(-5.0)))
    responses = amplitudes_to_impulse_response(torch.eye(wire.width // channels), samples).t().flip(0)
    filters = builder.conv(
        builder.unary(engine.POWER, wire, 2.3), 2 * responses, 1e-7 * responses.sum(1), fold=channels, exact=True
    )
    noise = builder.signal(frames, channels * 2 * samples)
    each = Dim(frames * channels, 2 * samples, HOPS + ROWS)
    silence, sound = (builder.view(noise.channels(half, 1), each, Dim(samples, 1)) for half in (0, samples))
    builder.instruct(engine.COPY, builder.constant(torch.zeros(1)), silence, silence)
    builder.instruct(engine.UNIFORM, sound, sound, sound)
    products = builder.signal(frames, channels * samples * samples)
    square = builder.view(
        products, Dim(frames * channels, samples * samples, HOPS + ROWS), Dim(samples, samples), Dim(samples, 1)
    )
    row = builder.view(filters, Dim(frames * channels, samples, HOPS + ROWS), Dim(samples, 1), Dim(samples, 0))
    turned = builder.view(noise.channels(1, 1), each, Dim(samples, 1), Dim(samples, 1))
    builder.instruct(engine.MULTIPLY, row, turned, square)
    sums = builder.signal(frames, channels * samples)
    out = builder.view(sums, Dim(frames * channels, samples, HOPS + ROWS), Dim(samples, 1))
    builder.instruct(engine.SUM, square, square, out)
    audio = builder.signal(frames * samples, channels)
    time, rows = Dim(frames, channels * samples, HOPS, True), Dim(1, channels * samples, ROWS)
    source = builder.view(sums, time, rows, Dim(samples, 1), Dim(channels, samples))
    target = builder.view(audio, time, Dim(1, channels, ROWS), Dim(samples, channels, 0, True), Dim(channels, 1))
    builder.instruct(engine.KNOB, source, source, target, count=NOISE)
    return audio


@dataclass(frozen=True)
class Table:
    """One codebook of several that quantise what those before leave over.

    Attributes:
        scores: matrix and bias of the product whose largest number is the best code. Shapes (S, D') and (S,).
        values: what each code stands for. Shape (S, D).
        projection: matrix and bias of the way to the space in which codes are compared; None for that of the latents.
    """

    scores: tuple[Tensor, Tensor | None]
    values: Tensor
    projection: tuple[Tensor, Tensor] | None = None


def euclidean_tables(quantizer: ResidualVectorQuantization) -> list[Table]:
    """The nearest code has the largest x e - |e|^2 / 2."""
    tables = []
    for layer, values in zip(quantizer.layers, quantizer.tables(), strict=True):
        codes, inside = layer.codebook.embed, layer.project_in
        projection = (inside.weight, inside.bias) if layer.projected else None
        tables.append(Table((codes, -codes.square().sum(1) / 2), values, projection))
    return tables


def directional_tables(quantizer: FactorizedResidualVQ) -> list[Table]:
    """The code of the closest direction has the largest x e / |e|, however long x is."""
    tables = []
    for codebook in quantizer.quantizers:
        codes = nn.functional.normalize(codebook.codebook.weight)
        inside = codebook.in_proj
        tables.append(Table((codes, None), codebook.table(), (inside.kernel()[..., 0], inside.bias)))
    return tables


def lower_codes(tables: Sequence[Table], wire: Wire, builder: Builder) -> Wire:
    """Residual quantisation."""
    frames, size = builder.rate(wire), len(tables)
    codes = builder.signal(frames, size)
    rest = wire
    for k, table in enumerate(tables):
        compared = rest
        if table.projection is not None:
            compared = builder.conv(rest, *table.projection, exact=True)
        scores = builder.conv(compared, *table.scores, exact=True)
        room = builder.view(scores, Dim(frames, scores.width, HOPS + ROWS), Dim(scores.width, 1))
        best = builder.view(codes.channels(k, 1), Dim(frames, size, HOPS + ROWS))
        builder.instruct(engine.BEST, room, room, best)
        if k < size - 1:
            chosen = builder.signal(frames, rest.width)
            answer = builder.view(chosen, Dim(frames, rest.width, HOPS + ROWS), Dim(rest.width, 1))
            builder.instruct(engine.LOOK_UP, builder.constant(table.values.contiguous().t()), best, answer)
            rest = builder.binary(engine.SUBTRACT, rest, chosen)
    return codes


def find_tables(bottleneck: Any) -> list[Table] | None:
    """Codebooks of a bottleneck whose codes are found by products; None of any other."""
    if isinstance(bottleneck, DiscreteEncoder):
        return euclidean_tables(bottleneck.rvq)
    if isinstance(bottleneck, ResidualVectorQuantizer):
        return euclidean_tables(bottleneck.vq)
    if isinstance(bottleneck, FactorizedResidualVQ):
        return directional_tables(bottleneck)
    return None


def lower_posterior(posterior: Posterior, wire: Wire, builder: Builder) -> Wire:
    """A draw from a Gaussian, or what a network says, on principal axes; codes."""
    controls, bottleneck = posterior.controls, posterior.bottleneck
    tables = find_tables(bottleneck)
    if tables is not None and isinstance(controls, CodeControls):
        return lower_codes(tables[: controls.size], wire, builder)
    gaussian = isinstance(bottleneck, VariationalEncoder)
    plain = isinstance(bottleneck, (WasserteinEncoder, Unquantized))
    if not isinstance(controls, PrincipalControls) or not (gaussian or plain):
        return builder.call(posterior, wire)
    if gaussian:
        width = wire.width // 2
        deviation = builder.unary(engine.SOFTPLUS, wire.channels(width, width))
        deviation = builder.fixed(engine.ADD, deviation, torch.tensor(bottleneck.minimum_std))
        noise = builder.signal(builder.rate(wire), width)
        block = builder.block(noise)
        builder.instruct(engine.NORMAL, block, block, block)
        builder.instruct(engine.KNOB, block, block, block, count=TEMPERATURE)
        draw = builder.binary(engine.MULTIPLY, deviation, noise)
        wire = builder.binary(engine.ADD, wire.channels(0, width), draw)
    axes = controls.components[: controls.size]
    return builder.conv(wire, axes, -axes @ controls.mean, exact=True)


def lower_adaptive(norm: AdaptiveInstanceNormalization, wire: Wire, builder: Builder) -> Wire:
    return builder.call(norm, wire, code=engine.ADAPT)


def lower_flip(flip: SpectralFlip, wire: Wire, builder: Builder, channels: int) -> Wire:
    signs = flip.signs.t().repeat(1, channels).unsqueeze(1)
    return builder.flip(wire, signs, flip.start)


def lower_analysis(module: Analysis, wire: Wire, builder: Builder) -> Wire:
    """Audio to bands."""
    pqmf = module.pqmf
    if pqmf.ratio == 1:
        return wire
    layer = pqmf.forward_conv
    bands = builder.conv(
        wire,
        conv_matrix(layer.kernel()),
        kernel=layer.kernel_size[0],
        stride=layer.stride[0],
        memory=layer.memory.length,
        fold=wire.width,
        exact=True,
    )
    return lower_flip(pqmf.forward_flip, bands, builder, wire.width)


def lower_synthesis(module: Synthesis, wire: Wire, builder: Builder) -> Wire:
    """Bands to audio: the phases of a frame are frames of the output."""
    pqmf = module.pqmf
    if pqmf.ratio == 1:
        return wire
    channels = wire.width // pqmf.ratio
    layer = pqmf.inverse_conv
    wire = lower_flip(pqmf.inverse_flip, wire, builder, channels)
    matrix = conv_matrix(layer.kernel()).flip(0) * pqmf.ratio
    return builder.conv(
        wire,
        matrix,
        kernel=layer.kernel_size[0],
        memory=layer.memory.length,
        fold=channels,
        up=pqmf.ratio,
        exact=True,
    )


def lower_snake(snake: Snake, wire: Wire, builder: Builder) -> Wire:
    """x + sin(alpha x)^2 / alpha."""
    alpha = snake.alpha.reshape(-1, 1)
    sine = builder.unary(engine.SINE, builder.fixed(engine.MULTIPLY, wire, alpha))
    square = builder.binary(engine.MULTIPLY, sine, sine)
    return builder.binary(engine.ADD, builder.fixed(engine.MULTIPLY, square, 1 / (alpha + 1e-9)), wire)


LOWERINGS: dict[type[nn.Module], Callable[..., Wire]] = {
    Conv1d: lower_conv,
    ConvTranspose1d: lower_upsampling,
    Sequential: lower_sequential,
    Residual: lower_residual,
    Sum: lower_sum,
    Analysis: lower_analysis,
    Synthesis: lower_synthesis,
    ScaledNoise: lower_noise,
    NoiseSynthesis: lower_noise_synthesis,
    Posterior: lower_posterior,
    AdaptiveInstanceNormalization: lower_adaptive,
    Snake: lower_snake,
    GeneratorV1: lower_generator_v1,
    GeneratorV2: lower_generator_v2,
    nn.BatchNorm1d: lower_batch_norm,
    nn.Identity: lambda module, wire, builder: wire,
    nn.Dropout: lambda module, wire, builder: wire,
    Delay: lambda module, wire, builder: wire.late(module.samples),
    nn.LeakyReLU: lambda module, wire, builder: builder.unary(engine.LEAKY_RELU, wire, module.negative_slope),
    nn.Tanh: lambda module, wire, builder: builder.unary(engine.TANH, wire),
    nn.Sigmoid: lambda module, wire, builder: builder.unary(engine.SIGMOID, wire),
    nn.ELU: lambda module, wire, builder: builder.unary(engine.ELU, wire, module.alpha),
    StreamableConv1d: lower_padded_conv,
    StreamableConvTranspose1d: lower_padded_upsampling,
    LSTM: lower_lstm,
    SEANetEncoder: lambda module, wire, builder: lower(module.model, wire, builder),
    SEANetDecoder: lambda module, wire, builder: lower(module.model, wire, builder),
    SEANetResnetBlock: lower_shortcut,
    DACEncoder: lambda module, wire, builder: lower(module.block, wire, builder),
    DACDecoder: lambda module, wire, builder: lower(module.model, wire, builder),
    EncoderBlock: lambda module, wire, builder: lower(module.block, wire, builder),
    DecoderBlock: lambda module, wire, builder: lower(module.block, wire, builder),
    ResidualUnit: lower_unit,
}


def lower(module: nn.Module, wire: Wire, builder: Builder) -> Wire:
    """Add a streaming module to a program.

    Args:
        module: evaluated, streaming, without weight normalisation.
        wire: its input.
        builder: of the program.

    Returns:
        Its output.
    """
    if type(module) in LOWERINGS:
        return LOWERINGS[type(module)](module, wire, builder)
    if isinstance(module, Chain) and type(module).forward is Chain.forward:
        return lower(module.net, wire, builder)
    if isinstance(module, Sum):
        return lower_sum(module, wire, builder)
    if isinstance(module, Conv1d) and module.stride[0] == 1:
        return lower_conv(module, wire, builder)
    return builder.call(module, wire)
