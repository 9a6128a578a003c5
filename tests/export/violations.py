"""Small nn~ models: one that keeps the whole contract, and for each clause one that breaks it."""

import torch
from torch import Tensor, nn

HOP = 64
RATE = 8000


class Keeper(nn.Module):
    """Delays audio by HOP samples; encode and decode fold it into frames and back. Keeps every clause."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("encode_params", torch.tensor([1, 1, HOP, HOP]))
        self.register_buffer("decode_params", torch.tensor([HOP, HOP, 1, 1]))
        self.register_buffer("forward_params", torch.tensor([1, 1, 1, 1]))
        self.register_buffer("gain_params", torch.tensor([2]))
        self.register_buffer("reset_params", torch.tensor([1]))
        self.memory = torch.zeros(1, 1, HOP)
        self.gain = (1.0,)
        self.reset = (0,)
        self.sr = RATE
        self.sampling_rate = RATE
        self.full_latent_size = HOP
        self.latency_samples = HOP
        self.stereo = False
        frames, audio = [f"Bin {i}" for i in range(HOP)], ["Audio"]
        self.encode_input_labels, self.encode_output_labels = audio, frames
        self.decode_input_labels, self.decode_output_labels = frames, audio
        self.forward_input_labels, self.forward_output_labels = audio, audio
        self.methods = ["encode", "decode", "forward"]
        self.attributes = ["gain", "reset"]

    @torch.jit.export
    def get_methods(self) -> list[str]:
        return self.methods

    @torch.jit.export
    def get_attributes(self) -> list[str]:
        return self.attributes

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[2] // 64, 64).transpose(1, 2).clone()

    @torch.jit.export
    def decode(self, z: Tensor) -> Tensor:
        y = z.transpose(1, 2).reshape(z.shape[0], 1, z.shape[2] * 64)
        if self.stereo:
            y = y.transpose(0, 1)
        return y.clone()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
        if self.memory.shape[0] != x.shape[0]:
            self.memory = torch.zeros(x.shape[0], 1, self.memory.shape[2])
        y = torch.cat([self.memory, x], 2)
        self.memory = y[..., y.shape[2] - self.memory.shape[2] :].clone()
        return self.gain[0] * y[..., : x.shape[2]]

    @torch.jit.export
    def set_gain(self, gain: float) -> int:
        self.gain = (gain,)
        return 0

    @torch.jit.export
    def get_gain(self) -> tuple[float]:
        return self.gain

    @torch.jit.export
    def set_reset(self, reset: int) -> int:
        self.memory = torch.zeros_like(self.memory)
        return 0

    @torch.jit.export
    def get_reset(self) -> tuple[int]:
        return self.reset

    @torch.jit.export
    def set_stereo_mode(self, stereo: Tensor) -> int:
        self.stereo = bool(stereo.item())
        return 0


class ListParams(Keeper):
    def __init__(self) -> None:
        super().__init__()
        del self.forward_params
        self.forward_params = [1, 1, 1, 1]


class ThreeNumbers(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.forward_params = torch.tensor([1, 1, 1])


class OddRatio(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.encode_params = torch.tensor([1, 1, 48, 48])

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[2] // 48, 48).transpose(1, 2).clone()


class OddRatioEverywhere(OddRatio):
    def __init__(self) -> None:
        super().__init__()
        self.forward_params = torch.tensor([1, 48, 1, 48])


class NeedsTwo(Keeper):
    def forward(self, x: Tensor, amount: float) -> Tensor:
        return amount * x


class Pair(Keeper):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Half(Keeper):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


class Longer(Keeper):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 2)


class Ghost(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.methods = ["encode", "decode", "forward", "prior"]


class Unnumbered(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.methods = ["encode", "decode", "forward", "get_methods"]


class NoForward(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.methods = ["encode", "decode"]


class OnlyShort(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.methods = ["forward"]


class ScalarGetter(Keeper):
    @torch.jit.export
    def get_gain(self) -> float:
        return self.gain[0]


class SilentSetter(Keeper):
    @torch.jit.export
    def set_gain(self, gain: float) -> None:
        self.gain = (gain,)


class OtherSetter(Keeper):
    @torch.jit.export
    def set_gain(self, gain: Tensor) -> int:
        return 0


class FlatParams(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.gain_params = torch.tensor(2)


class Undeclared(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.attributes = ["gain", "reset", "colour"]
        self.register_buffer("colour_params", torch.tensor([2]))


class InPlaceReset(Keeper):
    @torch.jit.export
    def set_reset(self, reset: int) -> int:
        self.memory.zero_()
        return 0


class FloatRate(Keeper):
    @torch.jit.export
    def set_sample_rate(self, rate: float) -> None:
        self.sr = int(rate)


class WrongLabels(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.forward_input_labels = ["left", "right"]


class KeepsView(Keeper):
    def forward(self, x: Tensor) -> Tensor:
        if self.memory.shape[0] != x.shape[0]:
            self.memory = torch.zeros(x.shape[0], 1, 64)
        y = torch.cat([self.memory, torch.nan_to_num(x, 0.0)], 2)
        self.memory = x[..., x.shape[2] - 64 :]
        return y[..., : x.shape[2]].nan_to_num(0.0)


class GivesState(Keeper):
    """A comb filter whose last frame of output is its state, not a copy of it."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
        if self.memory.shape[0] != x.shape[0]:
            self.memory = torch.zeros(x.shape[0], 1, 64)
        frame = self.memory
        frames: list[Tensor] = []
        for start in range(0, x.shape[2], 64):
            frame = x[..., start : start + 64] + 0.5 * frame
            frames.append(frame)
        y = torch.cat(frames, 2)
        self.memory = y[..., x.shape[2] - 64 :]
        return y


class NeverForgets(Keeper):
    """A leaky integral: what is not a number stays in it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.memory.shape[0] != x.shape[0]:
            self.memory = torch.zeros(x.shape[0], 1, 64)
        y = x + 0.5 * self.memory[..., :1]
        self.memory = 0.9 * self.memory + x.mean(2, keepdim=True)
        return y


class ForgetsLate(Keeper):
    """A mean over 257 samples without a guard: one NaN comes out 257 times."""

    def __init__(self) -> None:
        super().__init__()
        self.latency_samples = 2 * HOP

    def forward(self, x: Tensor) -> Tensor:
        if self.memory.shape[0] != x.shape[0] or self.memory.shape[2] != 4 * 64:
            self.memory = torch.zeros(x.shape[0], 1, 4 * 64)
        y = torch.cat([self.memory, x], 2)
        self.memory = y[..., y.shape[2] - 4 * 64 :].clone()
        return torch.nn.functional.avg_pool1d(y, 4 * 64 + 1, stride=1)


class Clicks(Keeper):
    """A smoothing filter that begins anew with zeros in each block."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
        return torch.nn.functional.avg_pool1d(torch.nn.functional.pad(x, [16, 16]), 33, stride=1)


class RandomClicks(Keeper):
    """The same with noise upon it, so that no two outputs are equal."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
        x = torch.nn.functional.pad(x + 1.0, [16, 16])
        return torch.nn.functional.avg_pool1d(x, 33, stride=1) + 0.001 * torch.rand_like(x[..., 32:])


class OneRow(Keeper):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.memory, torch.nan_to_num(x, 0.0, 0.0, 0.0)], 2)
        self.memory = y[..., y.shape[2] - 64 :].clone()
        return y[..., : x.shape[2]]


class OneBlock(Keeper):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 1, 64).clone()


class Diverged(Keeper):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0.0


class LatencyLies(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.latency_samples = 1000


class Unannounced(Keeper):
    def __init__(self) -> None:
        super().__init__()
        del self.latency_samples


class MonoOnly(Keeper):
    @torch.jit.export
    def decode(self, z: Tensor) -> Tensor:
        return z.transpose(1, 2).reshape(z.shape[0], 1, z.shape[2] * 64)[:1].clone()


class Stranger(nn.Module):
    """What a RAVE export of acids-rave looks like from outside: its attributes, its random latents, its memory."""

    def __init__(self) -> None:
        super().__init__()
        for name, numbers in (("encode", [1, 1, 8, HOP]), ("decode", [8, HOP, 1, 1]), ("forward", [1, 1, 1, 1])):
            self.register_buffer(f"{name}_params", torch.tensor(numbers, dtype=torch.float32))
        self.register_buffer("learn_target_params", torch.tensor([0.0]))
        self.register_buffer("line", torch.zeros(64, 1, 16 * HOP))
        directions = torch.randn(HOP, 8, generator=torch.Generator().manual_seed(0))
        self.register_buffer("basis", torch.linalg.qr(directions)[0])
        self.learn_target = (False,)
        self.full_latent_size = 8
        self.sr = RATE
        self.attributes = ["none", "learn_target"]

    @torch.jit.export
    def get_methods(self) -> list[str]:
        return ["encode", "decode", "forward"]

    @torch.jit.export
    def get_attributes(self) -> list[str]:
        return self.attributes

    @torch.jit.export
    def get_learn_target(self) -> bool:
        return self.learn_target[0]

    @torch.jit.export
    def set_learn_target(self, learn_target: bool) -> int:
        self.learn_target = (learn_target,)
        return 0

    @torch.jit.export
    def set_stereo_mode(self, stereo: Tensor) -> None:
        pass

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        y = torch.cat([self.line[:rows], x], 2)
        self.line[:rows] = y[..., x.shape[2] :]
        frames = torch.nn.functional.avg_pool1d(y, 16 * 64 + 1, stride=1) + y[..., 512 : 512 + x.shape[2]]
        z = torch.matmul(self.basis.t(), frames.reshape(rows, x.shape[2] // 64, 64).transpose(1, 2))
        return z + 0.01 * torch.randn_like(z)

    @torch.jit.export
    def decode(self, z: Tensor, from_forward: bool = False) -> Tensor:
        return torch.matmul(self.basis, z).transpose(1, 2).reshape(z.shape[0], 1, z.shape[2] * 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x), from_forward=True)
