r"""The reverse process: one `lax.scan` over noise levels, for every sampler.

A sampler is a frozen dataclass with two functions. `init(x)` makes its state, a NamedTuple whose first field is x;
`step(denoise, state, cur, nxt, key, cond)` moves it from the level `cur` to the cleaner level `nxt`. It sees a
denoiser and two levels and nothing else, so it cannot recompute "the previous timestep" or know about betas.

Randomness is per example: step k of example i draws from fold_in(key_i, k), so an image does not depend on the
batch around it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser, Model
from jaxdiff.numerics import batch_keys, normal_like
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level, PyTree

# The prior draws from a fold that no step index reaches: one key serves `prior_sample` and `sample`.
_PRIOR = 2**32 - 1

State = Any
Collect = Callable[[State, Level], PyTree]


@runtime_checkable
class Sampler(Protocol):
    """The interface of every sampler; a frozen dataclass, a static argument of jit.

    Attributes:
        order: order of convergence in the number of steps (weak order for a stochastic sampler).
        nfe: denoiser evaluations per step.
    """

    order: int
    nfe: int

    def init(self, x: Array) -> State:
        """The state before the first step: a NamedTuple whose first field is x, shape [B, ...]."""

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        """One step from the level `cur` (scalars, noisy) to the cleaner `nxt`; `key` is one key per example [B]."""


def trajectory(state: State, level: Level) -> Array:
    """A `collect` for `sample`: x after every step."""
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

    Returns:
        (x, collected): the sample at the last level, the shape of x, and what was collected (None without `collect`).

    Raises:
        UsageError: if the levels, keys or conditions do not fit.

    Example:
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
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != x.shape[0]:
            raise UsageError(
                f"cond must have the batch size {x.shape[0]} as its first axis, got shape {jnp.shape(leaf)}"
            )
    return _scan(denoise, sampler, levels, x, batch_keys(key, x.shape[0]), cond, collect)


@partial(jax.jit, static_argnames=("sampler", "collect"))
def _scan(
    denoise: Denoiser, sampler: Sampler, levels: Level, x: Array, keys: Array, cond: Cond, collect: Collect | None
) -> tuple[Array, PyTree]:
    def body(state: State, row: tuple[Level, Level, Array]) -> tuple[State, PyTree]:
        cur, nxt, k = row
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        new = sampler.step(denoise, state, cur, nxt, step_keys, cond)
        new = jax.tree.map(lambda after, before: after.astype(before.dtype), new, state)
        return new, None if collect is None else collect(new, nxt)

    cur, nxt = (jax.tree.map(lambda a, i=i: a[i : a.shape[0] - 1 + i], levels) for i in (0, 1))
    steps = jnp.arange(cur.t.shape[0], dtype=jnp.uint32)
    state, collected = jax.lax.scan(body, sampler.init(x), (cur, nxt, steps))
    return state.x, collected


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
) -> Float[Array, " b *d"]:
    """Draw samples from a model. Compiled once per (model, sampler, shapes, kinds of transforms).

    Args:
        model: the model.
        params: its parameters.
        key: one key, or one per example [B]; the same key gives the same image in any batch.
        shape: [B, ...].
        sampler: one of `jaxdiff.samplers`.
        levels: n + 1 stacked levels from `jaxdiff.grids`.
        cond: conditioning, a dict of arrays with leading axis B, or None.
        transforms: `Denoiser -> Denoiser` functions, applied in order (`jaxdiff.guidance`).

    Returns:
        Samples, shape `shape`.

    Raises:
        UsageError: if the model cannot serve the sampler.
    """
    denoise = model.denoiser(params)
    for transform in transforms:
        denoise = transform(denoise)
    x, _ = sample(denoise, sampler, levels, prior_sample(model.process, key, shape), key, cond=cond)
    return x
