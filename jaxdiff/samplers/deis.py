r"""Diffusion exponential integrator sampler: the noise prediction extrapolated, the rest of the flow exact.

With rho = sigma / alpha = e^-lambda and lambda = log_snr / 2, and L_j Lagrange's basis on the last p levels,

    x_nxt / alpha_nxt = x / alpha + sum_j eps_j int_{rho_cur}^{rho_nxt} L_j(u(rho)) d rho.              (1)

The variable u in which the polynomial is taken is free: the time t of the paper's process (its tAB-DEIS), rho
(rho-AB-DEIS, the same as `LMS`), or log rho = -lambda (the choice of diffusers). The order is p with each of them.
The paper counts from 0: its tAB2 is order 3 here. Its process is the linear VP-SDE, whose time is a function of rho,

    log(1 + rho^2) = b_0 t + (b_1 - b_0) t^2 / 2,    b_0 = 0.1, b_1 = 20,                               (2)

and (2) is what "t" means here for every process, so that a sample depends on the signal-to-noise ratios alone.
A step to clean data is of first order in t and log rho: it goes far in either, and log rho is infinite there.

Reference: Zhang, Chen. Fast sampling of diffusion models with exponential integrator. 2023. arXiv:2204.13902.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Denoiser
from jaxdiff.samplers.history import History, State, empty, push
from jaxdiff.samplers.multistep import POINTS, fitting, integrals, mix, rho_weights, since, transfer
from jaxdiff.samplers.phi import step_size
from jaxdiff.types import Array, Cond, Level

VARIABLES = ("t", "rho", "log_rho")
_BETA_MIN, _BETA_MAX = 0.1, 20.0


def vp_time(rho: Float[Array, " k"]) -> Float[Array, " k"]:
    """t of (2), without cancellation at either end."""
    total = jnp.log1p(rho**2)
    return 2 * total / (_BETA_MIN + jnp.sqrt(_BETA_MIN**2 + 2 * (_BETA_MAX - _BETA_MIN) * total))


@dataclass(frozen=True)
class DEIS:
    """Exponential integrator with Adams-Bashforth extrapolation of the noise prediction.

    Args:
        order: number of noise predictions the polynomial passes through, and order of convergence, 1 (DDIM) to 4.
        variable: the polynomial's variable, "t", "rho" or "log_rho".

    Raises:
        UsageError: for another order or variable.

    Examples:
        >>> DEIS().order, DEIS(2, "rho").nfe
        (3, 1)

    Reference: Zhang, Chen. 2023. arXiv:2204.13902.
    """

    order: int = 3
    variable: str = "t"

    nfe = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise UsageError(f"order={self.order}: allowed is 1, 2, 3 or 4")
        if self.variable not in VARIABLES:
            raise unknown("variable", self.variable, VARIABLES)

    def init(self, x: Array) -> State:
        return State(x, empty(x, self.order))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        x0, eps, _ = denoise(state.x, cur, cond)
        history = push(state.history, eps, cur)
        if self.variable == "rho":
            weights = rho_weights(history, cur, nxt)
        elif self.variable == "t":
            weights = _time_weights(history, cur, nxt)
        else:
            weights = _log_rho_weights(history, cur, nxt)
        return State(transfer(x0, eps, mix(weights, history.values), cur, nxt), history)


def _time_weights(history: History, cur: Level, nxt: Level) -> Float[Array, " k"]:
    """The integrals of (1), divided by rho_nxt - rho_cur, for a polynomial in t; none for a step to clean data."""
    whole, h = step_size(cur, nxt)
    use = fitting(history) & whole
    rho = jnp.exp(-0.5 * jnp.where(use, history.log_snr, 0.0))
    points = rho[0] * (1 + jnp.expm1(-h) * jnp.asarray(POINTS, rho.dtype))
    return integrals(vp_time(rho), use, vp_time(points), jnp.ones_like(points))


def _log_rho_weights(history: History, cur: Level, nxt: Level) -> Float[Array, " k"]:
    """The same for a polynomial in log rho."""
    whole, h = step_size(cur, nxt)
    points = jnp.asarray(POINTS, h.dtype)
    kernel = h * jnp.exp(-h * points) / -jnp.expm1(-h)
    return integrals(since(history, cur) / h, fitting(history) & whole, points, kernel)
