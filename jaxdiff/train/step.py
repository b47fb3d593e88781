"""One training step, as a pure function of (state, batch).

The step knows no device count: example i of the global batch draws from fold_in(fold_in(base, step), i), and whatever
is averaged is a sum over the examples here, then over the devices, then divided by the size of the global batch. One
device and eight hence do the same arithmetic up to the order of a sum. Only here and in `parallel` are there
collectives.

A step whose loss or gradient is not finite changes nothing but the counts: on all devices alike, since they decide
from the same sums.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxdiff.errors import UsageError
from jaxdiff.objectives.times import spread
from jaxdiff.train.ema import EMA, PowerEMA
from jaxdiff.train.state import TrainState
from jaxdiff.types import Array, PyTree

Loss = Callable[[PyTree, dict, Array], tuple[Array, dict[str, Array]]]
Step = Callable[[TrainState, dict], tuple[TrainState, dict[str, Array]]]

# A fold no example index reaches: the draw shared by the whole batch.
_SHARED = 2**32 - 1


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    ema: Mapping[str, EMA | PowerEMA],
    *,
    seed: int = 0,
    accum: int = 1,
    axis_name: str | None = None,
    evaluated: Callable[[Any, PyTree], PyTree] = lambda opt_state, params: params,
) -> Step:
    """Build a pure training step.

    Args:
        loss: (params, batch, keys [B]) -> (loss [B], metrics of [B]), such as an objective bound to its model.
        tx: the optimiser.
        ema: the averages to keep, by the names in `TrainState.ema`.
        seed: the base of all randomness.
        accum: number of equal parts the batch is computed in, one after the other; the result is the same.
        axis_name: the mapped axis to sum over, under `pmap`; None where the step sees the whole batch.
        evaluated: (opt_state, params) -> the parameters to average, where an optimiser evaluates others than it trains;
            `optimizers.eval_params` bound to its name.

    Returns:
        step(state, batch) -> (state, metrics): `batch` is this device's share, {"x0": [B, ...], "cond": {...}};
        metrics are scalars over the global batch: the means of `loss` and its metrics, the gradient's norm
        "grad_norm", and "skipped", how many steps were skipped in all.

    Raises:
        UsageError: at trace time, if the batch does not divide by `accum`.
    """

    def sums(params: PyTree, batch: dict, keys: Array, total: int) -> tuple[Array, dict[str, Array]]:
        values, metrics = loss(params, batch, keys)
        return values.sum() / total, {"loss": values.sum(), **{name: value.sum() for name, value in metrics.items()}}

    gradient = jax.grad(sums, has_aux=True)

    def accumulated(params: PyTree, batch: dict, keys: Array, total: int) -> tuple[PyTree, dict[str, Array]]:
        size = keys.shape[0]
        if accum == 1:
            return gradient(params, batch, keys, total)
        if size % accum:
            raise UsageError(f"accum={accum}: the batch of a device ({size}) must divide by it")

        def part(a: Array) -> Array:
            # Every accum-th row, so that each device has its share of each part, however the rows lie on devices.
            return a.reshape(size // accum, accum, *a.shape[1:]).swapaxes(0, 1)

        def add(done: Any, rows: tuple[dict, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, done, gradient(params, *rows, total)), None

        parts = jax.tree.map(part, (batch, keys))
        shapes = jax.eval_shape(lambda rows: gradient(params, *rows, total), jax.tree.map(lambda a: a[0], parts))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zero, parts)[0]

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, Array]]:
        size = batch["x0"].shape[0]
        shard, shards = (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)) if axis_name else (0, 1)
        total = shards * size
        index = jnp.asarray(shard * size, jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)
        base = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(base, index)
        strata = spread(jax.random.fold_in(base, jnp.uint32(_SHARED)), index, total)
        grads, metrics = accumulated(state.params, {**batch, "strata": strata}, keys, total)
        if axis_name:
            grads, metrics = _sum((grads, metrics), axis_name)
        metrics = {name: value / total for name, value in metrics.items()}
        metrics["grad_norm"] = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        good &= jnp.isfinite(optax.tree.norm(params))  # a step too long
        latest = evaluated(opt_state, params)
        averages = {name: rule.update(state.ema[name], latest, state.step + 1) for name, rule in ema.items()}
        params, opt_state, averages = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state, averages),
            (state.params, state.opt_state, state.ema),
        )
        skipped = jnp.where(good, state.skipped * jnp.array([1, 0]), state.skipped + 1)
        metrics["skipped"] = skipped[0]
        return TrainState(state.step + 1, params, opt_state, averages, skipped), metrics

    return step


def _sum(tree: PyTree, axis_name: str) -> PyTree:
    """The sum over the devices of a mapped axis."""
    count = jax.lax.axis_size(axis_name)
    if count == 1 or jax.default_backend() != "cpu":
        return jax.lax.psum(tree, axis_name)
    # Between processes CPUs sum in another order than within one. Here each device sums its share of the numbers, in
    # the order of the devices, so that the bits do not depend on the processes.
    flat, unravel = ravel_pytree(tree)
    shares = jnp.pad(flat, (0, -flat.size % count)).reshape(count, -1)
    share = jax.lax.all_to_all(shares, axis_name, 0, 0).sum(0)
    return unravel(jax.lax.all_gather(share, axis_name, tiled=True)[: flat.size])
