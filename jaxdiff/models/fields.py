"""What networks check alike: one form for each of their fields, what it may be, and what they are called with."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError, unknown

REMAT = ("none", "blocks")


def bad(name: str, value: object, allowed: str) -> UsageError:
    """The error for a value that is not allowed."""
    return UsageError(f"{name} is {repr(value) if isinstance(value, str) else value}: allowed is {allowed}")


class Rule(NamedTuple):
    """What the value of a field may be.

    Attributes:
        good: whether it is that.
        allowed: the same in words, after "allowed is".
    """

    good: Callable[[Any], bool]
    allowed: str


def whole(least: int) -> Rule:
    """A whole number from `least` on; True and False are none."""
    return Rule(lambda value: _is(value, int) and value >= least, f"a whole number, {least} or more")


def number(good: Callable[[Any], bool], allowed: str) -> Rule:
    """A number, whole or not, of which more is asked."""
    return Rule(lambda value: _is(value, int | float) and good(value), allowed)


def optional(rule: Rule) -> Rule:
    """None, or what a rule allows."""
    return Rule(lambda value: value is None or rule.good(value), f"None or {rule.allowed}")


def each(rule: Rule) -> Rule:
    """A list of what a rule allows; it may be empty."""
    return Rule(lambda value: isinstance(value, tuple) and all(map(rule.good, value)), f"a list, each {rule.allowed}")


def one_or_each(rule: Rule) -> Rule:
    """What a rule allows, or a list of it that is not empty."""
    return Rule(
        lambda value: bool(value) and all(map(rule.good, value)) if isinstance(value, tuple) else rule.good(value),
        f"{rule.allowed}, or a list of such",
    )


NUMBER = number(lambda value: True, "a number")
POSITIVE = number(lambda value: value > 0, "a number above 0")
RATE = number(lambda value: 0 <= value < 1, "a rate in [0, 1)")
PART = number(lambda value: 0 <= value <= 1, "a part in [0, 1]")
_SWITCH = Rule(lambda value: isinstance(value, bool), "True or False")
_ALIKE = {"num_classes": whole(0), "out_channels": optional(whole(1)), "dropout": RATE}


def check_fields(net: Any, rules: Mapping[str, Rule], choices: Mapping[str, Sequence[str]] | None = None) -> None:
    """Bring the fields of a module into one form, so that a list from a config file or "bfloat16" hashes and compares
    like the rest, and refuse what cannot work. What is annotated as a bool has to be one.

    Args:
        net: a module being built, with a field `dtype`.
        rules: for the values of fields, by name; those of `num_classes`, `out_channels` and `dropout` are given.
        choices: the names that a field, or each entry of a list in it, may have.

    Raises:
        UsageError: naming a field, its value and what is allowed.

    Examples:
        >>> from jaxdiff.models import MLP
        >>> check_fields(MLP(), {"features": whole(256)})
        Traceback (most recent call last):
        jaxdiff.errors.UsageError: features is 128: allowed is a whole number, 256 or more
    """
    rules = {**_ALIKE, **rules}
    for field in dataclasses.fields(net):
        name, value = field.name, _frozen(getattr(net, field.name))
        if name == "dtype":
            value = _floating(value)
        object.__setattr__(net, name, value)
        rule = rules.get(name) or (_SWITCH if field.type in (bool, "bool") else None)
        if rule and not rule.good(value):
            raise bad(name, value, rule.allowed)
        allowed = (choices or {}).get(name)
        for choice in value if isinstance(value, tuple) else (value,):
            if allowed is not None and choice not in allowed:
                raise unknown(name, choice, allowed)


def input_of(x: Any, halvings: int = 0) -> Array:
    """x as an array with spatial axes.

    Args:
        x: should be [B, ..spatial.., C].
        halvings: of every spatial axis by the network; each size should be divisible by 2^halvings.

    Raises:
        UsageError: it is not, or a size is not.

    Examples:
        >>> input_of(jnp.ones((2, 6, 4, 3)), halvings=2)
        Traceback (most recent call last):
        jaxdiff.errors.UsageError: the spatial size of x is (6, 4): allowed is multiples of 4 above 0 (halvings: 2)
    """
    x = jnp.asarray(x)
    if x.ndim < 3:
        raise bad("the shape of x", x.shape, "[B, ..spatial.., C] with one spatial axis or more")
    if any(size % 2**halvings or not size for size in x.shape[1:-1]):
        raise bad("the spatial size of x", x.shape[1:-1], f"multiples of {2**halvings} above 0 (halvings: {halvings})")
    return x


def times_of(t: Any, x: Array) -> Array:
    """t as an array of one time per example.

    Args:
        t: should be [B].
        x: [B, ..].

    Raises:
        UsageError: it is not.

    Examples:
        >>> times_of(0.5, jnp.ones((2, 8, 8, 3)))
        Traceback (most recent call last):
        jaxdiff.errors.UsageError: the shape of t is (): allowed is one time per example, (2,)
    """
    t = jnp.asarray(t)
    if t.shape != x.shape[:1]:
        raise bad("the shape of t", t.shape, f"one time per example, {x.shape[:1]}")
    return t


def label_of(cond: Mapping[str, Any] | None, batch: int, null: int) -> Array:
    """cond["label"], checked; all null where there is none.

    Args:
        cond: as a network gets it.
        batch: number of examples B.
        null: the null label.

    Returns:
        Integers of shape [B].

    Raises:
        UsageError: a label of another shape, or not of integers.

    Examples:
        >>> label_of(None, 2, 10).tolist()
        [10, 10]
    """
    label = (cond or {}).get("label")
    if label is None:
        return jnp.full((batch,), null, jnp.int32)
    label = jnp.asarray(label)
    if label.shape != (batch,) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise UsageError(f"cond['label'] is {label.dtype} {label.shape}: allowed is integers of shape {(batch,)}")
    return label


def channels_out(net: Any, x: Array) -> int:
    """The channels of a network's output: `out_channels` or those of x, twice with `learned_variance`."""
    return (net.out_channels or x.shape[-1]) * (2 if getattr(net, "learned_variance", False) else 1)


def _is(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _frozen(value: Any) -> Any:
    """Lists as tuples, which hash."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(_frozen, value))
    return value


def _floating(value: Any) -> Any:
    try:
        dtype = jnp.dtype(value)
    except (TypeError, ValueError):
        raise bad("dtype", value, "a floating-point type") from None
    if value is None or not jnp.issubdtype(dtype, jnp.floating):  # NumPy takes None for float64
        raise bad("dtype", None if value is None else dtype, "a floating-point type")
    return dtype
