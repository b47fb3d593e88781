r"""Pseudo linear multistep (PLMS): DDIM's step with the noise extrapolated as Adams-Bashforth does on equal steps.

    x_nxt / alpha_nxt = x / alpha + (rho_nxt - rho_cur) e,    e = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24,    (1)

rho = sigma / alpha and e_0, e_1, ... the last noise predictions. The paper's first steps are pseudo Runge-Kutta steps
of 4 evaluations (F-PNDM), or one improved Euler step of 2 (S-PNDM, Stable Diffusion's PLMS). Here every step takes
one evaluation:

- start="ddim" begins with the formulas of 1, 2 and 3 points, the first being DDIM's step. That is `IPNDM`;
- start="improved_euler" repeats the first step with the mean noise of its two ends,

      x_1 / alpha_1 = x_start / alpha_start + (rho_1 - rho_start) (e_start + e_1) / 2,                      (2)

  e_1 predicted at DDIM's x_1. S-PNDM and Stable Diffusion then evaluate again at the x_1 of (2); here e_1 also
  serves the next step, which changes x by the order of the error of (2) itself.

The order is 2 on a grid that is a smooth function of the index (every named grid), as the paper proves, and 1 on any
other.

Reference: Liu, Ren, Lin, Zhao. Pseudo numerical methods for diffusion models on manifolds. 2022. arXiv:2202.09778.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdiff.errors import unknown
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand
from jaxdiff.samplers.history import History, State, empty, push
from jaxdiff.samplers.ipndm import equal_step_weights
from jaxdiff.samplers.multistep import mix, since, transfer
from jaxdiff.types import Array, Cond, Level

STARTS = ("ddim", "improved_euler")


def _first_length(history: History, cur: Level) -> Array:
    """rho_cur - rho_start where `cur` is the end of the first step, and that began with signal; else 0."""
    first = (history.filled == 1) & jnp.isfinite(history.log_snr[0]) & jnp.isfinite(cur.log_snr)
    rho = jnp.exp(-0.5 * jnp.where(first, cur.log_snr, 0.0))
    return jnp.where(first, -rho * jnp.expm1(-jnp.where(first, since(history, cur)[0], 0.0)), 0.0)


@dataclass(frozen=True)
class PNDM:
    """Pseudo linear multistep with four points.

    Args:
        start: "ddim" or "improved_euler", how the first step is taken.

    Raises:
        UsageError: for another start.

    Examples:
        >>> PNDM().order, PNDM().nfe
        (2, 1)

    Reference: Liu, Ren, Lin, Zhao. 2022. arXiv:2202.09778.
    """

    start: str = "ddim"

    order = 2
    nfe = 1

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)

    def init(self, x: Array) -> State:
        return State(x, empty(x, 4))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        x0, eps, _ = denoise(state.x, cur, cond)
        if self.start == "improved_euler":
            # (2) less DDIM's step; with eps kept, a change of x / alpha is one of x0.
            x0 = x0 + expand(0.5 * _first_length(state.history, cur), x0) * (eps - state.history.values[0])
        history = push(state.history, eps, cur)
        return State(transfer(x0, eps, mix(equal_step_weights(history), history.values), cur, nxt), history)
