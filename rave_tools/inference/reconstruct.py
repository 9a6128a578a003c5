"""Sound through a model in bounded memory: in blocks that stream, or in overlapping blocks that equal one pass."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.compression import CompressionModel
from rave_tools.codec.segments import cut_segments, overlap_add
from rave_tools.nn.conv import fold_weight_norm
from rave_tools.nn.padded_conv import fold_to_play
from rave_tools.nn.recurrent import GRU, LSTM
from rave_tools.nn.streaming import reset, streaming

LONGEST_CHUNK = 1 << 19
"""Samples at once where the person does not choose: 12 s at 44.1 kHz, some hundred megabytes in the widest layers."""

UNKNOWN_CONTEXT = 1 << 16
"""Samples of context on both sides for a model that does not tell how far it looks; more than any RAVE does."""

WHOLE = 1 << 62
"""Samples of a segment that no sound exceeds."""


@dataclass
class Machine:
    """A model, ready to be played.

    Attributes:
        process: (B, C, n) -> (B, C', n), n a multiple of ``unit``.
        restart: forgets everything heard.
        sample_rate: in hertz.
        channels, out_channels: C and C'.
        unit: block lengths are multiples of it, in samples.
        hop: samples per frame of the model's grid.
        streaming: ``process`` goes on where it stopped; otherwise every call stands alone.
        offset: by how many samples the grid of a streaming model is shifted.
        latency: of a streaming model's output, in samples; None if the model does not tell.
        context: samples to the left and right of an output sample that a model without streaming looks at; asked only
            when a file is longer than a chunk.
        segments: (length, stride) in samples of the segments that a model plays each on its own, in place of chunks,
            with all that ``process`` answers; None of a model that plays a sound as one.
    """

    process: Callable[[Tensor], Tensor]
    restart: Callable[[], None]
    sample_rate: int
    channels: int
    out_channels: int
    unit: int
    hop: int
    streaming: bool
    offset: int = 0
    latency: int | None = 0
    context: Callable[[], tuple[int, int]] | None = None
    segments: tuple[int, int] | None = None


def context_of(codec: Autoencoder) -> tuple[int, int]:
    """Samples of context to the left and right that a part of a sound needs to come out as in one pass.

    A recurrent layer remembers for ever; its memory is followed twice as far as to a millionth of the strongest, for
    what is left of many samples adds up.
    """
    left, right = codec.receptive_field()
    if any(isinstance(module, (GRU, LSTM)) for module in codec.modules()):
        return 2 * left, 2 * right
    return left, right


def segments_of(codec: Autoencoder) -> tuple[int, int] | None:
    """(length, stride) in samples of what a codec codes on its own; None where any parts with context will do.

    A model without segments that renormalises, or normalises over time inside (time_group_norm), needs the whole sound
    at once, however long: one segment.
    """
    if not isinstance(codec, CompressionModel):
        return None
    if codec.segment_length is not None and codec.segment_stride is not None:
        return codec.segment_length, codec.segment_stride
    over_time = codec.renormalize or any(isinstance(module, nn.GroupNorm) for module in codec.modules())
    return (WHOLE, WHOLE) if over_time else None


def machine_of(codec: Autoencoder, *, live: bool, temperature: float = 0.0, device: str = "cpu") -> Machine:
    """Make a machine of a trained codec, which stays as it is.

    Args:
        codec: trained.
        live: as a host plays it, block by block, instead of as it was trained, seeing what comes.
        temperature: scale of the posterior's deviation around its mean; 0 takes the mean.
        device: where to compute.
    """
    offset = latency = 0
    if live:
        twin, info = streaming(codec, codec.hop)
        fold_weight_norm(twin)
        offset, latency = info.offset, info.latency
    else:
        twin = fold_to_play(copy.deepcopy(codec).eval())
    twin = twin.requires_grad_(False).to(device)

    segments = None if live else segments_of(codec)

    @torch.inference_mode()
    def process(x: Tensor) -> Tensor:
        noise = None
        if temperature > 0:
            noise = temperature * torch.randn(x.shape[0], twin.latent_dim, -(-x.shape[-1] // twin.hop), device=device)
        heard = x.to(device)
        if segments is None:
            latent = twin.encode(heard, deterministic=temperature == 0, noise=noise)
        else:  # its encoder fills the last frame up, which must not count for the loudness
            latent = twin.encode_bands(heard, deterministic=temperature == 0, noise=noise)
        latent.z = twin.augment(latent.z, temperature)
        return twin.from_bands(twin.decode_latent(latent)).cpu()

    return Machine(
        process=process,
        restart=lambda: reset(twin),
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        out_channels=codec.channels,
        unit=codec.hop,
        hop=codec.hop,
        streaming=live,
        offset=offset,
        latency=latency,
        context=lambda: context_of(codec),
        segments=segments,
    )


def reconstruct(blocks: Iterable[Tensor], machine: Machine, *, chunk: int | None = None) -> Iterator[Tensor]:
    """Play a signal through a machine.

    Args:
        blocks: (B, C, n) with any n.
        machine: what to play it through; it is restarted first.
        chunk: samples at once; None chooses. Rounded up to the machine's unit; a machine of segments takes one
            segment at once, whatever the chunk.

    Yields:
        Blocks (B, C', n), together exactly as long as the input and in time with it (a machine that does not announce
        its latency stays late).
    """
    machine.restart()
    wanted = chunk or LONGEST_CHUNK
    if machine.streaming:
        unit = machine.unit if chunk else machine.hop
        yield from _stream(blocks, machine, -(-wanted // unit) * unit)
    elif machine.segments is not None:
        yield from _segments(blocks, machine, machine.segments)
    else:
        yield from _overlap(blocks, machine, -(-wanted // machine.hop) * machine.hop)


def _stream(blocks: Iterable[Tensor], machine: Machine, chunk: int) -> Iterator[Tensor]:
    """Feed, then flush with silence; what comes out before the first sample is due is dropped.

    With the grid's offset made up to a whole hop, the stream analyses the very frames that the plain model does.
    """
    lead = -machine.offset % machine.hop
    late = 0 if machine.latency is None else machine.latency + lead
    if chunk % machine.hop:
        late += machine.hop  # Blocks that are no whole hops wait in the model's own queue.
    heard = due = 0

    def padded() -> Iterator[Tensor]:
        nonlocal heard
        example = None
        for block in blocks:
            if example is None:
                example = block
                yield _silence(block, lead)
            heard += block.shape[-1]
            yield block
        if example is not None:
            yield _silence(example, late - lead + chunk)

    for block in regroup(padded(), chunk):
        y = machine.process(block)
        start = max(0, late - due)
        due += y.shape[-1]
        # While the input goes on, what is out is never ahead of it, so only the flushed end needs cutting.
        surplus = max(0, due - late - heard)
        y = y[..., start : y.shape[-1] - surplus]
        if y.shape[-1]:
            yield y


def _overlap(blocks: Iterable[Tensor], machine: Machine, chunk: int) -> Iterator[Tensor]:
    """Whole hops with the context that their neighbours need; equal to one pass over the whole signal."""
    return overlapped(blocks, machine.process, chunk=chunk, grid=machine.hop, context=machine.context)


def overlapped(
    blocks: Iterable[Tensor],
    process: Callable[[Tensor], Tensor],
    *,
    chunk: int,
    grid: int,
    context: Callable[[], tuple[int, int]] | None,
    place: Callable[[int], int] | None = None,
) -> Iterator[Tensor]:
    """A signal through a function in parts with context, equal to one pass.

    Args:
        blocks: (..., n) with any n.
        process: of (..., n), n a multiple of `grid`.
        chunk: samples at once, a multiple of `grid`.
        grid: of the function.
        context: samples to the left and right that it looks at; asked only if there is more than a chunk.
        place: where in the output a place of the input is; the same by default.
    """
    place = place or (lambda position: position)
    groups = regroup(blocks, chunk, keep_rest=True)
    window = next(groups, None)
    if window is None:
        return
    left = right = 0
    ahead = next(groups, None)
    if ahead is not None:
        left, right = context() if context else (UNKNOWN_CONTEXT, UNKNOWN_CONTEXT)
        left, right = (-(-max(side, 0) // grid) * grid for side in (left, right))
    past = window[..., :0]
    while window.shape[-1]:
        while ahead is not None and window.shape[-1] < chunk + right:
            window = torch.cat([window, ahead], -1)
            ahead = next(groups, None)
        final = ahead is None and window.shape[-1] <= chunk + right
        length = window.shape[-1] if final else chunk
        whole = torch.cat([past, window[..., : length + right]], -1)
        padded = torch.cat([whole, _silence(whole, -whole.shape[-1] % grid)], -1)
        y = process(padded)
        yield y[..., place(past.shape[-1]) : place(past.shape[-1] + length)]
        kept = min(left, past.shape[-1] + length)
        past = torch.cat([past, window[..., :length]], -1)
        past = past[..., past.shape[-1] - kept :]
        window = window[..., length:]


def _segments(blocks: Iterable[Tensor], machine: Machine, segments: tuple[int, int]) -> Iterator[Tensor]:
    """Each segment on its own, faded into the next; what fills up the last frame is dropped."""
    length, stride = segments
    heard = 0

    def counted() -> Iterator[Tensor]:
        nonlocal heard
        for block in blocks:
            heard += block.shape[-1]
            yield block

    done = 0
    played = map(machine.process, cut_segments(counted(), length=length, stride=stride))
    for block in overlap_add(played, stride=stride):
        yield block[..., : heard - done]
        done += min(block.shape[-1], heard - done)


def regroup(blocks: Iterable[Tensor], size: int, *, keep_rest: bool = False) -> Iterator[Tensor]:
    """Blocks of any length to blocks of ``size`` samples.

    Args:
        blocks: shape (..., n).
        size: samples.
        keep_rest: yield what is left at the end, shorter; otherwise it is dropped.
    """
    waiting: list[Tensor] = []
    length = 0
    for block in blocks:
        waiting.append(block)
        length += block.shape[-1]
        if length < size:
            continue
        joined = torch.cat(waiting, -1)
        whole = length // size * size
        yield from joined[..., :whole].split(size, -1)
        waiting, length = [joined[..., whole:].clone()], length - whole
    if keep_rest and length:
        yield torch.cat(waiting, -1)


def _silence(like: Tensor, samples: int) -> Tensor:
    """(..., n) -> zeros (..., samples)."""
    return torch.zeros(*like.shape[:-1], samples, dtype=like.dtype)
