r"""From data to noise: the deterministic samplers, run backwards.

The probability flow has no direction. A deterministic sampler over the levels of a grid in reverse takes an example
to the noise it comes from; with DDIM or Euler this is DDIM inversion.

Only the clean end is special: at sigma = 0 nothing is known of eps. With s = sigma / alpha and y = x / alpha the flow
is dy/ds = eps, and eps = -s grad log p(y, s) is odd in s, so from data to the cleanest noisy level s_1

    y_1 = x0 + integral_0^s_1 eps ds = x0 + (s_1 / 2) eps(x0, s_1) + O(s_1^4).                 (1)

One evaluation, of order 3 on its own, and nothing is ever asked at sigma = 0. Evaluating at x0 and not at y_1 costs
no order, because they differ by O(s_1^2) and eps' derivative is O(s_1).

Reference: Song, Meng, Ermon. 2021. arXiv:2010.02502, section 4.3 and equation 14 (DDIM inversion);
Song et al. 2021. arXiv:2011.13456, section 4.3 (the flow both ways).
"""

from dataclasses import replace

import jax
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.samplers.base import Sampler, sample
from jaxdiff.samplers.checks import check, check_x
from jaxdiff.types import Array, Cond, Level, Prediction


def invert(
    denoise: Denoiser,
    sampler: Sampler,
    levels: Level,
    x0: Float[Array, " b *d"],
    key: Array,
    *,
    cond: Cond = None,
) -> Float[Array, " b *d"]:
    """The noise that a deterministic sampler would turn into x0: the grid in reverse, equation (1) first.

    Args:
        denoise: the denoiser.
        sampler: a deterministic sampler of `jaxdiff.samplers`.
        levels: the grid for sampling: n + 1 stacked levels, noisiest first, clean data last.
        x0: clean examples, shape [B, ...].
        key: one key, or one per example [B]; nothing is drawn from it.
        cond: conditioning, a dict of arrays with leading axis B, or None.

    Returns:
        x at the first of `levels`, the shape and dtype of x0. Its error is of the sampler's order, if the cleanest
        noisy level is clean enough for (1).

    Raises:
        UsageError: for a sampler that draws noise, or a grid that does not end at clean data.

    Examples:
        >>> import jaxdiff, jax.numpy as jnp
        >>> process = jaxdiff.processes.vp_sde()
        >>> denoise = jaxdiff.analytic.Gaussian(jnp.zeros(2), jnp.eye(2)).denoiser(process)
        >>> levels, x0 = jaxdiff.grids.uniform(process, 10), jnp.ones((1, 2))
        >>> invert(denoise, jaxdiff.samplers.DDIM(), levels, x0, jax.random.key(0)).shape
        (1, 2)

    Reference: Song, Meng, Ermon. 2021. arXiv:2010.02502, equation 14.
    """
    if levels.t.ndim != 1 or levels.t.shape[0] < 2:
        raise UsageError(f"levels must be two or more stacked levels, got t of shape {levels.t.shape}")
    if not isinstance(levels.sigma, jax.core.Tracer) and levels.sigma[-1] != 0:
        raise UsageError(f"levels must end at clean data (sigma = 0), got sigma={float(levels.sigma[-1]):g}")
    check_x(x0)
    check(denoise, sampler, levels)
    noisy = jax.tree.map(lambda a: a[-2::-1], levels)
    first = jax.tree.map(lambda a: a[0], noisy)
    if _draws(denoise, sampler, first, x0):
        raise UsageError(f"{sampler} draws noise: only deterministic samplers can be inverted (churn or eta of 0)")
    clean = first.alpha * x0
    x = (clean + 0.5 * first.sigma * denoise(clean.astype(x0.dtype), first, cond).eps).astype(x0.dtype)
    return x if levels.t.shape[0] == 2 else sample(denoise, sampler, noisy, x, key, cond=cond)[0]


def _draws(denoise: Denoiser, sampler: Sampler, level: Level, x: Array) -> bool:
    """Whether a step of the sampler reads its key, from its trace with a denoiser that costs nothing."""
    blank = replace(denoise, fn=Partial(lambda x, level, cond: Prediction(x, x, x)))

    def step(keys: Array) -> Array:
        return sampler.step(blank, sampler.init(x), level, level, keys, None).x

    jaxpr = jax.make_jaxpr(step)(jax.random.split(jax.random.key(0), x.shape[0])).jaxpr
    return any(jaxpr.invars[0] is read for equation in jaxpr.eqns for read in equation.invars)
