"""One training step, as a pure function of (state, batch).

The step knows no device count: example i of the global batch draws from fold_in(fold_in(base, step), i), so one
device and eight do the same arithmetic up to the order of a sum. Only here and in `parallel` are there collectives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff.errors import UsageError
from jaxdiff.objectives.times import spread
from jaxdiff.train.ema import EMA
from jaxdiff.train.state import TrainState
from jaxdiff.types import Array, PyTree

Loss = Callable[[PyTree, dict, Array], tuple[Array, dict[str, Array]]]
Step = Callable[[TrainState, dict], tuple[TrainState, dict[str, Array]]]

# A fold no example index reaches: the draw shared by the whole batch.
_SHARED = 2**32 - 1


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    ema: dict[str, EMA],
    *,
    seed: int = 0,
    accum: int = 1,
    axis_name: str | None = None,
) -> Step:
    """Build a pure training step.

    Args:
        loss: (params, batch, keys [B]) -> (loss [B], metrics of [B]), such as an objective bound to its model.
        tx: the optimiser.
        ema: the averages to keep, by the names in `TrainState.ema`.
        seed: the base of all randomness.
        accum: number of equal parts the batch is computed in, one after the other; the result is the same.
        axis_name: the mapped axis to average over, under `pmap`; None on one device.

    Returns:
        step(state, batch) -> (state, metrics): `batch` is this device's share, {"x0": [B, ...], "cond": {...}};
        metrics are scalars, averaged over the global batch.

    Raises:
        UsageError: at trace time, if the batch does not divide by `accum`.
    """

    def mean_loss(params: PyTree, batch: dict, keys: Array) -> tuple[Array, dict[str, Array]]:
        values, metrics = loss(params, batch, keys)
        return values.mean(), {"loss": values.mean(), **{name: value.mean() for name, value in metrics.items()}}

    gradient = jax.grad(mean_loss, has_aux=True)

    def accumulated(params: PyTree, batch: dict, keys: Array) -> tuple[PyTree, dict[str, Array]]:
        if accum == 1:
            return gradient(params, batch, keys)
        if keys.shape[0] % accum:
            raise UsageError(f"accum={accum}: the batch of a device ({keys.shape[0]}) must divide by it")

        def add(total: Any, part: tuple[dict, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        parts = jax.tree.map(lambda a: a.reshape(accum, a.shape[0] // accum, *a.shape[1:]), (batch, keys))
        shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda a: a[0], parts))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, parts)
        return jax.tree.map(lambda a: a / accum, total)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, Array]]:
        size = batch["x0"].shape[0]
        shard, shards = (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)) if axis_name else (0, 1)
        index = jnp.asarray(shard * size, jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)
        base = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(base, index)
        strata = spread(jax.random.fold_in(base, jnp.uint32(_SHARED)), index, shards * size)
        grads, metrics = accumulated(state.params, {**batch, "strata": strata}, keys)
        if axis_name:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = {name: rule.update(state.ema[name], params, state.step + 1) for name, rule in ema.items()}
        metrics["grad_norm"] = optax.tree.norm(grads)
        return TrainState(state.step + 1, params, opt_state, averages), metrics

    return step
