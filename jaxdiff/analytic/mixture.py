r"""Mixtures of Gaussians: several modes, and still every quantity in closed form.

With x0 ~ sum_k w_k N(m_k, S_k), the noisy distribution is the mixture of the noisy components, and

    E[x0 | x] = sum_k r_k(x) E_k[x0 | x],   r_k(x) = w_k q_k(x) / sum_j w_j q_j(x),     (1)

with q_k and E_k those of `Gaussian`; eps and the score are averaged alike. Given y = A x0 + std n, each component
has its own posterior and the weights become

    w_k p_k(y) / sum_j w_j p_j(y).                                                     (2)

The probability flow has no closed form; it is integrated (`jaxdiff.analytic.flow`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.analytic import flow, gaussian
from jaxdiff.analytic.gaussian import Axes, Gaussian, Noisy
from jaxdiff.model import Denoiser
from jaxdiff.numerics import batch_keys
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level, Prediction


class Components(NamedTuple):
    """A mixture in the form in which it is evaluated: log-weights [K], and the axes of all components."""

    log_weights: Array
    axes: Axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians over vectors of D numbers.

    Args:
        weights: not negative, shape [K]; normalised to sum to 1.
        means: shape [K, D].
        covs: symmetric positive semi-definite, shape [K, D, D].

    Examples:
        >>> data = Mixture(jnp.ones(2), jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.01))
        >>> data.sample(jax.random.key(0), 5).shape
        (5, 1)
        >>> data.posterior(jnp.ones((1, 1)), jnp.ones(1), 0.1).weights.round(3).tolist()
        [0.0, 1.0]
    """

    weights: Array
    means: Array
    covs: Array

    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Exact samples, shape [num, D]; `key` as in `jaxdiff.sample`."""
        keys = jax.vmap(jax.random.split)(batch_keys(key, num))
        which = jax.vmap(lambda k: jax.random.categorical(k, jnp.log(self.weights)))(keys[:, 0])
        drawn = jax.vmap(lambda m, s: Gaussian(m, s).sample(keys[:, 1], num))(self.means, self.covs)
        return drawn[which, jnp.arange(num)]

    def denoiser(self, process: ForwardProcess) -> Denoiser:
        """The exact denoiser, equation (1). The principal axes are computed here, once."""
        return Denoiser(Partial(_denoise, self._components()), process)

    def log_prob(self, x: Float[Array, "b d"], level: Level) -> Float[Array, " b"]:
        """log q(x) at a level, in nats: [B, D] -> [B]."""
        return noisy(self._components(), x, level).log_prob

    def score(self, x: Float[Array, "b d"], level: Level) -> Float[Array, "b d"]:
        """grad_x log q(x) at a level, [B, D] -> [B, D]."""
        return noisy(self._components(), x, level).score

    def responsibilities(self, x: Float[Array, "b d"], level: Level) -> Float[Array, "k b"]:
        """The posterior probability of each component given x at a level: [B, D] -> [K, B]."""
        return jax.nn.softmax(_each(self._components(), x, level)[0], axis=0)

    def posterior(
        self, operator: Float[Array, "m d"], y: Float[Array, " k"], std: Float[Array, ""] | float
    ) -> "Mixture":
        """The distribution of x0 given y = operator x0 + std n, n ~ N(0, I): a mixture of as many components.

        Args:
            operator: A, shape [M, D].
            y: the observation, shape [M].
            std: its noise's standard deviation, at least 0.

        Raises:
            UsageError: if shapes do not fit.
        """
        gaussian.check_observation(self.means.shape[-1], operator, y)
        prior = self._components()
        means, covs, evidence = jax.vmap(gaussian.condition, (0, None, None, None))(prior.axes, operator, y, std)
        return Mixture(jax.nn.softmax(prior.log_weights + evidence), means, covs)

    def flow(self, x: Float[Array, "b d"], cur: Level, nxt: Level, *, steps: int = flow.STEPS) -> Float[Array, "b d"]:
        """The probability-flow ODE from `cur` to `nxt` to high precision: [B, D] -> [B, D].

        Args:
            x: points at `cur`, shape [B, D].
            cur, nxt: scalars or [B], in either direction.
            steps: integration steps; precision as measured in `jaxdiff.analytic.flow`.
        """
        data = self._components()
        share = jnp.exp(data.log_weights)
        away = self.means - (share @ self.means)[None]
        large = jnp.sqrt(jnp.max(data.axes.values) + jnp.sum(share[:, None] * away**2))
        small = jnp.sqrt(jnp.min(data.axes.values))
        return flow.solve(_predict, data, x, cur, nxt, small, large, steps)

    def _components(self) -> Components:
        return Components(jnp.log(self.weights / self.weights.sum()), gaussian.axes(self.means, self.covs))


def _each(data: Components, x: Array, level: Level) -> tuple[Array, Noisy]:
    """log(w_k q_k(x)) [K, B], and every component's own answer."""
    each = jax.vmap(gaussian.noisy, (0, None, None))(data.axes, x, level)
    return each.log_prob + data.log_weights[:, None], each


@jax.jit
def noisy(data: Components, x: Array, level: Level) -> Noisy:
    """Equation (1)."""
    joint, each = _each(data, x, level)
    share = jax.nn.softmax(joint, axis=0)[:, :, None]
    return Noisy(jax.nn.logsumexp(joint, axis=0), (share * each.x0).sum(0), (share * each.score).sum(0))


def _predict(data: Components, x: Array, level: Level) -> Prediction:
    return noisy(data, x, level).prediction(level)


def _denoise(data: Components, x: Array, level: Level, cond: Cond) -> Prediction:
    del cond
    return _predict(data, x, level)
