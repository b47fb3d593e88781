r"""The probability-flow ODE solved to high precision, where it has no closed form.

With u = x / alpha and s = sigma / alpha the flow of any process is du/ds = E[eps | x]: all processes are one. At the
ends u or s may be infinite, so the point is turned instead of stretched. With s = tan(phi),

    v = x / sqrt(alpha^2 + sigma^2),   dv/dphi = -sin(phi) x0 + cos(phi) eps,            (1)

which is regular from clean data (phi = 0) to pure noise (phi = pi/2). What happens at the scale of the smallest width
and at that of the whole data is given its share of steps by the clock

    tau = log((s + a) / (1 + s / b)),   s = p / q,   p = e^tau - a,   q = 1 - e^tau / b,
    dphi/dtau = e^tau (1 - a / b) / (p^2 + q^2),                                       (2)

logarithmic for a < s < b and linear in s or 1/s outside. It is integrated in equal steps of tau by an explicit
Runge-Kutta method of order 8 with 11 stages (`A`, `B`, `C`). From s = 1e-8 of the data's scale (1e-6 where the data
has no density) a point moves on along its x0, which is exact for a data set and errs by s^2 |score| / 2 for a density.

Measured in float64 with the default steps, from t = 1 to clean data: 1e-14 against the closed form of a Gaussian;
2e-14 against 1600 steps on mixtures whose modes lie 100 widths apart and on a data set of 50 points, at the worst of
256 starts. 1000 points on a line are so close that a start between two of them may err by 1e-3 of the data's scale.
Float32 gives 2e-6.

Reference: Song et al. 2021. arXiv:2011.13456, equation 13; Cooper, Verner. Some explicit Runge-Kutta methods of high
order. 1972. SIAM J. Numer. Anal. 9(3), 389-405.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.numerics import expand
from jaxdiff.types import Array, Level, Prediction, PyTree

STEPS = 200

_R = 21**0.5
A = np.zeros((11, 11))
A[1, 0] = 1 / 2
A[2, :2] = 1 / 4
A[3, :3] = 1 / 7, -(7 + 3 * _R) / 98, (21 + 5 * _R) / 49
A[4, [0, 2, 3]] = (11 + _R) / 84, (18 + 4 * _R) / 63, (21 - _R) / 252
A[5, [0, 2, 3, 4]] = (5 + _R) / 48, (9 + _R) / 36, (14 * _R - 231) / 360, (63 - 7 * _R) / 80
A[6, 0], A[6, 2:6] = (
    (10 - _R) / 42,
    (
        (92 * _R - 432) / 315,
        (633 - 145 * _R) / 90,
        (115 * _R - 504) / 70,
        (63 - 13 * _R) / 35,
    ),
)
A[7, [0, 4, 5, 6]] = 1 / 14, (14 - 3 * _R) / 126, (13 - 3 * _R) / 63, 1 / 9
A[8, [0, 4, 5, 6, 7]] = 1 / 32, (91 - 21 * _R) / 576, 11 / 72, -(385 + 75 * _R) / 1152, (63 + 13 * _R) / 128
A[9, 0], A[9, 4:9] = (
    1 / 14,
    (
        1 / 9,
        -(733 + 147 * _R) / 2205,
        (515 + 111 * _R) / 504,
        -(51 + 11 * _R) / 56,
        (132 + 28 * _R) / 245,
    ),
)
A[10, 4:10] = (
    (7 * _R - 42) / 18,
    (28 * _R - 18) / 45,
    -(273 + 53 * _R) / 72,
    (301 + 53 * _R) / 72,
    (28 - 28 * _R) / 45,
    (49 - 7 * _R) / 18,
)
B = np.zeros(11)
B[[0, 7, 8, 9, 10]] = 1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20
C = A.sum(1)


@partial(jax.jit, static_argnames=("predict", "steps"))
def solve(
    predict: Callable[[PyTree, Array, Level], Prediction],
    data: PyTree,
    x: Float[Array, " b *d"],
    cur: Level,
    nxt: Level,
    small: Float[Array, ""],
    large: Float[Array, ""],
    steps: int = STEPS,
) -> Float[Array, " b *d"]:
    """Move `x` along the probability flow from `cur` to `nxt`.

    Args:
        predict: (data, x, level) -> Prediction, a function of module level; it sees alpha, sigma and log_snr.
        data: its arrays.
        x: points at `cur`, shape [B, ...].
        cur, nxt: scalars or [B], in either direction; alpha = 0 and sigma = 0 are allowed.
        small: the data's smallest width, or 0; below 1e-5 `large` it counts as 0.
        large: the scale of the whole data set: its standard deviation.
        steps: steps of the integration, each of 11 evaluations.

    Returns:
        The points at `nxt`, shape [B, ...].

    Raises:
        UsageError: if `steps` is below 1.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: the integration needs at least 1 step")
    dtype = jnp.result_type(x.dtype, cur.alpha.dtype, large.dtype)
    large = jnp.where(large > 0, large, 1.0).astype(dtype)
    # Points have E[eps | x] = (u - p) / s, whose rounding grows as s falls; a density lets s go further down.
    narrow, smooth = float(jnp.finfo(dtype).eps) ** 0.5, small >= 1e-5 * large
    a, b = jnp.where(smooth, small, 1e-3 * large), 10 * large
    least = jnp.where(smooth, narrow, max(narrow, 1e-6)) * large
    first, last = (
        jnp.maximum(jnp.log((level.sigma + a * level.alpha) / (level.alpha + level.sigma / b)), _clock(least, a, b))
        for level in (cur, nxt)
    )
    step = (last - first) / steps

    def slope(v: Array, tau: Array) -> Array:
        level, rate = _level(tau, a, b)
        x0, eps, _ = predict(data, v, level)
        return expand(rate, v) * (expand(level.alpha, v) * eps - expand(level.sigma, v) * x0)

    def move(v: Array, k: Array) -> tuple[Array, None]:
        def stage(slopes: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
            weights, node, i = row
            here = v + expand(step, v) * jnp.tensordot(weights, slopes, 1)
            return slopes.at[i].set(slope(here, first + step * (k + node))), None

        rows = (jnp.asarray(A, dtype), jnp.asarray(C, dtype), jnp.arange(len(B)))
        slopes, _ = jax.lax.scan(stage, jnp.zeros((len(B), *v.shape), dtype), rows)
        return v + expand(step, v) * jnp.tensordot(jnp.asarray(B, dtype), slopes, 1), None

    v = _along(predict(data, x, cur), _level(first, a, b)[0], x).astype(dtype)
    v, _ = jax.lax.scan(move, v, jnp.arange(steps, dtype=dtype))
    return _along(predict(data, v, _level(last, a, b)[0]), nxt, x).astype(x.dtype)


def _clock(s: Array, a: Array, b: Array) -> Array:
    return jnp.log((s + a) / (1 + s / b))


def _level(tau: Array, a: Array, b: Array) -> tuple[Level, Array]:
    """The level with alpha^2 + sigma^2 = 1 at a time of the clock, and dphi/dtau, equation (2)."""
    p, q = a * jnp.expm1(tau - jnp.log(a)), -jnp.expm1(tau - jnp.log(b))
    # Rounding may step over an end.
    p, q = jnp.maximum(p, 0.0), jnp.maximum(q, 0.0)
    size = jnp.hypot(p, q)
    with_noise = jnp.log(jnp.where(p > 0, p, 1.0)), jnp.log(jnp.where(q > 0, q, 1.0))
    log_snr = jnp.where(p > 0, jnp.where(q > 0, 2 * (with_noise[1] - with_noise[0]), -jnp.inf), jnp.inf)
    return Level(p / size, q / size, p / size, log_snr), jnp.exp(tau) * (1 - a / b) / size**2


def _along(prediction: Prediction, level: Level, x: Array) -> Array:
    """The point at `level` of the straight line through a prediction's x0; at the prediction's own level, itself."""
    return expand(level.alpha, x) * prediction.x0 + expand(level.sigma, x) * prediction.eps
