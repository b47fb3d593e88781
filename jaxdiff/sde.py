r"""The stochastic differential equation behind a forward process, its reverse, and the probability flow.

The marginals x_t = alpha x0 + sigma eps are those of

    dx = f x dt + g dw,    f = d log(alpha) / dt,    g^2 = -sigma^2 d log_snr / dt,                 (1)

(put d sigma^2 / dt = 2 f sigma^2 + g^2 and log_snr = 2 log(alpha / sigma)). Run backwards in time, with the score
grad log q(x) = -eps / sigma of a denoiser's eps = E[eps | x],

    dx = (f x + g^2 eps / sigma) dt + g dw',                                                         (2)
    dx = (f x + g^2 eps / (2 sigma)) dt = (alpha' x0 + sigma' eps) dt,                               (3)

have the same marginals; the second form of (3), with x = alpha x0 + sigma eps and the primes d/dt, needs no quotient
that is infinite where alpha or sigma is 0, and (2) is (3) plus (g^2 / (2 sigma)) eps.

Every derivative is taken by forward differentiation of the process, so any schedule and scaling will do. At the ends,
where the log-SNR may be infinite, coefficients are those of the nearest interior time and finite.

Reference: Song et al. Score-based generative modeling through SDEs. 2021. arXiv:2011.13456, equations 5, 6 and 13.
"""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser, check_rows
from jaxdiff.numerics import as_float, expand, safe_divide
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level


def _rates(process: ForwardProcess, t: Any) -> tuple[Level, Level]:
    """The level at `t`, moved into the open interval (0, 1), and its derivative by t."""
    t = jnp.asarray(as_float(t))
    inside = jnp.clip(t, 1e-12, 1 - jnp.finfo(t.dtype).eps)
    return jax.jvp(lambda s: process(s), (inside,), (jnp.ones_like(inside),))


def drift_and_diffusion(
    process: ForwardProcess, t: Float[Array, "*t"] | float
) -> tuple[Float[Array, "*t"], Float[Array, "*t"]]:
    """f and g of dx = f x dt + g dw, equation (1).

    Args:
        process: any forward process; a table's derivative is that of its interpolation.
        t: process times in [0, 1], any shape.

    Returns:
        (f, g), each of the shape of t, per unit of process time: f <= 0, g >= 0.

    Examples:
        >>> from jaxdiff import processes
        >>> f, g = drift_and_diffusion(processes.vp_sde(), 1.0)
        >>> print(f"{f:.4f} {g**2:.4f}")  # -beta / 2, beta
        -10.0000 20.0000

    Reference: Song et al. 2021. arXiv:2011.13456, equation 5.
    """
    level, rate = _rates(process, t)
    return safe_divide(rate.alpha, level.alpha), level.sigma * jnp.sqrt(jnp.maximum(-rate.log_snr, 0.0))


def reverse_sde(
    denoise: Denoiser, x: Float[Array, " b *d"], t: Float[Array, "*t"] | float, cond: Cond = None
) -> tuple[Float[Array, " b *d"], Float[Array, "*t"]]:
    """The drift and the diffusion of the reverse-time SDE, equation (2). Integrate it with dt < 0.

    Args:
        denoise: the denoiser; its process gives the coefficients.
        x: noisy examples at time t, shape [B, ...].
        t: process times in [0, 1]; a scalar, or one per example [B].
        cond: conditioning, a dict of arrays with leading axis B, or None.

    Returns:
        (drift, g): dx = drift dt + g dw', the drift in the shape of x, g in that of t.

    Reference: Song et al. 2021. arXiv:2011.13456, equation 6.
    """
    check_rows(denoise, t, what="reverse_sde")
    level, rate = _rates(denoise.process, t)
    prediction = denoise(x, level, cond)
    noise = rate.sigma - 0.5 * level.sigma * rate.log_snr
    drift = expand(rate.alpha, x) * prediction.x0 + expand(noise, x) * prediction.eps
    return drift.astype(x.dtype), level.sigma * jnp.sqrt(jnp.maximum(-rate.log_snr, 0.0))


def probability_flow(
    denoise: Denoiser, x: Float[Array, " b *d"], t: Float[Array, "*t"] | float, cond: Cond = None
) -> Float[Array, " b *d"]:
    """dx/dt of the ODE with the same marginals, equation (3). See `reverse_sde` for the arguments.

    Returns:
        dx/dt, the shape of x.

    Examples:
        >>> from jaxdiff import analytic, processes
        >>> data = analytic.Gaussian(jnp.zeros(2), jnp.eye(2))  # of the prior's own covariance: nothing moves
        >>> print(abs(probability_flow(data.denoiser(processes.vp_sde()), jnp.ones((3, 2)), 0.5)).max() < 1e-5)
        True

    Reference: Song et al. 2021. arXiv:2011.13456, equation 13.
    """
    check_rows(denoise, t, what="probability_flow")
    level, rate = _rates(denoise.process, t)
    prediction = denoise(x, level, cond)
    return (expand(rate.alpha, x) * prediction.x0 + expand(rate.sigma, x) * prediction.eps).astype(x.dtype)


def prior_log_prob(process: ForwardProcess, x: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """log N(x; 0, sigma_1^2 I), the density that `prior_sample` draws from.

    Args:
        process: the forward process.
        x: examples at t = 1, shape [B, ...].

    Returns:
        Natural logarithms, shape [B], summed over every other axis.

    Examples:
        >>> from jaxdiff import processes
        >>> print(prior_log_prob(processes.rectified_flow(), jnp.zeros((2, 3))))  # -3/2 log(2 pi)
        [-2.7568154 -2.7568154]
    """
    sigma = process(1.0).sigma
    x = x.reshape(x.shape[0], -1)
    return -0.5 * jnp.sum((x / sigma) ** 2, axis=1) - x.shape[1] * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi))


def solve_diffrax(
    denoise: Denoiser,
    x: Float[Array, " b *d"],
    t0: float = 1.0,
    t1: float = 1e-3,
    *,
    solver: Any = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    cond: Cond = None,
) -> tuple[Float[Array, " b *d"], Array]:
    """Solve the probability flow from `t0` to `t1` with a solver of diffrax and adaptive steps.

    One step size serves the whole batch, so an example's error, always within the tolerances, depends a little on the
    batch around it; `jax.vmap` over batches of one makes it independent. Differentiable; compiled once per solver,
    structure of the denoiser and shapes.

    Args:
        denoise: the denoiser.
        x: examples at `t0`, shape [B, ...].
        t0: process time to start from, in [0, 1].
        t1: process time to end at: below t0 to sample, above it to encode data.
        solver: a diffrax solver; `diffrax.Dopri5()` if None.
        rtol: relative tolerance per step, root mean square over x.
        atol: absolute tolerance per step.
        max_steps: most steps; running out of them raises diffrax's own error.
        cond: conditioning, a dict of arrays with leading axis B, or None.

    Returns:
        (x, steps): x at `t1`, in its shape and dtype, and the number of steps taken, rejected ones included.

    Raises:
        UsageError: if diffrax is not installed, or a time lies outside [0, 1].
    """
    try:
        diffrax = importlib.import_module("diffrax")
    except ImportError:
        raise UsageError("solve_diffrax needs the package diffrax: pip install 'jaxdiff[diffrax]'") from None
    for name, time in (("t0", t0), ("t1", t1)):
        if not 0 <= time <= 1:
            raise UsageError(f"{name}={time:g}: a process time lies in [0, 1]")
    check_rows(denoise, t0, what="solve_diffrax", between=True)
    # As arrays: a Python number would be a constant of the compiled function.
    start, end = (jnp.asarray(time, jnp.result_type(float)) for time in (t0, t1))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_field),
        diffrax.Dopri5() if solver is None else solver,
        start,
        end,
        None,
        x,
        (denoise, cond),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
    )
    return solution.ys[0].astype(x.dtype), solution.stats["num_steps"]


def _field(t: Array, x: Array, args: tuple[Denoiser, Cond]) -> Array:
    return probability_flow(args[0], x, t, args[1])
