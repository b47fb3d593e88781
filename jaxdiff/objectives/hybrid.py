r"""Improved DDPM's hybrid objective: the mean by L_simple, the variance by a little of the bound.

    L_hybrid = L_simple + 0.001 L_vlb, with no gradient from L_vlb to the mean.          (1)

L_vlb is in bits per dimension (`jaxdiff.objectives.vlb`): in the authors' code a step's term in bits per dimension
has the factor T / 1000.

Reference: Nichol, Dhariwal. Improved denoising diffusion probabilistic models. 2021. arXiv:2102.09672, equation 16.
"""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Float

from jaxdiff.model import Model
from jaxdiff.numerics import mean_per_example
from jaxdiff.objectives.base import noised
from jaxdiff.objectives.times import Times, Uniform
from jaxdiff.objectives.vlb import check_times, step_bits, table_steps
from jaxdiff.objectives.weights import Simple, Weight
from jaxdiff.prediction import error_scale, target
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, PyTree


@dataclass(frozen=True)
class Hybrid:
    """L_simple for the mean and a little of the bound for the variance, equation (1).

    Args:
        times: `Uniform()` or `Stratified()`, over the rows.
        weight: the weight of L_simple.
        train: whether the network runs with dropout; False to evaluate.
        factor: the factor on the bound in bits per dimension.

    Raises:
        UsageError: for other times; at the call, for a model without learned variance or a process without steps.

    Reference: Nichol, Dhariwal. 2021. arXiv:2102.09672, equation 16 and section 3.1.
    """

    times: Times = Uniform()
    weight: Weight = Simple()
    train: bool = True
    factor: float = 0.001

    learned_variance = True

    def __post_init__(self) -> None:
        check_times(self.times)

    def check(self, process: ForwardProcess) -> None:
        """Refuse a process that this objective is not for."""
        table_steps(process)

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """Losses of a batch: (L_hybrid [B], {"mse": target error [B], "vlb": T L_i [B] in bits per dimension})."""
        drawn = noised(model, params, batch, keys, self.times, train=self.train)
        mse = mean_per_example((drawn.output - target(model.prediction, drawn.x0, drawn.eps, drawn.level)) ** 2)
        weight = self.weight(drawn.level, model.prediction) / error_scale(model.prediction, drawn.level) ** 2
        frozen = drawn._replace(output=jax.lax.stop_gradient(drawn.output))
        bits = table_steps(model.process) * step_bits(model, frozen)
        return weight * mse + self.factor * bits, {"mse": mse, "vlb": bits}
