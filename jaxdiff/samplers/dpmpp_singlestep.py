r"""DPM-Solver++(2S): the probability flow with the data prediction linear in half log-SNR, over one step.

With h the step in half log-SNR, level_1/2 the one in its middle and DDIM(level) = alpha x0 + sigma eps from the
prediction at `cur`,

    x0_1 at level_1/2 and DDIM(level_1/2);   x_nxt = DDIM(nxt) + alpha_nxt (1 - e^-h) (x0_1 - x0).     (1)

Reference: Lu, Zhou, Bao, Chen, Li, Zhu. DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
models. 2022. arXiv:2211.01095, algorithm 1 with r = 1/2.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand
from jaxdiff.samplers.base import Point
from jaxdiff.samplers.dpm_solver import between, ddim
from jaxdiff.samplers.phi import step_size
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class DPMpp2S:
    """DPM-Solver++(2S), singlestep. Steps from pure noise and to clean data are of first order.

    Examples:
        >>> DPMpp2S().nfe
        2

    Reference: Lu et al. 2022. arXiv:2211.01095, algorithm 1.
    """

    order = 2
    nfe = 2
    between = True

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        first = denoise(state.x, cur, cond)
        level = between(denoise.process, cur, nxt, 0.5)
        change = denoise(ddim(first, level), level, cond).x0 - first.x0
        whole, h = step_size(cur, nxt)
        weight = jnp.where(whole, -nxt.alpha * jnp.expm1(-h), 0.0)
        return Point(ddim(first, nxt) + expand(weight, change) * change)
