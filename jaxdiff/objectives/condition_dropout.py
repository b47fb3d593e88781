"""Train the conditional and the unconditional model at once, by dropping the condition of some examples.

Reference: Ho, Salimans. Classifier-free diffusion guidance. 2022. arXiv:2207.12598, algorithm 1.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.numerics import expand
from jaxdiff.objectives.denoising import Objective
from jaxdiff.types import Array, PyTree


@dataclass(frozen=True)
class ConditionDropout:
    """An objective whose condition is replaced by the null condition in a share of the examples.

    Args:
        objective: the objective to wrap.
        rate: probability of dropping, in [0, 1]; p_uncond of the paper, 0.1 to 0.2 there.
        null: pairs (key of cond, null value), such as (("label", 10),).
    """

    objective: Objective
    rate: float
    null: tuple[tuple[str, int | float], ...]

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UsageError(f"condition dropout rate={self.rate:g}: allowed is 0 to 1")

    def __call__(
        self, model: Model, params: PyTree, batch: dict, keys: Array
    ) -> tuple[Float[Array, " b"], dict[str, Array]]:
        drop_key, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        drop = jax.vmap(jax.random.uniform)(drop_key) < self.rate
        cond = dict(batch["cond"])
        for name, value in self.null:
            cond[name] = jnp.where(expand(drop, cond[name]), jnp.asarray(value, cond[name].dtype), cond[name])
        return self.objective(model, params, {**batch, "cond": cond}, keys)
