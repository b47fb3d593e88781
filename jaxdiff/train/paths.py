"""Parameters by name: the path of a leaf, "down_0_block_0/conv1/kernel", and what it is.

Patterns are those of the shell; "*" also goes across "/".
"""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

from jaxdiff.errors import unknown
from jaxdiff.types import PyTree

# Names of leaves that are no weights even where `nn.scan` has stacked them, and of weights that are tables of vectors.
_VECTORS = ("bias", "scale", "alpha", "beta", "gamma", "gain", "freqs", "phases")
_TABLES = ("embedding", "positions")
# The modules of `jaxdiff.models` under which `nn.scan` has given every leaf a first axis of depth.
_SCANNED = ("blocks", "down", "up")


def map_named(fn: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """The tree with `fn(path, leaf)` in place of every leaf.

    Examples:
        >>> map_named(lambda path, leaf: path, {"conv": {"kernel": 1}})
        {'conv': {'kernel': 'conv/kernel'}}
    """

    def name(path: Any) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(name(path), leaf), tree)


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path.

    Examples:
        >>> named({"conv": {"kernel": 1, "bias": 2}})
        {'conv/bias': 2, 'conv/kernel': 1}
    """
    found: dict[str, Any] = {}
    map_named(found.__setitem__, tree)
    return found


def select(params: PyTree, patterns: Sequence[str]) -> set[str]:
    """The paths that match any of the patterns.

    Args:
        params: a parameter tree.
        patterns: such as "down_*/conv1/*".

    Raises:
        UsageError: for a pattern that matches nothing, with the nearest path.

    Examples:
        >>> sorted(select({"a": {"kernel": 0, "bias": 0}, "b": {"bias": 0}}, ["*/bias"]))
        ['a/bias', 'b/bias']
    """
    names, found = list(named(params)), set()
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise unknown("parameter", pattern, names)
        found.update(matches)
    return found


def is_weight(path: str, leaf: Any) -> bool:
    """Whether a parameter is a weight, of two or more axes, and no bias, gain or frequency.

    Args:
        path: as in `named`.
        leaf: an array or its shape.

    Examples:
        >>> import jax.numpy as jnp
        >>> is_weight("blocks/mlp/bias", jnp.ones((12, 8))), is_weight("blocks/mlp/kernel", jnp.ones((12, 8, 8)))
        (False, True)
    """
    return len(leaf.shape) > 1 and _last(path) not in _VECTORS


def matrix_shape(path: str, leaf: Any) -> tuple[tuple[int, ...], int, int] | None:
    """A kernel as the matrix it is.

    Args:
        path: as in `named`.
        leaf: an array or its shape: [in, out], [..spatial.., in, out], or stacks of those by `nn.scan`.

    Returns:
        (stack, rows, columns): the stacked axes, () or (depth,), the product of kernel size and inputs, and the
        outputs; None for what is no kernel (vectors, tables of embeddings and positions).

    Examples:
        >>> import jax.numpy as jnp
        >>> matrix_shape("conv_in/kernel", jnp.ones((3, 3, 4, 8)))
        ((), 36, 8)
        >>> matrix_shape("blocks/mlp/kernel", jnp.ones((12, 4, 8)))
        ((12,), 4, 8)
    """
    if not is_weight(path, leaf) or _last(path) in _TABLES:
        return None
    shape = tuple(leaf.shape)
    stacked = len(shape) > 2 and any(part in _SCANNED for part in path.split("/"))
    return shape[:stacked], math.prod(shape[stacked:-1]), shape[-1]


def _last(path: str) -> str:
    return path.rpartition("/")[2]
