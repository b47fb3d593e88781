"""Batches put on devices ahead of their use, so that the copy runs beside the step before."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from jaxdiff.errors import UsageError

A = TypeVar("A")
B = TypeVar("B")


def prefetch(batches: Iterable[A], put: Callable[[A], B], depth: int = 1) -> Generator[B, None, None]:
    """`put(batch)` for every batch, in order, called up to `depth` batches ahead.

    Args:
        batches: what to iterate over, such as `iterate(...)`; closed with the result.
        put: starts the copy to devices and returns at once, such as `jax.device_put`.
        depth: how many batches wait on the devices besides the one in use; 0: none.

    Returns:
        An iterator.

    Raises:
        UsageError: for a negative depth.

    Examples:
        >>> list(prefetch([1, 2, 3], lambda batch: 10 * batch))
        [10, 20, 30]
    """
    if depth < 0:
        raise UsageError(f"depth={depth}: allowed: 0 or more")
    return _prefetch(batches, put, depth)


def _prefetch(batches: Iterable[A], put: Callable[[A], B], depth: int) -> Generator[B, None, None]:
    iterator, waiting = iter(batches), deque[B]()
    try:
        for batch in iterator:
            waiting.append(put(batch))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
