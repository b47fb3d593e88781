r"""What multistep samplers share: weights that integrate the polynomial through a few earlier predictions.

With lambda = log_snr / 2 and rho = sigma / alpha = e^-lambda, the probability flow is, in any scaling,

    d(x / alpha) = eps d rho,        d(x / sigma) = x0 e^lambda d lambda.                     (1)

A prediction m (eps or x0) is replaced by the polynomial through its last values m_0 (at `cur`), m_1, ..., in a
variable u that is 0 at `cur` and 1 at `nxt`. With the kernel k(u) that (1) has in that variable,

    x_nxt = first-order step + scale sum_{j > 0} w_j (m_j - m_0),    w_j = int_0^1 k(u) L_j(u) du,    (2)

L_j being Lagrange's basis. Gauss-Legendre quadrature makes the integrals exact for u = rho (polynomials) and exact
to rounding for u = lambda (an exponential times a polynomial), without the cancellation of their closed forms at
small steps. Entries that are not filled, or were made at alpha = 0, take no part: fewer points, lower order.

Reference: Zhang, Chen. Fast sampling of diffusion models with exponential integrator. 2023. arXiv:2204.13902.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxdiff.numerics import expand
from jaxdiff.samplers.history import History
from jaxdiff.samplers.phi import step_size
from jaxdiff.types import Array, Level

_NODES, _WEIGHTS = (0.5 * a for a in np.polynomial.legendre.leggauss(16))
POINTS = 0.5 + _NODES


def usable(history: History) -> Bool[Array, " k"]:
    """Which entries a polynomial may pass through: those filled, at a level with signal."""
    return (jnp.arange(history.log_snr.shape[0]) < history.filled) & jnp.isfinite(history.log_snr)


def fitting(history: History) -> Bool[Array, " k"]:
    """The usable entries, the latest and as many earlier ones as there are steps to come (`history`)."""
    return usable(history) & (jnp.arange(history.log_snr.shape[0]) <= history.after)


def since(history: History, level: Level) -> Float[Array, " k"]:
    """lambda_j - lambda of each usable entry, from the level's; 0 for the others."""
    known = usable(history) & jnp.isfinite(level.log_snr)
    return 0.5 * (jnp.where(known, history.log_snr, 0.0) - jnp.where(known, level.log_snr, 0.0))


def integrals(
    nodes: Float[Array, " k"], use: Bool[Array, " k"], points: Float[Array, " q"], kernel: Float[Array, " q"]
) -> Float[Array, " k"]:
    """w_j of (2) by quadrature.

    Args:
        nodes: u of each prediction, shape [K].
        use: which of them the polynomial passes through, shape [K].
        points: u at the fractions `POINTS` of the step, shape [Q].
        kernel: k at the same points, shape [Q].

    Returns:
        Weights, shape [K]; 0 for an entry that is not used.
    """
    pairs = use[:, None] & use[None] & ~jnp.eye(nodes.shape[0], dtype=bool)
    gaps = jnp.where(pairs, nodes[:, None] - nodes[None], 1.0)
    factors = (points[None, None] - nodes[None, :, None]) / gaps[:, :, None]
    basis = jnp.prod(jnp.where(pairs[:, :, None], factors, 1.0), axis=1)
    weighted = jnp.asarray(_WEIGHTS, kernel.dtype) * kernel
    return jnp.where(use, jnp.sum(basis * weighted[None], axis=1), 0.0)


def mix(weights: Float[Array, " k"], values: Float[Array, " k b *d"]) -> Float[Array, " b *d"]:
    """sum_j w_j (m_j - m_0), zero where no weight is."""
    # Accelerators would multiply matrices with fewer digits.
    return jnp.tensordot(weights[1:], values[1:] - values[:1], 1, precision="highest")


def _relative_length(cur: Level, nxt: Level) -> Array:
    """rho_nxt / rho_cur - 1."""
    _, h = step_size(cur, nxt)
    return jnp.where(jnp.isposinf(nxt.log_snr), -1.0, jnp.expm1(-h))


def rho_weights(history: History, cur: Level, nxt: Level) -> Float[Array, " k"]:
    """Weights of a polynomial in rho (Adams-Bashforth with variable steps), for `transfer`; `cur` is the latest entry.

    The step may end at rho = 0: the weights stay finite.
    """
    end = _relative_length(cur, nxt)
    points = jnp.asarray(POINTS, end.dtype)
    return integrals(jnp.expm1(-since(history, cur)) / end, usable(history), points, jnp.ones_like(points))


def transfer(x0: Array, eps: Array, change: Array, cur: Level, nxt: Level) -> Float[Array, " b *d"]:
    """The step of DDIM with the noise `eps + change`, where x0 belongs to `eps`: first equation of (1).

    `change` must be zero where alpha_cur is: there the step is DDIM's.
    """
    finite = jnp.isfinite(cur.log_snr)
    lam = 0.5 * jnp.where(finite, cur.log_snr, 0.0)
    length = jnp.exp(-lam) * _relative_length(cur, nxt)
    return (
        expand(nxt.alpha, eps) * x0
        + expand(nxt.sigma, eps) * eps
        + expand(jnp.where(finite, nxt.alpha * length, 0.0), eps) * change
    )
