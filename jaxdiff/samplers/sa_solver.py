r"""SA-Solver: Adams methods on the reverse SDE, with as much noise as wanted.

Every tau >= 0 gives a reverse SDE with the same marginals: 0 the probability flow, 1 the usual one. With lambda =
log_snr / 2, k = 1 + tau^2 and h = lambda_nxt - lambda, its solution in terms of the prediction x0 is

    x_nxt = base + alpha_nxt int_0^1 g(u) x0(u) du,    g(u) = k h e^{-k h (1 - u)},                           (1)
    base = (sigma_nxt / sigma) e^{-tau^2 h} x + sigma_nxt sqrt(1 - e^{-2 tau^2 h}) z,

u being the fraction of the step in lambda. The *predictor* of order p replaces x0(u) by the polynomial through the
last p predictions, the latest at u = 0. The *corrector* of order c, when the prediction at u = 1 is known, goes back
to the same base and noise and takes the polynomial through the latest c predictions, that one included: the s-step
corrector of the paper has c = s + 1. The new prediction is made where the predictor led and not made again, so a step
costs one evaluation; the correction of a step is made at the start of the next, and the last step has none.

The weights are those of the paper's equations 15 and 18, integrated exactly. The authors' code replaces them for
order 2 by others that agree to O(h^3).

With noise the order in law is at most 2, whatever p and c: x0(u) is then as rough as a Brownian path, and no
polynomial through its values at the levels knows its covariance with the noise inside a step.

The step to clean data is the prediction x0, and levels with alpha = 0 or not yet visited take no part.

Reference: Xue et al. SA-Solver: stochastic Adams solver for fast sampling of diffusion models. 2023.
arXiv:2309.05019, equations 15 and 18 and algorithm 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like
from jaxdiff.samplers.history import History, empty, push
from jaxdiff.samplers.multistep import POINTS, integrals, mix, since, usable
from jaxdiff.samplers.phi import step_size
from jaxdiff.types import Array, Cond, Level


class State(NamedTuple):
    """x, what the last predictor added to its base (drift), and the predictions before."""

    x: Array
    drift: Array
    history: History


@dataclass(frozen=True)
class SASolver:
    """Stochastic Adams predictor-corrector in data prediction.

    Args:
        predictor: order of the predictor, 1 to 3.
        corrector: order of the corrector, 1 to 3, or 0 for none. 2 (as in the authors' code) or 3 costs nothing more
            and mostly gains accuracy; 1 lowers the order.
        tau: noise, 0 (deterministic) to 1 (as much as the reverse SDE has).

    Raises:
        UsageError: for arguments out of range.

    Examples:
        >>> SASolver(predictor=3, corrector=3, tau=0.5).nfe
        1

    Reference: Xue et al. 2023. arXiv:2309.05019, algorithm 1.
    """

    predictor: int = 2
    corrector: int = 0
    tau: float = 1.0

    nfe = 1

    def __post_init__(self) -> None:
        if self.predictor not in (1, 2, 3):
            raise UsageError(f"predictor={self.predictor}: allowed is 1, 2 or 3")
        if self.corrector not in (0, 1, 2, 3):
            raise UsageError(f"corrector={self.corrector}: allowed is 0 (none), 1, 2 or 3")
        if not 0 <= self.tau <= 1:
            raise UsageError(f"tau={self.tau:g}: allowed is 0 (deterministic) to 1")

    @property
    def order(self) -> int:
        """The corrector's, at most one above the predictor's; without one the predictor's. With noise 2 at most."""
        order = min(self.corrector, self.predictor + 1) if self.corrector else self.predictor
        return min(order, 2) if self.tau > 0 else order

    def init(self, x: Array) -> State:
        return State(x, jnp.zeros_like(x), empty(x, max(self.predictor, self.corrector, 2)))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        x = state.x
        history = push(state.history, denoise(x, cur, cond).x0, cur)
        if self.corrector:
            x = x + self._correction(state.drift, history, cur)

        whole, h = step_size(cur, nxt)
        nodes = since(history, cur) / jnp.where(h == 0, 1.0, h)
        order = jnp.minimum(self.predictor, history.after + 1)
        drift = self._drift(history, nodes, h, nxt.alpha, order, ~whole)
        kept = jnp.where(whole, jnp.exp(-(self.tau**2) * h), float(self.tau == 0)) * nxt.sigma / cur.sigma
        x = expand(kept, x) * x + drift
        if self.tau > 0:
            noise = nxt.sigma * jnp.where(whole, jnp.sqrt(-jnp.expm1(-2 * self.tau**2 * h)), 1.0)
            x = x + expand(noise, x) * normal_like(key, x)
        return State(x, drift, history)

    def _correction(self, drift: Array, history: History, cur: Level) -> Float[Array, " b *d"]:
        """What the corrector's polynomial changes of the step that led to `cur`, whose prediction is the latest."""
        gaps = since(history, cur)
        known = usable(history)[1] & jnp.isfinite(cur.log_snr) & (gaps[1] != 0)
        h = jnp.where(known, -gaps[1], 1.0)
        better = self._drift(history, 1 + gaps / h, h, cur.alpha, self.corrector, ~known)
        return jnp.where(known, better - drift, 0.0)

    def _drift(
        self, history: History, nodes: Float[Array, " k"], h: Array, alpha: Array, order: Array | int, end: Array
    ) -> Float[Array, " b *d"]:
        """alpha times the integral of (1) over a step of length h through the latest `order` predictions at `nodes`;
        the latest alone, over an infinite step, where `end`."""
        rate = (1 + self.tau**2) * h
        use = usable(history) & (jnp.arange(nodes.shape[0]) < jnp.where(end, 1, order))
        points = jnp.asarray(POINTS, nodes.dtype)
        weights = integrals(nodes, use, points, rate * jnp.exp(-rate * (1 - points)))
        latest = history.values[0]
        first = expand(jnp.where(end, 1.0, -jnp.expm1(-rate)), latest) * latest
        return expand(alpha, latest) * (first + mix(weights, history.values))
