"""Between the files and the database: workers that decode ahead, and a thread that writes."""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection, wait

from rave_tools.data.decoding import Chunk, Recipe, work
from rave_tools.data.sources import Journal, Source
from rave_tools.data.store import ExampleCodec, ExampleWriter
from rave_tools.errors import UserError

BATCH_BYTES = 32 << 20
BATCH_SECONDS = 10.0
AHEAD_BYTES = 256 << 20


class WorkerError(UserError):
    """The processes that decode cannot be had; the message says what to do."""


class Recorder:
    """Gathers records into batches; each is one transaction, then its lines in the journal, on one writing thread."""

    def __init__(self, recipe: Recipe, journal: Journal, writer: ExampleWriter, entries: list[Source]):
        self._recipe, self._journal, self._writer = recipe, journal, writer
        self.entries = entries
        self._codec: ExampleCodec | None = None
        self._next = sum(entry.records for entry in entries)
        self._file_first = self._next
        self._file_samples = 0
        self._chunks: list[tuple[Chunk, dict[str, str]]] = []
        self._finished: list[Source] = []
        self._size = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._pending: Future[None] | None = None
        self._failed = False
        self._flushed = time.monotonic()

    def chunk(self, source: Source, chunk: Chunk) -> None:
        """Add the next piece of the file in turn."""
        self._chunks.append(
            (
                chunk,
                {
                    "path": source.path,
                    "source": str(len(self.entries)),
                    "start": str(self._file_samples),
                    "valid": str(chunk.valid),
                },
            )
        )
        self._file_samples += chunk.valid
        self._size += len(chunk.pcm)
        if self._size >= BATCH_BYTES or time.monotonic() - self._flushed > BATCH_SECONDS:
            self.flush()

    def end(self, entry: Source) -> None:
        """Close the file in turn."""
        if self._recipe.lazy and entry.records:
            self._chunks.append(
                (
                    Chunk(b"", entry.samples, 1.0),
                    {
                        "path": entry.path,
                        "length": repr(entry.found_seconds),
                        "channels": str(entry.channels),
                        "source": str(len(self.entries)),
                        "frames": str(entry.samples),
                        "rate": str(entry.rate),
                    },
                )
            )
        stored = self._next + len(self._chunks) - self._file_first
        if stored > entry.records:
            self._forget_file()
        self.entries.append(entry)
        self._finished.append(entry)
        self._file_first = self._next + len(self._chunks)
        self._file_samples = 0
        if len(self._finished) >= 512:
            self.flush()

    def _forget_file(self) -> None:
        """Take back the records of a file that turned out unusable after some of it was sent."""
        keep = self._file_first - self._next
        if keep >= 0:
            del self._chunks[keep:]
            return
        self._chunks.clear()
        self.join()
        self._thread.submit(self._writer.truncate, self._file_first).result()
        self._next = self._file_first

    def flush(self) -> None:
        """Hand the batch to the writing thread, after the previous one is safe.

        After a batch was lost (a full disk) nothing is written any more: the journal must not list what follows a gap.
        """
        self.join()
        if self._failed:
            return
        self._flushed = time.monotonic()
        self._pending = self._thread.submit(self._write, self._next, self._chunks, self._finished)
        self._next += len(self._chunks)
        self._chunks, self._finished, self._size = [], [], 0

    def _write(self, first: int, chunks: list[tuple[Chunk, dict[str, str]]], finished: list[Source]) -> None:
        if self._codec is None:
            self._codec = ExampleCodec()
        recipe, codec = self._recipe, self._codec
        if recipe.lazy:
            records = [codec.reference(metadata) for _, metadata in chunks]
        else:
            records = [
                codec.audio(chunk.pcm, channels=recipe.channels, sampling_rate=recipe.sampling_rate, metadata=metadata)
                for chunk, metadata in chunks
            ]
        self._writer.append(first, records)
        if finished:
            self._journal.append(finished)

    def join(self) -> None:
        """Wait for the batch that is being written; its errors are raised here."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except BaseException:
                self._failed = True
                raise

    def close(self) -> None:
        """Write what is left and stop the thread."""
        try:
            self.flush()
            self.join()
        finally:
            self._thread.shutdown()


class _Worker:
    """A worker process, the task it has, and its end of the pipe."""

    def __init__(self, recipe: Recipe):
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, child = context.Pipe()
        self._process = context.Process(target=work, args=(child, recipe), daemon=True)
        self._process.start()
        child.close()
        self.task: int | None = None
        self.started = False

    def give(self, index: int, source: Source) -> None:
        """Hand over a file."""
        self.task = index
        self.connection.send((index, source))

    def last_words(self) -> str:
        """Why the process is gone."""
        self._process.join(5)
        return f"the decoder crashed on it (exit code {self._process.exitcode})"

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.terminate()
        self._process.join(5)


class Decoding:
    """Distributes files to workers and gives back what they send in the order of the files."""

    def __init__(self, sources: Sequence[Source], first: int, recipe: Recipe, workers: int):
        self._sources, self._recipe = sources, recipe
        self._turn = self._next_task = first
        self._buffers: dict[int, deque[Chunk | Source]] = {}
        self._ahead = 0
        self._workers = [_Worker(recipe) for _ in range(max(1, min(workers, len(sources) - first)))]

    def run(self, receive: Callable[[Source, Chunk | Source], None]) -> None:
        """Decode everything.

        Args:
            receive: called with the file and each of its chunks, last its entry, files in order.
        """
        for worker in self._workers:
            self._assign(worker)
        while self._turn < len(self._sources):
            listening = [
                worker
                for worker in self._workers
                if worker.task is not None and (worker.task == self._turn or self._ahead < AHEAD_BYTES)
            ]
            ready = set(map(id, wait([worker.connection for worker in listening])))
            for position, worker in enumerate(self._workers):
                if id(worker.connection) in ready:
                    self._hear(position, worker)
            self._deliver(receive)

    def _assign(self, worker: _Worker) -> None:
        worker.task = None
        if self._next_task < len(self._sources):
            worker.give(self._next_task, self._sources[self._next_task])
            self._buffers[self._next_task] = deque()
            self._next_task += 1

    def _hear(self, position: int, worker: _Worker) -> None:
        task = worker.task
        if task is None:
            return
        try:
            item = worker.connection.recv()
            if item is None:
                worker.started = True
                return
            if not isinstance(item, Source):
                item = Chunk(worker.connection.recv_bytes(), *item)
        except (EOFError, OSError) as error:
            if not worker.started:
                raise WorkerError(
                    "a process that decodes could not start; its words are above. In a script, call preprocess under "
                    "`if __name__ == '__main__':`, or with workers=0"
                ) from error
            item = replace(self._sources[task], skipped=worker.last_words())
            worker.stop()
            self._workers[position] = worker = _Worker(self._recipe)
        self._buffers[task].append(item)
        if isinstance(item, Source):
            self._assign(worker)
        else:
            self._ahead += len(item.pcm)

    def _deliver(self, receive: Callable[[Source, Chunk | Source], None]) -> None:
        while (buffer := self._buffers.get(self._turn)) is not None:
            while buffer:
                item = buffer.popleft()
                receive(self._sources[self._turn], item)
                if isinstance(item, Source):
                    del self._buffers[self._turn]
                    self._turn += 1
                    break
                self._ahead -= len(item.pcm)
            else:
                return

    def stop(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.stop()
