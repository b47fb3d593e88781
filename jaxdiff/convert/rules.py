"""How one parameter of ours follows from tensors of theirs, and back: a pair of functions with

    p = read(w_1, w_2, ..)                                                                   (1)
    (w_1, w_2, ..) = write(p)        read(write(p)) = p                                      (2)

Most rules only move axes: with output channels O, input channels I and kernel extents k, PyTorch stores (O, I, *k), and
Linen stores (*k, I, O). By (2) the shape that a tensor of theirs must have is known from ours alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxdiff.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """How one leaf of ours follows from tensors of theirs, equation (1), and back, equation (2).

    Args:
        name: for messages.
        read: their tensors, in the row's order -> our leaf. May return a view.
        write: our leaf -> their tensors, in the row's order; the inverse.
        integers: whether integer tensors are read (as float32).

    Examples:
        >>> DENSE.read(np.ones((4, 3))).shape, DENSE.write(np.ones((3, 4)))[0].shape
        ((3, 4), (4, 3))
    """

    name: str
    read: Callable[..., np.ndarray]
    write: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    integers: bool = False


def moved(name: str, forth: Sequence[int], back: Sequence[int]) -> Rule:
    """A rule that only permutes axes; both ways given as `np.transpose` takes them.

    Args:
        name: for messages.
        forth: theirs -> ours.
        back: ours -> theirs.

    Returns:
        The rule.

    Examples:
        >>> moved("table", (1, 0), (1, 0)).read(np.ones((2, 5))).shape
        (5, 2)
    """
    return Rule(name, lambda w: np.transpose(w, forth), lambda p: (np.transpose(p, back),))


def conv1(trailing: int) -> Rule:
    """A convolution of kernel 1 that is a Dense layer of ours: (O, I, 1, ..) <-> (I, O).

    Args:
        trailing: the number of spatial axes it is stored with: 1 for Conv1d, 2 for Conv2d.

    Returns:
        The rule.

    Examples:
        >>> conv1(1).write(np.ones((3, 4)))[0].shape
        (4, 3, 1)
    """
    ones = (1,) * trailing
    return Rule("conv1", lambda w: w.reshape(w.shape[:2]).T, lambda p: (p.T.reshape(*p.T.shape, *ones),))


SAME = Rule("same", lambda w: w, lambda p: (p,))
DENSE = moved("dense", (1, 0), (1, 0))
CONV = Rule("conv", lambda w: np.moveaxis(w, (0, 1), (-1, -2)), lambda p: (np.moveaxis(p, (-1, -2), (0, 1)),))
CONV1_1D = conv1(1)
CONV1 = conv1(2)


def joined(rule: Rule, parts: int, *, axis: int = -1) -> Rule:
    """Several tensors of theirs side by side in one leaf of ours: separate queries, keys and values.

    Args:
        rule: applied to each part.
        parts: how many; all of one shape.
        axis: of our leaf, along which they lie; the last is the output channels of every kernel and bias.

    Returns:
        The rule; its row names `parts` tensors.

    Examples:
        >>> joined(DENSE, 3).read(*np.ones((3, 4, 5))).shape
        (5, 12)
    """
    return Rule(
        f"joined {rule.name}",
        lambda *ws: np.concatenate([rule.read(w) for w in ws], axis),
        lambda p: tuple(rule.write(part)[0] for part in np.split(p, parts, axis)),
        rule.integers,
    )


def permuted(rule: Rule, order: Sequence[int] | np.ndarray, *, axis: int = -1) -> Rule:
    """The same numbers in another order along one axis of our leaf: ours[i] = theirs[order[i]].

    Args:
        rule: applied first when reading.
        order: a permutation of the axis, as `order` makes it.
        axis: of our leaf: -1 the output channels, -2 (or 0 of a Dense kernel) the input channels.

    Returns:
        The rule.

    Raises:
        UsageError: if `order` is not a permutation.

    Examples:
        >>> permuted(SAME, [2, 0, 1]).read(np.array([10, 11, 12])).tolist()
        [12, 10, 11]
    """
    index = np.asarray(order)
    if not np.array_equal(np.sort(index), np.arange(index.size)):
        raise UsageError(f"order has {index.size} entries and is not a permutation of 0..{index.size - 1}")
    back = np.argsort(index)

    def take(array: np.ndarray, where: np.ndarray) -> np.ndarray:
        if array.shape[axis] != where.size:
            raise UsageError(f"axis {axis} of shape {array.shape} is not of the order's length {where.size}")
        return np.take(array, where, axis)

    return Rule(
        f"permuted {rule.name}",
        lambda *ws: take(rule.read(*ws), index),
        lambda p: rule.write(take(p, back)),
        rule.integers,
    )


def order(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """The permutation for `permuted` between two ways to flatten the same axes.

    Args:
        shape: extents in their order: (heads, 3, dim) for channels with the head outermost.
        axes: which of their axes is our first, second, ..: (1, 0, 2) for our (3, heads, dim).

    Returns:
        int64, [prod(shape)].

    Examples:
        >>> order((2, 3), (1, 0)).tolist()
        [0, 3, 1, 4, 2, 5]
    """
    return np.arange(math.prod(shape)).reshape(shape).transpose(axes).ravel()


def scaled(rule: Rule, factor: float) -> Rule:
    """ours = factor * theirs, for a constant that one network has in its weights and the other in its code.

    Args:
        rule: applied first when reading.
        factor: not 0. A power of two is exact both ways.

    Returns:
        The rule.

    Examples:
        >>> scaled(SAME, 2.0).read(np.ones(2)).tolist()
        [2.0, 2.0]
    """
    if not (math.isfinite(factor) and factor):
        raise UsageError(f"factor={factor}: allowed is any finite number but 0")
    # In float64, rounded once when it is stored.
    return Rule(
        f"scaled {rule.name}",
        lambda *ws: np.multiply(rule.read(*ws), factor, dtype=np.float64),
        lambda p: rule.write(np.multiply(p, 1 / factor, dtype=np.float64)),
        rule.integers,
    )


def reshaped(rule: Rule, theirs: Sequence[int], ours: Sequence[int]) -> Rule:
    """The same numbers in the same order under another shape.

    Args:
        rule: applied first when reading.
        theirs: the shape that `rule` reads.
        ours: of our leaf.

    Returns:
        The rule.

    Examples:
        >>> reshaped(SAME, (1, 4, 8), (2, 2, 8)).read(np.ones((1, 4, 8))).shape
        (2, 2, 8)
    """
    return Rule(
        f"reshaped {rule.name}",
        lambda *ws: rule.read(*ws).reshape(*ours),
        lambda p: rule.write(p.reshape(*theirs)),
        rule.integers,
    )


def stacked(rule: Rule, depth: int) -> Rule:
    """The same leaf of `depth` blocks as one leaf [depth, ..] of ours.

    Args:
        rule: of one block; it may take several tensors.
        depth: number of blocks; the row names the tensors of the first, then of the second, ..

    Returns:
        The rule.

    Examples:
        >>> stacked(DENSE, 2).read(*np.ones((2, 4, 3))).shape
        (2, 3, 4)
    """

    def read(*ws: np.ndarray) -> np.ndarray:
        each = len(ws) // depth
        return np.stack([rule.read(*ws[i * each : (i + 1) * each]) for i in range(depth)])

    return Rule(f"stacked {rule.name}", read, lambda p: tuple(w for block in p for w in rule.write(block)))
