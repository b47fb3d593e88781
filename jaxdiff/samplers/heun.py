r"""Two evaluations per step: Heun's method and its relatives of order 2, with EDM's churn.

With s = sigma / alpha, y = x / alpha the flow is dy/ds = eps(y, s). A two-stage Runge-Kutta step of h = s_nxt - s asks
again at s' = s + a h, at the point y' that Euler reaches there, and

    y_nxt = y + h ((1 - 1 / 2a) eps + (1 / 2a) eps').                                      (1)

With x_nxt = alpha_nxt y_nxt, eps' - eps = D and l = log_snr, where nothing cancels and no alpha divides,

    x_nxt = alpha_nxt x0 + sigma_nxt eps + (w / 2a) D,
    w = alpha_nxt h = -sigma_nxt expm1((l_nxt - l) / 2),                                   (2)
    l' = l - 2 log1p(a expm1((l - l_nxt) / 2)).                                            (3)

a = 1 is Heun's method (EDM), 1/2 the midpoint method, 2/3 Ralston's. On Gaussian data, where y - m is proportional to
sqrt(s^2 + var), the leading error of the midpoint method happens to vanish: it is of order 3 there, and 2 elsewhere.

Steps from no signal or to no noise are of first order, Euler's, because at sigma = 0 there is no noise to predict.

Reference: Karras et al. 2022. arXiv:2206.00364, algorithm 1 (a = 1, no churn), algorithm 2 (a = 1, churn) and
algorithm 3 (any a).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand
from jaxdiff.process import ForwardProcess
from jaxdiff.samplers.base import Point
from jaxdiff.samplers.churn import Churned, choose
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class Heun(Churned):
    """EDM's sampler of order 2, deterministic or with churn.

    With `churn = per_step(S_churn, N)` the weak order is 2 as well.

    Args:
        churn: gamma of each step, in [0, sqrt(2) - 1]; see `Churned` for this and the next three.
        s_min: churn only where sigma / alpha is at least this.
        s_max: and at most this.
        s_noise: standard deviation of the new noise.
        alpha: where the second evaluation lies, in (0, 1], as a part of the step in sigma / alpha: 1 (Heun), 1/2
            (midpoint), 2/3 (Ralston). The paper's name; it is no signal coefficient.

    Raises:
        UsageError: for a value outside these ranges.

    Examples:
        >>> Heun(alpha=2 / 3).order
        2

    Reference: Karras et al. 2022. arXiv:2206.00364, algorithms 1, 2 and 3.
    """

    alpha: float = 1.0

    order = 2
    nfe = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise UsageError(f"alpha={self.alpha:g}: allowed is above 0 to 1 (Heun); 0.5 is midpoint, 2/3 Ralston")

    @property
    def between(self) -> bool:
        """Whether it evaluates between the levels of the grid."""
        return self.churn > 0 or self.alpha < 1

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x, cur = self.raised(denoise.process, state.x, cur, key)
        middle = nxt if self.alpha == 1 else self._middle(denoise.process, cur, nxt)
        return Point(two_stages(denoise, x, cur, nxt, middle, 1 / (2 * self.alpha), cond))

    def _middle(self, process: ForwardProcess, cur: Level, nxt: Level) -> Level:
        """Equation (3)."""
        start, end = finite(cur, nxt)
        return process.at(start - 2 * jnp.log1p(self.alpha * jnp.expm1(0.5 * (start - end))))


def finite(cur: Level, nxt: Level) -> tuple[Array, Array]:
    """The log-SNR of both levels, or 0 for both where one is infinite."""
    either = jnp.isinf(cur.log_snr) | jnp.isinf(nxt.log_snr)
    return jnp.where(either, 0.0, cur.log_snr), jnp.where(either, 0.0, nxt.log_snr)


def two_stages(
    denoise: Denoiser, x: Float[Array, " b *d"], cur: Level, nxt: Level, middle: Level, weight: float, cond: Cond
) -> Float[Array, " b *d"]:
    """Equation (2), `weight` for 1 / 2a: evaluate at `cur`, go to `middle`, evaluate, step to `nxt`.

    `nxt` is not evaluated unless it is `middle`; only its alpha, sigma and log-SNR matter.
    """
    x0, eps, _ = denoise(x, cur, cond)
    euler = jnp.isinf(cur.log_snr) | jnp.isinf(nxt.log_snr)
    # At clean data `sample` answers the second question itself: it costs no evaluation.
    middle = choose(euler, nxt, middle)
    there = jnp.where(euler, x, expand(middle.alpha, x) * x0 + expand(middle.sigma, x) * eps).astype(x.dtype)
    bend = jnp.where(euler, 0.0, denoise(there, middle, cond).eps - eps)
    start, end = finite(cur, nxt)
    width = jnp.where(euler, 0.0, -nxt.sigma * jnp.expm1(0.5 * (end - start)))
    return expand(nxt.alpha, x) * x0 + expand(nxt.sigma, x) * eps + expand(weight * width, x) * bend
