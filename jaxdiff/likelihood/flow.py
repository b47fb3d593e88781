r"""The log-density of data by the probability flow, with its error bar.

A process is a path in the angle a = atan(sigma / alpha), from 0 (data) to at most pi/2 (noise). With
r = sqrt(alpha^2 + sigma^2) the flow of z = x / r is, whatever the scaling and the schedule,

    dz/da = v(z, a) = cos(a) eps - sin(a) x0,   cos(a) = alpha / r,   sin(a) = sigma / r,       (1)

with x0 and eps the prediction at x = r z. It is bounded at both ends, alpha = 0 included. Along it the density of z
changes by its divergence, so with the prior z ~ N(0, sin(a)^2 I) at the noisiest level A

    log p(x0) = log N(z_A; 0, sin(A)^2 I) + integral_0^A D da,   D = tr dv/dz = r tr dv/dx.      (2)

Near clean data v is odd in a: v = -a (x0 + grad log p(x0)) + O(a^3). In q = 1 - cos(a) the flow dz/dq = v / sin(a) is
regular at 0, so the first step needs the cleanest noisy level a_1 alone,

    z_1 = x0 + tan(a_1 / 2) v(x0, a_1),   and D likewise;   local error O(a_1^4).                 (3)

It happens once: nothing is ever asked at sigma = 0, and no bias is left from stopping short of it. From a_1 on, fixed
Runge-Kutta steps in a between the rows of the grid: Heun, or the classic order 4, which also asks midway.

Hutchinson's estimate of D is e^T (dv/dz) e, with fresh random signs e at every evaluation. The trajectory does not
depend on them, so the estimate of (2) is unbiased for the steps taken, and its errors are independent from one
evaluation to the next. Their variance is that of the probes at one evaluation, or, with a single probe,

    (D_i - D_j)^2 / 2   for two evaluations i, j of one step,                                    (4)

which is a little too large where D changes over the step. (The step (3) is compared with the evaluation after it.)

Reference: Song et al. Score-based generative modeling through SDEs. 2021. arXiv:2011.13456, equations 39-40;
Grathwohl et al. FFJORD. 2019. arXiv:1810.01367, section 3.1; the angle is that of Salimans, Ho. 2022.
arXiv:2202.00512, appendix D.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Denoiser, check_rows
from jaxdiff.numerics import batch_keys
from jaxdiff.process import ForwardProcess, stack
from jaxdiff.sde import prior_log_prob
from jaxdiff.types import Array, Cond, Level

TRACES = ("exact", "hutchinson")


class _Rule(NamedTuple):
    """A Runge-Kutta rule whose stages start from the one before: at the row (0), midway (1) or at the next row (2)."""

    at: tuple[int, ...]
    back: tuple[float, ...]  # how far along the last slope each stage starts
    weights: tuple[float, ...]
    pair: int  # the stage that (4) compares with the one before it


_RULES = {
    2: _Rule((0, 2), (0.0, 1.0), (1 / 2, 1 / 2), 1),
    4: _Rule((0, 1, 1, 2), (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 2),
}


class LogProb(NamedTuple):
    """A log-density and what is known of its error.

    Attributes:
        value: log p(x0) in nats, shape [B].
        stderr: standard error of `value` from the random probes alone, in nats, shape [B]; 0 for the exact trace.
            The error of the steps is not in it: see it by doubling them.
        nfe: denoiser evaluations, each with one directional derivative per probe (exact: per dimension).
    """

    value: Array
    stderr: Array
    nfe: int


def angular(process: ForwardProcess, n: int) -> Level:
    """A grid of equal steps in the angle of (1), the variable that `log_prob` integrates in.

    The grid of fewest steps for data of unit scale; features much narrower than 1 / n ask for a grid that is denser
    near the data, such as `grids.karras`. A table process is read between its rows.

    Args:
        process: any process; its noisiest time of finite log-SNR is the first row.
        n: number of steps, at least 1.

    Returns:
        n + 1 stacked levels, noisiest first, clean data last.

    Raises:
        UsageError: for n < 1.

    Examples:
        >>> from jaxdiff import processes
        >>> levels = angular(processes.cosine(), 4)
        >>> print(jnp.degrees(jnp.arctan2(levels.sigma, levels.alpha)).round(1))
        [89.9 67.4 45.  22.5  0. ]
    """
    if n < 1:
        raise UsageError(f"steps={n}: a grid needs at least 1 step")
    noisy = process.schedule.log_snr(np.float64(process.schedule.span[1]))
    angle = np.arctan(np.exp(-0.5 * noisy)) * np.arange(n, 0, -1) / n
    return stack(process.at(np.append(-2 * np.log(np.tan(angle)), np.inf)))


def log_prob(
    denoise: Denoiser,
    x0: Float[Array, " b *d"],
    key: Array,
    *,
    levels: Level,
    trace: str = "exact",
    probes: int = 1,
    order: int = 2,
    cond: Cond = None,
) -> LogProb:
    """The log-density of clean data under the model's probability flow, equation (2).

    Works for any denoiser: conditional, guided (the density of what the guided flow samples), any process. Compiled
    once per (trace, probes, order, shapes, structure of the denoiser).

    Args:
        denoise: the denoiser.
        x0: clean examples, shape [B, ...]; computed in float32 or better.
        key: one key, or one per example [B]: the same key gives the same value in any batch. Unused by "exact".
        levels: n + 1 stacked levels, n at least 2, noisiest first, clean data last: `angular`, or a grid of
            `jaxdiff.grids`. At the first of them x is taken to be N(0, sigma^2 I).
        trace: "exact", one directional derivative per dimension; "hutchinson", one per probe.
        probes: random directions per evaluation, at least 1; for "hutchinson".
        order: 2, Heun's steps from row to row, nfe = 2 n - 1; or 4, nfe = 4 n - 3, which asks between the rows too.
        cond: conditioning, a dict of arrays with leading axis B, or None.

    Returns:
        value [B] in nats, stderr [B] in nats, nfe. The density is that of x0 in its own units: see `bits_per_dim`.

    Raises:
        UsageError: for another trace, order or number of probes, a grid that does not end at clean data, or a
            condition of another batch size.

    Examples:
        >>> import jaxdiff
        >>> process = jaxdiff.processes.vp_sde()
        >>> denoise = jaxdiff.analytic.Gaussian(jnp.zeros(2), jnp.eye(2)).denoiser(process)
        >>> result = log_prob(denoise, jnp.zeros((1, 2)), jax.random.key(0), levels=angular(process, 20))
        >>> print(f"{result.value[0]:.3f} with {result.nfe} evaluations")  # -log(2 pi) = -1.838
        -1.838 with 39 evaluations

    Reference: Song et al. 2021. arXiv:2011.13456, equations 39-40.
    """
    if trace not in TRACES:
        raise unknown("trace", trace, TRACES)
    if order not in _RULES:
        raise UsageError(f"order={order!r}: allowed are 2 and 4")
    if probes < 1:
        raise UsageError(f"probes={probes}: allowed is 1 or more")
    check(levels, x0, cond)
    check_rows(denoise, levels.t, what="log_prob with order=4", between=order == 4)
    keys = batch_keys(key, x0.shape[0])
    value, stderr = _integrate(denoise, x0, keys, levels, cond, trace == "exact", probes, order)
    return LogProb(value, stderr, 1 + len(_RULES[order].at) * (levels.t.shape[0] - 2))


def check(levels: Level, x0: Array, cond: Cond, least: int = 2) -> None:
    """Raise a UsageError where a grid of at least `least` steps to clean data, or the condition, does not fit."""
    if levels.t.ndim != 1 or levels.t.shape[0] <= least:
        raise UsageError(f"levels must be {least + 1} or more stacked levels, got t of shape {levels.t.shape}")
    if not isinstance(levels.sigma, jax.core.Tracer) and np.asarray(levels.sigma)[-1] != 0:
        last = np.asarray(levels.sigma)[-1]
        raise UsageError(f"levels must end at clean data (sigma = 0), got sigma={last:g}")
    if not isinstance(levels.log_snr, jax.core.Tracer) and not (np.diff(np.asarray(levels.log_snr)) > 0).all():
        raise UsageError("levels must be the noisiest first, each cleaner than the one before")
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != x0.shape[0]:
            raise UsageError(f"cond must have the batch size {x0.shape[0]} as its first axis, got {jnp.shape(leaf)}")


class _Evaluation(NamedTuple):
    """One evaluation of the denoiser, or all of them stacked: first (3), then the stages of every step."""

    level: Level
    step: Array  # the length in a of its step; tan(a_1 / 2) for (3)
    back: Array
    weight: Array
    last: Array  # whether it ends its step
    pair: Array  # the weight of (4) with the evaluation before it
    number: Array


def _plan(process: ForwardProcess, rows: Level, rule: _Rule) -> _Evaluation:
    angle = jnp.arctan2(rows.sigma, rows.alpha)
    cur, nxt = (jax.tree.map(lambda a, i=i: a[i : a.shape[0] - 1 + i], rows) for i in (0, 1))
    halfway = process.at(-2 * jnp.log(jnp.tan(0.5 * (angle[:-1] + angle[1:])))) if 1 in rule.at else cur
    gap, reach = jnp.diff(angle), jnp.tan(0.5 * angle[0])

    def flat(first: Any, *stages: Any) -> Array:
        each = jnp.stack([jnp.broadcast_to(jnp.asarray(s), gap.shape) for s in stages], axis=1)
        return jnp.concatenate([jnp.reshape(jnp.asarray(first), 1), each.reshape(-1)])

    level = Level(
        *(flat(row[0], *(stops[i] for i in rule.at)) for row, *stops in zip(rows, cur, halfway, nxt, strict=True))
    )
    stages = range(len(rule.at))
    squares = sum(w**2 for w in rule.weights)
    pair = flat(0.0, *(gap**2 * squares * (s == rule.pair) for s in stages))
    return _Evaluation(
        level,
        step=flat(reach, *(gap for _ in stages)),
        back=flat(0.0, *rule.back),
        weight=flat(1.0, *rule.weights),
        last=flat(True, *(s == stages[-1] for s in stages)),
        # The second evaluation is at the level of the first, and next to it.
        pair=pair.at[1].add(reach**2),
        number=jnp.arange(pair.shape[0], dtype=jnp.uint32),
    )


@partial(jax.jit, static_argnames=("exact", "probes", "order"))
def _integrate(
    denoise: Denoiser, x0: Array, keys: Array, levels: Level, cond: Cond, exact: bool, probes: int, order: int
) -> tuple[Array, Array]:
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    rows = jax.tree.map(lambda a: a[-2::-1], levels)  # the cleanest noisy level first

    def rate(z: Array, level: Level, index: Array) -> tuple[Array, Array]:
        """v of (1) and estimates of D of (2), [probes, B]; exact: the one true D, [1, B]."""
        r = jnp.hypot(level.alpha, level.sigma)

        def velocity(z: Array) -> Array:
            answer = denoise(r * z, level, cond)
            return (level.alpha / r) * answer.eps - (level.sigma / r) * answer.x0

        along = _basis(z) if exact else _signs(keys, index, probes, z)
        v, moved = jax.vmap(lambda e: jax.jvp(velocity, (z,), (e,)))(along)
        products = jnp.sum((along * moved).reshape(*along.shape[:2], -1), axis=-1)
        return v[0].astype(z.dtype), products.sum(0, keepdims=True) if exact else products

    def evaluate(carry: tuple[Array, ...], e: _Evaluation) -> tuple[tuple[Array, ...], None]:
        here, ahead, v, before, total, variance = carry
        v, found = rate(here + e.step * e.back * v, e.level, e.number)
        trace = found.mean(0)
        ahead = ahead + e.step * e.weight * v
        total = total + e.step * e.weight * trace
        if probes > 1 and not exact:
            variance = variance + (e.step * e.weight) ** 2 * found.var(axis=0, ddof=1) / probes
        elif not exact:
            variance = variance + e.pair * 0.5 * (trace - before) ** 2  # (4)
        return (jnp.where(e.last, ahead, here), ahead, v, trace, total, variance), None

    zero = jnp.zeros(x0.shape[0], x0.dtype)
    carry: tuple[Array, ...] = (x0, x0, jnp.zeros_like(x0), zero, zero, zero)
    (z, _, _, _, total, variance), _ = jax.lax.scan(evaluate, carry, _plan(denoise.process, rows, _RULES[order]))
    return total + _log_prior(denoise, z, jax.tree.map(lambda a: a[-1], rows)), jnp.sqrt(variance)


def _log_prior(denoise: Denoiser, z: Array, level: Level) -> Array:
    """log N(z; 0, (sigma / r)^2 I) per example: the prior of t = 1, scaled to the grid's first row."""
    scale = denoise.process(1.0).sigma * jnp.hypot(level.alpha, level.sigma) / level.sigma
    return prior_log_prob(denoise.process, scale * z) + z[0].size * jnp.log(scale)


def _basis(z: Array) -> Array:
    """Every unit direction of one example, for the whole batch: [D, B, ...]."""
    size = z[0].size
    unit = jnp.eye(size, dtype=z.dtype).reshape(size, 1, *z.shape[1:])
    return jnp.broadcast_to(unit, (size, *z.shape))


def _signs(keys: Array, index: Array, count: int, z: Array) -> Array:
    """Random signs [count, B, ...], each example's from its own key."""
    draw = jax.vmap(lambda k: jax.random.rademacher(jax.random.fold_in(k, index), (count, *z.shape[1:]), z.dtype))
    return jnp.moveaxis(draw(keys), 1, 0)
