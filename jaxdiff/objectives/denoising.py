r"""The denoising objective: noise an example, ask the network, weigh its error.

    x = alpha x0 + sigma eps,   loss = w(level) / error_scale^2 mean (y_hat(x) - y)^2,     (1)

the mean over pixels, one value per example. At the exact denoiser it equals the Bayes risk, w times the mean
posterior variance of x0.

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, algorithm 1.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Float

from jaxdiff.model import Model
from jaxdiff.numerics import expand, mean_per_example, normal_like
from jaxdiff.objectives.times import Times, Uniform
from jaxdiff.objectives.weights import Simple, Weight
from jaxdiff.prediction import error_scale, target
from jaxdiff.types import Array, PyTree


@runtime_checkable
class Objective(Protocol):
    """(model, params, batch, keys) -> (loss [B], metrics): per example, never reduced."""

    def __call__(self, model: Model, params: PyTree, batch: dict, keys: Array) -> tuple[Float[Array, " b"], dict]: ...


@dataclass(frozen=True)
class Denoising:
    """Weighted denoising, for every parametrisation.

    Args:
        times: the distribution of noise levels (`jaxdiff.objectives.times`).
        weight: the weight of each level (`jaxdiff.objectives.weights`).
        train: whether the network runs with dropout; False to evaluate.

    Example:
        >>> from jaxdiff.objectives import MinSNR, Stratified
        >>> Denoising(Stratified(), MinSNR(5.0)).weight.gamma
        5.0
    """

    times: Times = Uniform()
    weight: Weight = Simple()
    train: bool = True

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
        x0 = batch["x0"]
        time_key, noise_key, dropout_key = jax.numpy.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0)
        level = self.times(model.process, time_key, batch.get("strata"))
        eps = normal_like(noise_key, x0)
        x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
        rngs = {"dropout": dropout_key} if self.train else None
        output, _ = model.output(params, x, level, batch.get("cond"), train=self.train, rngs=rngs)
        mse = mean_per_example((output - target(model.prediction, x0, eps, level)) ** 2)
        weight = self.weight(level, model.prediction) / error_scale(model.prediction, level) ** 2
        return weight * mse, {"mse": mse}
