r"""Steps as long as an error estimate allows: DPM-Solver-12 and DPM-Solver-23.

With lambda = log_snr / 2, a step of h in lambda and eps_0, eps_1, eps_2 the noise predicted at lambda + r h for
r = 0, r_1, r_2 (D_k = eps_k - eps_0), DPM-Solver's estimates of order 1 to 3 are, with x' = alpha' x0 + sigma' eps_0,

    x_1 = x',   x_2 = x' - sigma' (e^h - 1) / (2 r_1) D_1,   x_3 = x' - sigma' (e^h - 1 - h) / (r_2 h) D_2,       (1)

and eps_2 is asked at the point of order 2 at r_2 that (1) gives with (e^(r_2 h) - 1 - r_2 h) / (r_1 h) for the factor
of D_1. DPM-Solver-12 takes r_1 = 1/2, DPM-Solver-23 takes r_1 = 1/3, r_2 = 2/3. The two highest estimates differ by
about the error of the lower one:

    E = rms((x_high - x_low) / max(atol, rtol max(|x_low|, |x|))),   h <- h clip(0.9 E^(-1 / order), 0.1, 1000).   (2)

With E <= 1 the step is taken, to x_high; otherwise it is tried again with the new h. Lengths in (2) are of
x / sqrt(alpha^2 + sigma^2), the variance-preserving x for which the paper's tolerances are meant, so that the sample
does not depend on the scaling. The paper has the x_low that led to x for |x|, and no clip.

Every example has its own level, h and verdict: the same key gives the same image in any batch. An example that has
arrived waits for the slowest. Steps from no signal (to lambda = -8) and to clean data are of first order; the latter
costs one evaluation.

The number of evaluations depends on the data: a `lax.while_loop`, so derivatives are forward-mode only (`jax.jvp`),
of the steps as they were taken. Grid rows are stops, not steps; two noisy rows and clean data are enough.

Reference: Lu et al. DPM-Solver. 2022. arXiv:2206.00927, appendix C (adaptive), algorithms 1 and 2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, mean_per_example
from jaxdiff.types import Array, Cond, Level

_FAR = -8.0  # lambda below which x0 is as good as the data's mean
_LEAST = 1e-4  # a step in lambda that is taken whatever its error: rounding cannot stop the loop


class State(NamedTuple):
    """x, the next step in lambda and the evaluations so far, both per example [B]."""

    x: Array
    h: Array
    evaluations: Array


class _Place(NamedTuple):
    """A state on its way between two rows: `at` is lambda, [B]."""

    x: Array
    h: Array
    evaluations: Array
    at: Array


@dataclass(frozen=True)
class Adaptive:
    """DPM-Solver-12 or -23 with a step size for each example.

    `order` is that of convergence in the number of rows where each takes a single step; with few rows the tolerance
    sets the error.

    Args:
        order: 2 (DPM-Solver-12, 2 evaluations per attempt) or 3 (DPM-Solver-23, 3 evaluations).
        rtol: relative tolerance, at least 0.
        atol: absolute tolerance for x / sqrt(alpha^2 + sigma^2), above 0; 0.0078 is one grey level of 8 bits.
        h_init: the first step in lambda = log_snr / 2.

    Raises:
        UsageError: for another order or a value outside its range.

    Examples:
        >>> import jaxdiff
        >>> process = jaxdiff.processes.vp_sde()
        >>> denoise = jaxdiff.analytic.Gaussian(jnp.zeros(2), jnp.eye(2)).denoiser(process)
        >>> x = jaxdiff.prior_sample(process, jax.random.key(0), (4, 2))
        >>> levels = jaxdiff.grids.log_snr(process, 3)
        >>> x, count = jaxdiff.sample(denoise, Adaptive(), levels, x, jax.random.key(0), collect=evaluations)
        >>> count.shape  # evaluations so far, per row and example
        (3, 4)

    Reference: Lu et al. 2022. arXiv:2206.00927, appendix C.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05

    nfe = None
    between = True

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise UsageError(f"order={self.order}: allowed is 2 or 3")
        if not self.rtol >= 0 or not self.atol > 0 or not self.h_init > 0:
            raise UsageError(
                f"rtol={self.rtol:g}, atol={self.atol:g}, h_init={self.h_init:g}: need rtol >= 0, atol > 0, h_init > 0"
            )

    def init(self, x: Array) -> State:
        batch = x.shape[0]
        return State(x, jnp.full(batch, self.h_init, jnp.result_type(float)), jnp.zeros(batch, jnp.int32))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        x, h, count = state
        start, end = (0.5 * level.log_snr.astype(h.dtype) for level in (cur, nxt))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        place = jax.lax.while_loop(
            lambda place: jnp.any(_under_way(place.at, end)),
            lambda place: self._attempt(denoise, place, end, cond, state.x.dtype),
            _Place(x, h, count, jnp.full_like(h, start)),
        )
        return State(place.x.astype(state.x.dtype), place.h, place.evaluations)

    def _attempt(self, denoise: Denoiser, place: _Place, end: Array, cond: Cond, dtype: jnp.dtype) -> _Place:
        """Try one step for every example that has not arrived."""
        x, h, count, at = place
        active = _under_way(at, end)
        goal = jnp.where(at == -jnp.inf, jnp.minimum(end, _FAR), end)
        goal = jnp.where((end == -jnp.inf) & (at > _FAR), _FAR, goal)
        jump = active & (jnp.isinf(at) | jnp.isinf(goal))
        calm = active & ~jump
        left = jnp.where(calm, goal, 1.0) - jnp.where(calm, at, 0.0)
        last = jump | (jnp.abs(left) <= h)
        step = jnp.where(last, left, jnp.sign(left) * h)
        to = jnp.where(last, goal, at + step)

        ends = jnp.where(active, at, 0.0), jnp.where(active, to, 1.0)
        here, there = (denoise.process.at(2 * a) for a in ends)
        x0, eps, _ = denoise(x.astype(dtype), here, cond)
        first = _mix(x, there, x0, eps)

        def bend(r: float, extra: Array) -> Array:
            """D of (1): evaluate at r h, with `extra` of order 2 there."""
            level = denoise.process.at(2 * jnp.where(calm, at + r * step, ends[1]))
            point = jnp.where(expand(calm, x), _mix(x, level, x0, eps) - expand(level.sigma, x) * extra, x)
            return denoise(point.astype(dtype), level, cond).eps - eps

        def scaled(a: Array, d: Array) -> Array:
            return expand(there.sigma * a, x) * d

        whole = jnp.expm1(step)
        if self.order == 2:
            low, high = first, first - scaled(whole, bend(1 / 2, jnp.zeros_like(x)))
        else:
            d1 = bend(1 / 3, jnp.zeros_like(x))
            part = 2 / 3 * step
            d2 = bend(2 / 3, expand((jnp.expm1(part) - part) / (step / 3), x) * d1)
            low, high = first - scaled(1.5 * whole, d1), first - scaled(1.5 * (whole - step) / step, d2)

        before, low_, high_ = _unit(x, here), _unit(low, there), _unit(high, there)
        allowed = jnp.maximum(self.atol, self.rtol * jnp.maximum(jnp.abs(low_), jnp.abs(before)))
        error = jax.lax.stop_gradient(jnp.sqrt(mean_per_example(((high_ - low_) / allowed) ** 2))).astype(h.dtype)
        # What is no number will not become one with shorter steps.
        error = jnp.where(jnp.isnan(error), 0.0, error)
        took = active & (jump | (error <= 1) | (jnp.abs(step) <= _LEAST))
        factor = jnp.clip(0.9 * jnp.maximum(error, 1e-12) ** (-1 / self.order), 0.1, 1000.0)
        proposed = jnp.maximum(jnp.abs(step) * factor, _LEAST)
        # A step cut short by the row is no reason for the next one to be short.
        proposed = jnp.where(took & last, jnp.maximum(proposed, h), proposed)
        return _Place(
            jnp.where(expand(took, x), jnp.where(expand(jump, x), first, high), x).astype(x.dtype),
            jnp.where(calm, proposed, h),
            count + jnp.where(active, jnp.where(goal == jnp.inf, 1, self.order), 0),
            jnp.where(took, to, at),
        )


def _under_way(at: Array, end: Array) -> Array:
    """Whether lambda is short of its end; False for equal infinities, and for what is no number."""
    return jnp.abs(end - at) > 0


def _mix(x: Array, level: Level, x0: Array, eps: Array) -> Array:
    return (expand(level.alpha, x) * x0 + expand(level.sigma, x) * eps).astype(x.dtype)


def _unit(x: Array, level: Level) -> Array:
    """x in the variance-preserving scaling."""
    return x / expand(jnp.hypot(level.alpha, level.sigma), x)


def evaluations(state: State, level: Level) -> Int[Array, " b"]:
    """A `collect` for `sample`: how often the denoiser was evaluated so far, for each example."""
    del level
    return state.evaluations
