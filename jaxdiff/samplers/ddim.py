r"""Non-Markovian sampling: keep the predicted noise instead of drawing new noise.

    x_nxt = alpha_nxt x0 + sqrt(sigma_nxt^2 - s^2) eps + s z,   s^2 = eta^2 sigma_nxt^2 (1 - e^d),   (1)

with (x0, eps) the prediction at `cur` and d <= 0 the difference of log-SNR. eta = 0 is deterministic, the
first-order exponential integrator of the probability-flow ODE; eta = 1 is DDPM with the posterior variance.

Reference: Song, Meng, Ermon. Denoising diffusion implicit models. 2021. arXiv:2010.02502, equations 12 and 16.
"""

from dataclasses import dataclass

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like, safe_sqrt
from jaxdiff.process import q_posterior
from jaxdiff.samplers.base import Point
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class DDIM:
    """Deterministic (eta = 0) to ancestral (eta = 1) sampling.

    Args:
        eta: noise added per step, in [0, 1], as a fraction of the posterior's standard deviation.

    Examples:
        >>> DDIM(eta=0.5)
        DDIM(eta=0.5)

    Reference: Song, Meng, Ermon. 2021. arXiv:2010.02502, equation 12.
    """

    eta: float = 0.0

    order = 1
    nfe = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta={self.eta:g}: allowed is 0 (deterministic) to 1 (ancestral)")

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x = state.x
        x0, eps, _ = denoise(x, cur, cond)
        if self.eta == 0:
            return Point(expand(nxt.alpha, x) * x0 + expand(nxt.sigma, x) * eps)
        var = self.eta**2 * q_posterior(cur, nxt, x, x0)[1]
        kept = safe_sqrt(nxt.sigma**2 - var)
        return Point(
            expand(nxt.alpha, x) * x0 + expand(kept, x) * eps + expand(safe_sqrt(var), x) * normal_like(key, x)
        )
