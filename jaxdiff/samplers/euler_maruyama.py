r"""The reverse SDE by its simplest method.

Scaled to unit variance, and with b = log(1 + sigma^2 / alpha^2) as its clock, every Gaussian process is the
Ornstein-Uhlenbeck process, the one form of it whose coefficients do not change with time: for

    y = x / sqrt(alpha^2 + sigma^2),     dy = -y / 2 db + dw.                                        (1)

Its reversal adds the score, -eps / s with s = sigma / sqrt(alpha^2 + sigma^2). Euler-Maruyama over the step of length
d = b_cur - b_nxt is

    y_nxt = y + d (y / 2 + score) + sqrt(d) z.                                                        (2)

For a variance-preserving process y is x and d = -log(1 - beta): (2) is the published predictor with the integral of
beta over the step where that has beta(t_cur) times the step, so they agree exactly for a constant beta(t) and to
second order for any other. In the process's own scaling and time, as published, the same noise levels would give
another sample for each way to write the same process.

The step to clean data is the prediction x0; the one from pure noise (alpha = 0), of infinite length, draws
alpha_nxt x0 + sigma_nxt z.

Reference: Song et al. Score-based generative modeling through stochastic differential equations. 2021.
arXiv:2011.13456, equation 6; the predictor `euler_maruyama` of the authors' code.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like, sigmoid, softplus
from jaxdiff.samplers.base import Point
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE, equation (2).

    At high noise it is unstable with steps of d > 4, a factor 7 in sigma; `ReverseDiffusion` bears any.

    Examples:
        >>> EulerMaruyama().order
        1

    Reference: Song et al. 2021. arXiv:2011.13456, equation 6.
    """

    order = 1
    nfe = 1

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x = state.x
        x0, eps, _ = denoise(x, cur, cond)
        end = jnp.isinf(cur.log_snr) | jnp.isinf(nxt.log_snr)
        here, there = (jnp.where(end, fill, level.log_snr) for fill, level in ((0.0, cur), (1.0, nxt)))
        d = softplus(-here) - softplus(-there)
        scale, grown, s = jnp.hypot(nxt.alpha, nxt.sigma), 1 + d / 2, jnp.sqrt(sigmoid(-here))
        clean = jnp.where(end, nxt.alpha, scale * grown * jnp.sqrt(sigmoid(here)))
        kept = jnp.where(end, 0.0, scale * (grown * s - d / s))
        noise = jnp.where(end, nxt.sigma, scale * jnp.sqrt(d))
        return Point(expand(clean, x) * x0 + expand(kept, x) * eps + expand(noise, x) * normal_like(key, x))
