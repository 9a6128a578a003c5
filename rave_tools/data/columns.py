"""One column of a long multichannel file: only the frames and the channels that are asked for are touched.

Plain wav, RF64, BW64 and W64 files of 16, 24 or 32 bits or floats are read as they lie on the disk, by offset, whatever
their size; everything else goes through :func:`rave_tools.data.audio_io.open_audio`, which seeks to the sample.
"""

import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from io import FileIO
from typing import BinaryIO

import numpy as np

from rave_tools.data.audio_io import AudioReader, open_audio
from rave_tools.data.readers import PADDING, UNKNOWN_SIZE, AudioError, reason_of

FOUR_GIGABYTES = 1 << 32
BLOCK_ROUNDING = 0.1
"""Seconds by which the length of a compressed file may be rounded without being called truncated."""

COUNTED = 4096
COLUMN_BLOCK = 1 << 19
"""Bytes that are read at once where one channel is picked out of them: they stay in the processor's own memory."""

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
NUMBERS = {"i16": "<i2", "i24": "<i4", "i32": "<i4", "f32": "<f4", "f64": "<f8"}
"""Kind of the samples -> what they are read as."""

W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""What the names of a W64 file's chunks end with; the first four bytes are those of a wav."""

W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")


@dataclass(frozen=True)
class Layout:
    """Where the samples of a file lie.

    Attributes:
        path: the file.
        rate: in hertz.
        channels: count.
        frames: samples per channel that are there.
        announced: samples per channel that the header promises; more than `frames` in a truncated file.
        kind: of the samples, as ``i24`` or ``f32``; empty for files that a library must decode.
        offset: of the first sample, in bytes.
    """

    path: str
    rate: int
    channels: int
    frames: int
    announced: int
    kind: str = ""
    offset: int = 0

    @property
    def seconds(self) -> float:
        """Duration of what is there."""
        return self.frames / self.rate

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels; 0 where a library must decode."""
        return self.channels * int(self.kind[1:]) // 8 if self.kind else 0


def layout(path: str) -> Layout:
    """Read a file's header, and nothing else of it where it is plain.

    Args:
        path: the file.

    Returns:
        Where its samples lie.

    Raises:
        AudioError: it is not readable audio.
    """
    try:
        with open(path, "rb") as file:
            found = _plain_layout(file, path)
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}") from error
    if found is not None:
        return found
    with open_audio(path) as reader:
        facts, damage = reader.facts, reader.damage
        announced = facts.frames if facts.frames is not None else reader.count()
        frames = _up_to_the_end(reader, announced)
    if not frames:
        with open_audio(path) as reader:
            frames = min(announced, _counted(reader))
    # Codecs that work in blocks round their length; libsndfile tells that an end is missing, not how much of it.
    if announced - frames < BLOCK_ROUNDING * facts.sampling_rate:
        announced = frames + int(bool(damage))
    return Layout(path, facts.sampling_rate, facts.channels, frames, announced)


def _up_to_the_end(reader: AudioReader, announced: int) -> int:
    """How many samples there really are, told by decoding the last second; 0 where there is nothing."""
    tail = min(announced, reader.facts.sampling_rate)
    try:
        reader.seek(announced - tail)
        found = _exactly(reader, tail).shape[1]
    except AudioError:
        return 0
    return announced - tail + found if found else 0


def _counted(reader: AudioReader) -> int:
    """How many samples there are, told by decoding all."""
    count = 0
    while block := reader.read(COUNTED).shape[1]:
        count += block
    return count


def _plain_layout(file: BinaryIO, path: str) -> Layout | None:
    """The layout of a file whose samples lie plainly in it; None for all others."""
    size = os.fstat(file.fileno()).st_size
    magic = file.read(16)
    if magic == W64_RIFF:
        chunks = _w64_chunks(file, size)
    elif magic[:4] in (b"RIFF", b"RF64", b"BW64") and magic[8:12] == b"WAVE":
        chunks = _wav_chunks(file, size)
    else:
        return None
    form, data = chunks.get(b"fmt "), chunks.get(b"data")
    if form is None or data is None or form[1] < 16:
        return None
    file.seek(form[0])
    content = file.read(min(form[1], 40))
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", content[:16])
    if tag == EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack("<H", content[24:26])
    kinds = {(PCM, 16): "i16", (PCM, 24): "i24", (PCM, 32): "i32", (FLOAT, 32): "f32", (FLOAT, 64): "f64"}
    kind = kinds.get((tag, bits))
    if kind is None or not channels or not rate or block != channels * bits // 8:
        return None
    offset, length = data
    there = max(0, size - offset)
    if magic[:4] == b"RIFF" and there - length >= FOUR_GIGABYTES - PADDING:
        raise AudioError(
            f"{path}: its header cannot tell the length of a file beyond 4 GB; write it again as RF64 "
            "(sox and ffmpeg -rf64 auto do)"
        )
    if length == 0 and there >= block:
        raise AudioError(
            f"{path}: its header was never finished: it announces no samples and {there:,} bytes follow; "
            "repair it (sox --ignore-length does)"
        )
    if magic[:4] == b"RIFF" and length >= UNKNOWN_SIZE:
        length = there  # left by programs that write to a pipe
    announced = length // block
    return Layout(path, rate, channels, min(announced, there // block), announced, kind, offset)


def _wav_chunks(file: BinaryIO, size: int) -> dict[bytes, tuple[int, int]]:
    """Name -> (offset, bytes) of a wav's first chunks of each name; the sizes of RF64 come from its ``ds64``."""
    found: dict[bytes, tuple[int, int]] = {}
    large, place = 0, 12
    while place + 8 <= size and b"data" not in found:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"ds64":
            large = struct.unpack("<QQ", file.read(16))[1] if length >= 16 else 0
        if name == b"data" and length == FOUR_GIGABYTES - 1 and large:
            length = large
        found.setdefault(name, (place + 8, length))
        place += 8 + length + length % 2
    return found


def _w64_chunks(file: BinaryIO, size: int) -> dict[bytes, tuple[int, int]]:
    """Name -> (offset, bytes) of a W64's first chunks of each name."""
    found: dict[bytes, tuple[int, int]] = {}
    place = 40
    while place + 24 <= size and b"data" not in found:
        file.seek(place)
        name, tail, length = struct.unpack("<4s12sQ", file.read(24))
        if tail != W64_TAIL or length < 24:
            break
        found.setdefault(name, (place + 24, length - 24))
        place += (length + 7) // 8 * 8
    return found


class OpenFiles:
    """Files that stay open while they are in use, the least recently used of them closed first.

    One for each process: what is open does not travel to another one.

    Args:
        limit: how many may be open.
    """

    def __init__(self, limit: int = 48):
        self._limit = limit
        self._open: OrderedDict[str, FileIO | AudioReader] = OrderedDict()
        self._buffer = bytearray()

    def __getstate__(self) -> dict[str, object]:
        return {"_limit": self._limit, "_open": OrderedDict(), "_buffer": bytearray()}

    def read(self, place: Layout, start: int, frames: int, channel: int | None) -> np.ndarray:
        """Samples from a place on.

        Args:
            place: the file.
            start: first sample.
            frames: how many samples; `start + frames` must lie inside the file.
            channel: which one, or None for all.

        Returns:
            float32, shape (1 or C, frames). What a compressed file lacks of its rounded length is silence.

        Raises:
            AudioError: the file is gone, has become shorter, cannot be read, or holds values that are no numbers.
        """
        try:
            audio = self._read(place, start, frames, channel)
        except (OSError, ValueError) as error:
            raise self._gone(place, reason_of(error)) from error
        if audio.shape[1] != frames:
            raise self._gone(place, f"it ends {frames - audio.shape[1]:,} samples before what its header said")
        if place.kind[:1] != "i" and not np.isfinite(audio).all():
            raise AudioError(
                f"{place.path}: holds values that are no numbers between {start / place.rate:.2f} s and "
                f"{(start + frames) / place.rate:.2f} s; repair the file or take it out of the folder"
            )
        return audio

    def _gone(self, place: Layout, reason: str) -> AudioError:
        self._forget(place.path)
        return AudioError(
            f"{place.path}: was there when the run began and cannot be read any more ({reason}); "
            "put it back, or begin again without it"
        )

    def _read(self, place: Layout, start: int, frames: int, channel: int | None) -> np.ndarray:
        if frames <= 0:
            return np.zeros((place.channels if channel is None else 1, 0), np.float32)
        if not place.kind:
            reader = self._opened(place)
            assert not isinstance(reader, FileIO)
            reader.seek(start)
            audio = _exactly(reader, frames)
            missing = frames - audio.shape[1]
            if audio.shape[1] and 0 < missing < BLOCK_ROUNDING * place.rate:
                audio = np.pad(audio, ((0, 0), (0, missing)))
            return audio if channel is None else np.ascontiguousarray(audio[channel : channel + 1])
        file = self._opened(place)
        assert isinstance(file, FileIO)
        if os.fstat(file.fileno()).st_size < place.offset + place.frames * place.frame_bytes:
            raise OSError("it has become shorter")
        file.seek(place.offset + start * place.frame_bytes)
        if channel is None:
            content = bytearray(1 + frames * place.frame_bytes)
            _fill(file, memoryview(content)[1:])
            return _decoded(_samples(content, place, None).copy(), place.kind)
        return _decoded(self._column(file, place, frames, channel), place.kind)

    def _column(self, file: FileIO, place: Layout, frames: int, channel: int) -> np.ndarray:
        """One channel, shape (1, frames), picked out of blocks that all go through the same small buffer.

        The file is not mapped into memory, though the processor would then copy less: if it is cut off, or its disk
        fails, while a mapping is being looked at, the system ends the process.
        """
        step = min(frames, max(1, COLUMN_BLOCK // place.frame_bytes))
        length = 1 + step * place.frame_bytes
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        content = memoryview(self._buffer)[:length]
        samples = _samples(content, place, channel)
        column = np.empty((1, frames), samples.dtype)
        for done in range(0, frames, step):
            count = min(step, frames - done)
            _fill(file, content[1 : 1 + count * place.frame_bytes])
            column[:, done : done + count] = samples[:, :count]
        return column

    def _opened(self, place: Layout) -> FileIO | AudioReader:
        held = self._open.get(place.path)
        if held is None:
            if not place.kind:
                if not os.path.isfile(place.path):
                    raise OSError("no such file")
                held = open_audio(place.path)
            else:
                held = FileIO(place.path, "rb")
            self._open[place.path] = held
            while len(self._open) > self._limit:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(place.path)
        return held

    def _forget(self, path: str) -> None:
        held = self._open.pop(path, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._open.popitem()[1].close()


def _exactly(reader: AudioReader, frames: int) -> np.ndarray:
    """Read on until there are as many samples as wanted, or the file ends."""
    blocks: list[np.ndarray] = []
    left = frames
    while left > 0 and (block := reader.read(left)).shape[1]:
        blocks.append(block)
        left -= block.shape[1]
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((reader.facts.channels, 0), np.float32)


def _fill(file: FileIO, content: memoryview) -> None:
    """Read on until it is full."""
    while len(content) and (count := file.readinto(content)):
        content = content[count:]
    if len(content):
        raise OSError("it has become shorter")


def _samples(content: bytearray | memoryview, place: Layout, channel: int | None) -> np.ndarray:
    """A view, shape (1 or C, frames), of the samples that lie in bytes after the first of them.

    One of 24 bits is seen as one of 32 whose lowest byte is whatever lies before it.
    """
    size = place.frame_bytes // place.channels
    first = (0 if place.kind == "i24" else 1) + (channel or 0) * size
    shape = (place.channels if channel is None else 1, (len(content) - 1) // place.frame_bytes)
    return np.ndarray(shape, NUMBERS[place.kind], content, first, (size, place.frame_bytes))


def _decoded(samples: np.ndarray, kind: str) -> np.ndarray:
    """Samples as float32 of the same shape; those of 24 bits lose their lowest byte, in place."""
    if kind[0] == "f":
        return samples.astype(np.float32, copy=False)
    if kind == "i24":
        samples &= -256
    audio = samples.astype(np.float32)
    audio *= np.float32(2.0 ** (-15 if kind == "i16" else -31))
    return audio
