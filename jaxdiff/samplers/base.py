r"""The reverse process: one `lax.scan` over noise levels, for every sampler.

A sampler is a frozen dataclass with two functions. `init(x)` makes its state, a NamedTuple whose first field is x;
`step(denoise, state, cur, nxt, key, cond)` moves it from the level `cur` to the cleaner level `nxt`. It sees a
denoiser and two levels and nothing else, so it cannot recompute "the previous timestep" or know about betas.

Randomness is per example: step k of example i draws from fold_in(key_i, k), so an image does not depend on the
batch around it.

Two options change what a run costs and never what it gives. `max_steps` pads the levels to one length, so that any
number of steps is one compilation; a padded row is skipped, not computed. `checkpoint` makes a derivative through n
steps keep 2 sqrt(n) states and one step's intermediate values, for two more forward passes (Chen et al. 2016,
arXiv:1604.06174): the scan becomes a scan of scans that are computed again on the way back.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser, Model
from jaxdiff.numerics import batch_keys, normal_like
from jaxdiff.process import ForwardProcess
from jaxdiff.samplers.checks import check, check_x
from jaxdiff.samplers.history import known_length
from jaxdiff.types import Array, Cond, Level, Prediction, PyTree

# The prior draws from a fold that no step index reaches: one key serves `prior_sample` and `sample`.
_PRIOR = 2**32 - 1

State = Any


class Point(NamedTuple):
    """The state of a sampler that remembers nothing: x, shape [B, ...]."""

    x: Array


Collect = Callable[[State, Level], PyTree]


@runtime_checkable
class Sampler(Protocol):
    """The interface of every sampler; a frozen dataclass, a static argument of jit.

    A sampler that evaluates the denoiser at levels of its own, between those of the grid, has `between = True`.

    Attributes:
        order: order of convergence in the number of steps (weak order for a stochastic sampler); 0 if a bias stays. Of
            a multistep sampler that of its formula: its low-order first steps show where the grid is coarse at its
            noisy end and the denoiser already bends there.
        nfe: denoiser evaluations per step; None if that depends on the data. The step to clean data, which can only be
            the first-order one, costs 1 where the later stages ask at the clean level.
    """

    @property
    def order(self) -> int: ...

    @property
    def nfe(self) -> int | None: ...

    def init(self, x: Array) -> State:
        """The state before the first step: a NamedTuple whose first field is x, shape [B, ...]."""

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        """One step from the level `cur` (scalars, noisy) to the cleaner `nxt`; `key` is one key per example [B]."""


def trajectory(state: State, level: Level) -> Array:
    """A `collect` for `sample`: x after every step.

    Args:
        state: the sampler's state after a step.
        level: the level it is at.
    """
    del level
    return state.x


def sample(
    denoise: Denoiser,
    sampler: Sampler,
    levels: Level,
    x: Float[Array, " b *d"],
    key: Array,
    *,
    cond: Cond = None,
    collect: Collect | None = None,
    max_steps: int | None = None,
    checkpoint: bool = False,
) -> tuple[Float[Array, " b *d"], PyTree]:
    """Run a sampler over stacked levels: the library's one `lax.scan` over timesteps.

    Compiled once per (sampler, shapes, structure of the denoiser): neither new parameters, keys, conditions or
    guidance scales nor another grid of the same length compile again.

    Args:
        denoise: the denoiser.
        sampler: one of `jaxdiff.samplers`.
        levels: n + 1 stacked levels, noisiest first (`jaxdiff.grids`).
        x: the starting point at the first level, shape [B, ...]; its dtype is kept.
        key: one key, or one per example [B].
        cond: conditioning, a dict of arrays with leading axis B, or None.
        collect: `collect(state, level)` after each step, stacked along a new first axis; None stacks nothing.
        max_steps: pad to that many steps, so that no number of steps up to it compiles again.
        checkpoint: save memory where the result is differentiated, for two more forward passes.

    Returns:
        (x, collected): the sample at the last level, the shape of x, and what was collected (None without `collect`).

    Raises:
        UsageError: if the levels, keys or conditions do not fit.

    Examples:
        >>> import jax, jaxdiff
        >>> process = jaxdiff.processes.ddpm_linear()
        >>> denoise = jaxdiff.analytic.Gaussian(jax.numpy.zeros(2), jax.numpy.eye(2)).denoiser(process)
        >>> x = jaxdiff.prior_sample(process, jax.random.key(0), (4, 2))
        >>> levels = jaxdiff.grids.uniform(process, 10)
        >>> x, _ = jaxdiff.sample(denoise, jaxdiff.samplers.DDIM(), levels, x, jax.random.key(0))
        >>> x.shape
        (4, 2)
    """
    if levels.t.ndim != 1 or levels.t.shape[0] < 2:
        raise UsageError(
            f"levels must be two or more stacked levels (at least 1 step), got t of shape {levels.t.shape}"
        )
    check_x(x)
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != x.shape[0]:
            raise UsageError(
                f"cond must have the batch size {x.shape[0]} as its first axis, got shape {jnp.shape(leaf)}"
            )
    check(denoise, sampler, levels)
    steps = levels.t.shape[0] - 1
    length = _padded_length(steps, max_steps, checkpoint)
    if length > steps:
        levels = jax.tree.map(lambda a: _pad(a, length + 1), levels)
    # Without padding no row is conditional; with it, their number is a value and not a part of the compilation.
    active = None if max_steps is None and length == steps else jnp.uint32(steps)
    keys = batch_keys(key, x.shape[0])
    x, collected = _scan(denoise, sampler, levels, x, keys, cond, active, collect, checkpoint)
    return x, jax.tree.map(lambda a: a[:steps], collected) if length > steps else collected


def _padded_length(steps: int, max_steps: int | None, checkpoint: bool) -> int:
    if max_steps is not None and steps > max_steps:
        raise UsageError(f"max_steps={max_steps}: the levels have {steps} steps, allowed is that many or more")
    length = max_steps or steps
    side = math.isqrt(length - 1) + 1
    return side * -(-length // side) if checkpoint else length


def _pad(field: Array, length: int) -> Array:
    """The last row repeated; on the host where it can be, because JAX would compile for each length."""
    if isinstance(field, jax.core.Tracer):
        return jnp.pad(field, (0, length - field.shape[0]), mode="edge")
    return jnp.asarray(np.pad(np.asarray(field), (0, length - field.shape[0]), mode="edge"))


def _unless_clean(denoise: Denoiser, x: Array, level: Level, cond: Cond) -> Prediction:
    """Clean data is its own prediction: a later stage of the step to it asks there, and need not cost an evaluation."""

    has_variance = False

    def ask(x: Array, level: Level, cond: Cond) -> Prediction:
        nonlocal has_variance
        answer = denoise(x, level, cond)
        has_variance = answer.var_frac is not None
        return jax.tree.map(lambda a: a.astype(x.dtype), answer)

    def same(x: Array, level: Level, cond: Cond) -> Prediction:  # traced second
        return Prediction(x, jnp.zeros_like(x), jnp.zeros_like(x) if has_variance else None)

    return jax.lax.cond(jnp.any(level.sigma > 0), ask, same, x, level, cond)


@partial(jax.jit, static_argnames=("sampler", "collect", "checkpoint"))
def _scan(
    denoise: Denoiser,
    sampler: Sampler,
    levels: Level,
    x: Array,
    keys: Array,
    cond: Cond,
    active: Array | None,
    collect: Collect | None,
    checkpoint: bool,
) -> tuple[Array, PyTree]:
    if sampler.nfe != 1:
        denoise = replace(denoise, fn=Partial(_unless_clean, denoise))

    def move(state: State, cur: Level, nxt: Level, k: Array) -> State:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        new = sampler.step(denoise, state, cur, nxt, step_keys, cond)
        return jax.tree.map(lambda after, before: after.astype(before.dtype), new, state)

    def body(state: State, row: tuple[Level, Level, Array]) -> tuple[State, PyTree]:
        cur, nxt, k = row
        if active is None:
            state = move(state, cur, nxt, k)
        else:
            state = jax.lax.cond(k < active, move, lambda state, *_: state, state, cur, nxt, k)
        return state, None if collect is None else collect(state, nxt)

    length = levels.t.shape[0] - 1
    cur, nxt = (jax.tree.map(lambda a, i=i: a[i : length + i], levels) for i in (0, 1))
    rows = (cur, nxt, jnp.arange(length, dtype=jnp.uint32))
    start = known_length(sampler.init(x), length if active is None else active)
    if not checkpoint:
        state, collected = jax.lax.scan(body, start, rows)
        return state.x, collected

    @jax.checkpoint
    def segment(state: State, rows: PyTree) -> tuple[State, PyTree]:
        return jax.lax.scan(jax.checkpoint(body), state, rows)

    side = math.isqrt(length - 1) + 1
    rows = jax.tree.map(lambda a: a.reshape(-1, side, *a.shape[1:]), rows)
    state, collected = jax.lax.scan(segment, start, rows)
    return state.x, jax.tree.map(lambda a: a.reshape(length, *a.shape[2:]), collected)


@partial(jax.jit, static_argnames=("process", "shape"))
def prior_sample(process: ForwardProcess, key: Array, shape: tuple[int, ...]) -> Float[Array, " b *d"]:
    """Draw x at t = 1: N(0, sigma_1^2 I).

    Args:
        process: the forward process.
        key: one key, or one per example [B]. The same key may be given to `sample`: they draw apart.
        shape: [B, ...].
    """
    keys = jax.vmap(jax.random.fold_in, (0, None))(batch_keys(key, shape[0]), jnp.uint32(_PRIOR))
    return process(1.0).sigma * normal_like(keys, jnp.zeros(shape))


def generate(
    model: Model,
    params: PyTree,
    key: Array,
    shape: tuple[int, ...],
    *,
    sampler: Sampler,
    levels: Level,
    cond: Cond = None,
    transforms: tuple[Callable[[Denoiser], Denoiser], ...] = (),
    max_steps: int | None = None,
    checkpoint: bool = False,
) -> Float[Array, " b *d"]:
    """Draw samples from a model. Compiled once per (model, sampler, shapes, kinds of transforms, number of steps), or,
    with `max_steps`, once for every number of steps.

    Args:
        model: the model.
        params: its parameters.
        key: one key, or one per example [B]; the same key gives the same image in any batch.
        shape: [B, ...].
        sampler: one of `jaxdiff.samplers`.
        levels: n + 1 stacked levels from `jaxdiff.grids`.
        cond: conditioning, a dict of arrays with leading axis B, or None.
        transforms: `Denoiser -> Denoiser` functions, applied in order (`jaxdiff.guidance`).
        max_steps: pad the scan to that many steps; fewer cost what they cost, and do not compile again.
        checkpoint: save memory where the result is differentiated, for two more forward passes.

    Returns:
        Samples, shape `shape`.

    Raises:
        UsageError: if the model cannot serve the sampler.
    """
    denoise = model.denoiser(params)
    for transform in transforms:
        denoise = transform(denoise)
    x = prior_sample(model.process, key, shape)
    return sample(denoise, sampler, levels, x, key, cond=cond, max_steps=max_steps, checkpoint=checkpoint)[0]
