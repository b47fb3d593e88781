r"""DPM-Solver++(2M) and (3M): the probability flow with the data prediction as a polynomial through the last steps.

With h the step in half log-SNR, x0' and x0'' the divided differences of the last predictions of x0,

    x_nxt = alpha_nxt x0 + sigma_nxt eps + alpha_nxt (w_1 h x0' + w_2 h^2 x0''),                      (1)

where the exact integral of the polynomial is, with phi functions of -h,

    first difference    w_1 = h phi_2,                                                                 (2)
    second difference   w_2 = 2 h phi_3,   x0' taken as the polynomial's derivative at `cur`.           (3)

(2M) takes w_1 = (1 - e^-h) / 2 ("midpoint") instead of (2) ("heun"): h / 2 to leading order. The published (3M)
has (2) and half of (3), w_2 = h phi_3. That leaves an error of h^3 x0'' / 6 (with x0'' a divided difference) per step,
so it converges with order 2; `exact` takes (3) and converges with order 3.

Reference: Lu, Zhou, Bao, Chen, Li, Zhu. DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
models. 2022. arXiv:2211.01095, algorithm 2 for (2M); (3M) and "heun" are of the authors' code, github.com/LuChengTHU/
dpm-solver, multistep_dpm_solver_third_update and solver_type="taylor".
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdiff.errors import unknown
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, safe_divide
from jaxdiff.samplers.dpm_solver import ddim
from jaxdiff.samplers.history import History, State, empty, push
from jaxdiff.samplers.phi import phi, step_size
from jaxdiff.types import Array, Cond, Level

RULES = ("midpoint", "heun")


def correction(
    past: History, x0: Array, cur: Level, nxt: Level, rule: str, *, rate: float = 1.0, exact: bool = False
) -> Array:
    """The last term of (1), with as many differences as `past` can give; 0 from pure noise and to clean data.

    Args:
        past: the predictions before x0; one of them for (2M), two for (3M).
        x0: the prediction at `cur`, shape [B, ...].
        cur: the level of x0.
        nxt: the level to step to.
        rule: w_1 where only the first difference is known.
        rate: e^(-rate u) is the kernel of the integral: 1 for the probability flow, 1 + eta for an SDE.
        exact: (3) as it is, not half of it.
    """
    whole, h = step_size(cur, nxt)
    z = -rate * h
    exact_slope = -z * phi(2, z)
    weight = -0.5 * jnp.expm1(z) if rule == "midpoint" else exact_slope
    # An entry not filled, or made at pure noise, has no place on the axis of log-SNR.
    known = (jnp.arange(past.log_snr.shape[0]) < jnp.minimum(past.filled, past.after - 1)) & jnp.isfinite(past.log_snr)
    points = 0.5 * jnp.where(known, past.log_snr, 0.0)
    gap = 0.5 * jnp.where(known[0], cur.log_snr, 0.0) - points[0]
    slope = jnp.where(known[0], safe_divide(x0 - past.values[0], gap), 0.0)
    if past.log_snr.shape[0] == 1:
        return expand(jnp.where(whole, nxt.alpha * weight * h, 0.0), x0) * slope
    gap_before = jnp.where(known[1], points[0] - points[1], 0.0)
    slope_before = safe_divide(past.values[0] - past.values[1], gap_before)
    bend = jnp.where(known[1], safe_divide(slope - slope_before, gap + gap_before), 0.0)
    weight = jnp.where(known[1], exact_slope, weight)
    change = weight * h * (slope + gap * bend) - (2.0 if exact else 1.0) * z * phi(3, z) * h**2 * bend
    return expand(jnp.where(whole, nxt.alpha, 0.0), x0) * change


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M). The first step, and those from pure noise and to clean data, are of first order.

    Args:
        rule: "midpoint" (the paper) or "heun" (the exact integral).

    Raises:
        UsageError: for another rule.

    Examples:
        >>> DPMpp2M().nfe
        1

    Reference: Lu et al. 2022. arXiv:2211.01095, algorithm 2.
    """

    rule: str = "midpoint"

    order = 2
    nfe = 1

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)

    def init(self, x: Array) -> State:
        return State(x, empty(x, 1))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        first = denoise(state.x, cur, cond)
        x = ddim(first, nxt) + correction(state.history, first.x0, cur, nxt, self.rule)
        return State(x, push(state.history, first.x0, cur))


@dataclass(frozen=True)
class DPMpp3M:
    """DPM-Solver++(3M), which as published converges with order 2; the second step is (2M)'s.

    Args:
        exact: whether to give the second difference its exact weight (3), for order 3.

    Examples:
        >>> DPMpp3M().order, DPMpp3M(exact=True).order
        (2, 3)

    Reference: Lu et al. 2022. arXiv:2211.01095; the formula is of the authors' code, multistep_dpm_solver_third_update.
    """

    exact: bool = False

    nfe = 1

    @property
    def order(self) -> int:
        return 3 if self.exact else 2

    def init(self, x: Array) -> State:
        return State(x, empty(x, 2))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        first = denoise(state.x, cur, cond)
        x = ddim(first, nxt) + correction(state.history, first.x0, cur, nxt, "midpoint", exact=self.exact)
        return State(x, push(state.history, first.x0, cur))
