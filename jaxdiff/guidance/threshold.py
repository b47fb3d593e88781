r"""Static thresholding: data in [-bound, bound] cannot have a clean example outside it.

    x0 <- clip(x0, -bound, bound),   eps <- (x - alpha x0) / sigma.                  (1)

DDPM's samplers clip so; with guidance it stops saturation from growing over the steps.

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239 (its code); Saharia et al. 2022. arXiv:2205.11487, section 2.3.
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, safe_divide
from jaxdiff.types import Array, Cond, Level, Prediction


def static_threshold(bound: float | Array = 1.0) -> Callable[[Denoiser], Denoiser]:
    """Clip the predicted clean example to the data's range.

    Args:
        bound: largest absolute value of the data, 1 for images in [-1, 1]; a scalar.

    Returns:
        A transform Denoiser -> Denoiser. Where nothing is clipped it changes nothing, bit for bit.
    """
    return lambda denoise: replace(denoise, fn=Partial(_clipped, denoise, bound))


def _clipped(denoise: Denoiser, bound: float | Array, x: Array, level: Level, cond: Cond) -> Prediction:
    x0, eps, var_frac = denoise(x, level, cond)
    clipped = jnp.clip(x0, -bound, bound)
    moved = safe_divide(expand(level.alpha, x) * (x0 - clipped), jnp.broadcast_to(expand(level.sigma, x), x.shape))
    return Prediction(clipped, eps + moved, var_frac)
