"""What a worker process does with a file: decode it once, map its channels, resample, cut it into records.

Nothing here imports torch or LMDB: a worker starts in a tenth of a second.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np

from rave_tools.data.audio_io import AudioError, AudioReader, Resampler, open_audio
from rave_tools.data.sources import Source

BLOCK = 16384
DOWNMIXES = ("mean", "first", "random")


@dataclass(frozen=True)
class Recipe:
    """How files become records.

    Attributes:
        channels: of a record.
        sampling_rate: of a record, in hertz.
        chunk: samples per record.
        shortest: a record is padded with silence to at least so many samples (what training asks for at once).
        downmix: how one channel is made of several: their mean, the first one, or a random one per record.
        lazy: only look at the file, store nothing of it.
    """

    channels: int
    sampling_rate: int
    chunk: int
    shortest: int
    downmix: str
    lazy: bool


@dataclass(frozen=True)
class Chunk:
    """A piece of a file, on its way to becoming a record.

    Attributes:
        pcm: int16, channel after channel.
        valid: samples per channel that are sound; the others are padding.
        done: how much of the file has been decoded, from 0 to 1.
    """

    pcm: bytes
    valid: int
    done: float


def fit_channels(audio: np.ndarray, channels: int, downmix: str) -> np.ndarray:
    """Give audio the wanted number of channels.

    Missing channels repeat the present ones in turn; of too many, the first are kept, except that one channel can be
    the mean of all. (A random choice is made later, once per record, from all of them.)

    Args:
        audio: float32, shape (C, n).
        channels: wanted.
        downmix: one of DOWNMIXES.

    Returns:
        Shape (channels, n), or (C, n) for a random choice.
    """
    present = audio.shape[0]
    if present == channels or (downmix == "random" and present > channels):
        return audio
    if present < channels:
        return audio[np.arange(channels) % present]
    if channels == 1 and downmix == "mean":
        mixed = np.add(audio[0], audio[1])
        for other in audio[2:]:
            mixed += other
        mixed *= np.float32(1 / present)
        return mixed[None]
    return audio[:channels]


def to_int16(audio: np.ndarray, scratch: np.ndarray) -> tuple[np.ndarray, float]:
    """Round to 16 bits; the samples of a 16-bit file pass unchanged.

    Args:
        audio: float32, shape (C, n).
        scratch: float32, at least that large; overwritten.

    Returns:
        int16 of the same shape, and the peak before clipping (full scale is 1).
    """
    scaled = scratch[: audio.shape[0], : audio.shape[1]]
    np.multiply(audio, np.float32(32768), out=scaled)
    np.rint(scaled, out=scaled)
    peak = float(np.maximum(scaled.max(initial=0), -scaled.min(initial=0)))
    if not np.isfinite(peak):
        np.nan_to_num(scaled, copy=False, posinf=0, neginf=0)
        peak = np.inf
    if peak > 32767:
        np.clip(scaled, -32768, 32767, out=scaled)
    return scaled.astype(np.int16), peak / 32768


class Cutter:
    """Collects blocks of a file's channels into records."""

    def __init__(self, recipe: Recipe, channels: int, *, seed: int, expected: float):
        self._recipe, self._expected = recipe, expected
        self._buffer = np.zeros((channels, recipe.chunk), np.int16)
        self._scratch = np.empty((channels, BLOCK), np.float32)
        self._filled = 0
        self._random = np.random.default_rng(seed)
        self.samples = 0
        self.peak = 0.0

    def push(self, audio: np.ndarray) -> Iterator[Chunk]:
        """Add float32 (C, n); full records come out."""
        for begin in range(0, audio.shape[1], BLOCK):
            pcm, peak = to_int16(audio[:, begin : begin + BLOCK], self._scratch)
            self.peak = max(self.peak, peak)
            self.samples += pcm.shape[1]
            place = 0
            while place < pcm.shape[1]:
                count = min(pcm.shape[1] - place, self._recipe.chunk - self._filled)
                self._buffer[:, self._filled : self._filled + count] = pcm[:, place : place + count]
                self._filled += count
                place += count
                if self._filled == self._recipe.chunk:
                    yield self._take()

    def finish(self) -> Iterator[Chunk]:
        """The last, incomplete record."""
        if self._filled:
            yield self._take()

    def _take(self) -> Chunk:
        valid, self._filled = self._filled, 0
        length = max(valid, min(self._recipe.shortest, self._recipe.chunk))
        self._buffer[:, valid:length] = 0
        rows = self._buffer[:, :length]
        if rows.shape[0] > self._recipe.channels:
            rows = rows[np.sort(self._random.choice(rows.shape[0], self._recipe.channels, replace=False))]
        return Chunk(rows.tobytes(), valid, min(1.0, self.samples / self._expected) if self._expected else 1.0)


def _notes(reader: AudioReader, frames: int, peak: float) -> tuple[str, ...]:
    facts = reader.facts
    notes = [reader.damage] if reader.damage else []
    said = facts.frames
    if said is not None and frames < 0.98 * said - facts.sampling_rate // 10 and not reader.damage:
        notes.append(
            f"damaged: {frames / facts.sampling_rate:.1f} s of the {said / facts.sampling_rate:.1f} s "
            "that its header announces"
        )
    if not np.isfinite(peak):
        notes.append("holds samples that are not numbers; they were replaced by silence")
    elif peak > 1.001:
        notes.append(f"clipped: its peak is {20 * np.log10(peak):+.1f} dB over full scale")
    return tuple(notes)


def decode(source: Source, recipe: Recipe, *, seed: int) -> Iterator[Chunk | Source]:
    """Decode one file.

    Silence at the beginning is held back until there is sound, so that a file of silence yields no record.

    Args:
        source: the file.
        recipe: what to make of it.
        seed: of the random choice of channels.

    Yields:
        Its chunks, then the entry for the book.

    Raises:
        AudioError: the file cannot be opened.
    """
    with open_audio(source.path) as reader:
        facts = reader.facts
        resampler: Resampler | None = None
        cutter: Cutter | None = None
        frames = 0
        held: list[Chunk] = []
        silent_so_far = True
        while True:
            block = reader.read(BLOCK)
            frames += block.shape[1]
            block = fit_channels(block, recipe.channels, recipe.downmix)
            if resampler is None or cutter is None:
                resampler = Resampler(facts.sampling_rate, recipe.sampling_rate, block.shape[0])
                expected = (facts.seconds or 0.0) * recipe.sampling_rate
                cutter = Cutter(recipe, block.shape[0], seed=seed, expected=expected)
            ended = block.shape[1] == 0
            for chunk in cutter.push(resampler.finish() if ended else resampler(block)):
                if silent_so_far and cutter.peak * 32768 < 0.5:
                    held.append(replace(chunk, pcm=b""))
                    continue
                if silent_so_far:
                    yield from _silence(held, recipe)
                    silent_so_far = False
                yield chunk
            if ended:
                break
        result = replace(
            source,
            rate=facts.sampling_rate,
            channels=facts.channels,
            found_seconds=frames / facts.sampling_rate,
            notes=_notes(reader, frames, cutter.peak),
        )
    if frames == 0:
        yield replace(result, skipped=reader.damage or "holds no samples")
        return
    if cutter.peak * 32768 < 0.5:
        yield replace(result, skipped="silent (no sample reaches one step of 16 bits)")
        return
    if silent_so_far:
        yield from _silence(held, recipe)
    yield from cutter.finish()
    yield replace(result, samples=cutter.samples, records=-(-cutter.samples // recipe.chunk))


def _silence(held: list[Chunk], recipe: Recipe) -> Iterator[Chunk]:
    for chunk in held:
        yield replace(chunk, pcm=bytes(2 * recipe.channels * chunk.valid))


def look(source: Source, recipe: Recipe) -> Source:
    """Read a file's length from its header and decode its beginning, to know that it is audio.

    Args:
        source: the file.
        recipe: gives the sampling rate in which lengths are counted.

    Returns:
        The entry for the book, with one record.

    Raises:
        AudioError: the file cannot be opened.
    """
    with open_audio(source.path) as reader:
        facts = reader.facts
        first = reader.read(4096).shape[1]
        frames = reader.count() if first else 0
        damage = reader.damage
    if not first or not frames:
        return replace(source, rate=facts.sampling_rate, channels=facts.channels, skipped=damage or "holds no samples")
    return replace(
        source,
        rate=facts.sampling_rate,
        channels=facts.channels,
        found_seconds=frames / facts.sampling_rate,
        samples=int(frames * recipe.sampling_rate // facts.sampling_rate),
        records=1,
        notes=(damage,) if damage else (),
    )


def outcome(source: Source, recipe: Recipe, *, seed: int) -> Iterator[Chunk | Source]:
    """`decode` or `look`, with every failure turned into a skipped entry."""
    try:
        if recipe.lazy:
            yield look(source, recipe)
        else:
            yield from decode(source, recipe, seed=seed)
    except AudioError as error:
        yield replace(source, skipped=str(error).removeprefix(f"{source.path}: "))
    except (MemoryError, ValueError, ArithmeticError, OSError, RuntimeError) as error:
        yield replace(source, skipped=f"could not be decoded ({type(error).__name__}: {error})")


def work(connection: Connection, recipe: Recipe) -> None:
    """The main function of a worker process.

    It says None when it is ready and takes (index, source) tasks; for every chunk it sends (valid, done) and then the
    samples, and last the entry.

    Args:
        connection: to the process that writes; None as a task ends the worker.
        recipe: what to make of files.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        connection.send(None)
        while (task := connection.recv()) is not None:
            index, source = task
            for item in outcome(source, recipe, seed=index):
                if isinstance(item, Chunk):
                    connection.send((item.valid, item.done))
                    connection.send_bytes(item.pcm)
                else:
                    connection.send(item)
    except (EOFError, OSError):
        connection.close()  # the writing process has stopped listening: nothing is left to do
