r"""Rows drawn in proportion to how large their loss has been, with weights that keep the mean as it was.

    p_i proportional to sqrt(E[L_i^2]),   loss = L_i / (T p_i),   E[loss] = E_i[L_i],      (1)

has the least variance of all p, and tames the bound L_vlb, whose terms differ by orders of magnitude. E[L_i^2] is
estimated from the last 10 losses of each row; until every row has so many, p is uniform. A small share of p stays
uniform, so that no row is forgotten.

The history is a value, and an objective reads it from the batch. It is a building block: `jaxdiff train` does not
carry it, a training loop of one's own does:

    loss, metrics = Resampled(VLB(Stratified()))(model, params, {**batch, "resampling": history}, keys)
    history = rule.update(history, metrics["row"], metrics["term"])

Over several devices the history is the same on each, and `update` gets the rows and terms of all of them.

Reference: Nichol, Dhariwal. 2021. arXiv:2102.09672, equation 18 and section 3.3; the uniform share is the authors'
code's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.objectives.base import Objective
from jaxdiff.objectives.times import Stratified
from jaxdiff.types import Array, PyTree


class History(NamedTuple):
    """The last losses of each row.

    Attributes:
        losses: shape [T, history], the newest last.
        seen: how many of them are real, [T] int32.
    """

    losses: Array
    seen: Array


@dataclass(frozen=True)
class LossSecondMoment:
    """Equation (1) as pure functions of a `History`.

    Args:
        history: losses kept per row.
        uniform: the share of p that stays uniform, in (0, 1].

    Raises:
        UsageError: for arguments out of range.

    Examples:
        >>> rule = LossSecondMoment(history=1)
        >>> state = rule.update(rule.init(2), jnp.array([0, 1]), jnp.array([1.0, 3.0]))
        >>> print(*(f"{p:.3f}" for p in rule.probabilities(state)))
        0.250 0.750
    """

    history: int = 10
    uniform: float = 0.001

    def __post_init__(self) -> None:
        if self.history < 1:
            raise UsageError(f"history={self.history}: allowed is 1 or more")
        if not 0 < self.uniform <= 1:
            raise UsageError(f"uniform={self.uniform:g}: allowed is 0 < uniform <= 1")

    def init(self, num_steps: int) -> History:
        """The empty history of T rows."""
        return History(jnp.zeros((num_steps, self.history)), jnp.zeros(num_steps, jnp.int32))

    def probabilities(self, state: History) -> Float[Array, " t"]:
        """p of (1), shape [T]; uniform until the history is full."""
        root = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
        total = root.sum()
        full = jnp.all(state.seen >= self.history) & (total > 0)
        share = jnp.where(full, root / jnp.where(full, total, 1.0), 1 / root.size)
        return (1 - self.uniform) * share + self.uniform / root.size

    def update(self, state: History, rows: Int[Array, " b"], losses: Float[Array, " b"]) -> History:
        """The history after losses [B] of rows [B] in 0..T-1, in that order."""

        def push(state: History, new: tuple[Array, Array]) -> tuple[History, None]:
            row, loss = new
            kept = jnp.concatenate([state.losses[row, 1:], loss[None]])
            count = jnp.minimum(state.seen[row] + 1, self.history)
            return History(state.losses.at[row].set(kept), state.seen.at[row].set(count)), None

        return jax.lax.scan(push, state, (rows, losses.astype(state.losses.dtype)))[0]

    def draw(self, state: History, u: Float[Array, " b"]) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
        """The rows that uniform numbers fall on, and their weights 1 / (T p)."""
        p = self.probabilities(state)
        edges = jnp.cumsum(p)
        rows = jnp.minimum(jnp.searchsorted(edges, u * edges[-1], side="right"), p.size - 1)
        return rows, 1 / (p.size * p[rows])


@dataclass(frozen=True)
class Resampled:
    """An objective over rows drawn by a `LossSecondMoment`. Reads the `History` at `batch["resampling"]`.

    Args:
        objective: an objective with `Stratified` times, to be told the rows; most of all `VLB`.
        rule: how rows are drawn.

    Raises:
        UsageError: for other times; at the call, without a history of the process's T rows.
    """

    objective: Objective
    rule: LossSecondMoment = LossSecondMoment()

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.objective, "times", None), Stratified):
            raise UsageError("resampling tells an objective its rows: it needs one with times Stratified()")

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """(weighted loss [B], the objective's metrics with "row" [B] and "term" [B], the loss without weight)."""
        state, steps = batch.get("resampling"), model.process.num_steps
        if state is None or steps is None or state.seen.size != steps:
            raise UsageError(f'batch["resampling"] must be the history of a process with steps; it has {steps}')
        row_key, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        u = batch.get("strata")
        rows, weight = self.rule.draw(state, jax.vmap(jax.random.uniform)(row_key) if u is None else u)
        # The middle of a row's share of [0, 1], which Stratified turns back into the row.
        inner = {**{k: v for k, v in batch.items() if k != "resampling"}, "strata": (rows + 0.5) / steps}
        term, metrics = self.objective(model, params, inner, keys)
        return weight * term, {**metrics, "row": rows, "term": jax.lax.stop_gradient(term)}
