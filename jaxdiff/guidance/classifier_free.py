r"""Classifier-free guidance: push the conditional prediction away from the unconditional one.

    prediction = conditional + (scale - 1) (conditional - unconditional),             (1)

on x0 and eps alike. The weights sum to 1, so alpha x0 + sigma eps = x is kept, and scale 1 is exactly the
conditional model. (The paper's w is scale - 1.) Both predictions come from one call on a doubled batch.

Reference: Ho, Salimans. Classifier-free diffusion guidance. 2022. arXiv:2207.12598, equation 6.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand
from jaxdiff.types import Array, Cond, Level, Prediction


def classifier_free(scale: float | Array, null: Mapping[str, Any]) -> Callable[[Denoiser], Denoiser]:
    """Guide with the model's own unconditional prediction.

    Args:
        scale: guidance scale; 1 = off. A number or one per example [B]; may be traced.
        null: what replaces the condition, for the keys of `cond` it names: the null label
            {"label": num_classes}, or another prompt's arrays (a negative prompt). Scalars fill the batch.

    Returns:
        A transform Denoiser -> Denoiser. It needs `cond`.

    Raises:
        UsageError: at the call, without a `cond` that has the keys of `null`.

    Examples:
        >>> transform = classifier_free(2.0, {"label": 10})

    Reference: Ho, Salimans. 2022. arXiv:2207.12598.
    """
    return lambda denoise: replace(denoise, fn=Partial(_guided, denoise, scale, dict(null)))


def _guided(denoise: Denoiser, scale: float | Array, null: dict, x: Array, level: Level, cond: Cond) -> Prediction:
    missing = sorted(set(null) - set(cond or {}))
    if missing:
        raise UsageError(f"classifier-free guidance needs cond[{missing[0]!r}], got {sorted(cond or {})}")

    def filled(name: str, value: Array) -> Array:
        return jnp.broadcast_to(null[name], value.shape).astype(value.dtype) if name in null else value

    def twice(a: Array, b: Array) -> Array:
        return jnp.concatenate([a, b])

    both = jax.tree.map(twice, dict(cond), {name: filled(name, value) for name, value in cond.items()})
    levels = Level(*(twice(v, v) if jnp.ndim(v) else v for v in level))
    answer = denoise(twice(x, x), levels, both)
    given, free = (jax.tree.map(lambda a, h=half: jnp.split(a, 2)[h], answer) for half in (0, 1))
    excess = expand(jnp.asarray(scale - 1, x.dtype), x)
    return Prediction(
        given.x0 + excess * (given.x0 - free.x0), given.eps + excess * (given.eps - free.eps), given.var_frac
    )
