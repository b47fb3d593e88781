"""Batches from worker processes through shared memory.

Through a queue a batch is copied about five times, piece by piece, by the process that trains. Here a worker writes the
arrays into a slot of memory that both processes have mapped and sends only where they are; the receiver copies them
out, so that what it hands on is its own. The memory is an anonymous file (`memfd_create`): it has no name, so nothing
is left behind whoever is killed, and it is not part of /dev/shm, which containers keep small. Blocks with names have
neither property, which is why grain's own are not used.

Step s uses slot s mod K and waits until step s - K has been taken out. Steps are taken in order, so the step that is
waited for is never the one that waits. Where there is no such memory (outside Linux), or a batch is larger than a slot,
it travels through the queue.
"""

import contextlib
import mmap
import os
import pickle
import struct
import sys
import time
from typing import Any

_LINE = 64  # a cache line: arrays start on one, and the count of what was taken has one of its own
_POLL_S = 0.002


class Slots:
    """Places for batches in memory that worker processes share; give it to them by pickling.

    Args:
        count: how many slots.
        nbytes: the size of one in bytes.
        start: the first step that will be taken.

    Examples:
        >>> slots = Slots(2, 1000, start=5)
        >>> message = slots.put(5, {"x0": bytearray(b"pixels")})
        >>> slots.take(message)
        {'x0': bytearray(b'pixels')}
        >>> slots.close()
    """

    def __init__(self, count: int, nbytes: int, start: int = 0) -> None:
        self.count, self.nbytes = count, _round_up(nbytes)
        self._fd, self._path = -1, ""
        self._memory: Any = None  # a memoryview
        if hasattr(os, "memfd_create"):
            # Without memory for it, or without /proc for others to find it, the queue does.
            with contextlib.suppress(OSError):
                self._fd = os.memfd_create("jaxdiff-batches")
                os.ftruncate(self._fd, _LINE + self.count * self.nbytes)
                self._path = f"/proc/{os.getpid()}/fd/{self._fd}"
                self._memory = self._map()
        if self._memory is None:
            self._path = ""
        else:
            self._taken = start

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": -1, "_memory": None}  # whoever gets it maps the file itself

    def put(self, step: int, batch: Any) -> bytes:
        """In a worker: store a batch, once there is room; returns what to send instead."""
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        memory = self._map()
        if memory is None or sum(_round_up(len(part)) for part in raw) > self.nbytes:
            return pickle.dumps((step, pickle.dumps(batch), None))
        while step - self._taken >= self.count:
            time.sleep(_POLL_S)
        place = self._place(step)
        for part in raw:
            memory[place : place + len(part)] = part
            place += _round_up(len(part))
        return pickle.dumps((step, head, [len(part) for part in raw]))

    def take(self, message: bytes) -> Any:
        """In the receiver, step by step: the batch of a message; its slot is free from now on."""
        step, head, sizes = pickle.loads(message)
        place, copies = self._place(step), []
        for size in sizes or ():
            copies.append(bytearray(self._memory[place : place + size]))
            place += _round_up(size)
        batch = pickle.loads(head, buffers=copies)
        if self._memory is not None:
            self._taken = step + 1
        return batch

    def release(self) -> None:
        """Nothing will be taken any more: let the workers that wait for room go on to their end."""
        if self._memory is not None:
            self._taken = sys.maxsize

    def close(self) -> None:
        """Give the memory back, once no worker needs to find it."""
        self._memory, self._path = None, ""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _map(self) -> Any:
        if self._memory is None and self._path:
            with contextlib.suppress(OSError), open(self._path, "r+b") as file:
                self._memory = memoryview(mmap.mmap(file.fileno(), 0))
        return self._memory

    def _place(self, step: int) -> int:
        return _LINE + step % self.count * self.nbytes

    @property
    def _taken(self) -> int:
        """One past the last step taken out."""
        return struct.unpack_from("=q", self._memory)[0]

    @_taken.setter
    def _taken(self, step: int) -> None:
        struct.pack_into("=q", self._memory, 0, step)


def _round_up(size: int) -> int:
    return -(-size // _LINE) * _LINE
