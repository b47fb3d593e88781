r"""SDE-DPM-Solver++(2M) and (3M): the reverse SDE with the data prediction as a polynomial through the last steps.

The reverse SDE whose noise is eta times that of the DDPM limit has, with h the step in half log-SNR and z ~ N(0, I),

    x_nxt = e^(-eta h) (sigma_nxt / sigma_cur) x_cur + sigma_nxt sqrt(1 - e^(-2 eta h)) z
            + alpha_nxt (1 + eta) int_0^h e^((1 + eta) (u - h)) x0(lambda_cur + u) du.                 (1)

For a constant x0 that is

    alpha_nxt x0 + sigma_nxt (e^(-eta h) eps + sqrt(1 - e^(-2 eta h)) z),                              (2)

for eta = 1 DDPM with the posterior variance. The differences of x0 are weighed as in `dpmpp_multistep`, with
(1 + eta) h in place of h in the weights; eta = 0 is DPM-Solver++.

Reference: Lu, Zhou, Bao, Chen, Li, Zhu. DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
models. 2022. arXiv:2211.01095, SDE-DPM-Solver++(2M); eta and (3M) are of github.com/crowsonkb/k-diffusion,
sample_dpmpp_2m_sde and sample_dpmpp_3m_sde.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like, safe_sqrt
from jaxdiff.samplers.dpm_solver import ddim
from jaxdiff.samplers.dpmpp_multistep import RULES, correction
from jaxdiff.samplers.history import State, empty, push
from jaxdiff.samplers.phi import step_size
from jaxdiff.types import Array, Cond, Level, Prediction


def constant(prediction: Prediction, cur: Level, nxt: Level, key: Array, eta: float) -> Array:
    """Equation (2); from pure noise (h infinite) all noise is new."""
    x0, eps, _ = prediction
    if eta == 0:
        return ddim(prediction, nxt)
    whole, h = step_size(cur, nxt)
    kept = jnp.where(whole, jnp.exp(-eta * h), 0.0)
    removed = jnp.where(whole, -jnp.expm1(-2 * eta * h), 1.0)
    noise = expand(kept, x0) * eps + expand(safe_sqrt(removed), x0) * normal_like(key, x0)
    return expand(nxt.alpha, x0) * x0 + expand(nxt.sigma, x0) * noise


def _check(eta: float) -> None:
    if not 0 <= eta < float("inf"):
        raise UsageError(f"eta={eta:g}: allowed is 0 (deterministic) or more, 1 is the DDPM limit")


@dataclass(frozen=True)
class SDEDPMpp2M:
    """SDE-DPM-Solver++(2M). The first step, and those from pure noise and to clean data, are of first order.

    Args:
        eta: noise as a fraction of that of the reverse SDE, 0 or more.
        rule: "midpoint" (the paper) or "heun" (the exact integral).

    Raises:
        UsageError: for a negative eta, or another rule.

    Examples:
        >>> SDEDPMpp2M(eta=0.5)
        SDEDPMpp2M(eta=0.5, rule='midpoint')

    Reference: Lu et al. 2022. arXiv:2211.01095, SDE-DPM-Solver++(2M).
    """

    eta: float = 1.0
    rule: str = "midpoint"

    order = 2
    nfe = 1

    def __post_init__(self) -> None:
        _check(self.eta)
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)

    def init(self, x: Array) -> State:
        return State(x, empty(x, 1))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        first = denoise(state.x, cur, cond)
        x = constant(first, cur, nxt, key, self.eta)
        x = x + correction(state.history, first.x0, cur, nxt, self.rule, rate=1 + self.eta)
        return State(x, push(state.history, first.x0, cur))


@dataclass(frozen=True)
class SDEDPMpp3M:
    """SDE-DPM-Solver++(3M), of weak order 2.

    Args:
        eta: noise as a fraction of that of the reverse SDE, 0 or more.
        exact: whether to give the second difference its exact weight (see `dpmpp_multistep`), twice the published.

    Raises:
        UsageError: for a negative eta.

    Examples:
        >>> SDEDPMpp3M().nfe
        1

    Reference: github.com/crowsonkb/k-diffusion, sample_dpmpp_3m_sde.
    """

    eta: float = 1.0
    exact: bool = False

    order = 2
    nfe = 1

    def __post_init__(self) -> None:
        _check(self.eta)

    def init(self, x: Array) -> State:
        return State(x, empty(x, 2))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        first = denoise(state.x, cur, cond)
        x = constant(first, cur, nxt, key, self.eta)
        x = x + correction(state.history, first.x0, cur, nxt, "heun", rate=1 + self.eta, exact=self.exact)
        return State(x, push(state.history, first.x0, cur))
