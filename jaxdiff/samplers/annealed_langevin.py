r"""Annealed Langevin dynamics: nothing but Langevin steps, while the noise level falls.

At each level sigma_i, T times,

    x <- x + a_i score + sqrt(2 a_i) z,    a_i = epsilon sigma_i^2 / sigma_L^2,    score = -eps / sigma_i,    (1)

sigma_L being the last level. Only h = epsilon / sigma_L^2 matters, the step in units of the level's variance:

    x <- x - h sigma eps + sqrt(2 h) sigma z,                                                               (2)

the Langevin step of `Corrected` with 2 snr^2 = h.

(NCSN writes a_i / 2 score + sqrt(a_i) z in the paper, so its epsilon is half as large a step; its code, NCSNv2's
paper and NCSNv2's code have (1).) To the next level x / alpha is carried over unchanged, which for NCSN's alpha = 1 is
x itself; the first level, where x comes from the prior, needs no steps. The step to clean data is the prediction x0
instead, the noiseless x + sigma_L^2 score that NCSNv2 ends with. A grid that ends at a noisy level ends as NCSN.

Nothing but the Langevin steps follows the falling noise. For data at a point and sigma_{i-1} = gamma sigma_i, a level
that starts with variance gamma^2 sigma_i^2 ends with

    s^2 / sigma_i^2 = (1 - h)^2T (gamma^2 - v) + v,    v = 2 h / (1 - (1 - h)^2) = 1 / (1 - h / 2),           (3)

of which v - 1 is the bias of a Langevin step and the rest what T steps were too few to forget. As levels are added
the second vanishes and the first stays; hence order 0. (It stays at a noisy level. For data with a spread V of its own
the bias is h sigma^2 / 2V, and on a grid that goes down to sigma^2 much below V the error falls with the levels.)

From alpha = 0 nothing can be carried over, and DDIM's move takes the place of the first Langevin step.

Reference: Song, Ermon. Generative modeling by estimating gradients of the data distribution. 2019. arXiv:1907.05600,
algorithm 1; Song, Ermon. Improved techniques for training score-based generative models. 2020. arXiv:2006.09011,
technique 4 for (3), and the denoising step.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like
from jaxdiff.samplers.base import Point
from jaxdiff.samplers.langevin import nudge, repeat
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class AnnealedLangevin:
    """Annealed Langevin dynamics.

    NCSN's paper takes T = 100 steps of size 0.1 at each of 10 levels; NCSNv2 5 of size 0.062 at each of 232
    (CIFAR-10). Steps so small need that many to follow the levels. The default is for tens of levels; its bias v - 1,
    a third, is for the denoising step to remove.

    Args:
        steps: T, Langevin steps per level, 1 or more.
        step_size: h = epsilon / sigma_L^2, above 0 and below 2 (where the chain diverges).

    Raises:
        UsageError: for arguments out of range.

    Examples:
        >>> AnnealedLangevin(steps=5, step_size=0.062).nfe
        5

    Reference: Song, Ermon. 2019. arXiv:1907.05600, algorithm 1.
    """

    steps: int = 1
    step_size: float = 0.5

    order = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: need 1 or more Langevin steps")
        if not 0 < self.step_size < 2:
            raise UsageError(f"step_size={self.step_size:g}: allowed is above 0 and below 2")

    @property
    def nfe(self) -> int:
        return self.steps

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x, keys = state.x, jax.vmap(jax.random.split)(key)
        moved = (nxt.sigma == 0) | (cur.alpha == 0)
        carried = expand(nxt.alpha / jnp.where(cur.alpha == 0, 1.0, cur.alpha), x) * x
        level = jax.tree.map(lambda before, after: jnp.where(moved, before, after), cur, nxt)
        x = jnp.where(moved, x, carried).astype(x.dtype)
        x0, eps, _ = denoise(x, level, cond)
        ddim = expand(nxt.alpha, x) * x0 + expand(nxt.sigma, x) * eps
        x = jnp.where(moved, ddim, self._nudged(x, eps, level, keys[:, 0])).astype(x.dtype)
        if self.steps == 1:
            return Point(x)

        def update(x: Array, keys: Array) -> Array:
            return jnp.where(nxt.sigma > 0, self._nudged(x, denoise(x, nxt, cond).eps, nxt, keys), x)

        return Point(repeat(update, x, keys[:, 1], self.steps - 1))

    def _nudged(self, x: Array, eps: Array, level: Level, keys: Array) -> Float[Array, " b *d"]:
        """Equation (2)."""
        return nudge(x, eps, level.sigma, math.sqrt(self.step_size / 2), normal_like(keys, x))
