"""Batches as a pure function of (seed, step).

Position k of the stream, k = step * batch_size + row, is example order_e[k mod N] of epoch e = k div N, where order_e
is a permutation keyed by (seed, e): an endless stream in which each epoch is a new shuffle. The random numbers of the
transforms are keyed by (seed, step). Nothing else enters, hence a batch does not depend on the number of processes or
workers, and a run that restarts at step s sees what it would have seen.
"""

import contextlib
import math
import multiprocessing
import operator
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxdiff.data.memory import InMemory
from jaxdiff.data.randomness import Draw, permutation
from jaxdiff.data.shared import Slots
from jaxdiff.data.sources import Source
from jaxdiff.data.transforms import ToUnitRange, Transform
from jaxdiff.errors import UsageError


@dataclass(frozen=True, eq=False)
class Batches:
    """Random access to the batches of an endless stream: `batches[step]`.

    Args:
        source: the images.
        batch_size: examples in a batch of all processes together.
        seed: 0 <= seed < 2**64; decides the order and all random numbers.
        transforms: applied in turn to the images in [0, 255]; the scaling to [-1, 1] follows them.
        process_index: which rows to give: the process_index-th of process_count contiguous parts of each batch.
        process_count: how many parts.
        shuffle: a new order every epoch; False: the order of the source, again and again.

    Indexing gives {"x0": float32 [batch_size / process_count, H, W, C] in [-1, 1], "cond": {"label": int32 [...]}};
    "cond" is empty for a source without labels.

    Raises:
        UsageError: where the numbers do not fit each other.

    Examples:
        >>> source = InMemory(np.zeros([50, 8, 8, 1], np.uint8), np.zeros(50, np.int32), num_classes=10)
        >>> batch = Batches(source, batch_size=16, seed=0)[1000]
        >>> batch["x0"].shape, batch["cond"]["label"].shape
        ((16, 8, 8, 1), (16,))
    """

    source: Source
    batch_size: int
    seed: int
    transforms: tuple[Transform, ...] = ()
    process_index: int = 0
    process_count: int = 1
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size={self.batch_size}: allowed: 1 or more")
        if self.process_count < 1 or self.batch_size % self.process_count:
            raise UsageError(f"batch_size={self.batch_size} is not divisible by the {self.process_count} processes")
        if not 0 <= self.process_index < self.process_count:
            raise UsageError(f"process_index={self.process_index}: allowed: 0 to {self.process_count - 1}")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed={self.seed}: allowed: 0 to 2**64 - 1")
        if len(self.source) == 0:
            raise UsageError("source holds no images")

    def __getitem__(self, step: int) -> dict[str, Any]:
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step={step}: steps count from 0")
        rows = self.batch_size // self.process_count
        lo = self.process_index * rows
        images, labels = _gather(self.source, self.indices(step)[lo : lo + rows])
        draw = Draw(self.seed, step, self.batch_size, lo, lo + rows)
        for transform in self.transforms:
            images = transform(images, draw)
        out = images if images.dtype == np.float32 and images.flags.writeable else None
        return {"x0": ToUnitRange()(images, out=out), "cond": {} if labels is None else {"label": labels}}

    def indices(self, step: int) -> np.ndarray:
        """Which examples of the source make up a batch, for all processes together.

        Args:
            step: 0, 1, ...

        Returns:
            int64 [batch_size].
        """
        count = len(self.source)
        epoch, place = np.divmod(step * self.batch_size + np.arange(self.batch_size), count)
        if not self.shuffle:
            return place
        for e in range(int(epoch[0]), int(epoch[-1]) + 1):
            here = epoch == e
            place[here] = permutation(count, self.seed, e)[place[here]]
        return place


def iterate(
    batches: Batches, start: int = 0, stop: int | None = None, *, workers: int = 0, prefetch: int = 2
) -> Generator[dict[str, Any], None, None]:
    """The batches of steps start, start + 1, ..., stop - 1, made ahead of their use.

    Args:
        batches: what to iterate over.
        start: first step.
        stop: one past the last step; None: no end.
        workers: processes that make batches; 0 makes them on threads of this process, which is faster for sources in
            memory. Batches come from them through shared memory. Workers are spawned, so a script needs an
            `if __name__ == "__main__"` guard, and each holds a copy of the source.
        prefetch: batches made ahead (per worker); 0: none.

    Returns:
        An iterator; the batches and their order do not depend on `workers` or `prefetch`. Closing it, or dropping it,
        ends its threads and processes.

    Raises:
        UsageError: for numbers out of range.

    Examples:
        >>> source = InMemory(np.zeros([50, 8, 8, 1], np.uint8))
        >>> len(list(iterate(Batches(source, batch_size=16, seed=0), 3, 7)))
        4
    """
    if workers < 0 or prefetch < 0:
        raise UsageError(f"workers={workers}, prefetch={prefetch}: allowed: 0 or more")
    if start < 0 or (stop is not None and stop < start):
        raise UsageError(f"steps {start} to {stop}: allowed: 0 <= start <= stop")
    return _iterate(batches, start, stop, workers, prefetch)


def _iterate(
    batches: Batches, start: int, stop: int | None, workers: int, prefetch: int
) -> Generator[dict[str, Any], None, None]:
    import grain

    steps = grain.MapDataset.range(start, sys.maxsize if stop is None else stop)
    reading = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
    if not workers:
        with contextlib.closing(iter(steps.map(batches.__getitem__).to_iter_dataset(reading))) as iterator:
            yield from iterator
        return
    _mark_flags_parsed()
    # One slot for what a worker is making beside those that wait. The labels have their share.
    size = 4 * (batches.batch_size // batches.process_count) * (math.prod(batches.source.shape) + 1) + 1024
    slots = Slots(workers * (prefetch + 1), size, start)
    dataset = steps.map(partial(_make, batches, slots)).to_iter_dataset(reading)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(prefetch, 1))
    with contextlib.ExitStack() as stack:
        stack.callback(slots.close)
        iterator = stack.enter_context(
            contextlib.closing(iter(dataset.mp_prefetch(options, worker_init_fn=_start_worker)))
        )
        stack.callback(slots.release)
        yield from map(slots.take, iterator)


def _make(batches: Batches, slots: Slots, step: int) -> bytes:
    return slots.put(step, batches[step])


def _start_worker(worker: int, workers: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; what they mean is for the run's own process to
    decide. A worker whose run was killed would wait for ever: it ends as well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _mark_flags_parsed() -> None:
    """grain hands the command line's flags to its workers and refuses where nobody has parsed them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _gather(source: Source, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Images float32 [b, H, W, C] in [0, 255] and labels int32 [b]."""
    if isinstance(source, InMemory):
        labels = None if source.labels is None else source.labels[indices].astype(np.int32)
        return source.images[indices].astype(np.float32), labels
    images = np.empty((len(indices), *source.shape), np.float32)
    ids = np.empty(len(indices), np.int32)
    for row, index in enumerate(indices):
        record = source[int(index)]
        images[row] = record["image"]
        ids[row] = record.get("label", 0)
    return images, ids if source.num_classes else None
