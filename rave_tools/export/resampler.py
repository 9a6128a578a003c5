"""A model at another sample rate than its own: integer ratios, block by block, with a stated delay."""

import math

import torch
from scipy.signal import firwin, kaiser_beta
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.errors import UserError
from rave_tools.export.parts import Parts
from rave_tools.nn.streaming import Delay, Memory

ZERO_CROSSINGS = 40
ATTENUATION = 90.0


def rate_ratio(sample_rate: int, target: int) -> int:
    """How many samples of the faster rate one sample of the slower is.

    Raises:
        UserError: no integer, so blocks of the host would not be whole blocks of the model.
    """
    fast, slow = max(sample_rate, target), min(sample_rate, target)
    if slow <= 0 or fast % slow:
        rates = ", ".join(str(sample_rate * k) for k in (2, 4)) + ", " + str(sample_rate // 2)
        raise UserError(
            f"a model at {sample_rate} Hz cannot be exported at {target} Hz: blocks of a host must be whole blocks of "
            f"the model, so one rate has to be a multiple of the other (--sr {rates}); others the host must convert"
        )
    return fast // slow


def lowpass(ratio: int, half: int, attenuation: float = ATTENUATION) -> Tensor:
    """Linear-phase anti-aliasing filter at the faster rate with unit gain at 0 Hz, stop band from the slower Nyquist
    on.

    Args:
        ratio: faster rate over slower rate.
        half: samples on either side of the centre.
        attenuation: of the stop band, in dB.

    Returns:
        Shape (2 half + 1,).
    """
    length = 2 * half + 1
    # Kaiser's formula for the width of the transition, as a share of the Nyquist frequency of the faster rate.
    transition = (attenuation - 7.95) / (2.285 * (length - 1)) / math.pi
    window = ("kaiser", kaiser_beta(attenuation))
    taps = torch.from_numpy(firwin(length, 1 / ratio - transition / 2, window=window))
    return (taps / taps.sum()).float()


class Decimator(nn.Module):
    """Low-pass and keep one of ``ratio`` samples; streaming, late by ``ZERO_CROSSINGS`` samples of the slower rate.

    Args:
        ratio: input samples per output sample.
    """

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        # Output n of a block hears up to the last sample of its own group, n ratio + ratio - 1: that much more is free.
        self.register_buffer("taps", lowpass(ratio, ratio * (ZERO_CROSSINGS + 1) - 1)[None, None])
        self.memory = Memory()
        self.memory.length = self.taps.shape[-1] - ratio

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T / ratio)."""
        x = self.memory(x)
        y = F.conv1d(x.reshape(x.shape[0] * x.shape[1], 1, x.shape[2]), self.taps, stride=self.ratio)
        return y.reshape(x.shape[0], x.shape[1], y.shape[2])

    def offline(self, x: Tensor) -> Tensor:
        """The same without state and without delay: (B, C, T) -> (B, C, T / ratio)."""
        half = self.taps.shape[-1] // 2
        flat = x.reshape(-1, 1, x.shape[-1])
        return F.conv1d(F.pad(flat, (half, half)), self.taps, stride=self.ratio).reshape(*x.shape[:-1], -1)


class Interpolator(nn.Module):
    """``ratio`` samples for one; streaming, late by ``ZERO_CROSSINGS`` samples of the slower rate.

    Args:
        ratio: output samples per input sample.
    """

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        taps = lowpass(ratio, ratio * ZERO_CROSSINGS) * ratio
        phases = F.pad(taps, (0, -taps.shape[0] % ratio)).reshape(-1, ratio).T
        self.register_buffer("phases", phases.flip(-1)[:, None].contiguous())
        self.memory = Memory()
        self.memory.length = self.phases.shape[-1] - 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T * ratio)."""
        return self.interpolate(self.memory(x))

    def interpolate(self, x: Tensor) -> Tensor:
        """(B, C, taps - 1 + T) -> (B, C, T * ratio)."""
        y = F.conv1d(x.reshape(x.shape[0] * x.shape[1], 1, x.shape[2]), self.phases)
        return y.transpose(1, 2).reshape(x.shape[0], x.shape[1], y.shape[2] * self.ratio)

    def offline(self, x: Tensor) -> Tensor:
        """The same without state and without delay: (B, C, T) -> (B, C, T * ratio)."""
        late = self.interpolate(F.pad(x, (self.phases.shape[-1] - 1, ZERO_CROSSINGS)))
        return late[..., ZERO_CROSSINGS * self.ratio :]


class Resampled(Parts):
    """Two halves that run at a host's rate.

    Args:
        parts: the halves at the model's rate.
        sample_rate: of the model, in hertz.
        target: the host's, in hertz; a multiple or a divisor of the model's.
        offset, latency, hop: of the halves, in samples of the model.

    Attributes:
        offset, latency: of the whole, in samples of the host.
    """

    def __init__(self, parts: Parts, sample_rate: int, target: int, *, offset: int, latency: int, hop: int) -> None:
        ratio = rate_ratio(sample_rate, target)
        early, late = Delay(), Delay()
        enter: nn.Module = Decimator(ratio) if target > sample_rate else Interpolator(ratio)
        leave: nn.Module = Interpolator(ratio) if target > sample_rate else Decimator(ratio)
        super().__init__([enter, early, *parts.encoding], [*parts.decoding, late, leave])
        # The filter in front shifts the signal on the model's grid too.
        offset += ZERO_CROSSINGS * (1 if target > sample_rate else ratio)
        if target > sample_rate:
            self.offset = offset % hop * ratio
            self.latency = (latency + 2 * ZERO_CROSSINGS) * ratio
        else:
            # Both numbers must be whole samples of the slower host: wait for the next one.
            early.set(-offset % ratio)
            late.set(-(latency + early.samples) % ratio)
            self.offset = (offset + early.samples) % hop // ratio
            self.latency = (latency + early.samples + late.samples) // ratio + 2 * ZERO_CROSSINGS
