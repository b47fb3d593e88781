"""What is computed in which precision.

Parameters, their averages and the optimiser's state are float32, always: an average in bfloat16 never moves at a decay
of 0.9999, because what a step adds to it is below its last digit. What may be bfloat16 is the arithmetic of the
network, its `dtype`; norms, softmax, the path of time and the loss stay float32.

float32 arithmetic is not the same everywhere. By default a TPU multiplies float32 matrices in bfloat16, and a GPU of
NVIDIA's in TF32, with 8 and 11 bits of mantissa: enough to train, a loss in sampling and in likelihoods.
`matmul="highest"` says float32 and means it. It is written into the program where the network is traced, so it holds
under `jit`, in derivatives, and whatever JAX's own setting is.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from jaxdiff.errors import UsageError
from jaxdiff.models import Network

_ALLOWED: dict[str, tuple[str | None, ...]] = {
    "params": ("float32",),
    "compute": ("float32", "bfloat16"),
    "output": ("float32", "bfloat16"),
    "matmul": (None, "default", "high", "highest"),
}


@dataclass(frozen=True)
class Policy:
    """The precision of a network.

    Args:
        params: of the parameters, averages and optimiser state: "float32".
        compute: of the network's arithmetic, "float32" or "bfloat16".
        output: of what the network answers, "float32" or "bfloat16".
        matmul: of products of float32 matrices and convolutions: "default" (the device's own: bfloat16 on a TPU, TF32
            on a GPU), "high" (in between), "highest" (float32), or None for what JAX is set to.

    Raises:
        UsageError: for any other value.

    Examples:
        >>> from jaxdiff import models
        >>> net = Policy(compute="bfloat16").network(models.make("unet", channels=32))
        >>> net.module.dtype
        dtype(bfloat16)
    """

    params: str = "float32"
    compute: str = "float32"
    output: str = "float32"
    matmul: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"precision.{name}={getattr(self, name)!r}: allowed is {', '.join(str(value) for value in allowed)}"
                )

    def network(self, network: Network) -> "PreciseNetwork":
        """The network under this policy, whatever policy it was under; its parameters are the same."""
        return PreciseNetwork(network.module.clone(dtype=jax.numpy.dtype(self.compute)), self)


#: For sampling and likelihoods.
EXACT = Policy(matmul="highest")


@dataclass(frozen=True)
class PreciseNetwork(Network):
    """A network whose products and output have the precision of a policy.

    Args:
        module: as of `Network`.
        policy: the policy; its `compute` is the module's `dtype`, see `Policy.network`.
    """

    policy: Policy = Policy()

    def __call__(
        self,
        params: Any,
        x: Any,
        t: Any,
        cond: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Any] | None = None,
    ) -> jax.Array:
        """The module's output, as `Network` has it, in `policy.output`."""
        matmul = self.policy.matmul
        with nullcontext() if matmul is None else jax.default_matmul_precision(matmul):
            return super().__call__(params, x, t, cond, train=train, rngs=rngs).astype(self.policy.output)
