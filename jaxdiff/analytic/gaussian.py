r"""Gaussian data, for which every quantity of a diffusion model has a closed form.

With x0 ~ N(m, S), S = U diag(l) U^T, and x = alpha x0 + sigma eps,

    q(x) = N(alpha m, alpha^2 S + sigma^2 I),                                        (1)
    E[x0 | x] = m + alpha S (alpha^2 S + sigma^2 I)^-1 (x - alpha m),                 (2)
    E[eps | x] = sigma (alpha^2 S + sigma^2 I)^-1 (x - alpha m) = -sigma grad log q,  (3)
    E |x0 - E[x0 | x]|^2 = sum_i sigma^2 l_i / (alpha^2 l_i + sigma^2),               (4)

and the probability-flow ODE moves each principal axis on its own, keeping x's quantile:

    x_nxt = alpha_nxt m + U diag(std_nxt / std_cur) U^T (x_cur - alpha_cur m),
    std^2 = alpha^2 l + sigma^2.                                                     (5)

Seen through y = A x0 + std n, x0 is again Gaussian. With R = U diag(l)^(1/2), so that S = R R^T, and the singular
values A R = P diag(b) Q^T, the posterior in x0 = m + R z is

    z | y ~ N(Q diag(b / (b^2 + std^2)) P^T (y - A m),  I - Q diag(b^2 / (b^2 + std^2)) Q^T),   (6)
    y ~ N(A m, P diag(b^2) P^T + std^2 I),                                                      (7)

Kalman's update, without forming A S A^T, whose small eigenvalues float32 cannot hold.

Reference: Kalman. A new approach to linear filtering and prediction problems. 1960. J. Basic Eng. 82 (the update);
Song et al. 2021. arXiv:2011.13456, equation 13 (the probability flow).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import batch_keys, expand, safe_divide
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level, Prediction

# A variance below this is a point. Its inverse times |x|^2 is finite in float32 for |x| up to 1e4.
FLOOR = 1e-30


class Axes(NamedTuple):
    """A Gaussian along its principal axes, the form in which it is evaluated: computed once, not at every level."""

    mean: Array
    values: Array
    vectors: Array


class Noisy(NamedTuple):
    """What is known of x at a level: log q(x), shape [B], E(x0 | x) and grad log q(x), each [B, D]."""

    log_prob: Array
    x0: Array
    score: Array

    def prediction(self, level: Level) -> Prediction:
        """(x0, eps) by equation (3)."""
        return Prediction(self.x0, -expand(level.sigma, self.x0) * self.score)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussian:
    """The distribution N(mean, cov) of vectors.

    Args:
        mean: shape [D].
        cov: symmetric positive semi-definite, shape [D, D]. Where it has no width, log-densities at clean data are
            those of a Gaussian of standard deviation 1e-15.

    Examples:
        >>> from jaxdiff import processes
        >>> data = Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> denoise = data.denoiser(processes.vp_sde())
        >>> denoise(jnp.ones((3, 2)), processes.vp_sde()(0.5)).x0.shape
        (3, 2)
        >>> data.posterior(jnp.eye(2)[:1], jnp.ones(1), 1.0).mean.tolist()
        [0.5, 0.0]
    """

    mean: Array
    cov: Array

    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Exact samples, shape [num, D]; `key` as in `jaxdiff.sample`."""
        mean, values, vectors = axes(self.mean, self.cov)
        draw = jax.vmap(lambda k: jax.random.normal(k, mean.shape, mean.dtype))(batch_keys(key, num))
        return mean[None] + (draw * jnp.sqrt(values)[None]) @ vectors.T

    def denoiser(self, process: ForwardProcess) -> Denoiser:
        """The exact denoiser, equations (2) and (3). The principal axes are computed here, once."""
        return Denoiser(Partial(_denoise, axes(self.mean, self.cov)), process)

    def log_prob(self, x: Float[Array, "b d"], level: Level) -> Float[Array, " b"]:
        """log q(x) at a level, equation (1), in nats: [B, D] -> [B]."""
        return noisy(axes(self.mean, self.cov), x, level).log_prob

    def score(self, x: Float[Array, "b d"], level: Level) -> Float[Array, "b d"]:
        """grad_x log q(x) at a level, [B, D] -> [B, D]."""
        return noisy(axes(self.mean, self.cov), x, level).score

    def posterior(
        self, operator: Float[Array, "m d"], y: Float[Array, " k"], std: Float[Array, ""] | float
    ) -> "Gaussian":
        """The distribution of x0 given y = operator x0 + std n, n ~ N(0, I), equation (6).

        Args:
            operator: A, shape [M, D].
            y: the observation, shape [M].
            std: its noise's standard deviation, at least 0.

        Raises:
            UsageError: if shapes do not fit.
        """
        check_observation(self.mean.shape[-1], operator, y)
        mean, cov, _ = condition(axes(self.mean, self.cov), operator, y, std)
        return Gaussian(mean, cov)

    def bayes_risk(self, level: Level) -> Array:
        """The least mean squared error per dimension of any denoiser, equation (4) / D, in the shape of the level."""
        values = axes(self.mean, self.cov).values
        alpha2, sigma2 = level.alpha[..., None] ** 2, level.sigma[..., None] ** 2
        values = values.reshape((1,) * (alpha2.ndim - 1) + values.shape)
        return jnp.mean(safe_divide(sigma2 * values, alpha2 * values + sigma2), axis=-1)

    def flow(self, x: Float[Array, "b d"], cur: Level, nxt: Level) -> Float[Array, "b d"]:
        """The probability-flow ODE solved exactly from `cur` to `nxt`, equation (5): [B, D] -> [B, D]."""
        mean, values, vectors = axes(self.mean, self.cov)
        here, there = (jnp.sqrt(_variance(values, level, x)) for level in (cur, nxt))
        moved = (x - expand(cur.alpha, x) * mean[None]) @ vectors * safe_divide(there, here)
        return expand(nxt.alpha, x) * mean[None] + moved @ vectors.T


@jax.jit
def axes(mean: Array, cov: Array) -> Axes:
    """The principal axes of N(mean, cov); a variance that rounding made negative is 0. Leading axes are batched."""
    values, vectors = jnp.linalg.eigh(cov)
    return Axes(mean, jnp.maximum(values, 0.0), vectors)


def _variance(values: Array, level: Level, x: Array) -> Array:
    """The variance of (1) along each principal axis, [1 or B, D]."""
    return expand(level.alpha, x) ** 2 * values[None] + expand(level.sigma, x) ** 2


@jax.jit
def noisy(data: Axes, x: Array, level: Level) -> Noisy:
    """Equations (1) to (3)."""
    alpha, var = expand(level.alpha, x), jnp.maximum(_variance(data.values, level, x), FLOOR)
    along = (x - alpha * data.mean[None]) @ data.vectors
    log_prob = -0.5 * jnp.sum(along**2 / var + jnp.log(2 * jnp.pi * var), axis=1)
    x0 = data.mean[None] + (alpha * data.values[None] / var * along) @ data.vectors.T
    return Noisy(log_prob, x0, -(along / var) @ data.vectors.T)


def _denoise(data: Axes, x: Array, level: Level, cond: Cond) -> Prediction:
    del cond
    return noisy(data, x, level).prediction(level)


def check_observation(dim: int, operator: Array, y: Array) -> None:
    """Refuse an observation that does not fit data of `dim` numbers."""
    if jnp.ndim(operator) != 2 or operator.shape[1] != dim:
        raise UsageError(f"operator must have shape [M, {dim}] for data of {dim} numbers, got {jnp.shape(operator)}")
    if jnp.shape(y) != operator.shape[:1]:
        raise UsageError(f"y must have shape {operator.shape[:1]}, one number per row of operator, got {jnp.shape(y)}")


@jax.jit
def condition(data: Axes, operator: Array, y: Array, std: Array | float) -> tuple[Array, Array, Array]:
    """The posterior's mean and covariance, equation (6), and log p(y), equation (7)."""
    root = data.vectors * jnp.sqrt(data.values)[None]
    left, b, right = jnp.linalg.svd(operator @ root, full_matrices=False)
    # What rounding alone can make is not observed; it matters where std = 0.
    b = jnp.where(b > jnp.finfo(b.dtype).eps * max(operator.shape) * b[0], b, 0.0)
    rest = y - operator @ data.mean
    seen, noise, total = left.T @ rest, jnp.asarray(std, b.dtype) ** 2, b**2 + jnp.asarray(std, b.dtype) ** 2
    mean = data.mean + root @ (right.T @ (safe_divide(b, total) * seen))
    # The symmetric root of (6)'s covariance: its square keeps the digits of small variances, and is never negative.
    shrink = 1 - jnp.where(total > 0, jnp.sqrt(safe_divide(noise, total)), 1.0)
    half = root - ((root @ right.T) * shrink[None]) @ right
    var = jnp.maximum(total, FLOOR)
    log_evidence = -0.5 * jnp.sum(seen**2 / var + jnp.log(2 * jnp.pi * var))
    unseen = operator.shape[0] - b.shape[0]
    if unseen > 0:  # more numbers observed than there are: the rest of y is noise alone
        noise = jnp.maximum(noise, FLOOR)
        log_evidence -= 0.5 * (jnp.sum((rest - left @ seen) ** 2) / noise + unseen * jnp.log(2 * jnp.pi * noise))
    return mean, half @ half.T, log_evidence
