"""What a multistep sampler remembers: its last few predictions and the levels they were made at.

A short run has to end with low order, too: its last steps are so long that a polynomial through the predictions
before them may overshoot. Below 15 steps DPM-Solver++, UniPC, DEIS and SA-Solver therefore use no more earlier
predictions in a step than there are steps after it: the last one is of first order and the last but one of second. A
step cannot see how many follow, so `sample` writes it into every history of the state it starts from
(`known_length`).

Reference: github.com/LuChengTHU/dpm-solver, `lower_order_final` and its bound of 15 steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.types import Array, Level

_SHORT = 15
_MANY = 2**30


class History(NamedTuple):
    """The latest entry first; entries not yet filled are zeros, and `filled` says how many are.

    Attributes:
        values: predictions (x0 or eps), shape [K, B, ...].
        log_snr: the log-SNR of each, shape [K].
        filled: number of entries filled, at most K.
        after: number of steps after the one whose prediction is the latest, where that is to lower the order.
    """

    values: Float[Array, " k b *d"]
    log_snr: Float[Array, " k"]
    filled: Array
    after: Array


class State(NamedTuple):
    """The state of a multistep sampler: x, shape [B, ...], and what it remembers."""

    x: Array
    history: History


def empty(x: Float[Array, " b *d"], length: int) -> History:
    """A history of `length` entries, none of them filled."""
    values, log_snr = jnp.zeros((length, *x.shape), x.dtype), jnp.zeros(length, jnp.result_type(float))
    return History(values, log_snr, jnp.zeros((), jnp.int32), jnp.int32(_MANY))


def known_length(state: Any, steps: Array | int) -> Any:
    """A state whose histories know that a run has that many steps, if those are few."""

    def told(part: Any) -> Any:
        few = jnp.where(jnp.asarray(steps) < _SHORT, jnp.asarray(steps).astype(jnp.int32), _MANY)
        return part._replace(after=few) if isinstance(part, History) else part

    return jax.tree.map(told, state, is_leaf=lambda part: isinstance(part, History))


def push(history: History, value: Float[Array, " b *d"], level: Level) -> History:
    """The history with a new latest entry; the oldest is dropped."""
    values = jnp.concatenate([value[None].astype(history.values.dtype), history.values[:-1]])
    log_snr = jnp.concatenate([level.log_snr[None].astype(history.log_snr.dtype), history.log_snr[:-1]])
    return History(values, log_snr, jnp.minimum(history.filled + 1, history.values.shape[0]), history.after - 1)
