r"""Exponential moving averages of the parameters.

    average <- average + (1 - d_n) (params - average),   d_n = min(decay, (1 + n) / (10 + n)),     (1)

after optimiser step n = 1, 2, ... The warm-up forgets the initial parameters, which at a constant decay of 0.9999
would still weigh e^-1 after 10,000 steps.

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, appendix B (decay 0.9999). The warm-up is TensorFlow's.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdiff.errors import UsageError
from jaxdiff.types import Array, PyTree


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
