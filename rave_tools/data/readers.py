"""Open audio files: one reader for each of the two libraries, with the same face.

A reader knows its facts, reads blocks from where it stands, seeks to the sample, and remembers what was damaged.
"""

import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import av
import numpy as np
import soundfile

from rave_tools.errors import UserError

PREROLL_SECONDS = {"vorbis": 0.06, "opus": 0.1, "flac": 0.0}
"""Compressed formats need some packets before the wanted one until their decoder has settled (RFC 7845: 80 ms)."""

PREROLL_SECONDS_OTHERWISE = 0.25
VOTES = 7
GUESSED_LENGTH = ("mp3", "aac")

PADDING = 16
"""Bytes by which honest writers disagree about the size of a file (pad bytes, chunk headers)."""

UNKNOWN_SIZE = 0x7FFFFF00


class AudioError(UserError):
    """A file cannot be read or written as audio; the message names it and says why."""


@dataclass(frozen=True)
class AudioFacts:
    """What a file says about itself.

    Attributes:
        path: the file.
        sampling_rate: in hertz.
        channels: count.
        frames: samples per channel; None where the format does not tell without decoding.
        format: container and encoding in words, for reports.
    """

    path: str
    sampling_rate: int
    channels: int
    frames: int | None
    format: str

    @property
    def seconds(self) -> float | None:
        """Duration in seconds, None where unknown."""
        return None if self.frames is None else self.frames / self.sampling_rate


class AudioReader(Protocol):
    """An open file: facts, a position, and blocks of samples."""

    facts: AudioFacts
    damage: str

    def read(self, frames: int) -> np.ndarray:
        """The next at most `frames` samples, float32 in [-1, 1], shape (C, n); n = 0 at the end."""

    def seek(self, frame: int) -> None:
        """Make `frame` the next sample to be read."""

    def count(self) -> int:
        """Samples per channel, counted where the header does not know them; moves the position."""

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> "AudioReader": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def cut_short(log: str) -> str:
    """What libsndfile's log of a header says about a file that ends before its header does; empty if nothing.

    libsndfile itself reads such files, of a broken copy or download, as if they were whole.
    """
    sizes = r"^\s*(?:RIFF|Riff size|riff|FORM|Data Size)\s*: (\d+) \(should be (\d+)\)"
    for announced, there in re.findall(sizes, log, re.MULTILINE):
        # A size of all ones stands for "unknown": programs that write to a pipe leave it.
        if int(there) + PADDING < int(announced) < UNKNOWN_SIZE:
            return f"damaged: its header announces {int(announced):,} bytes and the file has {int(there):,}"
    return ""


class _Reader:
    """What both readers share: they close themselves at the end of a ``with``."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class PlainReader(_Reader):
    """Reads through libsndfile."""

    def __init__(self, path: str):
        try:
            self._file = soundfile.SoundFile(path)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise AudioError(f"{path}: {reason_of(error)}") from error
        file = self._file
        if file.channels < 1 or file.samplerate < 1:
            raise AudioError(f"{path}: its header says {file.channels} channels at {file.samplerate} Hz")
        self.facts = AudioFacts(path, file.samplerate, file.channels, file.frames, f"{file.format} {file.subtype}")
        self.damage = cut_short(file.extra_info)
        self._position = 0

    def read(self, frames: int) -> np.ndarray:
        """See :class:`AudioReader`."""
        try:
            block = self._file.read(frames, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            self.damage = f"damaged after {self._position / self.facts.sampling_rate:.1f} s ({reason_of(error)})"
            block = np.empty((0, self.facts.channels), np.float32)
        self._position += len(block)
        return block.T

    def seek(self, frame: int) -> None:
        """See :class:`AudioReader`."""
        self._position = min(max(frame, 0), self._file.frames)
        try:
            self._file.seek(self._position)
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(f"{self.facts.path}: cannot seek to sample {frame} ({reason_of(error)})") from error

    def count(self) -> int:
        """See :class:`AudioReader`."""
        return int(self._file.frames)

    def close(self) -> None:
        """See :class:`AudioReader`."""
        self._file.close()


class ContainerReader(_Reader):
    """Reads the first audio stream of whatever FFmpeg opens.

    A packet that does not decode is left out and counted, as players do; a file of which nothing decodes is an error.
    """

    def __init__(self, path: str):
        try:
            # A playlist in disguise must not fetch what it names.
            self._container = av.open(path, options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise AudioError(f"{path}: {reason_of(error)}") from error
        if not self._container.streams.audio:
            self._container.close()
            raise AudioError(f"{path}: holds no audio stream")
        self._stream = self._container.streams.audio[0]
        self._stream.thread_type = "NONE"
        self._seconds_per_tick = float(self._stream.time_base or 0)
        self.facts = AudioFacts(
            path, self._stream.rate or 0, self._stream.channels or 0, None, self._container.format.name
        )
        self.damage = ""
        self._bad_packets = 0
        self._origin: int | None = None
        self._restart(sought=None)
        self._fill(1)
        if not self._fifo.samples:
            self._container.close()
            raise AudioError(f"{path}: {self.damage or 'holds no sound that can be decoded'}")
        # The decoder knows better than the header: HE-AAC announces half its rate.
        rate, channels = int(self._fifo.sample_rate), int(self._fifo.layout.nb_channels)
        self.facts = AudioFacts(
            path, rate, channels, self._length(rate), f"{self._container.format.name} {self._stream.codec_context.name}"
        )

    def _length(self, rate: int) -> int | None:
        if self._stream.duration and self._seconds_per_tick:
            return round(self._stream.duration * self._seconds_per_tick * rate)
        if self._container.duration:
            return round(self._container.duration / av.time_base * rate)
        return None

    def _restart(self, *, sought: int | None) -> None:
        self._fifo = av.AudioFifo()
        self._packets = self._container.demux(self._stream)
        self._sought = sought
        self._offsets: list[int] = []
        self._ended = False

    def _decode_packet(self) -> list[av.AudioFrame]:
        """The frames of the next packet; a packet that does not decode is counted and has none."""
        try:
            packet = next(self._packets, None)
        except (av.error.FFmpegError, OSError) as error:
            self.damage = f"damaged: reading stopped ({reason_of(error)})"
            packet = None
        if packet is None:
            self._ended = True
            return []
        try:
            return packet.decode()
        except av.error.EOFError:
            self._ended = True
        except av.error.FFmpegError as error:
            self._bad_packets += 1
            self.damage = f"damaged: {self._bad_packets} packets left out ({reason_of(error)})"
        return []

    def _fill(self, frames: int) -> None:
        """Decode until the queue holds so many frames, or the file ends."""
        queue = self._fifo
        while queue.samples < frames and not self._ended:
            for frame in self._decode_packet():
                if self._origin is None or self._sought is not None:
                    self._date(frame)
                frame.pts = None
                try:
                    queue.write(frame)
                except ValueError:
                    self.damage = (
                        f"damaged: its format changes midway, from {self.facts.channels} channels at "
                        f"{self.facts.sampling_rate} Hz to {frame.layout.nb_channels} at {frame.sample_rate} Hz"
                    )
                    self._ended = True
                    return

    def _date(self, frame: av.AudioFrame) -> None:
        """Note where a frame says that the queue begins."""
        if frame.pts is None:
            return
        stamp = round(frame.pts * self._seconds_per_tick * frame.sample_rate)
        self._origin = stamp if self._origin is None else self._origin
        self._offsets.append(stamp - self._origin - self._fifo.samples)

    def _synchronise(self) -> None:
        """Drop what lies before the sample that was sought.

        Single time stamps lie (FFmpeg's Vorbis decoder dates a frame after a change of block size some hundred samples
        late), so the place of the queue's first sample is the median of what several frames say it is.
        """
        sought = self._sought
        if sought is None:
            return
        while not self._ended and (len(self._offsets) < VOTES or self._fifo.samples + self._offset() <= sought):
            self._fill(self._fifo.samples + 1)
        surplus = sought - self._offset()
        self._sought = None
        if surplus > 0 and self._fifo.samples:
            self._fifo.read(min(surplus, self._fifo.samples))

    def _offset(self) -> int:
        return sorted(self._offsets)[len(self._offsets) // 2] if self._offsets else 0

    def read(self, frames: int) -> np.ndarray:
        """See :class:`AudioReader`."""
        self._synchronise()
        self._fill(frames)
        count = min(frames, self._fifo.samples)
        if count == 0:
            return np.empty((self.facts.channels, 0), np.float32)
        return _planar_float(self._fifo.read(count), self.facts.channels)

    def seek(self, frame: int) -> None:
        """See :class:`AudioReader`."""
        if self._origin is None:
            self._fill(1)
        rate = self.facts.sampling_rate
        preroll = PREROLL_SECONDS.get(self._stream.codec_context.name, PREROLL_SECONDS_OTHERWISE)
        target = frame - int(preroll * rate)
        origin = self._origin or 0
        ticks = round((max(target, 0) + origin) / rate / self._seconds_per_tick) if target > 0 else 0
        try:
            self._container.seek(
                ticks if target > 0 else min(self._stream.start_time or 0, 0), stream=self._stream, backward=True
            )
        except (av.error.FFmpegError, OSError) as error:
            raise AudioError(f"{self.facts.path}: cannot seek to sample {frame} ({reason_of(error)})") from error
        self._stream.codec_context.flush_buffers()
        self._restart(sought=max(frame, 0))

    def count(self) -> int:
        """See :class:`AudioReader`.

        For raw mp3 and AAC, whose length FFmpeg guesses from the bit rate of the beginning, the packets are added up.
        """
        if self.facts.frames and self._container.format.name not in GUESSED_LENGTH:
            return self.facts.frames
        self.seek(0)
        ticks = sum(packet.duration or 0 for packet in self._container.demux(self._stream))
        self._ended = True
        return round(ticks * self._seconds_per_tick * self.facts.sampling_rate)

    def close(self) -> None:
        """See :class:`AudioReader`."""
        self._container.close()


def _planar_float(frame: av.AudioFrame, channels: int) -> np.ndarray:
    """A decoded frame as float32 (C, n), whatever sample type the decoder produced."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.float32:
        return samples
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) * np.float32(1 / (1 << (8 * samples.dtype.itemsize - 1)))
    return samples.astype(np.float32)


def reason_of(error: BaseException) -> str:
    """The library's words without the path, which the message names already."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(text).split("': ")[-1].strip().rstrip(".")
