"""Ways to put streaming blocks together: one after the other, side by side, around."""

from torch import Tensor, nn

from rave_tools.nn.streaming import Delay, Streamable, stream_through


class Sequential(nn.Sequential, Streamable):
    """Modules in a row: the delay behind one is the delay in front of the next."""

    def enable_streaming(self, delay: int) -> int:
        for name, module in self.named_children():
            delay = stream_through(module, delay, name)
        return delay


class Branches(nn.Module, Streamable):
    """Modules side by side on one input; streaming, all wait for the slowest.

    Args:
        branches: modules with the same ratio between input and output length.

    Every branch is delayed at its output, so ratios other than one and strides inside a branch keep their grid.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.delays = nn.ModuleList(Delay() for _ in branches)

    def enable_streaming(self, delay: int) -> int:
        delays = [stream_through(branch, delay, f"branches.{i}") for i, branch in enumerate(self.branches)]
        for line, own in zip(self.delays, delays, strict=True):
            line.set(max(delays) - own)
        return max(delays)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, T) -> one (B, C', T') per branch."""
        outputs: list[Tensor] = []
        for branch, delay in zip(self.branches, self.delays):  # noqa: B905 (TorchScript knows no strict)
            outputs.append(delay(branch(x)))
        return outputs


class Residual(nn.Module, Streamable):
    """x + module(x); streaming, the skip waits for what the module costs.

    Args:
        module: keeps channels and length.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.aligned = Branches(module, nn.Identity())

    def enable_streaming(self, delay: int) -> int:
        return self.aligned.enable_streaming(delay)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        outputs = self.aligned(x)
        return outputs[0] + outputs[1]


class Sum(nn.Module, Streamable):
    """Sum of modules side by side on one input.

    Args:
        branches: modules with outputs of one shape.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.net = Branches(*branches)

    def enable_streaming(self, delay: int) -> int:
        return self.net.enable_streaming(delay)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        outputs = self.net(x)
        total = outputs[0]
        for other in outputs[1:]:
            total = total + other
        return total
