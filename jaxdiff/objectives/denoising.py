r"""The denoising objective: noise an example, ask the network, weigh its error.

    x = alpha x0 + sigma eps,   loss = w(level) / error_scale^2 mean (y_hat(x) - y)^2,     (1)

the mean over pixels, one value per example. At the exact denoiser it equals the Bayes risk, w times the mean
posterior variance of x0. Every system that regresses on a target is an instance:

- DDPM: target eps, weight `Simple`.
- Conditional flow matching, arXiv:2210.02747 (its straight path with sigma_min = 0): target `FLOW`, or
  `prediction.Flow(process)` for another, weight `Simple`, times `Uniform`, `LogitNormal` or `Mode`:
  |v_hat - (eps - x0)|^2.
- Denoising score matching of NCSN, arXiv:1907.05600, equations 5-6: target `SCORE`, weight `SNR`. Its weight
  lambda(sigma) = sigma^2 on the squared score error is 1 on eps; its loss is D / 2 times (1), for D numbers.
- EDM: target `prediction.EDM`, weight `EDM`, times `LogNormal`.

With another `distance` than the mean square, that distance takes its place in (1).

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, algorithm 1.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float

from jaxdiff.model import Model
from jaxdiff.numerics import mean_per_example
from jaxdiff.objectives.base import Objective, noised
from jaxdiff.objectives.distances import Distance, MeanSquared
from jaxdiff.objectives.times import Times, Uniform
from jaxdiff.objectives.weights import Simple, Weight
from jaxdiff.prediction import error_scale, target
from jaxdiff.types import Array, PyTree

__all__ = ["Denoising", "Objective"]


@dataclass(frozen=True)
class Denoising:
    """Weighted denoising, for every parametrisation.

    Args:
        times: the distribution of noise levels (`jaxdiff.objectives.times`).
        weight: the weight of each level (`jaxdiff.objectives.weights`).
        train: whether the network runs with dropout; False to evaluate.
        distance: the distance between answer and target (`jaxdiff.objectives.distances`).
        offset: strength of offset noise (`jaxdiff.objectives.base`, equation 2); with it eps is not N(0, I).

    Examples:
        >>> from jaxdiff.objectives import MinSNR, Stratified
        >>> Denoising(Stratified(), MinSNR(5.0)).weight.gamma
        5.0
    """

    times: Times = Uniform()
    weight: Weight = Simple()
    train: bool = True
    distance: Distance = MeanSquared()
    offset: float = 0.0

    learned_variance = False

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """Losses of a batch.

        Args:
            model: the model.
            params: its parameters.
            batch: {"x0": [B, ...] in [-1, 1], "cond": dict with leading axis B} and, from a train step, "strata".
            keys: one key per example [B].

        Returns:
            (loss [B], {"mse": unweighted target error [B]}).
        """
        drawn = noised(model, params, batch, keys, self.times, train=self.train, offset=self.offset)
        y = target(model.prediction, drawn.x0, drawn.eps, drawn.level)
        weight = self.weight(drawn.level, model.prediction) / error_scale(model.prediction, drawn.level) ** 2
        return weight * self.distance(drawn.output, y), {"mse": mean_per_example((drawn.output - y) ** 2)}
