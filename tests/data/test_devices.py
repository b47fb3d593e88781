"""Batches put on devices ahead of their use."""

import jax
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.errors import UsageError


def watched(events: list, count: int):
    """Numbers whose making and closing are noted."""
    try:
        for number in range(count):
            events.append(f"made {number}")
            yield number
    finally:
        events.append("closed")


@pytest.mark.parametrize(("depth", "ahead"), [(0, [0]), (1, [0, 1]), (3, [0, 1, 2, 3])])
def test_puts_run_ahead_by_the_depth(depth, ahead):
    events, put = [], []

    def keep(number: int) -> str:
        put.append(number)
        return f"on device {number}"

    stream = data.prefetch(watched(events, 6), keep, depth)
    assert put == []
    assert next(stream) == "on device 0"
    assert put == ahead
    assert next(stream) == "on device 1"
    assert put == [*ahead, ahead[-1] + 1]
    assert [*stream] == [f"on device {number}" for number in range(2, 6)]
    assert put == [*range(6)]
    assert events[-1] == "closed"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_batches_than_the_depth(count):
    assert [*data.prefetch(range(count), str, 5)] == [str(number) for number in range(count)]


def test_stopping_early_closes_what_it_reads():
    events = []
    source = watched(events, 100)  # held here, so that it is not merely dropped
    for _ in data.prefetch(source, str):
        break
    assert events == ["made 0", "made 1", "closed"]


def test_an_error_in_making_a_batch_comes_through():
    def broken():
        yield 1
        raise UsageError("corrupt")

    with pytest.raises(UsageError, match="corrupt"):
        [*data.prefetch(broken(), str)]


def test_on_devices_the_batches_are_the_same():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8)
    batches = data.Batches(data.InMemory(images, np.arange(50), 50), 16, seed=3)
    got = [*data.prefetch(data.iterate(batches, 2, 7), jax.device_put)]
    assert len(got) == 5
    for step, batch in enumerate(got, 2):
        assert isinstance(batch["x0"], jax.Array)
        assert np.array_equal(batch["x0"], batches[step]["x0"])
        assert np.array_equal(batch["cond"]["label"], batches[step]["cond"]["label"])


def test_a_negative_depth_is_refused():
    with pytest.raises(UsageError, match="depth=-1"):
        data.prefetch([], str, -1)
