r"""Improved PNDM: Adams-Bashforth on the predicted noise, moved by DDIM's step, with a low-order start.

    e = sum_j b_j eps_j,    b = (1), (3, -1) / 2, (23, -16, 5) / 12, (55, -59, 37, -9) / 24,           (1)
    x_nxt / alpha_nxt = x / alpha + (rho_nxt - rho_cur) e,    rho = sigma / alpha.                     (2)

The coefficients (1) are those of equal steps in rho, whatever the steps are. So the order is p on such a grid only,
2 on a grid that is a smooth function of the index (every named grid), and 1 on any other. `variable=True` takes the
coefficients of the steps as they are (`multistep.rho_weights`) and has the order p on every grid; it is then the
same as `LMS`.

Reference: Zhang, Chen. Fast sampling of diffusion models with exponential integrator. 2023. arXiv:2204.13902.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.samplers.history import History, State, empty, push
from jaxdiff.samplers.multistep import mix, rho_weights, transfer, usable
from jaxdiff.types import Array, Cond, Level

_ADAMS_BASHFORTH = np.array([[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55, -59, 37, -9]])
_ADAMS_BASHFORTH[3] /= 24


def equal_step_weights(history: History) -> Float[Array, " k"]:
    """(1) for as many predictions as the history has, at most 4."""
    length = history.log_snr.shape[0]
    count = jnp.clip(usable(history).sum(), 1, length)
    return jnp.asarray(_ADAMS_BASHFORTH[:length, :length], history.log_snr.dtype)[count - 1]


@dataclass(frozen=True)
class IPNDM:
    """Improved PNDM, up to four points.

    Args:
        solver_order: number p of noise predictions used, 1 (DDIM) to 4.
        variable: coefficients for the steps as they are, instead of those for equal steps.

    Raises:
        UsageError: for another solver_order.

    Examples:
        >>> IPNDM().order, IPNDM(variable=True).order
        (2, 4)

    Reference: Zhang, Chen. 2023. arXiv:2204.13902.
    """

    solver_order: int = 4
    variable: bool = False

    nfe = 1

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3, 4):
            raise UsageError(f"solver_order={self.solver_order}: allowed is 1, 2, 3 or 4")

    @property
    def order(self) -> int:
        """p with variable coefficients; with equal-step ones at most 2, which holds on smoothly graded grids."""
        return self.solver_order if self.variable else min(self.solver_order, 2)

    def init(self, x: Array) -> State:
        return State(x, empty(x, self.solver_order))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        x0, eps, _ = denoise(state.x, cur, cond)
        history = push(state.history, eps, cur)
        weights = rho_weights(history, cur, nxt) if self.variable else equal_step_weights(history)
        return State(transfer(x0, eps, mix(weights, history.values), cur, nxt), history)
