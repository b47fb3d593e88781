r"""Langevin corrections: steps that stay at a noise level and pull x towards that level's distribution.

    x <- x + e score + sqrt(2 e) z,    e = 2 (snr ratio sigma)^2,    score = -eps / sigma,                   (1)
    that is    x <- x - 2 (snr ratio)^2 sigma eps + 2 snr ratio sigma z,                                     (2)

is a step of the Langevin diffusion whose stationary distribution is q(x) at the level (z ~ N(0, I)). `ratio` is 1
(norm="expected"), or |z| / |eps| per example (norm="example"): the paper's, who average each norm over the batch where
that is large, which makes an image depend on its batch. 1 is what the ratio is on average for pure noise, |z| and |eps|
being sqrt(dimensions); the step then does not depend on x, and the authors' code has it under the name of annealed
Langevin dynamics. The factor 1 - beta that the paper's VP version puts on e is left out: it depends on the spacing of
the grid, and is 1 in the limit of small steps.

What the corrector does not do is to converge with the number of levels. On N(m, V) at a level, (2) with ratio 1 maps
a deviation d from the mean to a d + 2 snr sigma z with a = 1 - 2 snr^2 sigma^2 / V, whose stationary variance is

    (2 snr sigma)^2 / (1 - a^2) = V / (1 - snr^2 sigma^2 / V),                                               (3)

too large by a share of about snr^2 sigma^2 / V: 2.6 % at most for snr = 0.16 where data has no spread of its own,
less as sigma falls. More levels leave that share where it is, so `order` is 0; what they do take away, with the
corrector more than without, is the error of the predictor.

A step predicts from `cur` to `nxt` and then corrects at `nxt` (algorithm 1). Clean data has no score and is left as it
is, so that the last step costs the predictor's evaluations alone.

Reference: Song et al. Score-based generative modeling through stochastic differential equations. 2021.
arXiv:2011.13456, algorithms 1, 4 and 5; snr = 0.16: appendix H.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.reverse_diffusion import ReverseDiffusion
from jaxdiff.types import Array, Cond, Level

NORMS = ("expected", "example")


def repeat(
    update: Callable[[Array, Array], Array], x: Float[Array, " b *d"], keys: Array, steps: int
) -> Float[Array, " b *d"]:
    """Apply `update(x, keys)` `steps` times, each with keys of its own; compiled once however many."""
    if steps == 1:
        return update(x, keys).astype(x.dtype)
    split = jnp.swapaxes(jax.vmap(lambda k: jax.random.split(k, steps))(keys), 0, 1)
    return jax.lax.scan(lambda x, k: (update(x, k).astype(x.dtype), None), x, split)[0]


def nudge(
    x: Float[Array, " b *d"],
    eps: Float[Array, " b *d"],
    sigma: Array,
    snr: Float[Array, " b"] | float,
    noise: Float[Array, " b *d"],
) -> Float[Array, " b *d"]:
    """One Langevin step, equation (2), with `snr` times the ratio in one number (a scalar or one per example)."""
    drift, spread = 2 * jnp.square(snr) * sigma, 2 * snr * sigma
    return x - expand(drift, x) * eps + expand(spread, x) * noise


def norm_ratio(noise: Float[Array, " b *d"], eps: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """|noise| / |eps| of each example, 0 where eps is 0."""
    size, square = (jnp.sum(jnp.square(a.reshape(a.shape[0], -1)), axis=1) for a in (noise, eps))
    none = square == 0
    return jnp.where(none, 0.0, jnp.sqrt(size / jnp.where(none, 1.0, square)))


@dataclass(frozen=True)
class Corrected:
    """Predictor-corrector: a step of another sampler, then Langevin steps at the level it has reached.

    Args:
        sampler: the predictor; any sampler.
        steps: Langevin steps per level.
        snr: the size of a step, above 0 and below 1 (where the chain diverges); |drift| is about snr |noise|.
        norm: "expected" (a step of fixed size) or "example" (scaled by the norms of each example's noise and score).

    Raises:
        UsageError: for what is no sampler, steps below 1, an snr out of range, or an unknown norm.

    Examples:
        >>> Corrected(steps=2).nfe
        3

    Reference: Song et al. 2021. arXiv:2011.13456, algorithms 1 to 5.
    """

    sampler: Sampler = ReverseDiffusion()
    steps: int = 1
    snr: float = 0.16
    norm: str = "expected"

    order = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise UsageError(f"sampler={self.sampler!r}: must be a sampler, such as DDIM()")
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: need 1 or more Langevin steps")
        if not 0 < self.snr < 1:
            raise UsageError(f"snr={self.snr:g}: allowed is above 0 and below 1")
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)

    @property
    def nfe(self) -> int | None:
        return None if self.sampler.nfe is None else self.sampler.nfe + self.steps

    @property
    def between(self) -> bool:
        return getattr(self.sampler, "between", False)

    def init(self, x: Array) -> Any:
        return self.sampler.init(x)

    def step(self, denoise: Denoiser, state: Any, cur: Level, nxt: Level, key: Array, cond: Cond) -> Any:
        keys = jax.vmap(jax.random.split)(key)
        state = self.sampler.step(denoise, state, cur, nxt, keys[:, 0], cond)

        def update(x: Array, keys: Array) -> Array:
            eps, noise = denoise(x, nxt, cond).eps, normal_like(keys, x)
            return jnp.where(nxt.sigma > 0, nudge(x, eps, nxt.sigma, self.snr * self._ratio(noise, eps), noise), x)

        return state._replace(x=repeat(update, state.x, keys[:, 1], self.steps))

    def _ratio(self, noise: Array, eps: Array) -> Array | float:
        return 1.0 if self.norm == "expected" else norm_ratio(noise, eps)


def langevin(sampler: Sampler, steps: int = 1, snr: float = 0.16, norm: str = "expected") -> Corrected:
    """Add Langevin correction steps to a sampler: `Sampler -> Sampler`.

    Args:
        sampler: the predictor.
        steps: Langevin steps per level; each is an evaluation of the denoiser.
        snr: the size of a step, above 0 and below 1.
        norm: "expected" or "example"; see `Corrected`.

    Returns:
        The predictor-corrector sampler.

    Raises:
        UsageError: as `Corrected`.

    Examples:
        >>> from jaxdiff.samplers import DDIM
        >>> langevin(DDIM(), steps=2)
        Corrected(sampler=DDIM(eta=0.0), steps=2, snr=0.16, norm='expected')

    Reference: Song et al. 2021. arXiv:2011.13456, algorithm 1.
    """
    return Corrected(sampler, steps, snr, norm)
