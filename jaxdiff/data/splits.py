"""Slices of a list of files, written as TFDS writes splits: "train", "train[:90%]", "train[-100:]"."""

import re

from jaxdiff.errors import UsageError

_SPLIT = re.compile(r"train(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def bounds(split: str, count: int) -> range:
    """The positions a split selects.

    Args:
        split: "train", or "train" with a slice in counts or percent; percentages are rounded to the nearest count.
        count: how many there are.

    Returns:
        A range within [0, count).

    Raises:
        UsageError: for another split, or one that selects nothing.

    Examples:
        >>> bounds("train[90%:]", 50)
        range(45, 50)
    """
    match = _SPLIT.fullmatch(split.replace(" ", ""))
    if match is None:
        raise UsageError(f"split={split!r}: allowed: 'train' and its slices, such as 'train[:90%]'")
    start, stop = (_position(edge, count) for edge in match.groups())
    selected = range(*slice(start, stop).indices(count))
    if not selected:
        raise UsageError(f"split={split!r} selects none of the {count} images")
    return selected


def _position(edge: str | None, count: int) -> int | None:
    if edge is None:
        return None
    if not edge.endswith("%"):
        return int(edge)
    percent = int(edge[:-1])
    if abs(percent) > 100:
        raise UsageError(f"split: {edge} is not between -100% and 100%")
    return round(percent * count / 100)
