r"""Sliced score matching: the score's error without knowing the score, by projections on random directions.

For a score s and directions v with E[v v^T] = I, integration by parts turns E |s - grad log q|^2 / 2 into

    E[v^T (ds/dx) v + (v^T s)^2 / 2],                                                  (1)
    E[v^T (ds/dx) v + |s|^2 / 2]                                                       (2)

plus E |grad log q|^2 / 2, which no parameter changes. (2), with the second term's expectation taken exactly, has less
variance. At the exact score both equal -E |grad log q|^2 / 2. v^T (ds/dx) v costs one forward derivative.

Here q is the noisy distribution of a level, s(x) = -eps_hat / sigma, v of independent signs; a weight w on the squared
x0 error is w / error_scale(SCORE)^2 on the score's. The default, `SNR`, gives sigma^2: annealed sliced score matching.

Reference: Song, Garg, Shi, Ermon. Sliced score matching. 2019. arXiv:1905.07088, section 3 (SSM is (1), SSM-VR is (2));
Song, Ermon. Generative modeling by estimating gradients of the data distribution. 2019. arXiv:1907.05600, for the
weights over levels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.numerics import batch_keys, expand, normal_like, safe_divide
from jaxdiff.objectives.base import sum_per_example
from jaxdiff.objectives.times import Times, Uniform
from jaxdiff.objectives.weights import SNR, Weight
from jaxdiff.prediction import SCORE, error_scale, to_prediction
from jaxdiff.types import Array, PyTree


@dataclass(frozen=True)
class SlicedScoreMatching:
    """Equation (2), or (1), at noisy levels.

    Args:
        times: the distribution of noise levels.
        weight: the weight of each level, on the squared x0 error.
        train: whether the network runs with dropout; False to evaluate.
        variance_reduced: (2) if true, (1) if not.
        projections: number of directions v per example.

    Raises:
        UsageError: for no projections.
    """

    times: Times = Uniform()
    weight: Weight = SNR()
    train: bool = True
    variance_reduced: bool = True
    projections: int = 1

    learned_variance = False

    def __post_init__(self) -> None:
        if self.projections < 1:
            raise UsageError(f"projections={self.projections}: allowed is 1 or more")

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """Losses of a batch, as `Denoising`'s: (loss [B], summed over an example's numbers; {"score": |s|^2 [B]})."""
        x0 = batch["x0"]
        split = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 4))(batch_keys(keys, x0.shape[0])), 1, 0)
        level = self.times(model.process, split[0], batch.get("strata"))
        x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * normal_like(split[1], x0)
        rngs = {"dropout": split[2]} if self.train else None

        def score(x: Array) -> Array:
            output, _ = model.output(params, x, level, batch.get("cond"), train=self.train, rngs=rngs)
            return -to_prediction(model.prediction, output, x, level).eps / expand(level.sigma, x)

        def slice_of(i: Array) -> tuple[Array, Array]:
            signs = jax.vmap(lambda k: jax.random.rademacher(jax.random.fold_in(k, i), x.shape[1:], x.dtype))(split[3])
            s, slope = jax.jvp(score, (x,), (signs,))
            square = sum_per_example(s**2)
            half = square if self.variance_reduced else sum_per_example(signs * s) ** 2
            return sum_per_example(signs * slope) + 0.5 * half, square

        values, squares = jax.lax.map(slice_of, jnp.arange(self.projections))
        # No weight where there is no signal: there the score is known.
        weight = safe_divide(self.weight(level, model.prediction), error_scale(SCORE, level) ** 2)
        return weight * values.mean(axis=0), {"score": squares[0]}
