"""A network as the core sees it: a function of bare parameters, equal and hashable by value."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Network:
    """A Linen module as `apply(params, x, t, cond, *, train, rngs)`: what `Model.apply` holds.

    Two networks of equal modules are equal and hash alike, so either may be a static argument of a jitted function.

    Args:
        module: any module with `__call__(x, t, cond=None, *, train=False, rngs=None)` and no state but parameters.

    Examples:
        >>> import jax
        >>> from jaxdiff.models import UNet
        >>> net = Network(UNet(channels=8, channel_mult=(1,), num_res_blocks=1))
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> params = net.init(jax.random.key(0), x)
        >>> keys = jax.random.split(jax.random.key(1), 2)
        >>> step = jax.jit(lambda keys: net(params, x, t, train=True, rngs={"dropout": keys}))
        >>> step(keys).shape
        (2, 8, 8, 3)
    """

    module: nn.Module

    def init(self, key: Array, x: Any, t: Any = None, cond: Mapping[str, Any] | None = None) -> Any:
        """Fresh parameters. They depend on the key and on shapes alone, never on values.

        Args:
            key: one PRNG key.
            x: an input [B, ..spatial.., C], or its jax.ShapeDtypeStruct.
            t: times [B]; zeros if None.
            cond: as the module takes it.

        Returns:
            The bare tree of float32 parameters.

        Raises:
            UsageError: what the module refuses.
        """
        if isinstance(x, jax.ShapeDtypeStruct):
            x = jnp.zeros(x.shape, x.dtype)
        if t is None:
            t = jnp.zeros(x.shape[:1], jnp.float32)
        return _init(self.module, key, x, t, cond)

    def __call__(
        self,
        params: Any,
        x: Any,
        t: Any,
        cond: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Any] | None = None,
    ) -> Array:
        """The module's output.

        Args:
            params: the tree that `init` returned.
            x: [B, ..spatial.., C].
            t: what the model's time input made of the level, [B].
            cond: as the module takes it.
            train: with dropout.
            rngs: {"dropout": one typed key per example, [B]}.

        Returns:
            What the module returns, usually [B, ..spatial.., C].

        Raises:
            UsageError: what the module refuses.
        """

        # Linen's `apply` has an argument `rngs` of its own, for single keys; ours must go past it.
        def call(module: Any) -> Array:
            return module(x, t, cond, train=train, rngs=rngs)

        return self.module.apply({"params": params}, method=call)  # type: ignore[return-value]


@partial(jax.jit, static_argnums=0)
def _init(module: nn.Module, key: Array, x: Array, t: Array, cond: Any) -> Any:
    return module.init(key, x, t, cond)["params"]
