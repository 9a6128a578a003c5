"""The streaming step as a flat program over one workspace: what a host's audio thread runs.

A block of a realtime model is a few frames through many layers. Convolution kernels made for long signals spend such a
block on set-up and on memory; here a layer is one matrix product over unfolded frames, written straight to where the
next layer reads it. Signals lie time first, (T, B, C), so a past is a few rows in front of a block, a skip connection
that waits is a view further up, and upsampling is a reshape.

``rave_tools.export.lowering`` writes the program; ``Engine`` carries it out in TorchScript. Views are made once per
block size, and no step allocates memory. The loop over the program is a small graph whatever the depth of the model, so
a host's compiler is done with it soon.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rave_tools.export.step import Step

COPY, MATMUL, LEAKY_RELU, ADD, MULTIPLY, SIGMOID, TANH, SINE, POWER, CLEAN, SIGNS, CALL, PACKED = range(13)
SOFTPLUS, NORMAL, UNIFORM, KNOB, SUM, ADAPT, BEST, LOOK_UP, SUBTRACT, ELU, CELL, LSTM = range(13, 25)
"""Instructions; ``Engine.forward`` carries them out."""

ALWAYS, ONE_ROW, SEVERAL_ROWS = range(3)
"""When an instruction applies."""

HOPS, ROWS = 1, 2
"""What the size of a dimension is multiplied by."""

ALIGNMENT = 16
"""Numbers to whose multiples the places of signals are rounded."""


@dataclass
class Signal:
    """A place in the workspace.

    Attributes:
        rate: frames per hop.
        width: numbers per frame and row.
        past: frames of earlier blocks that are kept in front of the block.
        half: stored in bfloat16.
        slot: place in the part of the workspace that signals without a past share, in numbers per hop and row; -1 for a
            place of its own.
    """

    rate: int
    width: int
    past: int = 0
    half: bool = False
    slot: int = -1


@dataclass
class Instruction:
    """One step.

    Attributes:
        code: what to do.
        first, second: numbers of views to read; below zero, a constant: -1 - its number.
        out: number of the view to write.
        value: a number that the instruction needs.
        count: an integer that it needs.
        when: ALWAYS, ONE_ROW or SEVERAL_ROWS.
    """

    code: int
    first: int
    second: int
    out: int
    value: float = 0.0
    count: int = 0
    when: int = ALWAYS


@dataclass
class Program:
    """One half of a model.

    Attributes:
        signals: the first is the input.
        views: windows on signals: signal, offset from the block's start in numbers, the same per row, the same per
            hop and row, then per dimension its size, what multiplies it (HOPS, ROWS), its stride, and 1 if the stride
            is per row.
        instructions: in order.
        constants: matrices (out, in) transposed to (in, out), and vectors.
        steps: functions for what has no instruction of its own.
        inlet, outlet: views (B, C, T) of input and output.
        heads: views of all pasts.
        shared: sizes of the shared parts, in numbers per hop and row: float32, bfloat16.
        loudest: input is cut there.
    """

    signals: list[Signal] = field(default_factory=list)
    views: list[list[int]] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    inlet: int = 0
    outlet: int = 0
    heads: list[int] = field(default_factory=list)
    shared: tuple[int, int] = (0, 0)
    loudest: float = float("inf")


class Stage(nn.Module):
    """A traced function with its state.

    Args:
        step: ``(x, knobs, state) -> (y, state)``.
        loudest: input is cut there.
    """

    def __init__(self, step: Step, loudest: float = float("inf")) -> None:
        super().__init__()
        self.loudest = loudest
        self.function = step.function
        self.silence = step.silence
        self.state = list(step.silence)
        self.rows = 0

    @torch.jit.export
    def forget(self) -> None:
        """Forget everything heard."""
        self.rows = 0

    def forward(self, x: Tensor, knobs: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        if x.shape[0] != self.rows:
            self.rows = x.shape[0]
            state: list[Tensor] = []
            for room in self.silence:
                # Rows of a state are a multiple of those of the signal (a filter bank has one per channel).
                state.append(torch.zeros([room.shape[0] * self.rows, room.shape[1], room.shape[2]], dtype=room.dtype))
            self.state = state
        if self.loudest < float("inf"):
            x = torch.nan_to_num(x, 0.0, 0.0, 0.0).clamp(-self.loudest, self.loudest)
        y, state = self.function(x, knobs, self.state)
        self.state = state
        return y


class Engine(nn.Module):
    """Carries out a program.

    A workspace is made for one block size and batch size. Two are kept: a queue in front whose blocks are no whole hops
    hands over one of two numbers of them, in turns, and making a workspace takes longer than a block. What was heard
    goes along to another block size and is forgotten with another batch size. Input and output are never views of a
    workspace.

    Args:
        program: of a half.
        products: how to multiply.
    """

    # For TorchScript: a program may be so short that a list is empty.
    rates: list[int]
    widths: list[int]
    pasts: list[int]
    halves: list[bool]
    slots: list[int]
    specs: list[list[int]]
    program_codes: list[int]
    program_whens: list[int]
    program_operands: list[list[int]]
    program_values: list[float]
    program_counts: list[int]
    head_views: list[int]

    def __init__(self, program: Program, products: nn.Module) -> None:
        super().__init__()
        self.products = products
        self.rates = [signal.rate for signal in program.signals]
        self.widths = [signal.width for signal in program.signals]
        self.pasts = [signal.past for signal in program.signals]
        self.halves = [signal.half for signal in program.signals]
        self.slots = [signal.slot for signal in program.signals]
        self.specs = [list(view) for view in program.views]
        # One list per field: TorchScript reads a list of integers faster than a list of objects.
        self.program_codes = [step.code for step in program.instructions]
        self.program_whens = [step.when for step in program.instructions]
        self.program_operands = [[step.first, step.second, step.out] for step in program.instructions]
        self.program_values = [step.value for step in program.instructions]
        self.program_counts = [step.count for step in program.instructions]
        self.constants = [*program.constants, torch.zeros(1)]
        self.stages = nn.ModuleList(Stage(step) for step in program.steps)
        self.inlet_view, self.outlet_view = program.inlet, program.outlet
        self.head_views = list(program.heads)
        self.shared, self.shared_half = program.shared
        self.loudest = program.loudest
        self.hops = 0
        self.rows = 0
        self.clock = 0
        self.fresh = True
        self.adaptive = ADAPT in self.program_codes
        self.adapting = False
        nothing = torch.zeros(0)
        self.nothing = torch.zeros(0, dtype=torch.int64)
        self.inlet, self.outlet = nothing, nothing
        self.codes, self.counts, self.values = [0], [0], [0.0]
        self.firsts, self.seconds, self.outs = [nothing], [nothing], [nothing]
        self.heads = [nothing]
        # The other workspace.
        self.other_hops, self.other_rows = 0, 0
        self.other_inlet, self.other_outlet = nothing, nothing
        self.other_codes, self.other_counts, self.other_values = [0], [0], [0.0]
        self.other_firsts, self.other_seconds, self.other_outs = [nothing], [nothing], [nothing]
        self.other_heads = [nothing]

    @torch.jit.export
    def forget(self) -> None:
        """Forget everything heard; takes effect with the next block, in the mode that it runs in."""
        self.fresh = True

    def change(self, hops: int, rows: int, locked: bool) -> None:
        """Go on with blocks of that many hops and rows, in the other workspace.

        Args:
            hops, rows: of the blocks.
            locked: inference mode is over; what was made in it cannot be written to.
        """
        if rows != self.rows:
            self.fresh = True
        self.swap()
        if hops != self.hops or rows != self.rows or (locked and self.inlet.is_inference()):
            self.plan(hops, rows)
        if not self.fresh:
            for k, past in enumerate(self.other_heads):
                self.heads[k].copy_(past)

    def swap(self) -> None:
        """The other workspace becomes the one in use."""
        self.hops, self.other_hops = self.other_hops, self.hops
        self.rows, self.other_rows = self.other_rows, self.rows
        self.inlet, self.other_inlet = self.other_inlet, self.inlet
        self.outlet, self.other_outlet = self.other_outlet, self.outlet
        self.codes, self.other_codes = self.other_codes, self.codes
        self.counts, self.other_counts = self.other_counts, self.counts
        self.values, self.other_values = self.other_values, self.values
        self.firsts, self.other_firsts = self.other_firsts, self.firsts
        self.seconds, self.other_seconds = self.other_seconds, self.seconds
        self.outs, self.other_outs = self.other_outs, self.outs
        self.heads, self.other_heads = self.other_heads, self.heads

    def plan(self, hops: int, rows: int) -> None:
        """Make the workspace in use, and every view, for blocks of that many hops and rows."""
        self.hops = hops
        self.rows = rows
        bases: list[int] = []
        size, half_size = self.shared * hops * rows, self.shared_half * hops * rows
        for i, slot in enumerate(self.slots):
            if slot >= 0:
                bases.append(slot * hops * rows)
            else:
                frames = self.pasts[i] + self.rates[i] * hops
                bases.append(size + self.pasts[i] * self.widths[i] * rows)
                size += (frames * self.widths[i] * rows + 15) // 16 * 16
        workspace = torch.zeros([size])
        half_workspace = torch.zeros([half_size], dtype=torch.bfloat16)
        views: list[Tensor] = []
        for spec in self.specs:
            sizes: list[int] = []
            strides: list[int] = []
            for k in range(4, len(spec), 4):
                scale = (hops if spec[k + 1] % 2 == 1 else 1) * (rows if spec[k + 1] >= 2 else 1)
                sizes.append(spec[k] * scale)
                strides.append(spec[k + 2] * (rows if spec[k + 3] == 1 else 1))
            at = bases[spec[0]] + spec[1] + (spec[2] + spec[3] * hops) * rows
            memory = half_workspace if self.halves[spec[0]] else workspace
            views.append(memory.as_strided(sizes, strides, at))
        self.inlet, self.outlet = views[self.inlet_view], views[self.outlet_view]
        codes: list[int] = []
        counts: list[int] = []
        values: list[float] = []
        operands: list[list[Tensor]] = [[], [], []]
        for i, when in enumerate(self.program_whens):
            if when == 0 or (when == 1) == (rows == 1):
                code, count = self.program_codes[i], self.program_counts[i]
                for k, number in enumerate(self.program_operands[i]):
                    operands[k].append(views[number] if number >= 0 else self.constants[-1 - number])
                if code == 1 and self.products.serves(operands[0][-1].shape[0], count == 1):
                    code, count = 12, self.products.place(self.program_operands[i][1], operands[1][-1])
                if code == 20:
                    # What the codes of a codebook stand for, (D, S), as a table.
                    operands[0][-1] = operands[0][-1].t()
                codes.append(code)
                counts.append(count)
                values.append(self.program_values[i])
        self.codes, self.counts, self.values = codes, counts, values
        self.firsts, self.seconds, self.outs = operands[0], operands[1], operands[2]
        heads: list[Tensor] = []
        for number in self.head_views:
            heads.append(views[number])
        self.heads = heads

    def forward(self, x: Tensor, knobs: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T'), T a multiple of the hop."""
        hops = x.shape[2] // self.rates[0]
        # Memory made in inference mode must not be changed outside of it.
        locked = self.inlet.is_inference() and not x.new_empty([0]).is_inference()
        if hops != self.hops or x.shape[0] != self.rows or locked:
            self.change(hops, x.shape[0], locked)
        if self.fresh:
            for head in self.heads:
                head.zero_()
            for stage in self.stages:
                stage.forget()
            self.clock = 0
            self.fresh = False
            self.adapting = False
        if self.adaptive and not self.adapting:
            # Behind temperature and noise lie the switches.
            self.adapting = bool((knobs[2:] != 0).any())
        self.inlet.copy_(x)
        codes, firsts, seconds, outs, best = self.codes, self.firsts, self.seconds, self.outs, self.nothing
        old_cells, old_outputs, cells = self.inlet, self.inlet, self.inlet
        for i in range(len(codes)):
            code, a, out = codes[i], firsts[i], outs[i]
            if code == 0:
                out.copy_(a)
            elif code == 1:
                torch.mm(a, seconds[i], out=out)
            elif code == 12:
                self.products.multiply(a, self.counts[i], out)
            elif code == 2:
                torch._C._nn.leaky_relu(a, self.values[i], out=out)
            elif code == 3:
                torch.add(a, seconds[i], out=out)
            elif code == 4:
                torch.mul(a, seconds[i], out=out)
            elif code == 5:
                torch.sigmoid(a, out=out)
            elif code == 6:
                torch.tanh(a, out=out)
            elif code == 7:
                torch.sin(a, out=out)
            elif code == 8:
                torch.pow(a, self.values[i], out=out)
            elif code == 9:
                torch.nan_to_num(a, 0.0, 0.0, 0.0, out=out)
                torch.clamp(out, -self.loudest, self.loudest, out=out)
                # Numbers that a processor has to compute in software (denormal ones): at -400 dB they are silence.
                torch.hardshrink(out, 1e-20, out=out)
            elif code == 10:
                # An alternating sign goes on where the last block left it.
                frames = a.shape[0]
                start = (self.counts[i] + self.clock * (frames // hops)) % 2
                signs = seconds[i].repeat([frames // 2 + 1, 1, 1])
                torch.mul(a, signs[start : start + frames], out=out)
            elif code == 13:
                torch._C._nn.softplus(a, out=out)  # type: ignore[call-arg]
            elif code == 14:
                out.normal_()
            elif code == 15:
                out.uniform_(-1.0, 1.0)
            elif code == 16:
                torch.mul(a, knobs[self.counts[i]], out=out)
            elif code == 17:
                torch.sum(a, [1], out=out)
            elif code == 19:
                best = torch.argmax(a, 1)
                out.copy_(best)
            elif code == 20:
                # What the last BEST has chosen.
                torch.index_select(a, 0, best, out=out)
            elif code == 21:
                torch.sub(a, seconds[i], out=out)
            elif code == 22:
                torch._C._nn.elu(a, self.values[i], out=out)  # type: ignore[call-arg]
            elif code == 23:
                # Where the next LSTM remembers: cells and outputs of the frame before, cells of this one.
                old_cells, old_outputs, cells = a, seconds[i], out
            elif code == 24:
                units = out.shape[2]
                for t in range(a.shape[0]):
                    gates, cell = a[t], cells[t]
                    gates.addmm_(old_outputs[t], seconds[i])
                    sigmoids = gates[:, : 3 * units].sigmoid_()
                    torch.mul(old_cells[t], sigmoids[:, units : 2 * units], out=cell)
                    cell.addcmul_(sigmoids[:, :units], gates[:, 3 * units :].tanh_())
                    torch.tanh(cell, out=out[t])
                    out[t].mul_(sigmoids[:, 2 * units :])
            elif code == 18 and not self.adapting:
                # Statistics that nobody has learned change nothing.
                out.copy_(a)
            else:
                for j, stage in enumerate(self.stages):
                    if j == self.counts[i]:
                        out.copy_(stage(a, knobs))
        self.clock = (self.clock + hops) % 2
        return torch.clone(self.outlet, memory_format=torch.contiguous_format)
