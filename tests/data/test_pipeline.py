"""Batches: a pure function of (seed, step), whatever the number of processes and workers."""

import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data import transforms
from jaxdiff.data.folder import ImageFolder
from jaxdiff.errors import UsageError

ALL = transforms.make(("flip", "dequantize", "flip_vertical"))


def source(count: int = 50, classes: int = 50) -> data.InMemory:
    """Image i is noise of its own, with label i."""
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    return data.InMemory(images, np.arange(count) if classes else None, classes)


class PerRecord:
    """The same images, one at a time."""

    def __init__(self, inner: data.InMemory) -> None:
        self.inner, self.shape, self.num_classes = inner, inner.shape, inner.num_classes

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> dict:
        return self.inner[index]


def same(a: dict, b: dict) -> bool:
    return (
        np.array_equal(a["x0"], b["x0"])
        and a["cond"].keys() == b["cond"].keys()
        and all(np.array_equal(a["cond"][k], b["cond"][k]) for k in a["cond"])
    )


def joined(parts: list[dict]) -> dict:
    cond = {k: np.concatenate([part["cond"][k] for part in parts]) for k in parts[0]["cond"]}
    return {"x0": np.concatenate([part["x0"] for part in parts]), "cond": cond}


def test_a_batch_is_the_images_of_its_labels():
    inner = source()
    batch = data.Batches(inner, 16, seed=3)[2]
    label = batch["cond"]["label"]
    assert batch["x0"].dtype == np.float32
    assert label.dtype == np.int32
    assert label.shape == (16,)
    np.testing.assert_allclose(batch["x0"], inner.images[label] / 127.5 - 1, atol=1e-6)
    assert data.Batches(source(classes=0), 16, seed=3)[2]["cond"] == {}


def test_batches_depend_on_seed_and_step_alone():
    one = data.Batches(source(), 16, seed=3, transforms=ALL)
    expected = [one[step] for step in range(5)]
    other = pickle.loads(pickle.dumps(data.Batches(source(), 16, seed=3, transforms=ALL)))
    for step in (4, 0, 3, 1, 2):
        assert same(other[step], expected[step])
    assert not same(other[0], expected[1])
    assert not same(data.Batches(source(), 16, seed=4, transforms=ALL)[0], expected[0])


@pytest.mark.parametrize("kind", [lambda inner: inner, PerRecord])
@pytest.mark.parametrize("shuffle", [True, False])
def test_making_a_batch_leaves_the_source_as_it_was(kind, shuffle):
    inner = source()
    before = inner.images.copy()
    batches = data.Batches(kind(inner), 16, seed=3, transforms=ALL, shuffle=shuffle)
    assert same(batches[0], batches[0])
    assert (inner.images == before).all()


@pytest.mark.parametrize("name", [(), ("flip",), ("dequantize",), ("flip_vertical",), ("flip", "dequantize")])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_parts_of_all_processes_are_the_batch(name, processes):
    made = transforms.make(name)
    for step in (0, 3, 7):  # 3 runs from one epoch into the next
        whole = data.Batches(source(), 16, seed=3, transforms=made)[step]
        parts = [data.Batches(source(), 16, 3, made, p, processes)[step] for p in range(processes)]
        assert same(joined(parts), whole)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 120])
def test_epochs_are_permutations_and_differ(batch_size):
    batches = data.Batches(source(), batch_size, seed=0)
    stream = np.concatenate([batches[step]["cond"]["label"] for step in range(-(-200 // batch_size))])[:200]
    epochs = stream.reshape(4, 50)
    assert (np.sort(epochs, axis=1) == np.arange(50)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_without_shuffle_the_order_is_the_sources():
    batches = data.Batches(source(), 20, seed=0, shuffle=False)
    stream = np.concatenate([batches[step]["cond"]["label"] for step in range(5)])
    assert stream.tolist() == [*range(50), *range(50)]


def test_per_record_and_in_memory_agree():
    slow = PerRecord(source())
    fast = data.load(slow)
    assert isinstance(fast, data.InMemory)
    assert data.load(slow, limit_bytes=50 * 60 - 1) is slow
    assert data.load(slow, limit_bytes=50 * 60) is not slow
    for step in (0, 5):
        assert same(data.Batches(slow, 16, 1, ALL)[step], data.Batches(fast, 16, 1, ALL)[step])


def test_iterate_gives_the_steps_in_order_and_resumes():
    batches = data.Batches(source(), 16, seed=3, transforms=ALL)
    expected = [batches[step] for step in range(12)]
    for prefetch in (0, 1, 5):
        got = list(data.iterate(batches, 0, 12, prefetch=prefetch))
        assert len(got) == 12
        assert all(map(same, got, expected))
    tail = list(data.iterate(batches, 5, 12))
    assert len(tail) == 7
    assert all(map(same, tail, expected[5:]))
    assert list(data.iterate(batches, 5, 5)) == []
    endless = data.iterate(batches, 3)
    assert same(next(endless), expected[3])
    assert same(next(endless), expected[4])


WORKERS = """
import multiprocessing, time
import numpy as np
from jaxdiff import data
from jaxdiff.data.shared import Slots
from tests.data.test_pipeline import ALL, same, source

if __name__ == "__main__":
    batches = data.Batches(source(), 16, seed=3, transforms=ALL)
    sizes, take = [], Slots.take
    Slots.take = lambda slots, message: (sizes.append(len(message)), take(slots, message))[1]
    got = list(data.iterate(batches, 3, 9, workers=2))
    assert max(sizes) < got[0]["x0"].nbytes / 4, sizes  # the arrays went another way
    assert len(got) == 6 and all(same(batch, batches[step]) for step, batch in enumerate(got, 3))
    assert all(type(batch["x0"]) is np.ndarray for batch in got)
    for batch in data.iterate(batches, 0, 10**6, workers=2):
        time.sleep(1)  # the workers run into the end of their room
        start = time.monotonic()
        break
    assert multiprocessing.active_children() == [], multiprocessing.active_children()
    assert time.monotonic() - start < 5, "the workers had to be killed"
    print("fine")
"""


def test_workers_give_the_same_and_end_cleanly(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=90, env=environment)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert "leaked" not in done.stderr
    assert "Traceback" not in done.stderr


def test_stopping_early_leaves_no_threads():
    batches = data.Batches(source(), 16, seed=3)
    list(data.iterate(batches, 0, 3))  # what grain starts once and keeps
    before = threading.active_count()
    for _ in range(5):
        for _batch in data.iterate(batches, 0, 10**6, prefetch=4):
            break
    deadline = time.monotonic() + 5  # threads in the middle of a batch finish it
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before, threading.enumerate()


def test_a_file_that_turns_out_corrupt_is_the_users_to_mend(tmp_path):
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{i}.png")
    folder = ImageFolder(tmp_path)
    cut = tmp_path / "2.png"
    cut.write_bytes(cut.read_bytes()[:1500])
    with pytest.raises(UsageError, match=r"2\.png.*skip_corrupt"):
        list(data.iterate(data.Batches(folder, 4, seed=0), 0, 2))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_count": 3}, "batch_size=16 is not divisible by the 3 processes"),
        ({"process_index": 1}, "process_index=1: allowed: 0 to 0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
    ],
)
def test_numbers_that_do_not_fit(kwargs, match):
    with pytest.raises(UsageError, match=match):
        data.Batches(**{"source": source(), "batch_size": 16, "seed": 0, **kwargs})


def test_steps_out_of_range():
    batches = data.Batches(source(), 16, seed=0)
    with pytest.raises(IndexError):
        batches[-1]
    for start, stop, workers, prefetch in ((-1, 2, 0, 2), (3, 2, 0, 2), (0, 2, -1, 2), (0, 2, 0, -1)):
        with pytest.raises(UsageError):
            data.iterate(batches, start, stop, workers=workers, prefetch=prefetch)


def test_in_memory_refuses_what_does_not_belong_together():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    with pytest.raises(UsageError, match="uint8"):
        data.InMemory(images.astype(np.float32))
    with pytest.raises(UsageError, match="num_classes=2"):
        data.InMemory(images, None, 2)
    with pytest.raises(UsageError, match=r"labels must be \[3\]"):
        data.InMemory(images, np.zeros(2, int), 2)
