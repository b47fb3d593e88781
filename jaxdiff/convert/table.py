"""A correspondence between two names for the same weights, walked in both directions.

A family of checkpoints is a list of rows. Row i joins one leaf p_i of our parameter tree with one or more tensors
w_i1, w_i2, .. of theirs through a rule, a pair of functions with

    p_i = read_i(w_i1, w_i2, ..)                                                             (1)
    (w_i1, w_i2, ..) = write_i(p_i)        read_i(write_i(p)) = p                            (2)

so one table both loads and saves. Most rules only move axes: with output channels O, input channels I and kernel
extents k, PyTorch stores (O, I, *k), and Linen stores (*k, I, O). By (2) the shape that a tensor of theirs must have
is known from ours alone; everything is compared before any value is looked at, so nothing is ever half loaded.

Parameters are float32. float16, bfloat16 and float64 tensors are read as float32; float16 and bfloat16 without loss.
Integers are refused unless the rule says otherwise: a quantised file would otherwise pass for weights.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.types import PyTree

_SHOWN = 3
_FLOATS = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


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


class Row(NamedTuple):
    """One leaf of ours and what it is made of.

    Attributes:
        ours: path in the parameter tree, "down_0_block_0/conv1/kernel".
        theirs: names of their tensors, in the order in which the rule takes them.
        rule: the correspondence.
    """

    ours: str
    theirs: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of theirs that holds no weights (a filter's taps, a table of frequencies): checked, and written back.

    A file whose value differs was made for another network, and is refused.

    Args:
        theirs: its name.
        value: what it must hold; it is written with this shape and dtype.
        optional: whether a file may lack it.
        tolerance: the largest deviation allowed, as a fraction of the largest absolute value; at least the step of
            the type that a file has it in.

    Examples:
        >>> Constant("resample_filter", np.full((1, 1, 2, 2), 0.25, np.float32)).theirs
        'resample_filter'
    """

    theirs: str
    value: np.ndarray
    optional: bool = False
    tolerance: float = 1e-3


Table = Sequence[Row | Constant]


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


def leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a parameter tree by path.

    Args:
        tree: nested dicts.

    Returns:
        {"conv_in/kernel": leaf, ..} in the tree's order.

    Examples:
        >>> list(leaves({"b": {"kernel": 1}, "a": 2}))
        ['a', 'b/kernel']
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def shown(names: Sequence[str]) -> str:
    """The first three of many names and how many more there are, fit for one line whatever they hold.

    Args:
        names: from a file, so anything.

    Returns:
        Text without line breaks.

    Examples:
        >>> shown(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(clean(name) for name in names[:_SHOWN]) + more


def clean(name: str, most: int = 160) -> str:
    """A name from a file as printable text of at most `most` characters.

    Args:
        name: anything.
        most: longest text returned, beside the dots.

    Returns:
        Text without line breaks or control characters.

    Examples:
        >>> clean("a" + chr(10) + "b")
        "'a\\\\nb'"
    """
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= most else text[:most] + "..."


def _refuse(what: str, problems: dict[str, list[str]]) -> None:
    found = [f"{len(names)} {kind}: {shown(names)}" for kind, names in problems.items() if names]
    if found:
        raise UsageError(f"{what}: {'; '.join(found)}")


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _check_table(table: Table, ours: Mapping[str, Any]) -> None:
    """A table has every leaf once and no tensor twice; anything else is the table's mistake."""
    rows = [row for row in table if isinstance(row, Row)]
    listed = [row.ours for row in rows]
    theirs = [name for row in table for name in (row.theirs if isinstance(row, Row) else (row.theirs,))]
    _refuse(
        "the table of names does not fit the network",
        {
            "parameters listed twice": _repeated(listed),
            "tensors listed twice": _repeated(theirs),
            "parameters not listed": [name for name in ours if name not in set(listed)],
            "parameters listed that the network lacks": [name for name in dict.fromkeys(listed) if name not in ours],
        },
    )


def _expected(row: Row, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes of their tensors, by writing zeros that take no memory."""
    written = row.rule.write(np.broadcast_to(np.float32(0), shape))
    if len(written) != len(row.theirs):
        raise UsageError(f"the row of {row.ours} names {len(row.theirs)} tensors, its rule has {len(written)}")
    return tuple(tensor.shape for tensor in written)


def _other_value(constant: Constant, tensor: Any) -> bool:
    got, want = np.asarray(tensor).astype(np.float64), np.asarray(constant.value).astype(np.float64)
    kind = np.asarray(tensor).dtype
    tolerance = max(constant.tolerance, float(ml_dtypes.finfo(kind).eps)) if kind in _FLOATS else constant.tolerance
    return not bool(np.all(np.abs(got - want) <= tolerance * np.abs(want).max(initial=0.0)))


def read(
    table: Table, tensors: Mapping[str, Any], like: PyTree, *, done: Callable[[str], object] | None = None
) -> PyTree:
    """Our parameters from their tensors, equation (1).

    Args:
        table: the rows; every leaf of ours once, every tensor of theirs once.
        tensors: theirs by name. Anything with shape and dtype that NumPy can take; a value is looked at only after
            all names, shapes and types fit.
        like: our tree of arrays or jax.ShapeDtypeStruct.
        done: called with each leaf's path when it is there, to show progress.

    Returns:
        A tree of `like`'s structure with float32 NumPy arrays of its own memory.

    Raises:
        UsageError: in one line everything that does not fit: tensors missing, left over, of another shape, type or
            constant value (the first three of each, and how many); or the table's own mistakes.

    Examples:
        >>> like = {"out": {"kernel": jax.ShapeDtypeStruct((3, 4), "float32")}}
        >>> params = read([Row("out/kernel", ("out.weight",), DENSE)], {"out.weight": np.ones((4, 3))}, like)
        >>> params["out"]["kernel"].shape
        (3, 4)
    """
    ours = leaves(like)
    _check_table(table, ours)
    missing: list[str] = []
    shapes: list[str] = []
    kinds: list[str] = []
    known: set[str] = set()

    def compare(name: str, shape: tuple[int, ...], integers: bool) -> None:
        known.add(name)
        if name not in tensors:
            missing.append(name)
        elif tuple(tensors[name].shape) != shape:
            shapes.append(f"{clean(name)} {list(tensors[name].shape)} instead of {list(shape)}")
        elif not (tensors[name].dtype in _FLOATS or (integers and tensors[name].dtype.kind in "iub")):
            kinds.append(f"{clean(name)} {tensors[name].dtype}")

    constants = [row for row in table if isinstance(row, Constant)]
    for row in table:
        if isinstance(row, Row):
            for name, shape in zip(row.theirs, _expected(row, tuple(ours[row.ours].shape)), strict=True):
                compare(name, shape, row.rule.integers)
        elif row.optional and row.theirs not in tensors:
            known.add(row.theirs)
        else:
            compare(row.theirs, np.shape(row.value), np.asarray(row.value).dtype.kind in "iub")
    surplus = [name for name in tensors if name not in known]
    problems = {"missing": missing, "left over": surplus, "of another shape": shapes, "not floating-point": kinds}
    _refuse("the weights do not fit the network", problems)
    present = [row for row in constants if row.theirs in tensors]
    other = [row.theirs for row in present if _other_value(row, tensors[row.theirs])]
    _refuse("the weights are of another network", {"constants of another value": other})

    made: dict[str, np.ndarray] = {}
    for row in table:
        if isinstance(row, Row):
            value = row.rule.read(*(_float32(tensors[name]) for name in row.theirs))
            # A copy always: what was read may be a window on the file.
            made[row.ours] = np.array(value, np.float32, order="C", copy=True)
            if made[row.ours].shape != tuple(ours[row.ours].shape):
                raise UsageError(f"rule {row.rule.name} reads {row.ours} as {made[row.ours].shape}: not its inverse")
            if done is not None:
                done(row.ours)
    return jax.tree.unflatten(jax.tree.structure(like), [made[name] for name in ours])


def _float32(tensor: Any) -> np.ndarray:
    array = np.asarray(tensor)
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def write(table: Table, params: PyTree) -> dict[str, np.ndarray]:
    """Their tensors from our parameters, equation (2); constants included.

    Args:
        table: as for `read`.
        params: our tree of arrays.

    Returns:
        Contiguous arrays by name: float32, constants in their own type.

    Raises:
        UsageError: the table's own mistakes.

    Examples:
        >>> write([Row("out/kernel", ("out.weight",), DENSE)], {"out": {"kernel": np.ones((3, 4))}})["out.weight"].shape
        (4, 3)
    """
    ours = leaves(params)
    _check_table(table, ours)
    made: dict[str, np.ndarray] = {}
    for row in table:
        if isinstance(row, Constant):
            made[row.theirs] = np.asarray(row.value, order="C")  # ascontiguousarray has no scalars
            continue
        _expected(row, tuple(ours[row.ours].shape))
        for name, tensor in zip(row.theirs, row.rule.write(np.asarray(ours[row.ours])), strict=True):
            made[name] = np.asarray(tensor, np.float32, order="C")
    return made
