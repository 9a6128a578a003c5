"""One column of a long multichannel file: only the frames and the channels that are asked for are touched.

Plain wav, RF64, BW64 and W64 files of 16, 24 or 32 bits or floats are read as they lie on the disk, by offset, whatever
their size; everything else goes through :func:`rave_tools.data.audio_io.open_audio`, which seeks to the sample.
"""

import mmap
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
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
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

    def __getstate__(self) -> dict[str, object]:
        return {"_limit": self._limit, "_open": OrderedDict()}

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
        if channel is None:
            return _decoded(_block(file, place, start, frames), 0, place, frames, None)
        begin = place.offset + start * place.frame_bytes - 1
        page = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with _mapped(file, page, begin - page + frames * place.frame_bytes + 1) as window:
            return _decoded(window, begin - page, place, frames, channel)

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


def _mapped(file: FileIO, offset: int, length: int) -> mmap.mmap:
    """A window onto the file that lasts for one reading, so that the memory in use stays bounded."""
    if hasattr(mmap, "MAP_POPULATE"):  # Linux: all pages at once
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return mmap.mmap(file.fileno(), length, flags=flags, prot=mmap.PROT_READ, offset=offset)
    return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=offset)


def _block(file: FileIO, place: Layout, start: int, frames: int) -> bytearray:
    """All channels of a stretch, and the byte before it."""
    content = bytearray(frames * place.frame_bytes + 1)
    file.seek(place.offset + start * place.frame_bytes - 1)
    done = 0
    while done < len(content) and (count := file.readinto(memoryview(content)[done:])):
        done += count
    if done < len(content):
        raise OSError("it has become shorter")
    return content


def _decoded(
    content: mmap.mmap | bytearray, begin: int, place: Layout, frames: int, channel: int | None
) -> np.ndarray:
    """Samples as float32 (C, frames), from bytes of which number `begin` comes just before the first sample.

    A sample of 24 bits is read as one of 32 whose lowest byte, that of its neighbour, is then cleared.
    """
    bits = int(place.kind[1:])
    kind = {"i16": "<i2", "i24": "<i4", "i32": "<i4", "f32": "<f4", "f64": "<f8"}[place.kind]
    first = begin + (0 if bits == 24 else 1) + (channel or 0) * bits // 8
    shape = (place.channels if channel is None else 1, frames)
    samples = np.ndarray(shape, kind, content, first, (bits // 8, place.frame_bytes)).copy()
    if place.kind[0] == "f":
        return samples.astype(np.float32)
    if bits == 24:
        samples &= -256
    audio = samples.astype(np.float32)
    audio *= np.float32(2.0 ** (-15 if bits == 16 else -31))
    return audio
