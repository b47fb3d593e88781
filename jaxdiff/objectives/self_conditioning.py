r"""Self-conditioning: a network that also sees its own last estimate of the clean example.

In training that estimate is made on the spot, by the network itself without one, in half of the examples:

    x0_1 = x0_hat(x, level, self_cond = 0),
    loss of output(x, level, self_cond = stop_gradient(x0_1) with probability rate, else 0).      (1)

It is a building block: no network of the library reads it yet, and no sampler carries it. A network of one's own
reads it at `cond["self_cond"]`, an array of the shape of x. No gradient flows through the first answer.
Because examples do not depend on the batch around them, the first answer is made for all of them and used by some:
about a third more time than without.

Reference: Chen, Zhang, Hinton. Analog bits: generating discrete data using diffusion models with self-conditioning.
2022. arXiv:2208.04202, the training algorithm of self-conditioning (rate 0.5).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.numerics import expand
from jaxdiff.objectives.base import Objective
from jaxdiff.prediction import to_prediction
from jaxdiff.types import Array, Cond, Level, PyTree

KEY = "self_cond"


@dataclass(frozen=True)
class SelfConditioning:
    """An objective whose network sees its own estimate in a share of the examples, equation (1).

    Args:
        objective: the objective to wrap.
        rate: probability of an estimate instead of zeros, in [0, 1].

    Raises:
        UsageError: for a rate out of range.
    """

    objective: Objective
    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UsageError(f"self-conditioning rate={self.rate:g}: allowed is 0 to 1")

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """Losses of a batch, as the wrapped objective's."""
        use_key, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        use = jax.vmap(jax.random.uniform)(use_key) < self.rate
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        return self.objective(_TwoPasses(**fields, use=use), params, batch, keys)


@dataclass(frozen=True)
class _TwoPasses(Model):
    """The model of (1), for one trace: `use` [B] says which examples see their estimate."""

    use: Array | None = None

    def output(
        self, params: PyTree, x: Array, level: Level, cond: Cond = None, *, train: bool = False, rngs: Any = None
    ) -> tuple[Array, Array | None]:
        cond, zeros = dict(cond or {}), jnp.zeros_like(x)
        first, _ = super().output(params, x, level, {**cond, KEY: zeros}, train=train, rngs=rngs)
        guess = jax.lax.stop_gradient(to_prediction(self.prediction, first, x, level).x0)
        assert self.use is not None
        given = jnp.where(expand(self.use, x), guess, zeros)
        return super().output(params, x, level, {**cond, KEY: given}, train=train, rngs=rngs)
