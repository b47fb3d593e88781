r"""Mixtures of Gaussians: several modes, and still every quantity in closed form.

With x0 ~ sum_k w_k N(m_k, S_k), the noisy distribution is the mixture of the noisy components, and

    E[x0 | x] = sum_k r_k(x) E_k[x0 | x],   r_k(x) = w_k q_k(x) / sum_j w_j q_j(x),     (1)

with q_k and E_k those of `Gaussian`; eps is averaged alike.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.analytic.gaussian import Gaussian, exact
from jaxdiff.model import Denoiser
from jaxdiff.numerics import batch_keys, expand
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level, Prediction


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians over vectors of D numbers.

    Args:
        weights: positive, shape [K]; normalised to sum to 1.
        means: shape [K, D].
        covs: symmetric positive semi-definite, shape [K, D, D].

    Example:
        >>> data = Mixture(jnp.ones(2), jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.01))
        >>> data.sample(jax.random.key(0), 5).shape
        (5, 1)
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
        """The exact denoiser, equation (1)."""
        return Denoiser(Partial(_denoise, self), process)

    def log_prob(self, x: Float[Array, "b d"], level: Level) -> Float[Array, " b"]:
        """log q(x) at a level, in nats: [B, D] -> [B]."""
        return jax.nn.logsumexp(self._log_joint(x, level), axis=0)

    def score(self, x: Float[Array, "b d"], level: Level) -> Float[Array, "b d"]:
        """grad_x log q(x) at a noisy level, [B, D] -> [B, D]."""
        return -_denoise(self, x, level, None).eps / expand(level.sigma, x)

    def responsibilities(self, x: Array, level: Level) -> Array:
        """The posterior probability of each component given x at a level: [B, D] -> [K, B]."""
        return jax.nn.softmax(self._log_joint(x, level), axis=0)

    def _log_joint(self, x: Array, level: Level) -> Array:
        each = jax.vmap(lambda m, s: Gaussian(m, s).log_prob(x, level))(self.means, self.covs)
        return each + jnp.log(self.weights / self.weights.sum())[:, None]


def _denoise(data: Mixture, x: Array, level: Level, cond: Cond) -> Prediction:
    del cond

    each = jax.vmap(lambda m, s: exact(Gaussian(m, s), x, level))(data.means, data.covs)
    share = data.responsibilities(x, level)[:, :, None]
    return Prediction((share * each.x0).sum(0), (share * each.eps).sum(0))
