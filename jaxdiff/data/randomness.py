"""Random numbers that are functions of where they are used, not of what was drawn before.

Philox is a counter-based generator: a key selects a stream, and a position in it is reached without drawing what comes
before. The order of an epoch is keyed by (seed, epoch), the numbers of the transforms by (seed, step). A process that
holds rows [lo, hi) of a batch jumps to their place in the stream of the whole batch, so what it draws does not depend
on how many processes there are, and costs no more than its own rows.

Reference: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, 2011 (SC11).
"""

import functools
import math

import numpy as np

_ORDER, _DRAW = 1, 2  # the top word of the counter keeps the two uses of one key apart
_FLOATS_PER_COUNT = 8  # one Philox4x64 block is 256 bits, a float32 takes 32


def _philox(seed: int, index: int, use: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, use], np.uint64))


@functools.lru_cache(maxsize=2)  # a batch touches at most two neighbouring epochs, unless the set is tiny
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch.

    Args:
        count: how many examples there are.
        seed: 0 <= seed < 2**64.
        epoch: 0, 1, ...

    Returns:
        A uniformly random permutation of 0..count-1, int64 [count], read-only; the same for the same arguments.
    """
    order = np.random.Generator(_philox(seed, epoch, _ORDER)).permutation(count)
    order.flags.writeable = False
    return order


class Draw:
    """Uniform numbers for rows [lo, hi) of a batch of `total` rows; call it with the shape per row.

    Args:
        seed: 0 <= seed < 2**64.
        step: 0, 1, ...
        total: rows of the whole batch.
        lo, hi: the rows that are wanted.

    Each call continues the stream of the whole batch: the second call of all processes together gives what the second
    call of one process gives.

    Examples:
        >>> whole, part = Draw(0, 7, 8, 0, 8), Draw(0, 7, 8, 2, 5)
        >>> bool((whole(3)[2:5] == part(3)).all())
        True
    """

    def __init__(self, seed: int, step: int, total: int, lo: int, hi: int) -> None:
        self._seed, self._step, self._total, self._lo, self._hi = seed, step, total, lo, hi
        self._used = 0  # blocks the whole batch has taken so far

    def __call__(self, *shape: int) -> np.ndarray:
        """float32 [hi - lo, *shape], uniform in [0, 1)."""
        per_row = math.prod(shape)
        blocks, skip = divmod(self._lo * per_row, _FLOATS_PER_COUNT)
        bits = _philox(self._seed, self._step, _DRAW).advance(self._used + blocks)
        flat = np.random.Generator(bits).random(skip + (self._hi - self._lo) * per_row, dtype=np.float32)
        self._used += -(-self._total * per_row // _FLOATS_PER_COUNT)
        return flat[skip:].reshape(self._hi - self._lo, *shape)
