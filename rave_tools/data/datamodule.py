"""Batches for training and validation, as Lightning asks for them.

The stream of training batches is infinite and a pure function of (database, seed, batch counter): it does not depend on
the number of workers, and a resumed run continues it at exactly the batch where it stopped.
"""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from rave_tools.contracts import AudioBatch, collate
from rave_tools.data.datasets import DataError, Draw, FixedSegments, open_dataset
from rave_tools.data.store import read_facts
from rave_tools.data.transforms import Compose, RandomPitch, TransformLike, deterministic, rave_defaults
from rave_tools.errors import UserError

GRACE = 30
"""Seconds that a loader lives on after SIGTERM, for the trainer to finish its update."""


PREFETCH = 4
"""Batches that each loader prepares ahead."""


class BatchPlan(Sampler[list[Draw]]):
    """Which items make the batches: an endless walk through shuffled passes over the database.

    Args:
        items: in the database.
        batch: rows per process.
        seed: of the shuffling.
        rank: of this process.
        world_size: processes; this one takes rows rank, rank + world_size, ... of each global batch.
        start: first batch.
    """

    def __init__(self, items: int, *, batch: int, seed: int, rank: int = 0, world_size: int = 1, start: int = 0):
        self._items, self._batch, self._seed = items, batch, seed
        self._rank, self._world_size, self._start = rank, world_size, start
        self._order: tuple[int, np.ndarray] | None = None
        self.stopped = False

    def __iter__(self) -> Iterator[list[Draw]]:
        counter = self._start
        while not self.stopped:
            yield self.rows(counter)
            counter += 1

    def rows(self, counter: int) -> list[Draw]:
        """The items of one batch of this process."""
        first = counter * self._batch * self._world_size + self._rank
        return [self._draw(first + row * self._world_size) for row in range(self._batch)]

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self._items)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._items)
        return Draw(epoch, int(self._order[1][place]))


class TrainStream:
    """The training batches: infinite, without length, and with a clock for the time that its reader waits.

    It is not a DataLoader, so that Lightning puts no sampler of its own into it.
    """

    def __init__(self, loader: DataLoader[Any], plan: BatchPlan, module: "StreamedData"):
        self._loader, self._plan, self._module = loader, plan, module
        self._batches: Iterator[AudioBatch] | None = None

    def __iter__(self) -> Iterator[AudioBatch]:
        self._plan.stopped = False
        try:
            with _plain_errors():
                self._batches = iter(self._loader)
            while True:
                began = time.perf_counter()
                with _plain_errors():
                    batch = next(self._batches)
                self._module.waited += time.perf_counter() - began
                self._module.batches_served += 1
                yield batch
        finally:
            self.close()

    def close(self) -> None:
        """End the workers, which live as long as the stream.

        The batches under way are taken in first: a worker that ends while it is sending one aborts, and torch turns
        this into an error in the middle of whatever the main process is doing.
        """
        self._plan.stopped = True
        batches, self._batches = self._batches, None
        if batches is None:
            return
        for _ in range(1 + PREFETCH * self._loader.num_workers):  # each batch under way may hold an error of its own
            with contextlib.suppress(Exception):
                for _ in batches:
                    continue
                return


def leave_signals_to_the_trainer(_worker: int) -> None:
    """In a process that loads: Ctrl-C and a scheduler's SIGTERM reach the whole group, and the trainer answers them.

    A loader that they end is turned by torch into an error in the middle of whatever the trainer is doing; within an
    update this costs the checkpoint. So the loaders live on until the trainer closes its stream. SIGTERM is also how a
    program that ends gets rid of the loaders it has left: they give it `GRACE` seconds.
    """

    def end_later(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(GRACE)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):  # not on Windows, where nobody sends the other one to a group
        signal.signal(signal.SIGTERM, end_later)


class ValidationBatches:
    """The validation batches: the same every time."""

    def __init__(self, loader: DataLoader[Any]):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[AudioBatch]:
        return iter(self._loader)


class _plain_errors:
    """A worker's UserError arrives wrapped in a traceback; its last line is what a person should read."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError) and "\n" in str(error).strip():
            last = str(error).strip().splitlines()[-1]
            raise DataError(last.split(": ", 1)[-1]) from error


class StreamedData(lightning.LightningDataModule):
    """What all data modules share: an endless stream for training, fixed segments for validation.

    A subclass sets `_train` and `_validation` (datasets) and says how the batches are planned and files are released.

    Args:
        n_signal: samples per row.
        batch: rows per process.
        workers: processes that load; 0 loads in this one.
        seed: of all that is drawn.
        start_batch: batches that were consumed before.

    Attributes:
        rank, world_size: used where there is no trainer to say them.
        waited: total seconds spent waiting for training batches.
        batches_served: how many there were.
    """

    MORE_VALIDATION = "train in fewer (--devices), or preprocess with a larger --validation_share"

    def __init__(self, *, n_signal: int, batch: int, workers: int, seed: int, start_batch: int):
        super().__init__()
        if batch < 1:
            raise DataError(f"batch is {batch}; it must be at least 1")
        self.n_signal, self.batch, self.workers, self.seed = n_signal, batch, workers, seed
        self.start_batch, self.rank, self.world_size = start_batch, 0, 1
        self.waited, self.batches_served = 0.0, 0
        self._streams: list[TrainStream] = []
        self._train: Any = None
        self._validation: Any = None

    def _plan(self, rank: int, world_size: int) -> BatchPlan:
        return BatchPlan(
            len(self._train), batch=self.batch, seed=self.seed, rank=rank, world_size=world_size, start=self.start_batch
        )

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (self.rank, self.world_size) if trainer is None else (trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> TrainStream:
        """The infinite stream, beginning at batch `start_batch`."""
        rank, world_size = self._place()
        if len(self._validation) < world_size:
            raise DataError(
                f"{len(self._validation)} validation segments are too few for {world_size} processes, one for each; "
                f"{self.MORE_VALIDATION}"
            )
        plan = self._plan(rank, world_size)
        options: dict[str, Any] = {}
        if self.workers:
            options = {"multiprocessing_context": "spawn", "prefetch_factor": PREFETCH}
            options["worker_init_fn"] = leave_signals_to_the_trainer
        loader = DataLoader(self._train, batch_sampler=plan, num_workers=self.workers, collate_fn=collate, **options)
        stream = TrainStream(loader, plan, self)
        self._streams.append(stream)
        return stream

    def val_dataloader(self) -> ValidationBatches:
        """The fixed segments of this process, in batches."""
        rank, world_size = self._place()
        rows = range(rank, len(self._validation), world_size)
        part = torch.utils.data.Subset(self._validation, rows) if world_size > 1 else self._validation
        return ValidationBatches(DataLoader(part, batch_size=self.batch, collate_fn=collate))

    def teardown(self, stage: str | None = None) -> None:
        """End the workers and release files; what is needed again opens again."""
        while self._streams:
            self._streams.pop().close()
        self._release()

    def _release(self) -> None:
        raise NotImplementedError


class AudioDataModule(StreamedData):
    """Feeds a model from a database.

    Args:
        db_path: folder of the database, made by ``rave_tools preprocess`` or ``rave preprocess``.
        n_signal: samples per row.
        batch: rows per process.
        sampling_rate: of the model, in hertz; None takes the database's. A different one is resampled while loading.
        channels: of the model; None takes the database's.
        downmix: mean, first or random, to feed a model of fewer channels than the database has.
        workers: processes that load; 0 loads in this one.
        seed: of shuffling, crops and transforms.
        augmentations: transforms after RAVE's own, in this order.
        phase_mangle: probability of the phase mangle.
        normalize: bring each crop to full scale.
        derivative: differentiate each crop.
        rand_pitch: lowest and highest factor of playing speed.
        validation_segments: at most so many fixed segments.
        start_batch: batches that were consumed before.

    Raises:
        StoreError: there is no database.
        DataError: it does not fit the model.
    """

    def __init__(
        self,
        db_path: str,
        *,
        n_signal: int,
        batch: int,
        sampling_rate: int | None = None,
        channels: int | None = None,
        downmix: str | None = None,
        workers: int = 0,
        seed: int = 0,
        augmentations: Sequence[TransformLike] = (),
        phase_mangle: float = 0.8,
        normalize: bool = False,
        derivative: bool = False,
        rand_pitch: tuple[float, float] | None = None,
        validation_segments: int = 128,
        start_batch: int = 0,
    ):
        super().__init__(n_signal=n_signal, batch=batch, workers=workers, seed=seed, start_batch=start_batch)
        self.db_path = db_path
        self.facts = read_facts(db_path)
        self.sampling_rate = sampling_rate or self.facts.sampling_rate
        self.channels = channels or self.facts.channels
        stretch, rest = divide_stretches(augmentations, rand_pitch)
        options: dict[str, Any] = {
            "n_signal": n_signal,
            "sampling_rate": self.sampling_rate,
            "channels": self.channels,
            "downmix": downmix,
            "seed": seed,
        }
        chain = rave_defaults(phase_mangle=phase_mangle, normalize=normalize, derivative=derivative, augmentations=rest)
        self._train = open_dataset(
            db_path,
            split="train",
            transform=chain.at(self.sampling_rate),
            stretch=stretch,
            **options,
        )
        held = open_dataset(
            db_path, split="validation", transform=deterministic(normalize=normalize, derivative=derivative), **options
        )
        self._judged_on_training = len(held) == 0
        if self._judged_on_training:
            held = open_dataset(
                db_path, split="train", transform=deterministic(normalize=normalize, derivative=derivative), **options
            )
        self._held = held
        if len(self._train) == 0:
            raise DataError(
                f"{db_path}: nothing is left for training, all {len(held)} records are set aside for validation; "
                "preprocess with a smaller --validation_share"
            )
        self._validation = FixedSegments(held, limit=validation_segments)

    @property
    def train_records(self) -> int:
        """Items in the training split."""
        return len(self._train)

    @property
    def validation_records(self) -> int:
        """Segments that validation looks at."""
        return len(self._validation)

    @property
    def seconds(self) -> float:
        """Seconds of sound in the training split."""
        return self._train.seconds

    def describe(self) -> list[str]:
        """What a person should know before training, as lines."""
        facts = self.facts
        lines = [
            f"data: {self.db_path}: {self._train.seconds:,.0f} s in {len(self._train):,} records for training, "
            f"{len(self._validation)} segments of {self.n_signal:,} samples for validation, "
            f"{facts.channels} channel(s) at {facts.sampling_rate:,} Hz"
            f"{', decoded while training' if facts.lazy else ''}"
        ]
        if self.sampling_rate != facts.sampling_rate:
            lines.append(
                f"data: resampled while loading, from {facts.sampling_rate:,} Hz in the database to "
                f"{self.sampling_rate:,} Hz of the model; "
                f"`rave_tools preprocess --sampling_rate {self.sampling_rate}` would do it once"
            )
        if self.channels != facts.channels:
            lines.append(f"data: {facts.channels} channels are reduced to {self.channels} while loading")
        if self._judged_on_training:
            lines.append(
                "data: warning: nothing is set aside for validation; the model is judged on sound that it has seen"
            )
        if len(self._train) < self.batch:
            lines.append(
                f"data: warning: {len(self._train)} records are fewer than the batch of {self.batch}; "
                "a batch holds several crops of one"
            )
        short = int((self._train.spans.high - self._train.spans.low < self._train.span_needed).sum())
        if short:
            lines.append(
                f"data: {short:,} of {len(self._train.spans.high):,} files are shorter than {self.n_signal:,} samples "
                "and are followed by silence"
            )
        return lines

    def _release(self) -> None:
        for crops in (self._train, self._held):
            crops.sound.close()


class Stretches:
    """Several transforms that change the length, one after the other."""

    def __init__(self, stretches: Sequence[TransformLike]):
        self._chain = Compose(tuple(stretches))  # type: ignore[arg-type]
        self.reach = float(np.prod([getattr(item, "reach", 1.0) for item in stretches]))

    def __call__(self, audio: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self._chain(audio, generator)


def divide_stretches(
    augmentations: Sequence[TransformLike], rand_pitch: tuple[float, float] | None
) -> tuple[Stretches | None, list[TransformLike]]:
    """Part the transforms that change the length, which come before the crop is cut, from the others.

    Args:
        augmentations: of both kinds.
        rand_pitch: lowest and highest factor of playing speed; None for none.

    Returns:
        The stretches as one, None where there are none; and the others.
    """
    stretches = [item for item in augmentations if getattr(item, "reach", 1.0) != 1.0]
    rest = [item for item in augmentations if item not in stretches]
    if rand_pitch is not None:
        stretches.append(RandomPitch(tuple(rand_pitch)))
    return (Stretches(stretches) if stretches else None), rest
