r"""Ancestral sampling: draw from the reverse step that would be right if x0 were the prediction.

    x_nxt ~ N(q_posterior mean at x0 = prediction, var),                            (1)

with one of three variances for the step from `cur` to `nxt` (d <= 0 the difference of log-SNR):

    posterior   sigma_nxt^2 (1 - e^d)     right for data at a point                 (2)
    beta        sigma_cur^2 (1 - e^d)     right for data ~ N(0, I)                  (3)
    learned     exp(v log (3) + (1 - v) log (2)), v in [0, 1] from the network       (4)

The last step, to clean data, adds no noise.

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, algorithm 2 and section 3.2 for (2) and (3);
Nichol, Dhariwal. 2021. arXiv:2102.09672, equation 15 for (4).
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like, safe_sqrt
from jaxdiff.process import q_posterior, q_transition
from jaxdiff.samplers.base import Point
from jaxdiff.types import Array, Cond, Level

VARIANCES = ("posterior", "beta", "learned")


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling.

    Args:
        variance: "posterior", "beta" or "learned".

    Raises:
        UsageError: for another variance; when sampling, for "learned" with a model that has none.

    Examples:
        >>> DDPM("beta").nfe
        1

    Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, algorithm 2.
    """

    variance: str = "posterior"

    order = 1
    nfe = 1

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown("variance", self.variance, VARIANCES)

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x = state.x
        prediction = denoise(x, cur, cond)
        mean, small = q_posterior(cur, nxt, x, prediction.x0)
        if self.variance == "posterior":
            std = expand(safe_sqrt(small), x)
        elif self.variance == "beta":
            std = expand(q_transition(cur, nxt)[1], x)
        elif prediction.var_frac is None:
            raise UsageError("DDPM(variance='learned') needs a model with learned_variance; use 'posterior' or 'beta'")
        else:
            # (4) on standard deviations, without the logarithm of sigma_nxt = 0.
            log_ratio = jnp.log(cur.sigma / jnp.where(nxt.sigma > 0, nxt.sigma, 1.0))
            std = expand(safe_sqrt(small), x) * jnp.exp(prediction.var_frac * expand(log_ratio, x))
        return Point(mean + jnp.where(expand(nxt.sigma, x) > 0, std, 0.0) * normal_like(key, x))
