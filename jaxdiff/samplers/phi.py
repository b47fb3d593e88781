r"""What exponential integrators share: the step in half log-SNR, and the phi functions.

With lambda = log_snr / 2 (DPM-Solver's lambda) and h = lambda_nxt - lambda_cur, the probability flow is solved by

    x_nxt = (sigma_nxt / sigma_cur) x_cur + alpha_nxt int_0^h e^(u - h) x0(lambda_cur + u) du,       (1)
    x_nxt = (alpha_nxt / alpha_cur) x_cur - sigma_nxt int_0^h e^(h - u) eps(lambda_cur + u) du,      (2)

and a polynomial in place of x0 or eps leaves integrals of e^(+-u) u^k, which are phi functions:

    phi_1(z) = (e^z - 1) / z,   phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z = sum_j z^j / (j + k + 1)!.    (3)

For a constant x0 or eps both (1) and (2) are alpha_nxt x0 + sigma_nxt eps, which is DDIM. Solvers here are written as
that and a correction, so that nothing cancels, and infinite h (from pure noise, or to clean data) is no special case.

Reference: Lu et al. DPM-Solver. 2022. arXiv:2206.00927, section 3; Hochbruck, Ostermann. Exponential integrators. 2010.
"""

import math

import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.types import Array, Level

_TERMS = 16  # of the series at |z| <= 1: the rest is below 1e-16


def phi(k: int, z: Float[Array, "*z"]) -> Float[Array, "*z"]:
    """phi_k of equation (3), exact to rounding for small z too; derivatives as well.

    Args:
        k: 1 or more.
        z: finite numbers, any shape.

    Examples:
        >>> print(f"{phi(1, jnp.float32(1.0)):.4f} {phi(3, jnp.float32(0.0)):.4f}")
        1.7183 0.1667
    """
    near = jnp.abs(z) <= 1
    small, large = jnp.where(near, z, 0.0), jnp.where(near, 1.0, z)
    series = jnp.ones_like(z)
    for j in range(_TERMS, 0, -1):
        series = 1 + series * small / (k + j)
    value = jnp.expm1(large) / large
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / large
    return jnp.where(near, series / math.factorial(k), value)


def step_size(cur: Level, nxt: Level) -> tuple[Array, Array]:
    """(whole, h): whether both ends have a finite log-SNR, and the step in half log-SNR (1 where not)."""
    whole = jnp.isfinite(cur.log_snr) & jnp.isfinite(nxt.log_snr)
    return whole, 0.5 * (jnp.where(whole, nxt.log_snr, 2.0) - jnp.where(whole, cur.log_snr, 0.0))
