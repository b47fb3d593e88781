r"""Gaussian data, for which every quantity of a diffusion model has a closed form.

With x0 ~ N(m, S), S = U diag(l) U^T, and x = alpha x0 + sigma eps,

    q(x) = N(alpha m, alpha^2 S + sigma^2 I),                                        (1)
    E[x0 | x] = m + alpha S (alpha^2 S + sigma^2 I)^-1 (x - alpha m),                 (2)
    E[eps | x] = sigma (alpha^2 S + sigma^2 I)^-1 (x - alpha m),                      (3)
    E |x0 - E[x0 | x]|^2 = sum_i sigma^2 l_i / (alpha^2 l_i + sigma^2),               (4)

and the probability-flow ODE moves each principal axis on its own, keeping x's quantile:

    x_nxt = alpha_nxt m + U diag(std_nxt / std_cur) U^T (x_cur - alpha_cur m),
    std^2 = alpha^2 l + sigma^2.                                                     (5)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.model import Denoiser
from jaxdiff.numerics import batch_keys, expand
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level, Prediction


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussian:
    """The distribution N(mean, cov) of vectors.

    Args:
        mean: shape [D].
        cov: symmetric positive semi-definite, shape [D, D].

    Example:
        >>> from jaxdiff import processes
        >>> data = Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> denoise = data.denoiser(processes.vp_sde())
        >>> denoise(jnp.ones((3, 2)), processes.vp_sde()(0.5)).x0.shape
        (3, 2)
    """

    mean: Array
    cov: Array

    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Exact samples, shape [num, D]; `key` as in `jaxdiff.sample`."""
        values, vectors = jnp.linalg.eigh(self.cov)
        draw = jax.vmap(lambda k: jax.random.normal(k, self.mean.shape, self.mean.dtype))(batch_keys(key, num))
        return self.mean[None] + (draw * jnp.sqrt(jnp.maximum(values, 0.0))[None]) @ vectors.T

    def denoiser(self, process: ForwardProcess) -> Denoiser:
        """The exact denoiser, equations (2) and (3)."""
        return Denoiser(Partial(exact, self), process)

    def log_prob(self, x: Float[Array, "b d"], level: Level) -> Float[Array, " b"]:
        """log q(x) at a level, equation (1), in nats: [B, D] -> [B]."""
        values, _ = jnp.linalg.eigh(self.cov)
        var = _spread(values, level, x) ** 2
        z = self._axes(x, level)
        return -0.5 * jnp.sum(z**2 / var + jnp.log(2 * jnp.pi * var), axis=1)

    def score(self, x: Float[Array, "b d"], level: Level) -> Float[Array, "b d"]:
        """grad_x log q(x) at a noisy level: -E[eps | x] / sigma, [B, D] -> [B, D]."""
        return -exact(self, x, level).eps / expand(level.sigma, x)

    def bayes_risk(self, level: Level) -> Array:
        """The least mean squared error per dimension of any denoiser, equation (4) / D, in the shape of the level."""
        values = jnp.linalg.eigvalsh(self.cov)
        alpha2, sigma2 = level.alpha[..., None] ** 2, level.sigma[..., None] ** 2
        values = values.reshape((1,) * (alpha2.ndim - 1) + values.shape)
        return jnp.mean(sigma2 * values / (alpha2 * values + sigma2), axis=-1)

    def flow(self, x: Float[Array, "b d"], cur: Level, nxt: Level) -> Float[Array, "b d"]:
        """The probability-flow ODE solved exactly from `cur` to `nxt`, equation (5): [B, D] -> [B, D]."""
        values, vectors = jnp.linalg.eigh(self.cov)
        ratio = _spread(values, nxt, x) / _spread(values, cur, x)
        return expand(nxt.alpha, x) * self.mean[None] + (self._axes(x, cur) * ratio) @ vectors.T

    def _axes(self, x: Array, level: Level) -> Array:
        """x - alpha m along the principal axes."""
        return (x - expand(level.alpha, x) * self.mean[None]) @ jnp.linalg.eigh(self.cov)[1]


def _spread(values: Array, level: Level, x: Array) -> Array:
    """The standard deviation of (1) along each principal axis, [1 or B, D]."""
    return jnp.sqrt(expand(level.alpha, x) ** 2 * values[None] + expand(level.sigma, x) ** 2)


def exact(data: Gaussian, x: Array, level: Level, cond: Cond = None) -> Prediction:
    del cond
    values, vectors = jnp.linalg.eigh(data.cov)
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    scaled = data._axes(x, level) / _spread(values, level, x) ** 2
    x0 = data.mean[None] + alpha * (scaled * values[None]) @ vectors.T
    return Prediction(x0, sigma * scaled @ vectors.T)
