"""Batches through shared memory: what comes out is what went in, whoever is slow, gone or without such memory."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.data.shared import Slots

ROOT = str(Path(__file__).parents[2])
BIG = 2000  # bytes; messages that only say where a batch is are smaller


def batch(step: int, count: int = 500) -> dict:
    return {
        "x0": np.full((count, 2), step, np.float32),
        "cond": {"label": np.arange(3) + step},
    }


def same(a: dict, b: dict) -> bool:
    return np.array_equal(a["x0"], b["x0"]) and np.array_equal(a["cond"]["label"], b["cond"]["label"])


def worker_of(slots: Slots) -> Slots:
    """As a worker process sees them."""
    return pickle.loads(pickle.dumps(slots))


@pytest.fixture
def slots():
    made = Slots(2, 4200, start=7)
    yield made
    made.close()


def test_batches_pass_and_belong_to_the_receiver(slots):
    worker, got = worker_of(slots), []
    for step in range(7, 13):
        message = worker.put(step, batch(step))
        assert len(message) < BIG
        got.append(slots.take(message))
    slots.close()
    assert all(map(same, got, map(batch, range(7, 13))))
    assert all(type(b["x0"]) is np.ndarray and b["x0"].flags.writeable for b in got)


def test_a_worker_waits_for_a_free_slot(slots):
    worker, sent = worker_of(slots), queue.Queue()
    ahead = threading.Thread(
        target=lambda: [sent.put(worker.put(step, batch(step))) for step in range(7, 11)],
        daemon=True,
    )
    ahead.start()
    time.sleep(0.2)
    assert sent.qsize() == 2
    for step in range(7, 11):
        assert same(slots.take(sent.get(timeout=5)), batch(step))
        time.sleep(0.1)
        assert sent.qsize() <= 2  # a third would be written over the first
    ahead.join(5)
    assert not ahead.is_alive()


def test_those_that_wait_end_with_the_receiver(slots):
    worker = worker_of(slots)
    waits = threading.Thread(target=worker.put, args=(100, batch(0)), daemon=True)
    waits.start()
    time.sleep(0.1)
    assert waits.is_alive()
    slots.release()
    waits.join(5)
    assert not waits.is_alive()


def test_a_batch_that_is_too_large_takes_the_queue(slots):
    worker = worker_of(slots)
    message = worker.put(7, batch(7, count=600))
    assert len(message) > BIG
    assert same(slots.take(message), batch(7, count=600))
    assert same(slots.take(worker.put(8, batch(8))), batch(8))


@pytest.mark.parametrize("lacking", ["system call", "/proc", "memory"])
def test_without_shared_memory_all_take_the_queue(lacking, monkeypatch):
    if lacking == "system call":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif lacking == "/proc":
        monkeypatch.setattr(os, "getpid", lambda: 2**30)
    else:
        monkeypatch.setattr(os, "ftruncate", lambda fd, size: os.write(-1, b""))
    slots = Slots(2, 4200)
    worker = worker_of(slots)
    for step in range(5):
        message = worker.put(step, batch(step))
        assert len(message) > BIG
        assert same(slots.take(message), batch(step))
    slots.release()
    slots.close()


def test_a_worker_that_cannot_find_the_memory_takes_the_queue(slots):
    worker = worker_of(slots)
    worker._path = "/nonexistent"
    assert same(slots.take(worker.put(7, batch(7))), batch(7))
    assert same(slots.take(worker_of(slots).put(8, batch(8))), batch(8))


def test_closing_gives_the_file_back():
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    slots = Slots(2, 1000)
    assert descriptors() > before
    slots.close()
    slots.close()
    assert descriptors() == before


KILLED = """
import multiprocessing
from jaxdiff import data
from tests.data.test_pipeline import source

if __name__ == "__main__":
    for batch in data.iterate(data.Batches(source(), 16, seed=3), workers=2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_a_killed_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}
    run = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # where Python counts the semaphores of a killed process
        text=True,
        env=environment,
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(alive, workers))
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
