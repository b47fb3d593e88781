"""A correspondence between two names for the same weights, walked in both directions.

A family of checkpoints is a list of rows. Row i joins one leaf p_i of our parameter tree with one or more tensors
w_i1, w_i2, .. of theirs through a rule (`jaxdiff.convert.rules`), so one table both loads and saves. The shape that a
tensor of theirs must have is known from ours alone; everything is compared before any value is looked at, so nothing
is ever half loaded.

Parameters are float32. float16, bfloat16 and float64 tensors are read as float32; float16 and bfloat16 without loss.
Integers are refused unless the rule says otherwise: a quantised file would otherwise pass for weights.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from jaxdiff.convert.rules import SAME, Rule
from jaxdiff.convert.text import clean, shown
from jaxdiff.errors import UsageError
from jaxdiff.types import PyTree

_FLOATS = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


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


def layer(ours: str, theirs: str, kernel: Rule, bias: Rule = SAME) -> list[Row]:
    """The rows of a convolution or a linear map.

    Args:
        ours: its path.
        theirs: its name.
        kernel: the rule of the one.
        bias: of the other.

    Returns:
        Two rows.

    Examples:
        >>> [row.theirs for row in layer("conv_in", "input_blocks.0.0", SAME)]
        [('input_blocks.0.0.weight',), ('input_blocks.0.0.bias',)]
    """
    return [Row(f"{ours}/kernel", (f"{theirs}.weight",), kernel), Row(f"{ours}/bias", (f"{theirs}.bias",), bias)]


def norm(ours: str, theirs: str) -> list[Row]:
    """The rows of a normalisation. See `layer` for the arguments.

    Examples:
        >>> [row.ours for row in norm("norm_out", "out.0")]
        ['norm_out/scale', 'norm_out/bias']
    """
    return [Row(f"{ours}/scale", (f"{theirs}.weight",), SAME), Row(f"{ours}/bias", (f"{theirs}.bias",), SAME)]


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


def _check_fit(table: Table, tensors: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse tensors whose names, shapes and types are not the table's, before any value is looked at."""
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


def read(
    table: Table, tensors: Mapping[str, Any], like: PyTree, *, done: Callable[[str], object] | None = None
) -> PyTree:
    """Our parameters from their tensors, equation (1) of `jaxdiff.convert.rules`.

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
        >>> from jaxdiff.convert.rules import DENSE
        >>> like = {"out": {"kernel": jax.ShapeDtypeStruct((3, 4), "float32")}}
        >>> params = read([Row("out/kernel", ("out.weight",), DENSE)], {"out.weight": np.ones((4, 3))}, like)
        >>> params["out"]["kernel"].shape
        (3, 4)
    """
    ours = leaves(like)
    _check_table(table, ours)
    _check_fit(table, tensors, ours)
    present = [row for row in table if isinstance(row, Constant) and row.theirs in tensors]
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
    """Their tensors from our parameters, equation (2) of `jaxdiff.convert.rules`; constants included.

    Args:
        table: as for `read`.
        params: our tree of arrays.

    Returns:
        Contiguous arrays by name: float32, constants in their own type.

    Raises:
        UsageError: the table's own mistakes.

    Examples:
        >>> from jaxdiff.convert.rules import DENSE
        >>> rows = [Row("out/kernel", ("out.weight",), DENSE)]
        >>> write(rows, {"out": {"kernel": np.ones((3, 4))}})["out.weight"].shape
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
