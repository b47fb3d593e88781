r"""DPM-Solver: the probability flow with the noise prediction as a polynomial in half log-SNR, over one step.

With h the step in half log-SNR, level_r the one at lambda_cur + r h, and DDIM(level) = alpha x0 + sigma eps from the
prediction at `cur`,

    order 1   x_nxt = DDIM(nxt),                                                                      (1)
    order 2   eps_1 at level_1/2 and DDIM(level_1/2);
              x_nxt = DDIM(nxt) - sigma_nxt (e^h - 1) (eps_1 - eps),                                  (2)
    order 3   eps_1 at level_1/3 and DDIM(level_1/3);
              eps_2 at level_2/3 and DDIM(level_2/3) - 2 sigma_2 (2h/3) phi_2(2h/3) (eps_1 - eps);
              x_nxt = DDIM(nxt) - 3/2 sigma_nxt h phi_2(h) (eps_2 - eps).                             (3)

Reference: Lu, Zhou, Bao, Chen, Li, Zhu. DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in
around 10 steps. 2022. arXiv:2206.00927, algorithm 1 (2) with r1 = 1/2, algorithm 2 (3) with r1 = 1/3, r2 = 2/3.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand
from jaxdiff.process import ForwardProcess
from jaxdiff.samplers.base import Point
from jaxdiff.samplers.phi import phi, step_size
from jaxdiff.types import Array, Cond, Level, Prediction


def ddim(prediction: Prediction, level: Level) -> Array:
    """alpha x0 + sigma eps at another level than the prediction's."""
    x0 = prediction.x0
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * prediction.eps


def between(process: ForwardProcess, cur: Level, nxt: Level, r: float) -> Level:
    """The level a share r of the way in log-SNR, or `nxt` where an end is infinite: clean data costs no evaluation."""
    whole = jnp.isfinite(cur.log_snr) & jnp.isfinite(nxt.log_snr)
    start, end = (jnp.where(whole, level.log_snr, 0.0) for level in (cur, nxt))
    inside = process.at((1 - r) * start + r * end)
    return jax.tree.map(lambda a, b: jnp.where(whole, a, b), inside, nxt)


@dataclass(frozen=True)
class DPMSolver:
    """The singlestep solver of the noise prediction. Steps from pure noise and to clean data are of first order.

    Args:
        order: 1, 2 or 3; also the denoiser evaluations per step (the step to clean data takes 1). 1 is DDIM.

    Raises:
        UsageError: for another order.

    Examples:
        >>> DPMSolver(order=3).nfe
        3

    Reference: Lu et al. 2022. arXiv:2206.00927, algorithms 1 and 2.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise UsageError(f"order={self.order}: allowed is 1, 2 or 3")

    @property
    def nfe(self) -> int:
        return self.order

    @property
    def between(self) -> bool:
        return self.order > 1

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        first = denoise(state.x, cur, cond)
        x = ddim(first, nxt)
        if self.order == 1:
            return Point(x)
        whole, h = step_size(cur, nxt)
        level = between(denoise.process, cur, nxt, 1 / self.order)
        change = denoise(ddim(first, level), level, cond).eps - first.eps
        if self.order == 2:
            weight = jnp.expm1(h)
        else:
            part = 2 / 3 * h
            level = between(denoise.process, cur, nxt, 2 / 3)
            weight = jnp.where(whole, 2 * level.sigma * part * phi(2, part), 0.0)
            inner = ddim(first, level) - expand(weight, x) * change
            change = denoise(inner, level, cond).eps - first.eps
            weight = 1.5 * h * phi(2, h)
        return Point(x - expand(jnp.where(whole, nxt.sigma * weight, 0.0), x) * change)
