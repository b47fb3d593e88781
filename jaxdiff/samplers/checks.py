"""What `sample` refuses before it compiles anything: examples, levels and networks that do not go together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser, check_rows
from jaxdiff.types import Array, Level


def check_x(x: Array) -> None:
    """Refuse examples without a batch axis, and whole numbers, which would round every step away."""
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UsageError(f"x must be floating-point examples [B, ...], got shape {x.shape} of {x.dtype}")


def check(denoise: Denoiser, sampler: Any, levels: Level) -> None:
    """Refuse levels that are not the denoiser's, not in order, or where its network cannot be asked. `sample` does this
    by itself.

    Args:
        denoise: the denoiser.
        sampler: the sampler.
        levels: stacked levels; not looked at while they are traced.

    Raises:
        UsageError: naming the sampler, or the first such level.
    """
    check_rows(denoise, levels.t, what=str(sampler), between=getattr(sampler, "between", False))
    if any(isinstance(field, jax.core.Tracer) for field in levels):
        return
    given = jax.tree.map(lambda field: np.asarray(field, np.float64), levels)
    if len({field.shape for field in given}) > 1:
        raise UsageError(f"levels must have fields of one length, got {[len(field) for field in given]}")
    later, earlier = given.log_snr[1:], given.log_snr[:-1]
    if not ((later > earlier).all() or (later < earlier).all()):
        raise UsageError("levels must be in order of noise: one is repeated, out of order or no number")
    expected = denoise.process.at(given.log_snr)
    for name in ("alpha", "sigma"):
        off = ~np.isclose(getattr(given, name), getattr(expected, name), rtol=1e-3, atol=1e-6)
        if off.any():
            here, there = getattr(given, name)[off][0], getattr(expected, name)[off][0]
            raise UsageError(f"levels are not of the denoiser's process: {name} {here:.4g} where that has {there:.4g}")
