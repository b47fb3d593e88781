r"""Averages of the parameters. Several are kept side by side, each by its name.

The exponential one: after optimiser step n = 1, 2, ...

    average <- average + (1 - d_n) (params - average),   d_n = min(decay, (1 + n) / (10 + n)).     (1)

The warm-up forgets the initial parameters, which at a constant decay of 0.9999 would still weigh e^-1 after 10,000
steps. The power function's: the same with

    d_n = (1 - 1/n)^(gamma + 1),                                                                   (2)

so that after N steps those of step n weigh (n/N)^(gamma+1) - ((n-1)/N)^(gamma+1): the profile t^gamma, as wide
relative to the run at every N, without a trace of the initial parameters. Its width is said as its standard deviation
relative to N,

    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)),                                   (3)

0.05 and 0.10 in the paper. From snapshots of two such averages `posthoc` makes any other.

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, appendix B (decay 0.9999). The warm-up is TensorFlow's.
Karras et al. 2023. arXiv:2312.02696, equations 127 (2), 123 (3) and 126 (its inverse).
"""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.types import Array, PyTree

_WIDEST = 12**-0.5


@dataclass(frozen=True)
class EMA:
    """A constant-decay average with an optional warm-up.

    Args:
        decay: d of equation (1), in [0, 1).
        warmup: whether the decay grows from 2/11 as in (1), or is constant.
    """

    decay: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UsageError(f"ema decay={self.decay:g}: allowed is 0 <= decay < 1")

    def update(self, average: PyTree, params: PyTree, step: Array) -> PyTree:
        """The average after optimiser step `step` (counted from 1) that led to `params`."""
        n = step.astype(jnp.float32)
        decay = jnp.minimum(self.decay, (1 + n) / (10 + n)) if self.warmup else jnp.float32(self.decay)
        return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)


@dataclass(frozen=True)
class PowerEMA:
    """An average with a power function for its profile, equation (2).

    Args:
        sigma_rel: its width by equation (3), in (0, 0.2886]; 0.2886 is the plain mean of the whole run.

    Examples:
        >>> rule, average = PowerEMA(0.1), jnp.float32(0)
        >>> for n in range(1, 201):
        ...     average = rule.update(average, jnp.float32(n), jnp.int32(n))
        >>> round(float(average) / 200, 2)  # the profile's mean, (gamma + 1) / (gamma + 2)
        0.89

    Reference: Karras et al. 2023. arXiv:2312.02696, equation 127.
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        exponent(self.sigma_rel)

    def update(self, average: PyTree, params: PyTree, step: Array) -> PyTree:
        """The average after optimiser step `step` (counted from 1) that led to `params`."""
        # 1 - d_n, because in float32 d_n itself has no digit of it left after a million steps.
        share = -jnp.expm1((exponent(self.sigma_rel) + 1) * jnp.log1p(-1 / step.astype(jnp.float32)))
        return jax.tree.map(lambda a, p: a + share * (p - a), average, params)


@cache
def exponent(sigma_rel: float) -> float:
    """gamma of equation (3): the largest root of (gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1.

    Args:
        sigma_rel: in (0, 0.2886].

    Raises:
        UsageError: for a width out of range.

    Examples:
        >>> round(exponent(0.05), 2), round(exponent(0.10), 2)
        (16.97, 6.94)

    Reference: Karras et al. 2023. arXiv:2312.02696, equation 126 and algorithm 2.
    """
    if not 0 < sigma_rel <= _WIDEST:
        raise UsageError(f"ema sigma_rel={sigma_rel:g}: allowed is 0 < sigma_rel <= {_WIDEST:.4f}")
    t = float(sigma_rel) ** -2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())
