r"""What every objective starts with: noise the batch at drawn levels, and ask the network.

    level ~ times,   x = alpha x0 + sigma eps,   output = network(x, level).            (1)

Each example draws from its own key alone, so a loss does not depend on the batch around it.

Offset noise adds to eps one number per channel, the same at all positions of an image:

    eps = n + offset c,   n ~ N(0, I),   c ~ N(0, 1) per channel.                       (2)

Then eps is not N(0, I): its variance is 1 + offset^2, and two positions of a channel have covariance offset^2. The
model learns the process with that noise; samplers that start from and add N(0, I) are only close to it.

Reference: Guttenberg. Diffusion with offset noise. 2023. https://www.crosslabs.org/blog/diffusion-with-offset-noise
for (2), offset 0.1.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.numerics import batch_keys, expand, normal_like
from jaxdiff.objectives.times import Times
from jaxdiff.types import Array, Level, PyTree


@runtime_checkable
class Objective(Protocol):
    """(model, params, batch, keys) -> (loss [B], metrics): per example, never reduced."""

    def __call__(self, model: Model, params: PyTree, batch: dict, keys: Array) -> tuple[Float[Array, " b"], dict]: ...


class Noised(NamedTuple):
    """A batch after (1).

    Attributes:
        level: the levels [B].
        x0: clean examples [B, ...].
        eps: their noise.
        x: noisy examples.
        output: the network's estimate of its target, the shape of x0.
        variance: its raw variance channels, the shape of x0, or None.
    """

    level: Level
    x0: Array
    eps: Array
    x: Array
    output: Array
    variance: Array | None


def noised(
    model: Model, params: PyTree, batch: dict[str, Any], keys: Array, times: Times, *, train: bool, offset: float = 0.0
) -> Noised:
    """Equation (1).

    Args:
        model: the model.
        params: its parameters.
        batch: {"x0": [B, ...] in [-1, 1], "cond": dict with leading axis B} and, from a train step, "strata".
        keys: one key per example [B].
        times: the distribution of noise levels.
        train: whether the network runs with dropout.
        offset: strength of (2); 0 for none.

    Raises:
        UsageError: for offset noise on examples without positions ([B, D]).
    """
    x0 = batch["x0"]
    time_key, noise_key, dropout_key = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0)
    level = times(model.process, time_key, batch.get("strata"))
    eps = normal_like(noise_key, x0)
    if offset:
        if x0.ndim < 3:
            raise UsageError(f"offset={offset:g}: offset noise needs examples with positions, got shape {x0.shape}")
        one = jnp.zeros((x0.shape[0], *(1 for _ in x0.shape[2:]), x0.shape[-1]), x0.dtype)
        shift_key = jax.vmap(jax.random.fold_in, (0, None))(batch_keys(noise_key, x0.shape[0]), 1)
        eps = eps + offset * jnp.broadcast_to(normal_like(shift_key, one), x0.shape)
    x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
    rngs = {"dropout": dropout_key} if train else None
    output, variance = model.output(params, x, level, batch.get("cond"), train=train, rngs=rngs)
    return Noised(level, x0, eps, x, output, variance)


def sum_per_example(x: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """Sum over every axis but the first: [B, ...] -> [B]."""
    return x.reshape(x.shape[0], -1).sum(axis=1)
