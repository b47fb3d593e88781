"""Everything that training changes, in one value."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxdiff.types import PyTree


class TrainState(flax.struct.PyTreeNode):
    """The state of a training run. `step` is its only clock: data and randomness follow from it. The learning rate
    follows the optimiser's count, which skipped steps do not advance.

    Attributes:
        step: optimiser steps taken, those skipped among them, int32 scalar.
        params: the bare parameter tree, float32.
        opt_state: the optimiser's state.
        ema: averaged parameters by name, float32; bfloat16 would never move at a decay of 0.9999.
        skipped: int32 [2], steps skipped because their loss or gradient was not finite: in all, and in a row.
    """

    step: Any  # a pytree is also built of things that are no arrays
    params: PyTree
    opt_state: Any
    ema: dict[str, PyTree]
    skipped: Any

    @classmethod
    def create(cls, params: PyTree, tx: optax.GradientTransformation, ema: tuple[str, ...] = ("ema",)) -> "TrainState":
        """The state before the first step: every average starts at the parameters.

        Args:
            params: initial parameters.
            tx: the optimiser.
            ema: names of the averages to keep.
        """
        # Copies, because a donated state must not hold one buffer twice.
        averages = {name: jax.tree.map(jnp.copy, params) for name in ema}
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params), averages, jnp.zeros(2, jnp.int32))
