r"""Low-rank adapters: fine-tuning that leaves the network's parameters as they are.

A kernel W of some of the layers, as a matrix [in, out] (a convolution's [kernel size x in, out]), becomes

    W + scale A B,    A [in, rank] normal of variance 1 / in,    B [rank, out] zero at the start,          (1)

and only A and B are trained. The paper's scale is alpha / rank. The parameters of an adapted network are one tree,
{"base": as they were, "lora": A and B by the paths of their kernels}; its gradient is zero in "base", and
`freeze(tx, LoRA.FROZEN)` keeps no optimiser state there:

    params = {"base": params, "lora": lora_init(params, ["*/attn/*"], 4, key)}
    model = replace(model, apply=LoRA(model.apply, scale=1.0))
    tx = freeze(tx, LoRA.FROZEN)
    ...
    params = model.apply.merge(state.ema["ema"])        # parameters of the network itself, to export

Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685, equation 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.errors import UsageError
from jaxdiff.model import Network
from jaxdiff.train.paths import matrix_shape, select
from jaxdiff.types import Array, PyTree


def lora_init(params: PyTree, patterns: Sequence[str], rank: int, key: Array) -> PyTree:
    """Adapters that change nothing yet.

    Args:
        params: the network's parameters, a nested dict.
        patterns: of the paths of kernels, such as "*/attn/*"; what else they match (biases, tables) is left alone.
        rank: of A B, 1 or more.
        key: one PRNG key.

    Returns:
        A nested dict: for each kernel matched {"a": [in, rank], "b": [rank, out]}, with the axis of depth in front
        where the network has stacked its blocks.

    Raises:
        UsageError: for a pattern that matches no parameter, patterns that match no kernel, or a rank below 1.

    Examples:
        >>> params = {"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}}
        >>> adapters = lora_init(params, ["dense/*"], 2, jax.random.key(0))
        >>> jax.tree.map(jnp.shape, adapters)
        {'dense': {'kernel': {'a': (8, 2), 'b': (2, 4)}}}
    """
    if rank < 1:
        raise UsageError(f"lora rank={rank}: allowed is 1 or more")
    chosen, flat = select(params, patterns), flatten_dict(params)
    shapes = {path: matrix_shape("/".join(path), flat[path]) for path in sorted(flat) if "/".join(path) in chosen}
    kernels = {path: shape for path, shape in shapes.items() if shape}
    if not kernels:
        raise UsageError(f"lora patterns {list(patterns)} match no kernel: allowed are paths of matrices, '*/kernel'")
    keys = jax.random.split(key, len(kernels))
    made = {}
    for one, (path, (stack, rows, columns)) in zip(keys, kernels.items(), strict=True):
        a = jax.random.normal(one, (*stack, rows, rank), jnp.float32) * rows**-0.5
        made[path] = {"a": a, "b": jnp.zeros((*stack, rank, columns), jnp.float32)}
    return unflatten_dict(made)


def lora_merge(params: PyTree, adapters: PyTree, scale: int | float) -> PyTree:
    """Equation (1): the network's parameters with the adapters in them.

    Args:
        params: the network's parameters, a nested dict.
        adapters: from `lora_init` on the same tree.
        scale: of A B.

    Returns:
        A tree like `params`.

    Raises:
        UsageError: for an adapter of a kernel that is not there.

    Examples:
        >>> params = {"kernel": jnp.zeros((2, 3))}
        >>> lora_merge(params, {"kernel": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 3))}}, 0.5)["kernel"].tolist()
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    flat, parts = flatten_dict(params), flatten_dict(adapters)
    for path in {path[:-1] for path in parts}:
        if path not in flat:
            raise UsageError(f"lora adapter of {'/'.join(path)!r}: the network has no such parameter")
        # Training goes through this product, and TPUs would make it in bfloat16.
        change = jnp.matmul(parts[*path, "a"], parts[*path, "b"], precision="highest")
        flat[path] = flat[path] + scale * change.reshape(flat[path].shape)
    return unflatten_dict(flat)


@dataclass(frozen=True)
class LoRA:
    """A network with adapters: a `Network` whose parameters are {"base": .., "lora": ..}.

    Args:
        network: the network.
        scale: of A B in equation (1).

    Examples:
        >>> from jaxdiff.models import MLP, Network
        >>> net = Network(MLP(features=8, num_blocks=1))
        >>> x, t = jnp.ones((2, 3)), jnp.zeros(2)
        >>> base = net.init(jax.random.key(0), x)
        >>> params = {"base": base, "lora": lora_init(base, ["*/kernel"], 2, jax.random.key(1))}
        >>> bool((LoRA(net)(params, x, t, None) == net(base, x, t)).all())
        True
    """

    FROZEN: ClassVar[tuple[str, ...]] = ("base/*",)

    network: Network
    scale: int | float = 1.0

    def __call__(
        self,
        params: PyTree,
        x: Any,
        t: Any,
        cond: Any = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Any] | None = None,
    ) -> Array:
        """The network's output with the adapters merged in; derivatives reach the adapters alone."""
        merged = self.merge({**params, "base": jax.lax.stop_gradient(params["base"])})
        return self.network(merged, x, t, cond, train=train, rngs=rngs)  # type: ignore[arg-type]

    def merge(self, params: PyTree) -> PyTree:
        """Parameters of `network` itself that answer as these do."""
        return lora_merge(params["base"], params["lora"], self.scale)
