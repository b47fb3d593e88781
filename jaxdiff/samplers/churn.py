r"""Noise that a step adds on top of the probability flow: raised before it (churn), or after it (ancestral).

With s = sigma / alpha and y = x / alpha the flow is dy/ds = eps whatever the scaling, and noise of variance v added
to y takes it from s to sqrt(s^2 + v).

Churn raises the level before the step, from s to s_hat = (1 + gamma) s:

    x_hat = (alpha_hat / alpha) x + sigma_hat sqrt(1 - (1 + gamma)^-2) s_noise z.                       (1)

An ancestral step goes below the next level, to s_down, and adds noise back up to it; with d <= 0 the difference of
log-SNR between the two levels,

    s_down^2 = s_nxt^2 (1 - u),   s_up^2 = s_nxt^2 u,   u = min(eta^2 (1 - e^d), 1).                     (2)

Both leave the right marginal distribution where the flow is solved exactly, so the weak order is the flow's.

Reference: Karras et al. Elucidating the design space. 2022. arXiv:2206.00364, algorithm 2 for (1);
Ho, Jain, Abbeel. 2020. arXiv:2006.11239, equation 7 for (2) with eta = 1, in the form of k-diffusion's ancestral step.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.numerics import expand, normal_like
from jaxdiff.process import ForwardProcess
from jaxdiff.samplers.base import Point
from jaxdiff.types import Array, Level

MOST = math.sqrt(2) - 1  # no more new noise than there is


def per_step(s_churn: float, num_steps: int) -> float:
    """The paper's gamma = min(S_churn / N, sqrt(2) - 1), which a step cannot know without N.

    Args:
        s_churn: the paper's S_churn, at least 0; 40 over 256 steps for EDM's ImageNet-64.
        num_steps: N, the number of steps of the grid.

    Returns:
        The `churn` of a sampler.

    Examples:
        >>> per_step(40.0, 256)
        0.15625

    Reference: Karras et al. 2022. arXiv:2206.00364, algorithm 2.
    """
    if not s_churn >= 0 or num_steps < 1:
        raise UsageError(f"s_churn={s_churn:g}, num_steps={num_steps}: need s_churn >= 0 and at least 1 step")
    return min(s_churn / num_steps, MOST)


@dataclass(frozen=True)
class Churned:
    """A sampler that may raise the noise before each step, equation (1).

    Args:
        churn: gamma, the part by which a step raises sigma / alpha, in [0, sqrt(2) - 1]; 0 is deterministic. The
            paper's S_churn spread over N steps: `per_step(s_churn, N)`, which converges as N grows.
        s_min: churn only where sigma / alpha is at least this.
        s_max: and at most this.
        s_noise: standard deviation of the new noise; 1 is exact, the paper's 1.003 makes up for a network that
            removes slightly too much.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.churn <= MOST:
            raise UsageError(f"churn={self.churn:g}: allowed is 0 to sqrt(2) - 1 = {MOST:.4f}")
        if not 0 <= self.s_min <= self.s_max:
            raise UsageError(f"s_min={self.s_min:g}, s_max={self.s_max:g}: need 0 <= s_min <= s_max")
        if not self.s_noise >= 0:
            raise UsageError(f"s_noise={self.s_noise:g}: need s_noise >= 0")

    @property
    def between(self) -> bool:
        """Whether it evaluates between the levels of the grid."""
        return self.churn > 0

    def init(self, x: Array) -> Point:
        return Point(x)

    def raised(self, process: ForwardProcess, x: Float[Array, " b *d"], cur: Level, key: Array) -> tuple[Array, Level]:
        """x at the raised level, and that level. Where there is no signal there is nothing to raise."""
        if self.churn == 0:
            return x, cur
        ratio = jnp.exp(-0.5 * cur.log_snr)
        inside = (ratio >= self.s_min) & (ratio <= self.s_max) & (cur.alpha > 0)
        hat = process.at(jnp.where(inside, cur.log_snr, 0.0) - 2 * math.log1p(self.churn))
        hat = choose(inside, hat, cur)
        coef = jnp.where(inside, hat.alpha / jnp.where(inside, cur.alpha, 1.0), 1.0)
        std = jnp.where(inside, hat.sigma * self.s_noise * math.sqrt(1 - (1 + self.churn) ** -2), 0.0)
        return (expand(coef, x) * x + expand(std, x) * normal_like(key, x)).astype(x.dtype), hat


def ancestral(cur: Level, nxt: Level, eta: float) -> tuple[Level, Array]:
    """Equation (2): the level s_down in the scaling of `nxt` (alpha is `nxt.alpha`), and the noise alpha s_up."""
    drop = cur.log_snr - nxt.log_snr
    # 1 - u without cancellation for eta <= 1.
    kept = jnp.maximum((1 - eta**2) + eta**2 * jnp.exp(drop), 0.0)
    up = jnp.sqrt(jnp.minimum(-(eta**2) * jnp.expm1(drop), 1.0))
    some = kept > 0
    safe = jnp.where(some, kept, 1.0)
    down = jnp.where(some, jnp.sqrt(safe), 0.0)
    log_snr = jnp.where(some, nxt.log_snr - jnp.log(safe), jnp.inf)
    return nxt._replace(sigma=nxt.sigma * down, log_snr=log_snr), nxt.sigma * up


def check_noise(eta: float, s_noise: float) -> None:
    """Refuse what is not an amount of noise."""
    if not eta >= 0 or not s_noise >= 0:
        raise UsageError(f"eta={eta:g}, s_noise={s_noise:g}: allowed is 0 or more")


def choose(condition: Array, one: Level, other: Level) -> Level:
    """`one` where the condition holds, else `other`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
