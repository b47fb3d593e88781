r"""The two terms that variational bounds are made of, element by element, in nats.

Between two Gaussians, with d = log_var1 - log_var2,

    KL(N1 || N2) = (e^d - 1 - d + (mean1 - mean2)^2 / var2) / 2.                     (1)

8-bit data in [-1, 1] sit on `bins` points 2 / (bins - 1) apart. A Gaussian gives each point the probability of the
bin around it; the outer bins reach to infinity, so the probabilities sum to 1:

    p(x0) = Phi(z + h) - Phi(z - h),   z = (x0 - mean) / std,   h = 1 / ((bins - 1) std),   (2)
    Phi(z - h) -> 0 at x0 = -1,        Phi(z + h) -> 1 at x0 = 1.

The logarithm of (2) is taken in the tail nearer to 0, where neither term rounds to 1.

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, equation 13.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.types import Array


def gaussian_kl(
    mean1: Float[Array, "*s"], log_var1: Float[Array, "*#s"], mean2: Float[Array, "*#s"], log_var2: Float[Array, "*#s"]
) -> Float[Array, "*s"]:
    """KL(N(mean1, var1) || N(mean2, var2)) of each element, equation (1), in nats.

    Args:
        mean1: mean of the first Gaussian, any shape.
        log_var1: natural log of its variance, finite; that shape, or one that broadcasts to it.
        mean2: mean of the second.
        log_var2: natural log of its variance, finite.

    Returns:
        Non-negative numbers of the shape of mean1; sum over an example's elements for its divergence.

    Examples:
        >>> one = jnp.ones(())
        >>> float(gaussian_kl(one, 0 * one, -one, 0 * one))
        2.0
    """
    gap = log_var1 - log_var2
    return 0.5 * (jnp.expm1(gap) - gap + (mean1 - mean2) ** 2 * jnp.exp(-log_var2))


def discretized_gaussian_log_prob(
    x0: Float[Array, "*s"], mean: Float[Array, "*s"], log_std: Float[Array, "*#s"], *, bins: int = 256
) -> Float[Array, "*s"]:
    """The log-probability of each element of quantised data under a Gaussian, equation (2), in nats.

    Args:
        x0: data on the grid -1, -1 + 2 / (bins - 1), ..., 1; any shape.
        mean: the Gaussian's mean, the shape of x0.
        log_std: natural log of its standard deviation, finite; that shape, or one that broadcasts to it.
        bins: number of grid points, 2 or more; 256 for 8-bit images.

    Returns:
        Log-probabilities <= 0, the shape of x0.

    Raises:
        UsageError: for fewer than 2 bins.

    Examples:
        >>> x0 = jnp.linspace(-1, 1, 256)
        >>> log_prob = discretized_gaussian_log_prob(x0, jnp.full(256, 0.3), jnp.full(256, -2.0))
        >>> print(f"{jnp.exp(log_prob).sum():.4f}")
        1.0000

    Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, equation 13.
    """
    if bins < 2:
        raise UsageError(f"bins={bins}: allowed is 2 or more")
    half, inverse = 1 / (bins - 1), jnp.exp(-log_std)
    upper, lower = (x0 - mean + half) * inverse, (x0 - mean - half) * inverse
    # Phi(b) - Phi(a) = Phi(-a) - Phi(-b): the pair in the lower tail.
    flip = upper + lower > 0
    high, low = _log_ndtr(jnp.where(flip, -lower, upper)), _log_ndtr(jnp.where(flip, -upper, lower))
    # Where a bin is too narrow for the difference to have a digit, half a unit keeps the logarithm finite.
    gap = jnp.maximum(high - low, 0.5 * jnp.finfo(high.dtype).eps)
    inside = high + jnp.log(-jnp.expm1(-gap))
    first, last = x0 < -1 + half, x0 > 1 - half
    return jnp.where(first, _log_ndtr(upper), jnp.where(last, _log_ndtr(-lower), inside))


@jax.custom_jvp
def _log_ndtr(z: Array) -> Array:
    """log Phi(z)."""
    return log_ndtr(z)


@_log_ndtr.defjvp
def _log_ndtr_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # JAX's own rule takes exp of a difference of numbers near z^2 / 2: at z = -1e4 it says 3e3.
    (z,), (dz,) = primals, tangents
    value, tail = _log_ndtr(z), jnp.minimum(z, -5.0)
    slope = -tail
    for k in range(12, 0, -1):  # phi(z) / Phi(z) as Laplace's continued fraction
        slope = k / slope - tail
    near = jnp.maximum(z, -5.0)
    direct = jnp.exp(-0.5 * near**2 - jnp.where(z < -5, 0.0, value)) / jnp.sqrt(2 * jnp.pi)
    return value, jnp.where(z < -5, slope, direct) * dz
