r"""Times that favour the middle of the way between data and noise, for flow matching.

Where the network already knows the answer, near both ends, there is little to learn. On a process with steps, a row is
taken with the probability of its share ((i / T, (i + 1) / T]) of [0, 1].

Reference: Esser et al. Scaling rectified flow transformers for high-resolution image synthesis. 2024. arXiv:2403.03206,
section 3.1.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdiff.errors import UsageError
from jaxdiff.numerics import sigmoid
from jaxdiff.objectives.times import check_t_min, time_or_row
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Level


@dataclass(frozen=True)
class LogitNormal:
    """log(t / (1 - t)) ~ N(mean, std^2): most often in the middle, never at the ends.

    Args:
        mean: m; below 0 leans to the data, above 0 to the noise.
        std: s.
        t_min: cleaner draws of a continuous process are moved to it.

    Reference: Esser et al. Scaling rectified flow transformers. 2024. arXiv:2403.03206, equation 19.
    """

    mean: float = 0.0
    std: float = 1.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        check_t_min(self.t_min)
        if not self.std > 0:
            raise UsageError(f"std={self.std:g}: need std > 0")

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level:
        del strata
        return time_or_row(process, sigmoid(self.mean + self.std * jax.vmap(jax.random.normal)(keys)), self.t_min)


@dataclass(frozen=True)
class Mode:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u uniform: more in the middle for scale > 0, less for scale < 0.

    Args:
        scale: s in [-1, 2 / (pi - 2)], where the map is monotone; 0 is uniform, 1.29 the paper's rf/mode(1.29).
        t_min: cleaner draws of a continuous process are moved to it.

    Reference: Esser et al. 2024. arXiv:2403.03206, equation 20.
    """

    scale: float = 1.29
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        check_t_min(self.t_min)
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise UsageError(f"scale={self.scale:g}: allowed is -1 to 2 / (pi - 2) = 1.752")

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level:
        del strata
        u = jax.vmap(jax.random.uniform)(keys)
        return time_or_row(process, 1 - u - self.scale * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1 + u), self.t_min)
