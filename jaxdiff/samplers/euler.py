r"""Euler steps of the probability flow, with churn or as ancestral sampling.

With s = sigma / alpha and y = x / alpha the flow is dy/ds = eps, and Euler's step y_nxt = y + (s_nxt - s) eps is

    x_nxt = alpha_nxt x0 + sigma_nxt eps.                                           (1)

That is DDIM with eta = 0: `Euler()` and `DDIM()` are the same sampler in other words, exact for any step if x0 does
not change. What `Euler` adds is churn (`jaxdiff.samplers.churn`, equation 1). The ancestral step goes to s_down and
adds noise back (equation 2 there):

    x_nxt = alpha_nxt (x0 + s_down eps + s_up s_noise z),                           (2)

which for s_noise = 1 is DDIM with the same eta, and DDPM's posterior step for eta = 1.

Reference: Karras et al. 2022. arXiv:2206.00364, algorithm 2 without its second-order correction;
Song, Meng, Ermon. 2021. arXiv:2010.02502, equations 12 and 16.
"""

from dataclasses import dataclass

from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like
from jaxdiff.samplers.base import Point
from jaxdiff.samplers.churn import Churned, ancestral, check_noise
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class Euler(Churned):
    """EDM's stochastic sampler without its second-order correction; without churn it is DDIM, equation (1).

    Args:
        churn: gamma of each step, in [0, sqrt(2) - 1]; see `Churned` for this and the others.
        s_min: churn only where sigma / alpha is at least this.
        s_max: and at most this.
        s_noise: standard deviation of the new noise.

    Examples:
        >>> from jaxdiff.samplers.churn import per_step
        >>> Euler(churn=per_step(10.0, 50)).churn
        0.2

    Reference: Karras et al. 2022. arXiv:2206.00364, algorithm 2 without the correction.
    """

    order = 1
    nfe = 1

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x, cur = self.raised(denoise.process, state.x, cur, key)
        x0, eps, _ = denoise(x, cur, cond)
        return Point(expand(nxt.alpha, x) * x0 + expand(nxt.sigma, x) * eps)


@dataclass(frozen=True)
class EulerAncestral:
    """Euler to a level below the next one, then noise up to it: equation (2).

    Args:
        eta: how much of the noise of DDPM's posterior is drawn anew, at least 0. Above 1 the step is cut where all
            noise is new.
        s_noise: standard deviation of the new noise; 1 is exact.

    Examples:
        >>> EulerAncestral(eta=0.5)
        EulerAncestral(eta=0.5, s_noise=1.0)

    Reference: Song, Meng, Ermon. 2021. arXiv:2010.02502, equations 12 and 16; the form is k-diffusion's.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    order = 1
    nfe = 1

    def __post_init__(self) -> None:
        check_noise(self.eta, self.s_noise)

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x = state.x
        x0, eps, _ = denoise(x, cur, cond)
        down, up = ancestral(cur, nxt, self.eta)
        moved = expand(down.alpha, x) * x0 + expand(down.sigma, x) * eps
        return Point(moved if self.eta == 0 else moved + expand(self.s_noise * up, x) * normal_like(key, x))
