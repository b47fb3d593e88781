r"""From densities to the probability of 8-bit data, and to bits per dimension.

Values v in 0..bins-1 become continuous by noise u in [0, 1), as in `data.Dequantize`:

    x = 2 (v + u) / bins - 1,   P(v) = integral p(x) (2 / bins)^D du.                          (1)

For any noise q(u | v), and for S draws from it,

    log P(v) >= E log 1/S sum_s p(x_s) (2 / bins)^D / q(u_s | v).                              (2)

S = 1 with uniform noise, q = 1, is uniform dequantisation; another q is variational dequantisation, tight for q equal
to p's own distribution of u given v; more draws only tighten it. In bits per dimension, with x in [-1, 1],

    bits/dim = -log p(x) / (D log 2) - log2(width),   width = 2 / bins = 1/128: + 7 bits.       (3)

Reference: Theis, van den Oord, Bethge. A note on the evaluation of generative models. 2016. arXiv:1511.01844,
section 3.1; Ho et al. Flow++. 2019. arXiv:1902.00275, section 3.1; Hoogeboom, Cohen, Tomczak. Learning discrete
distributions by dequantization. 2020. arXiv:2001.11235 (importance weights).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jaxdiff.errors import UsageError
from jaxdiff.numerics import batch_keys
from jaxdiff.types import Array

Density = Callable[[Array, Array], Array]
Noise = Callable[[Array, Array], tuple[Array, Array]]


def uniform_noise(key: Array, values: Shaped[Array, " b *d"]) -> tuple[Float[Array, " b *d"], Float[Array, " b"]]:
    """Noise of uniform dequantisation: u in [0, 1) and log q(u | v) = 0.

    Args:
        key: one key, or one per example [B].
        values: v, shape [B, ...].

    Returns:
        u of the shape of values, and zeros [B].

    Examples:
        >>> uniform_noise(jax.random.key(0), jnp.zeros((2, 3)))[1]
        Array([0., 0.], dtype=float32)
    """
    keys = batch_keys(key, values.shape[0])
    u = jax.vmap(lambda k: jax.random.uniform(k, values.shape[1:]))(keys)
    return u, jnp.zeros(values.shape[0], u.dtype)


def dequantized_log_prob(
    density: Density,
    values: Shaped[Array, " b *d"],
    key: Array,
    *,
    noise: Noise = uniform_noise,
    samples: int = 1,
    bins: int = 256,
) -> Float[Array, " b"]:
    """A lower bound, in expectation, on the log-probability of quantised data, equation (2).

    Args:
        density: (x [B, ...] in [-1, 1], keys [B]) -> log p(x) [B] in nats, such as `log_prob(...).value` or
            `-bound(..., decoder="gaussian").total`. With more than one sample it must be without noise of its own:
            the logarithm of a mean turns noise into an upward bias.
        values: v, integers in 0..bins-1 of any dtype, shape [B, ...].
        key: one key, or one per example [B].
        noise: (keys [B], v) -> (u in [0, 1], shape [B, ...]; log q(u | v) [B] in nats).
        samples: S, at least 1. The density is evaluated S times.
        bins: number of values; 256 for 8-bit data.

    Returns:
        Nats, shape [B]; minus it, given to `bits_per_dim` with width=1, is in bits per dimension.

    Raises:
        UsageError: for samples < 1 or bins < 2.

    Examples:
        >>> flat = lambda x, key: jnp.full(x.shape[0], -jnp.log(2.0) * x[0].size)  # uniform over [-1, 1]
        >>> nats = -dequantized_log_prob(flat, jnp.array([[0, 17, 255]]), jax.random.key(0))
        >>> print(bits_per_dim(nats, (1, 3), width=1))
        [8.]

    Reference: Ho et al. 2019. arXiv:1902.00275, section 3.1.
    """
    if samples < 1:
        raise UsageError(f"samples={samples}: allowed is 1 or more")
    if bins < 2:
        raise UsageError(f"bins={bins}: allowed is 2 or more")
    keys = batch_keys(key, values.shape[0])
    log_cell = values[0].size * math.log(2 / bins)

    def one(index: Array) -> Array:
        mine = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, index)))(keys)
        u, log_q = noise(mine[:, 0], values)
        return density(2 * (values + u) / bins - 1, mine[:, 1]) + log_cell - log_q

    weights = jax.lax.map(one, jnp.arange(samples))
    return jax.nn.logsumexp(weights, axis=0) - math.log(samples)


def bits_per_dim(nats: Any, shape: Sequence[int], *, width: float | int = 1 / 128) -> Any:
    """Nats per example as bits per dimension of quantised data, equation (3).

    Args:
        nats: minus a log-density or log-probability (or a bound on it) per example, any shape.
        shape: the shape of the batch, [B, ...]; D is the size of one example.
        width: the width of one value in x. 1/128 for the density of images that the data pipeline dequantised,
            x = (v + u) / 128 - 1; 1 where `nats` are of a probability (the decoders of 8-bit data, or
            `dequantized_log_prob`).

    Returns:
        Bits per dimension, the shape of nats.

    Raises:
        UsageError: for a width that is not positive.

    Examples:
        >>> round(bits_per_dim(3072 * math.log(2.0), (1, 32, 32, 3)), 6)  # a density of 1/2: uniform over [-1, 1]
        8.0

    Reference: Theis, van den Oord, Bethge. 2016. arXiv:1511.01844, section 3.1.
    """
    if not width > 0:
        raise UsageError(f"width={width:g}: need width > 0")
    return nats / (math.prod(shape[1:]) * math.log(2)) - math.log2(width)
