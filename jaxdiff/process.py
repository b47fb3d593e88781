r"""The forward process: how data becomes noise, in closed form.

A process is a schedule t <-> log_snr and a scaling log_snr -> (alpha, sigma):

    q(x_t | x0) = N(alpha_t x0, sigma_t^2 I).                                       (1)

Between a noisier level `cur` and a cleaner one `nxt` (DDPM's t and t - 1, in any spacing), with
d = log_snr_cur - log_snr_nxt <= 0,

    q(x_cur | x_nxt) = N(alpha_cur / alpha_nxt x_nxt, sigma_cur^2 (1 - e^d) I),      (2)
    q(x_nxt | x_cur, x0) = N(alpha_nxt (1 - e^d) x0
                             + (alpha_cur / alpha_nxt) (sigma_nxt / sigma_cur)^2 x_cur,
                             sigma_nxt^2 (1 - e^d) I).                              (3)

For DDPM's betas (2) has variance beta_t and (3) is equation 7 of arXiv:2006.11239. Written with e^d nothing
cancels, and sigma_nxt = 0 needs no special case.

Reference: Kingma et al. Variational diffusion models. 2021. arXiv:2107.00630, appendix A.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.numerics import as_float, expand, namespace, safe_sqrt, sigmoid
from jaxdiff.schedules import NoiseSchedule
from jaxdiff.types import Array, Level


@runtime_checkable
class Scaling(Protocol):
    """log_snr -> (alpha, sigma) with 2 log(alpha / sigma) = log_snr."""

    def __call__(self, log_snr: Any) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1."""

    def __call__(self, log_snr: Any) -> tuple[Any, Any]:
        if namespace(log_snr) is jnp:
            return _unit_variance(log_snr)
        return np.sqrt(sigmoid(log_snr)), np.sqrt(sigmoid(-log_snr))


@jax.custom_jvp
def _unit_variance(log_snr: Array) -> tuple[Array, Array]:
    return jnp.sqrt(sigmoid(log_snr)), jnp.sqrt(sigmoid(-log_snr))


@_unit_variance.defjvp
def _unit_variance_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    # The root has no derivative at 0, where alpha or sigma of log_snr has: it is 0.
    alpha, sigma = _unit_variance(primals[0])
    half = 0.5 * tangents[0]
    return (alpha, sigma), (half * alpha * sigma**2, -half * sigma * alpha**2)


@dataclass(frozen=True)
class VarianceExploding:
    """alpha = 1."""

    def __call__(self, log_snr: Any) -> tuple[Any, Any]:
        xp = namespace(log_snr)
        return xp.ones_like(log_snr), xp.exp(-0.5 * log_snr)


@dataclass(frozen=True)
class SubVariancePreserving:
    """sigma = 1 - alpha^2, the sub-VP SDE's scaling.

    With s = sigma / alpha the condition is alpha^2 + s alpha = 1, whose root without cancellation is
    alpha = 2 / (s + sqrt(s^2 + 4)); written with s below and 1 / s above s = 1, neither of which overflows.
    """

    def __call__(self, log_snr: Any) -> tuple[Any, Any]:
        xp = namespace(log_snr)
        clean = log_snr >= 0
        small = xp.exp(0.5 * xp.where(clean, -log_snr, log_snr))  # s or 1 / s, at most 1
        root = xp.where(clean, small + xp.sqrt(small**2 + 4), 1 + xp.sqrt(1 + 4 * small**2))
        return 2 * xp.where(clean, 1.0, small) / root, 2 * xp.where(clean, small, 1.0) / root


@dataclass(frozen=True)
class Straight:
    """alpha + sigma = 1."""

    def __call__(self, log_snr: Any) -> tuple[Any, Any]:
        return sigmoid(0.5 * log_snr), sigmoid(-0.5 * log_snr)


@dataclass(frozen=True)
class ForwardProcess:
    """x_t = alpha_t x0 + sigma_t eps: a schedule t <-> log_snr times a scaling log_snr -> (alpha, sigma).

    Args:
        schedule: one of `jaxdiff.schedules`.
        scaling: `VariancePreserving()`, `SubVariancePreserving()`, `VarianceExploding()` or `Straight()`.

    Examples:
        >>> from jaxdiff import processes
        >>> level = processes.ddpm_linear()(1.0)
        >>> print(f"{level.alpha ** 2:.3g}")
        4.04e-05
    """

    schedule: NoiseSchedule
    scaling: Scaling

    @property
    def num_steps(self) -> int | None:
        """The number of rows of a table process; None for a continuous one."""
        return self.schedule.num_steps

    def __call__(self, t: Any) -> Level:
        """The level at process time `t` in [0, 1], any shape. float64 NumPy in, float64 NumPy out; else JAX."""
        t = as_float(t)
        log_snr = self.schedule.log_snr(t)
        return Level(t, *self.scaling(log_snr), log_snr)

    def at(self, log_snr: Any) -> Level:
        """The level of a log-SNR, any shape. `t` is clipped to [0, 1] outside the schedule's range."""
        log_snr = as_float(log_snr)
        return Level(self.schedule.time(log_snr), *self.scaling(log_snr), log_snr)

    def velocity(self, t: Any) -> tuple[Array, Array]:
        """(d alpha / dt, d sigma / dt) at process time `t`, by forward differentiation.

        At the ends, where the log-SNR is infinite, the derivative is that of the nearest interior time.
        """
        t = jnp.asarray(as_float(t))
        inside = jnp.clip(t, 1e-12, 1 - jnp.finfo(t.dtype).eps)
        _, rates = jax.jvp(lambda s: self.scaling(self.schedule.log_snr(s)), (inside,), (jnp.ones_like(inside),))
        return rates


@partial(jax.jit, static_argnames="process")
def q_sample(
    process: ForwardProcess, x0: Float[Array, "*x0"], t: Float[Array, "*t"] | float, eps: Float[Array, "*eps"]
) -> Float[Array, "*x0"]:
    """Noise clean examples to time t in one step: alpha_t x0 + sigma_t eps. Jit-compiled, `process` static.

    Args:
        process: the forward process.
        x0: clean examples, shape [B, ...] (or any shape with scalar t).
        t: process times in [0, 1]; a scalar, or one per example, shape [B].
        eps: standard normal noise, the shape of x0.

    Returns:
        Noisy examples, shape and dtype of x0.

    Raises:
        UsageError: if shapes do not fit.

    Examples:
        >>> import jax, jaxdiff
        >>> x0 = jax.numpy.ones((2, 8, 8, 1))
        >>> eps = jax.random.normal(jax.random.key(0), x0.shape)
        >>> jaxdiff.q_sample(jaxdiff.processes.ddpm_linear(), x0, jax.numpy.array([0.1, 0.9]), eps).shape
        (2, 8, 8, 1)

    Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, equation 4.
    """
    if jnp.shape(x0) != jnp.shape(eps):
        raise UsageError(f"eps must have the shape of x0 {jnp.shape(x0)}, got {jnp.shape(eps)}")
    level = process(t)
    return (expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps).astype(x0.dtype)


def _removed(cur: Level, nxt: Level) -> Array:
    """1 - e^d of (2) and (3): the share of the noise that the step from cur to nxt removes. 0 where they agree."""
    same = cur.log_snr == nxt.log_snr
    return -jnp.expm1(jnp.where(same, 0.0, jnp.where(same, 0.0, cur.log_snr) - jnp.where(same, 0.0, nxt.log_snr)))


def q_transition(cur: Level, nxt: Level) -> tuple[Array, Array]:
    """The step of the forward process from a cleaner to a noisier level, equation (2).

    Args:
        cur: the noisier level, scalars or [B].
        nxt: the cleaner level.

    Returns:
        (coef, std): q(x_cur | x_nxt) = N(coef x_nxt, std^2 I).
    """
    return cur.alpha / nxt.alpha, cur.sigma * safe_sqrt(_removed(cur, nxt))


def q_posterior(
    cur: Level, nxt: Level, x: Float[Array, " b *d"], x0: Float[Array, " b *d"]
) -> tuple[Float[Array, " b *d"], Float[Array, "*level"]]:
    """The reverse step when the clean example is known, equation (3).

    Args:
        cur: the level of x; scalars, or [B]. Must be noisy (sigma > 0).
        nxt: the cleaner level to step to.
        x: noisy examples at `cur`, shape [B, ...].
        x0: clean examples, shape [B, ...].

    Returns:
        (mean, var): q(x_nxt | x_cur, x0) = N(mean, var I); var has the shape of the levels.

    Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, equations 6-7.
    """
    removed = _removed(cur, nxt)
    keep = (cur.alpha / nxt.alpha) * (nxt.sigma / cur.sigma) ** 2
    mean = expand(nxt.alpha * removed, x0) * x0 + expand(keep, x) * x
    return mean, nxt.sigma**2 * removed


def stack(levels: Level) -> Level:
    """A float64 NumPy level as JAX arrays in the default precision: grids are computed exactly and cast once."""
    return Level(*(jnp.asarray(np.asarray(field), jnp.result_type(float)) for field in levels))
