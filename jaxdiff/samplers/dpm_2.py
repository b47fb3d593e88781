r"""DPM-2: a step of order 2 through the middle in log sigma.

The step of `jaxdiff.samplers.heun` with its second evaluation where log(sigma / alpha) is halfway, and all the weight
on it:

    l' = (l + l_nxt) / 2,   y_nxt = y + (s_nxt - s) eps'.                                  (1)

Since s_nxt e^(lambda_nxt - lambda) = s for lambda = log_snr / 2, this is x_nxt = (alpha_nxt / alpha) x -
sigma_nxt expm1(lambda_nxt - lambda) eps': DPM-Solver-2 with r_1 = 1/2, in other words. k-diffusion adds churn, or
ends the step at s_down and adds noise (`jaxdiff.samplers.churn`, equations 1 and 2).

Reference: Lu et al. DPM-Solver. 2022. arXiv:2206.00927, algorithm 1; k-diffusion's sample_dpm_2 and
sample_dpm_2_ancestral for the noise.
"""

from dataclasses import dataclass

from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like
from jaxdiff.process import ForwardProcess
from jaxdiff.samplers.base import Point
from jaxdiff.samplers.churn import Churned, ancestral, check_noise
from jaxdiff.samplers.heun import finite, two_stages
from jaxdiff.types import Array, Cond, Level


def _middle(process: ForwardProcess, cur: Level, nxt: Level) -> Level:
    start, end = finite(cur, nxt)
    return process.at(0.5 * (start + end))


@dataclass(frozen=True)
class DPM2(Churned):
    """The midpoint in log sigma, equation (1): DPM-Solver-2, with k-diffusion's churn.

    Args:
        churn: gamma of each step, in [0, sqrt(2) - 1]; see `Churned` for this and the others.
        s_min: churn only where sigma / alpha is at least this.
        s_max: and at most this.
        s_noise: standard deviation of the new noise.

    Examples:
        >>> DPM2().between
        True

    Reference: Lu et al. 2022. arXiv:2206.00927, algorithm 1.
    """

    order = 2
    nfe = 2

    @property
    def between(self) -> bool:
        """Whether it evaluates between the levels of the grid."""
        return True

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x, cur = self.raised(denoise.process, state.x, cur, key)
        return Point(two_stages(denoise, x, cur, nxt, _middle(denoise.process, cur, nxt), 1.0, cond))


@dataclass(frozen=True)
class DPM2Ancestral:
    """Equation (1) to a level below the next one, then noise up to it. Its weak order is 2.

    Args:
        eta: how much of the noise of DDPM's posterior is drawn anew, at least 0. Above 1 the step is cut where all
            noise is new.
        s_noise: standard deviation of the new noise; 1 is exact.

    Examples:
        >>> DPM2Ancestral(eta=0.5)
        DPM2Ancestral(eta=0.5, s_noise=1.0)

    Reference: Lu et al. 2022. arXiv:2206.00927, algorithm 1; k-diffusion's sample_dpm_2_ancestral.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    order = 2
    nfe = 2
    between = True

    def __post_init__(self) -> None:
        check_noise(self.eta, self.s_noise)

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x = state.x
        down, up = ancestral(cur, nxt, self.eta)
        moved = two_stages(denoise, x, cur, down, _middle(denoise.process, cur, down), 1.0, cond)
        return Point(moved if self.eta == 0 else moved + expand(self.s_noise * up, x) * normal_like(key, x))
