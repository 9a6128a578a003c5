"""Exported models, our own and those of acids-rave, as machines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rave_tools.errors import UserError
from rave_tools.inference.reconstruct import Machine

LONGEST_PROBE = 1 << 16


class ExportedModelError(UserError):
    """A .ts file cannot be loaded or lacks what is needed to play it."""


def load(path: Path, device: str) -> torch.jit.ScriptModule:
    """Load a TorchScript archive.

    Raises:
        ExportedModelError: it is none, or needs operators that this torch does not have.
    """
    if not path.is_file():
        raise ExportedModelError(f"{path}: there is no such file")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ExportedModelError(f"{path} is not a TorchScript model that can be loaded: {reason[-1]}") from error


def _number(module: torch.jit.ScriptModule, *names: str) -> int | None:
    """The first of several attributes that is there; some exports store tensors, old ones in a submodule."""
    for holder in (module, getattr(module, "_rave", None)):
        for name in names:
            value = getattr(holder, name, None) if holder is not None else None
            if isinstance(value, (int, Tensor)):
                return int(value)
    return None


def rate_of(module: torch.jit.ScriptModule) -> int | None:
    """The sample rate that a module says it has, in hertz."""
    return _number(module, "sr", "sampling_rate", "sample_rate")


def _params(module: torch.jit.ScriptModule, method: str) -> list[int] | None:
    value = getattr(module, f"{method}_params", None)
    return [int(number) for number in value] if isinstance(value, Tensor) and value.numel() == 4 else None


def machine_of_file(
    path: Path,
    *,
    temperature: float | None = None,
    noise: float | None = None,
    sample_rate: int | None = None,
    device: str = "cpu",
) -> Machine:
    """Make a machine of an exported model.

    Args:
        path: a ``.ts`` with a method forward, or encode and decode.
        temperature: scale of the random latents, for our own exports; None leaves it as exported.
        noise: gain of the decoder's noise branch, likewise.
        sample_rate: in hertz, for files that do not tell.
        device: where to compute.

    Raises:
        ExportedModelError: the file cannot be loaded, or does not say what is needed to play it.
    """
    module = load(path, device)
    encode, decode, forward = (_params(module, method) for method in ("encode", "decode", "forward"))
    rate = rate_of(module) or sample_rate
    if rate is None:
        raise ExportedModelError(f"{path} does not say its sample rate; give it with --sampling_rate")
    if forward is None and (encode is None or decode is None):
        raise ExportedModelError(f"{path} is no nn~ model: it has neither forward_params nor encode_ and decode_params")
    channels, out_channels = (forward or encode)[0], (forward or decode)[2]
    hop = max(params[side] for params in (encode, decode, forward) if params for side in (1, 3))
    holder = [module]

    @torch.inference_mode()
    def process(x: Tensor) -> Tensor:
        x = x.to(device)
        playing = holder[0]
        return (playing.forward(x) if forward else playing.decode(playing.encode(x))).cpu()

    def prepare() -> None:
        for name, value in (("temperature", temperature), ("noise", noise)):
            if value is None:
                continue
            if not hasattr(holder[0], f"set_{name}"):
                raise ExportedModelError(f"{path} has no attribute {name}; leave --{name} out")
            getattr(holder[0], f"set_{name}")(value)
        if hasattr(holder[0], "set_buffered"):
            holder[0].set_buffered(0)

    def reset() -> None:
        holder[0].set_reset(1)
        prepare()

    def reload() -> None:
        holder[0] = load(path, device)
        prepare()

    prepare()
    latency = _number(module, "latency_samples")
    ours = latency is not None
    if ours and device != "cpu":
        raise ExportedModelError(f"{path} is made for the CPU; for --device {device} play the run that it comes from")
    if hasattr(module, "set_reset"):
        restart = reset
        restart()
        streaming = bool(module.streaming) if ours else examine(process, restart, channels, hop).remembers
        restart()
    else:
        # acids-rave's exports cannot be told to forget, but what they remember lies in buffers.
        restart = rewinder(module)
        found = examine(process, restart, channels, hop)
        streaming = found.remembers
        if not found.forgets:
            restart = reload
        restart()
    return Machine(
        process=process,
        restart=restart,
        sample_rate=rate,
        channels=channels,
        out_channels=out_channels,
        unit=1 if ours and streaming else hop,
        hop=hop,
        streaming=streaming,
        offset=_number(module, "input_offset") or 0,
        latency=latency,
    )


def rewinder(module: torch.jit.ScriptModule) -> Callable[[], None]:
    """A function that puts the buffers of a model back to what they are now."""
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}

    @torch.inference_mode()
    def rewind() -> None:
        for name, buffer in module.named_buffers():
            if buffer.shape == kept[name].shape:
                buffer.copy_(kept[name])

    return rewind


@dataclass(frozen=True)
class Memory:
    """How a model that says nothing about itself treats the past.

    Attributes:
        remembers: its answer depends on what it heard before.
        forgets: restarted, it answers as at first.
    """

    remembers: bool
    forgets: bool


def examine(process: Callable[[Tensor], Tensor], restart: Callable[[], None], channels: int, hop: int) -> Memory:
    """Play the same block twice, restart, and play it again, with the same random numbers each time.

    Args:
        process: the model, which has heard nothing yet.
        restart: what is to make it forget.
        channels: that it hears.
        hop: samples per latent frame.
    """
    x = 0.1 * torch.randn(1, channels, max(hop, min(4 * hop, LONGEST_PROBE)))

    def answer() -> Tensor:
        torch.manual_seed(0)
        return process(x)

    with torch.random.fork_rng(devices=[]):
        first, second = answer(), answer()
        restart()
        third = answer()

    def differ(one: Tensor, other: Tensor) -> bool:
        # A compiler may round the second call otherwise than the first; a memory changes far more than that.
        return bool((one - other).abs().max() > 1e-3 * one.abs().max())

    return Memory(differ(first, second), not differ(first, third))
