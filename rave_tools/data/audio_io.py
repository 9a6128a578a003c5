"""Audio files in and out: what a file is, its samples in blocks, and a seek to the sample.

libsndfile reads the formats that store samples plainly (wav, RF64, W64, aiff, flac, au, caf); FFmpeg, through PyAV,
reads the compressed ones, about twice as fast as libsndfile does. Whichever is asked first, the other one has the
second word, so an mp3 named ``.wav`` is still read. Everything that goes wrong is an :class:`AudioError` that names the
file and the reason.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
import soundfile
import soxr

from rave_tools.data.readers import (
    AudioError,
    AudioFacts,
    AudioReader,
    ContainerReader,
    PlainReader,
    reason_of,
)

__all__ = [
    "AudioError",
    "AudioFacts",
    "AudioReader",
    "Resampler",
    "open_audio",
    "probe",
    "read",
    "resample",
    "stream",
    "write_wav",
]

BLOCK = 16384
"""Frames per block: large enough to amortise Python, small enough to stay in the cache of a core."""

_PLAIN_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b"fLaC", b".snd", b"caff")


def open_audio(path: str | os.PathLike[str]) -> AudioReader:
    """Open a file for reading.

    Args:
        path: the file.

    Returns:
        A reader, to be used in a ``with`` statement.

    Raises:
        AudioError: missing, empty, or not audio for either library.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}") from error
    if not magic:
        raise AudioError(f"{path}: is empty (0 bytes)")
    readers: list[Callable[[str], AudioReader]] = [ContainerReader, PlainReader]
    if magic in _PLAIN_MAGIC:
        readers.reverse()
    try:
        return readers[0](path)
    except AudioError as first:
        try:
            if path.lower().endswith(".mp3"):
                raise  # libsndfile knows no mp3 that FFmpeg does not, and its decoder complains on stderr
            return readers[1](path)
        except AudioError:
            raise AudioError(f"{path}: is not audio that can be read ({str(first).split(': ', 1)[-1]})") from first


def probe(path: str | os.PathLike[str]) -> AudioFacts:
    """Sampling rate, channels and length of a file, read from its header.

    Args:
        path: the file.

    Returns:
        The facts.

    Raises:
        AudioError: the file is not readable audio.
    """
    with open_audio(path) as reader:
        return reader.facts


def stream(
    path: str | os.PathLike[str], *, sampling_rate: int | None = None, block: int = BLOCK
) -> Iterator[np.ndarray]:
    """The whole file in blocks, in bounded memory.

    Args:
        path: the file.
        sampling_rate: wanted rate in hertz; None keeps the file's. Resampled with soxr, high quality.
        block: frames read at a time, at the file's rate.

    Yields:
        float32 blocks, shape (C, n), n > 0.

    Raises:
        AudioError: the file is not readable audio.
    """
    with open_audio(path) as reader:
        resampler = Resampler(
            reader.facts.sampling_rate, sampling_rate or reader.facts.sampling_rate, reader.facts.channels
        )
        while (samples := reader.read(block)).shape[1]:
            samples = resampler(samples)
            if samples.shape[1]:
                yield samples
        samples = resampler.finish()
        if samples.shape[1]:
            yield samples


def read(
    path: str | os.PathLike[str], *, sampling_rate: int | None = None, start: int = 0, frames: int | None = None
) -> np.ndarray:
    """A file, or a part of it, as one array.

    Args:
        path: the file.
        sampling_rate: wanted rate in hertz; None keeps the file's.
        start: first sample, counted at the file's rate.
        frames: how many samples, at the file's rate; None reads to the end.

    Returns:
        float32, shape (C, n); shorter than asked where the file ends.

    Raises:
        AudioError: the file is not readable audio.
    """
    with open_audio(path) as reader:
        if start:
            reader.seek(start)
        rate = reader.facts.sampling_rate
        left = frames if frames is not None else 1 << 62
        blocks = [np.empty((reader.facts.channels, 0), np.float32)]
        while left > 0 and (samples := reader.read(min(left, BLOCK))).shape[1]:
            blocks.append(samples)
            left -= samples.shape[1]
    return resample(np.concatenate(blocks, axis=1), rate, sampling_rate or rate)


def resample(audio: np.ndarray, rate: int, wanted: int, *, quality: str = "HQ") -> np.ndarray:
    """Another sampling rate for audio that is in memory.

    Args:
        audio: float32, shape (C, n).
        rate: its rate in hertz.
        wanted: the new one.
        quality: of soxr, from QQ to VHQ.

    Returns:
        float32, shape (C, about n * wanted / rate).
    """
    if rate == wanted or audio.shape[1] == 0:
        return audio
    return np.ascontiguousarray(soxr.resample(np.ascontiguousarray(audio.T), rate, wanted, quality=quality).T)


class Resampler:
    """Resamples block by block, with the result of one pass over the whole.

    Args:
        rate: of the input, in hertz.
        wanted: of the output, in hertz.
        channels: count.
    """

    def __init__(self, rate: int, wanted: int, channels: int):
        self._channels = channels
        self._stream = (
            None if rate == wanted else soxr.ResampleStream(rate, wanted, channels, dtype="float32", quality="HQ")
        )

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Feed (C, n); what is ready comes back, shape (C, m)."""
        if self._stream is None:
            return audio
        return self._turn(self._stream.resample_chunk(np.ascontiguousarray(audio.T)))

    def finish(self) -> np.ndarray:
        """What was still inside, shape (C, m)."""
        if self._stream is None:
            return np.empty((self._channels, 0), np.float32)
        return self._turn(self._stream.resample_chunk(np.empty((0, self._channels), np.float32), last=True))

    def _turn(self, frames_first: np.ndarray) -> np.ndarray:
        return frames_first.reshape(-1, self._channels).T


def write_wav(path: str | os.PathLike[str], audio: np.ndarray, sampling_rate: int, *, subtype: str = "PCM_16") -> None:
    """Write a wav file; above 4 GB it becomes RF64 by itself.

    Args:
        path: where.
        audio: shape (C, n), in [-1, 1].
        sampling_rate: in hertz.
        subtype: as libsndfile names it: PCM_16, PCM_24, PCM_32, FLOAT.

    Raises:
        AudioError: the file cannot be written.
    """
    large = audio.size * 4 > 4e9
    try:
        soundfile.write(os.fspath(path), audio.T, sampling_rate, subtype=subtype, format="RF64" if large else "WAV")
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{os.fspath(path)}: cannot be written ({reason_of(error)})") from error
