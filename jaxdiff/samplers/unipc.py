r"""UniPC: one formula predicts the next point and, once the denoiser was asked there, corrects it.

With lambda = log_snr / 2, h the step in lambda, and m the prediction (x0; with `predict="eps"` the signs in brackets),

    x_nxt = first-order step + alpha_nxt h sum_j w_j (m_j - m_0),     w_j = int_0^1 e^{-(1 - u) h} L_j(u) du,    (1)
    (eps:  x_nxt = first-order step - sigma_nxt h sum_j w_j (m_j - m_0),    with e^{(1 - u) h}),

u = (lambda - lambda_cur) / h. The predictor UniP-p uses the p latest predictions; the corrector UniC-p adds the one at
the step's end, u = 1. That prediction is not repeated at the corrected point but used for the next step, so a step
costs one evaluation. The last point is not corrected.

The paper solves a linear system for a_j = h u_j w_j / B(h), so that its function B(h) cancels. With one unknown
(UniP-2 and UniC-1) it takes a = 1/2 instead, right to the order needed, and only there B shows: "bh1" is B(h) = h,
"bh2" is B(h) = e^h - 1 (for x0, 1 - e^-h).

The order is p + 1 with the corrector and p without.

Reference: Zhao, Bai, Rao, Zhou, Lu. UniPC: a unified predictor-corrector framework for fast sampling of diffusion
models. 2023. arXiv:2302.04867, theorem 3.1 and corollary 3.2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, safe_divide
from jaxdiff.samplers.history import History, empty, push
from jaxdiff.samplers.multistep import POINTS, fitting, integrals, mix, since
from jaxdiff.samplers.phi import step_size
from jaxdiff.types import Array, Cond, Level

VARIANTS = ("bh1", "bh2")


class State(NamedTuple):
    """x: the predicted point. change: what the polynomial added to the first-order step to it. history: before it."""

    x: Array
    change: Array
    history: History


@dataclass(frozen=True)
class UniPC:
    """Unified predictor-corrector, multistep.

    Args:
        solver_order: p, number of earlier predictions used, 1 to 3.
        variant: "bh1" or "bh2", the B(h) of UniP-2 and UniC-1.
        predict: "x0" or "eps", which prediction the polynomial is taken of.
        corrector: whether to correct; without it the sampler is UniP-p.

    Raises:
        UsageError: for another solver_order, variant or prediction.

    Examples:
        >>> UniPC().order, UniPC(3).order, UniPC(3, corrector=False).order
        (3, 4, 3)

    Reference: Zhao et al. 2023. arXiv:2302.04867.
    """

    solver_order: int = 2
    variant: str = "bh2"
    predict: str = "x0"
    corrector: bool = True

    nfe = 1

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3):
            raise UsageError(f"solver_order={self.solver_order}: allowed is 1, 2 or 3")
        if self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS)
        if self.predict not in ("x0", "eps"):
            raise unknown("prediction", self.predict, ("x0", "eps"))

    @property
    def order(self) -> int:
        """p + 1 with the corrector, p without."""
        return self.solver_order + self.corrector

    def init(self, x: Array) -> State:
        return State(x, jnp.zeros_like(x), empty(x, self.solver_order))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        x0, eps, _ = denoise(state.x, cur, cond)
        value = x0 if self.predict == "x0" else eps
        if self.corrector:
            moved = self._corrected(state, value, cur) - state.x
            # The prediction in use stays; the other one follows the point.
            if self.predict == "x0":
                eps = eps + moved * expand(safe_divide(1.0, cur.sigma), moved)
            else:
                x0 = x0 + moved * expand(safe_divide(1.0, cur.alpha), moved)
        history = push(state.history, value, cur)
        base = expand(nxt.alpha, x0) * x0 + expand(nxt.sigma, eps) * eps
        whole, h = step_size(cur, nxt)
        use = fitting(history) & whole
        weights = self._weights(since(history, cur) / h, use, h, use.sum() == 2)
        change = self._scaled(h, nxt, weights, history.values)
        return State(base + change, change, history)

    def _corrected(self, state: State, value: Array, cur: Level) -> Array:
        """UniC-p at `cur` with the prediction made there; the point as it is where no step came before."""
        log_snr = state.history.log_snr[0]
        before = Level(log_snr, log_snr, log_snr, log_snr)  # only its log-SNR is read
        use, (_, h) = fitting(state.history), step_size(before, cur)
        nodes = jnp.append(since(state.history, before) / h, 1.0)
        weights = self._weights(nodes, jnp.append(use, use[0]), h, use.sum() == 1, corrector=True)
        values = jnp.concatenate([state.history.values, value[None].astype(state.history.values.dtype)])
        # Relative to x, so that what another step transform did to it stays.
        return jnp.where(use[0], state.x + self._scaled(h, cur, weights, values) - state.change, state.x)

    def _weights(
        self, nodes: Float[Array, " k"], use: Bool[Array, " k"], h: Array, single: Array, *, corrector: bool = False
    ) -> Float[Array, " k"]:
        """The w_j of (1), or 1/2 B(h) / (h u) where there is a `single` one."""
        points = jnp.asarray(POINTS, h.dtype)
        towards = -h if self.predict == "x0" else h
        weights = integrals(nodes, use, points, jnp.exp(towards * (1 - points)))
        index = nodes.shape[0] - 1 if corrector else 1
        if index >= nodes.shape[0]:
            return weights
        share = jnp.expm1(towards) / towards if self.variant == "bh2" else 1.0
        half = 0.5 * share / jnp.where(single, nodes[index], 1.0)
        return jnp.where(single & (jnp.arange(nodes.shape[0]) == index), half, weights)

    def _scaled(self, h: Array, level: Level, weights: Array, values: Array) -> Array:
        """What (1) adds to the first-order step."""
        change = mix(weights, values)
        return expand(level.alpha * h if self.predict == "x0" else -level.sigma * h, change) * change
