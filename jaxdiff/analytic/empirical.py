r"""A finite data set as a distribution: what a network that fitted its training set perfectly would answer.

With x0 one of N points p_i with weights w_i, and x = alpha x0 + sigma eps,

    q(x) = sum_i w_i N(x; alpha p_i, sigma^2 I),                                     (1)
    E[x0 | x] = sum_i r_i p_i,   r = softmax(log w_i - |x - alpha p_i|^2 / (2 sigma^2)),   (2)
    grad log q(x) = (alpha E[x0 | x] - x) / sigma^2.                                  (3)

Distances are sums of squared differences, never |x|^2 - 2 x.p + |p|^2, which loses the nearest point in float32.
As sigma goes to 0, (2) goes to the nearest point. Given y = A x0 + std n only the weights change:

    w_i N(y; A p_i, std^2 I) / sum_j w_j N(y; A p_j, std^2 I).                        (4)

Reference: Karras et al. 2022. arXiv:2206.00364, appendix B.3.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.analytic import flow
from jaxdiff.analytic.gaussian import FLOOR, Noisy, check_observation
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import batch_keys, expand
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level, Prediction


class Points(NamedTuple):
    """A data set in the form in which it is evaluated: log-weights [N], and the points [N, ...]."""

    log_weights: Array
    points: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Empirical:
    """The distribution that draws one of N given examples.

    Args:
        points: the examples, shape [N, ...]: vectors, images or anything else.
        weights: not negative, shape [N]; normalised to sum to 1. None weighs all examples alike.

    Examples:
        >>> from jaxdiff import processes
        >>> data = Empirical(jnp.array([[-1.0], [1.0]]))
        >>> data.denoiser(processes.vp_sde())(jnp.array([[0.9]]), processes.vp_sde()(0.01)).x0.tolist()
        [[1.0]]
    """

    points: Array
    weights: Array | None = None

    def sample(self, key: Array, num: int) -> Float[Array, " n *d"]:
        """Exact samples, shape [num, ...]; `key` as in `jaxdiff.sample`."""
        return _draw(self._points(), batch_keys(key, num))

    def denoiser(self, process: ForwardProcess) -> Denoiser:
        """The exact denoiser, equation (2). At clean data it answers the nearest point, and eps = 0."""
        return Denoiser(Partial(_denoise, self._points()), process)

    def log_prob(self, x: Float[Array, " b *d"], level: Level) -> Float[Array, " b"]:
        """log q(x) at a level, in nats: [B, ...] -> [B]. At clean data, points are Gaussians of width 1e-15."""
        return noisy(self._points(), x, level).log_prob

    def score(self, x: Float[Array, " b *d"], level: Level) -> Float[Array, " b *d"]:
        """grad_x log q(x) at a noisy level, equation (3), [B, ...] -> [B, ...]."""
        return noisy(self._points(), x, level).score

    def posterior(
        self, operator: Float[Array, "m d"], y: Float[Array, " k"], std: Float[Array, ""] | float
    ) -> "Empirical":
        """The distribution of x0 given y = operator x0 + std n, n ~ N(0, I), equation (4).

        Args:
            operator: A, shape [M, D], on examples flattened to D numbers.
            y: the observation, shape [M].
            std: its noise's standard deviation. At 0 the points that fit best are left.

        Raises:
            UsageError: if shapes do not fit.
        """
        data = self._points()
        check_observation(math.prod(data.points.shape[1:]), operator, y)
        rest = y[None] - data.points.reshape(data.points.shape[0], -1) @ operator.T
        fit = jnp.sum(rest**2, axis=1) / (2 * jnp.maximum(jnp.asarray(std, rest.dtype) ** 2, FLOOR))
        return Empirical(self.points, jax.nn.softmax(data.log_weights - fit))

    def flow(
        self, x: Float[Array, " b *d"], cur: Level, nxt: Level, *, steps: int = flow.STEPS
    ) -> Float[Array, " b *d"]:
        """The probability-flow ODE from a noisy `cur` to `nxt`, to high precision: [B, ...] -> [B, ...].

        Args:
            x: points at `cur`, shape [B, ...].
            cur, nxt: scalars or [B]. From clean data there is no way back: a point has lost its past.
            steps: integration steps; precision as measured in `jaxdiff.analytic.flow`.
        """
        data = self._points()
        flat = data.points.reshape(data.points.shape[0], -1)
        share = jnp.exp(data.log_weights)[:, None]
        large = jnp.sqrt(jnp.sum(share * (flat - jnp.sum(share * flat, axis=0)[None]) ** 2))
        return flow.solve(_predict, data, x, cur, nxt, jnp.zeros_like(large), large, steps)

    def _points(self) -> Points:
        num = self.points.shape[0]
        if self.weights is None:
            return Points(jnp.full(num, -math.log(num), self.points.dtype), self.points)
        if self.weights.shape != (num,):
            raise UsageError(f"weights must have shape ({num},), one per point, got {self.weights.shape}")
        return Points(jnp.log(self.weights / self.weights.sum()), self.points)


@jax.jit
def _draw(data: Points, keys: Array) -> Array:
    return data.points[jax.vmap(lambda k: jax.random.categorical(k, data.log_weights))(keys)]


@jax.jit
def noisy(data: Points, x: Array, level: Level) -> Noisy:
    """Equations (1) to (3)."""
    flat, points = x.reshape(x.shape[0], -1), data.points.reshape(data.points.shape[0], -1)
    alpha, var = expand(level.alpha, flat), jnp.maximum(expand(level.sigma, flat) ** 2, FLOOR)
    distance = jnp.sum((flat[:, None] - jnp.atleast_2d(alpha)[..., None] * points[None]) ** 2, axis=-1)
    joint = data.log_weights[None] - distance / (2 * var)
    log_prob = jax.nn.logsumexp(joint, axis=1) - 0.5 * flat.shape[1] * jnp.log(2 * jnp.pi * var).reshape(-1)
    x0 = jax.nn.softmax(joint, axis=1) @ points
    score = (alpha * x0 - flat) / var
    return Noisy(log_prob, x0.reshape(x.shape), score.reshape(x.shape))


def _predict(data: Points, x: Array, level: Level) -> Prediction:
    return noisy(data, x, level).prediction(level)


def _denoise(data: Points, x: Array, level: Level, cond: Cond) -> Prediction:
    del cond
    return _predict(data, x, level)
