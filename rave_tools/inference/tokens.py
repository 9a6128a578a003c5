"""Sounds to a database of tokens or latents, and back to files; in bounded memory, equal to one pass."""

import copy
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.compression import CompressionModel
from rave_tools.codec.segments import cut_segments, overlap_add, segment_lengths
from rave_tools.contracts import Latent
from rave_tools.data.audio_io import open_audio
from rave_tools.data.store import StoreError
from rave_tools.data.tokens import CODES, PART, TokenFacts, TokenItem, TokenStore, TokenWriter, differences
from rave_tools.errors import UserError
from rave_tools.inference.files import (
    SUBTYPES,
    Job,
    Outcome,
    Progress,
    Sound,
    describe_changes,
    lay_out,
    read_sound,
    targets,
    write_sound,
)
from rave_tools.inference.reconstruct import (
    LONGEST_CHUNK,
    Machine,
    context_of,
    machine_of,
    overlapped,
    segments_of,
)
from rave_tools.nn.padded_conv import fold_to_play

DTYPES = ("float32", "float16")


def identity(codec: Autoencoder, *, kind: str, dtype: str, run: str) -> TokenFacts:
    """What tells a codec's tokens from another's.

    Args:
        codec: as trained, before anything is folded.
        kind: ``codes`` or ``latents``.
        dtype: of latents; that of codes follows from the codebook's size.
        run: where it came from; does not belong to the identity.
    """
    digest = hashlib.sha256()
    for name, value in sorted(codec.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    facts = {
        "model": type(codec).__name__,
        "sample_rate": int(codec.sample_rate),
        "hop": int(codec.hop),
        "channels": int(codec.channels),
        "latent_dim": int(codec.latent_dim),
        "num_codebooks": int(codec.num_codebooks),
        "codebook_size": int(codec.codebook_size),
        "weights": digest.hexdigest()[:16],
    }
    segments = segments_of(codec)
    if isinstance(codec, CompressionModel) and segments is not None:
        facts |= {"renormalize": codec.renormalize, "segment": list(segments)}
    if kind == CODES:
        dtype = "int16" if codec.codebook_size <= 1 << 15 else "int32"
    return TokenFacts(kind, dtype, facts, run)


class Tokenizer:
    """A codec, ready to write and to read tokens.

    Args:
        codec: trained, which stays as it is.
        kind: ``codes`` or ``latents``.
        device: where to compute.
        chunk: samples at once, at most, where the codec has no segments.
    """

    def __init__(self, codec: Autoencoder, kind: str, *, device: str = "cpu", chunk: int = LONGEST_CHUNK) -> None:
        self.kind = kind
        self.device = device
        self.hop = codec.hop
        self.segments = segments_of(codec)
        self.chunk = max(1, chunk // self.hop)
        self.codec = fold_to_play(copy.deepcopy(codec).eval()).requires_grad_(False).to(device)
        self._field: tuple[int, int] | None = None
        self._measured = lambda: context_of(codec)

    def context(self) -> tuple[int, int]:
        """Samples of context, a frame more than the codec tells, for other samples of a frame look further."""
        if self._field is None:
            left, right = self._measured()
            self._field = left + self.hop, right + self.hop
        return self._field

    def context_frames(self) -> tuple[int, int]:
        """Frames of context."""
        left, right = self.context()
        return -(-left // self.hop), -(-right // self.hop)

    def encode(self, blocks: Iterable[Tensor], scales: list[Tensor]) -> Iterator[Tensor]:
        """Sound to what is stored.

        Args:
            blocks: (rows, C, n) with any n.
            scales: gets what each segment is divided by, (rows, 1).

        Yields:
            (rows, K or D, n).
        """
        if self.segments is None:
            hop = self.hop
            yield from overlapped(
                blocks, lambda x: self._kept(self._encode(x)), chunk=self.chunk * hop, grid=hop, context=self.context,
                place=lambda samples: -(-samples // hop),
            )  # fmt: skip
            return
        length, stride = self.segments
        for part in cut_segments(blocks, length=length, stride=stride):
            latent = self._encode(part)
            if latent.scale is not None:
                scales.append(latent.scale.cpu())
            yield self._kept(latent)

    @torch.inference_mode()
    def _encode(self, audio: Tensor) -> Latent:
        audio = audio.to(self.device)
        if self.segments is None:
            return self.codec.encode(audio, deterministic=True)
        return self.codec.encode_bands(audio, deterministic=True)

    def _kept(self, latent: Latent) -> Tensor:
        kept = latent.codes if self.kind == CODES else latent.z
        if kept is None:
            raise UserError("this codec makes no codes; write --latents")
        return kept.cpu()

    def frames(self, samples: int) -> list[int]:
        """Frames of each segment of a sound; of one without segments, of all of it."""
        if self.segments is None:
            return [-(-samples // self.hop)]
        length, stride = self.segments
        return [-(-part // self.hop) for part in segment_lengths(samples, length=length, stride=stride)]

    def decode(self, blocks: Iterable[Tensor], *, samples: int, scales: Tensor | None) -> Iterator[Tensor]:
        """What is stored, to sound.

        Args:
            blocks: (rows, K or D, n) with any n.
            samples: length of the sound.
            scales: (rows, segments), what each segment was divided by.

        Yields:
            (rows, C, n), together `samples` long.
        """
        if self.segments is None:
            played = overlapped(
                blocks, self._decode, chunk=self.chunk, grid=1, context=self.context_frames,
                place=lambda frames: frames * self.hop,
            )  # fmt: skip
        else:
            played = overlap_add(self._decode_segments(blocks, samples, scales), stride=self.segments[1])
        left = samples
        for block in played:
            yield block[..., :left]
            left -= min(left, block.shape[-1])

    def _decode_segments(self, blocks: Iterable[Tensor], samples: int, scales: Tensor | None) -> Iterator[Tensor]:
        waiting: Tensor | None = None
        rest = iter(blocks)
        for number, frames in enumerate(self.frames(samples)):
            while waiting is None or waiting.shape[-1] < frames:
                block = next(rest)
                waiting = block if waiting is None else torch.cat([waiting, block], -1)
            yield self._decode(waiting[..., :frames], None if scales is None else scales[:, number : number + 1])
            waiting = waiting[..., frames:]

    @torch.inference_mode()
    def _decode(self, kept: Tensor, scale: Tensor | None = None) -> Tensor:
        kept = kept.to(self.device)
        z = self.codec.dequantize(kept.long()) if self.kind == CODES else kept.float()
        latent = Latent(self.codec.augment(z, 0.0), scale=None if scale is None else scale.to(self.device))
        return self.codec.from_bands(self.codec.decode_latent(latent)).cpu()


def encode_files(
    sounds: Mapping[Path, Path],
    codec: Autoencoder,
    writer: TokenWriter,
    *,
    device: str = "cpu",
    chunk: int = LONGEST_CHUNK,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Encode files into a database, one by one; those that are in it, unchanged, are not encoded again.

    Args:
        sounds: files, with their places in the tree below the input.
        codec: trained.
        writer: of the database.
        device: where to compute.
        chunk: samples at once, at most.
        progress: told about every block.

    Yields:
        What became of each file. A file that cannot be read is an outcome, not an exception; a full disk is one.

    Raises:
        UserError: the database has another file under the same path.
    """
    tell = progress or (lambda job, seconds: None)
    machine = machine_of(codec, live=False, device=device)
    tokenizer = Tokenizer(codec, writer.facts.kind, device=device, chunk=chunk)
    places = {source: _item(source, place) for source, place in sounds.items()}
    for item in places.values():
        stored = writer.items.get(item.path, (0, item))[1]
        if stored.source != item.source and not stored.same_file(item):
            raise UserError(
                f"{writer.folder}: {item.path} is there already, from {stored.source}, and {item.source} is another "
                "file; choose another --output, or give both folders as --input of one command into a new one"
            )
    for source, item in places.items():
        started = time.perf_counter()
        outcome = Outcome(Job(source, Path(item.path)))
        stored = writer.items.get(item.path, (0, None))[1]
        try:
            if stored is not None and stored.same_file(item):
                outcome.notes, outcome.problem = ["already there"], stored.damage
            else:
                if stored is not None:
                    outcome.notes.append("changed since it was encoded: encoded anew")
                _encode_file(item, tokenizer, machine, writer, outcome, tell)
        except StoreError:
            raise
        except UserError as error:
            outcome.problem = str(error).removeprefix(f"{source}: ")
        except (RuntimeError, ValueError) as error:
            outcome.problem = f"the model failed: {str(error).strip().splitlines()[-1]}"
        outcome.spent = time.perf_counter() - started
        yield outcome


def _item(source: Path, place: Path) -> TokenItem:
    status = source.stat()
    return TokenItem(place.as_posix(), str(source.resolve()), status.st_size, status.st_mtime_ns)


def _encode_file(
    item: TokenItem, tokenizer: Tokenizer, machine: Machine, writer: TokenWriter, outcome: Outcome, tell: Progress
) -> None:
    scales: list[Tensor] = []
    samples = 0
    sound = Sound()
    with open_audio(outcome.job.source) as reader:
        facts = reader.facts
        layout = lay_out(facts.channels, machine)
        outcome.notes += describe_changes(facts, machine, layout, machine.sample_rate)
        dtype = np.dtype(writer.facts.dtype)

        def heard() -> Iterator[Tensor]:
            nonlocal samples
            for block in read_sound(reader, layout, machine, sound, lambda seconds: tell(outcome.job, seconds)):
                samples += block.shape[-1]
                yield block

        def kept() -> Iterator[np.ndarray]:
            frames = 0
            for block in tokenizer.encode(heard(), scales):
                values = block.numpy().astype(dtype)
                frames += values.shape[-1]
                if not np.isfinite(values).all():
                    more = " (--dtype float32 holds larger ones)" if bool(torch.isfinite(block).all()) else ""
                    raise UserError(f"the model answered values that are not finite in {dtype.name}{more}")
                yield values
            if not samples:
                raise UserError(reader.damage or "holds no sound")
            if frames != sum(tokenizer.frames(samples)):
                raise ValueError(f"{frames} frames of {samples} samples, expected {sum(tokenizer.frames(samples))}")

        def complete() -> tuple[TokenItem, np.ndarray | None]:
            if sound.broken_input:
                outcome.notes.append(f"{sound.broken_input} samples that are not finite made silent")
            done = replace(
                item, samples=samples, rate=facts.sampling_rate, source_frames=sound.frames, notes=tuple(outcome.notes),
                damage=reader.damage,
            )  # fmt: skip
            return done, torch.cat(scales, 1).numpy() if scales else None

        writer.add(item, kept(), complete=complete)
        outcome.problem = reader.damage
    outcome.written = True
    outcome.seconds = samples / machine.sample_rate


def match(codec: Autoencoder, store: TokenStore, *, path: str) -> None:
    """See that a codec is the one that made a database; it is set to use as many codebooks.

    Args:
        codec: trained.
        store: the database.
        path: of the codec, for messages.

    Raises:
        UserError: it is another; says what differs.
    """
    stored = store.facts
    number = int(stored.codec["num_codebooks"])
    if isinstance(codec, CompressionModel) and 1 <= number <= codec.total_codebooks:
        codec.set_num_codebooks(number)
    own = identity(codec, kind=stored.kind, dtype=stored.dtype, run=path)
    if own.hash != stored.hash:
        raise UserError(
            f"{store.folder} was made by codec {stored.hash} (run {stored.run}), but {path} is codec {own.hash}; "
            f"{'; '.join(differences(stored, own))}. Give the run and checkpoint that it was made with, or encode the "
            "sounds anew with this one"
        )


def decode_database(
    store: TokenStore,
    codec: Autoencoder,
    out: Path,
    *,
    bits: str = "16",
    keep_rate: bool = False,
    seed: int = 0,
    device: str = "cpu",
    chunk: int = LONGEST_CHUNK,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Make wav files of all that a database holds, each as long as the sound was, in the tree that the sounds had.

    Args:
        store: the database.
        codec: that made it, see `match`.
        out: folder of the files.
        bits: of the files: 16, 24 or float.
        keep_rate: write at the sounds' own rates.
        seed: of everything random in a decoder, set anew for each file.
        device: where to compute.
        chunk: samples at once, at most.
        progress: told about every file.

    Yields:
        What became of each file.
    """
    tokenizer = Tokenizer(codec, store.facts.kind, device=device, chunk=chunk)
    places = {Path(item.path): Path(item.path) for item in store.items}
    files = targets(places, out)
    first = 0
    for item in store.items:
        started = time.perf_counter()
        entries = range(first, first + item.rows)
        first += item.rows
        outcome = Outcome(Job(Path(item.path), files[Path(item.path)]), problem=item.damage)
        rate = item.rate if keep_rate else codec.sample_rate
        scales = [store.scales(entry) for entry in entries]
        stacked = None if scales[0] is None else torch.from_numpy(np.stack([s for s in scales if s is not None]))
        torch.manual_seed(seed)
        try:
            played = tokenizer.decode(_stored(store, entries), samples=item.samples, scales=stacked)
            write_sound(
                played, outcome, rate=codec.sample_rate, target_rate=rate, channels=item.rows * codec.channels,
                subtype=SUBTYPES[bits], length=item.source_frames if keep_rate else item.samples,
            )  # fmt: skip
        except UserError as error:
            outcome.problem = str(error)
        except (RuntimeError, ValueError) as error:
            outcome.problem = f"the model failed: {str(error).strip().splitlines()[-1]}"
        outcome.spent = time.perf_counter() - started
        if progress:
            progress(outcome.job, outcome.seconds)
        yield outcome


def _stored(store: TokenStore, entries: range) -> Iterator[Tensor]:
    """All rows of a sound together, part by part."""
    frames = store.frames(entries[0])
    for start in range(0, frames, PART):
        stop = min(frames, start + PART)
        yield torch.from_numpy(np.stack([store.read(entry, start, stop) for entry in entries]))
