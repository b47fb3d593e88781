"""Dropout whose mask belongs to the example, not to its place in a batch.

Linen's own `rngs` holds one key for a whole batch, so its masks change with the batch size and the way a batch is
sharded. Here every example brings its key, and every dropout layer folds in a hash of its own path in the network:

    mask_i = bernoulli(fold_in(key_i, crc32(path)), 1 - rate)
"""

import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError


class Dropout(nn.Module):
    """Sets each value to 0 with probability `rate` and divides the rest by 1 - rate; identity unless `train`.

    Args:
        rate: in [0, 1).

    Calling it takes x [B, ...], `train`, and `rngs` = {"dropout": typed keys of shape [B]}, and returns the shape of x.

    Raises:
        UsageError: `train` with a rate above 0 and no typed keys [B]; a rate outside [0, 1).

    Examples:
        >>> import jax
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> y = Dropout(0.5).bind({})(jax.numpy.ones((4, 3)), train=True, rngs={"dropout": keys})
        >>> y.shape
        (4, 3)

    Reference: Hinton, Srivastava, Krizhevsky, Sutskever, Salakhutdinov, Improving neural networks by preventing
    co-adaptation of feature detectors, 2012, arXiv:1207.0580.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, rngs: Mapping[str, Any] | None = None) -> Array:
        if not 0 <= self.rate < 1:
            raise UsageError(f"dropout is {self.rate}: allowed is a rate in [0, 1)")
        if not train or self.rate == 0:
            return x
        keys = (rngs or {}).get("dropout")
        if not (isinstance(keys, Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
            given = type(keys).__name__ if keys is None or not hasattr(keys, "dtype") else f"of dtype {keys.dtype}"
            raise UsageError(f"rngs['dropout'] is {given}: allowed with train=True: typed keys (jax.random.key), [B]")
        if keys.shape != x.shape[:1]:
            raise UsageError(f"rngs['dropout'] has shape {keys.shape}: allowed is one key per example, {x.shape[:1]}")
        site = zlib.crc32("/".join(self.path).encode())  # str.__hash__ changes from process to process

        def mask(key: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(mask)(keys), x / (1 - self.rate), jnp.zeros_like(x))
