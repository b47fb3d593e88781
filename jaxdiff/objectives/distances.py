r"""How far an answer is from its target.

| name | distance | from |
|---|---|---|
| `MeanSquared` | mean (y_hat - y)^2 | DDPM, arXiv:2006.11239, equation 14 |
| `PseudoHuber(factor)` | sqrt(|y_hat - y|^2 + c^2) - c, c = factor sqrt(D) | Song & Dhariwal 2023, arXiv:2310.14189 |

The pseudo-Huber distance is |y_hat - y|^2 / (2 c) for errors far below c and |y_hat - y| for errors far above: an
example that is far off pulls no harder than another. |.| is the Euclidean norm over all D numbers of an example, so
the minimiser is no longer the conditional mean: a denoiser trained with it is biased towards the median.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.numerics import mean_per_example
from jaxdiff.types import Array


@runtime_checkable
class Distance(Protocol):
    """(output [B, ...], target [B, ...]) -> [B]."""

    def __call__(self, output: Array, target: Array) -> Array: ...


@dataclass(frozen=True)
class MeanSquared:
    """The mean squared error over an example's numbers."""

    def __call__(self, output: Float[Array, " b *d"], target: Float[Array, " b *d"]) -> Float[Array, " b"]:
        return mean_per_example((output - target) ** 2)


@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(|output - target|^2 + c^2) - c.

    Args:
        factor: c / sqrt(D), for D numbers per example.

    Examples:
        >>> y = jnp.array([[3.0, 4.0]])
        >>> print(f"{PseudoHuber()(y, 0 * y)[0]:.3f}")
        4.999

    Reference: Song, Dhariwal. Improved techniques for training consistency models. 2023. arXiv:2310.14189
    (c = 0.00054 sqrt(D)).
    """

    factor: float = 0.00054

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise UsageError(f"factor={self.factor:g}: need factor > 0")

    def __call__(self, output: Float[Array, " b *d"], target: Float[Array, " b *d"]) -> Float[Array, " b"]:
        size = output[0].size
        c = self.factor * size**0.5
        square = size * mean_per_example((output - target) ** 2)
        # sqrt(s + c^2) - c without cancellation where s is small.
        return square / (jnp.sqrt(square + c**2) + c)
