r"""How much each noise level counts.

A weight w is said on the squared error of x0, where all targets can be compared; the loss itself is taken on the
network's target y and multiplied by w / error_scale^2 (`jaxdiff.prediction`, equation 3):

    w |x0_hat - x0|^2 = w / error_scale^2 |y_hat - y|^2.                            (1)

| name | w | for eps-prediction this is | from |
|---|---|---|---|
| `Simple` | error_scale^2 | 1 | 1 on the network's own target: DDPM, arXiv:2006.11239, equation 14 |
| `SNR` | SNR | 1 | 1 on eps, whatever the target |
| `MinSNR(gamma)` | min(SNR, gamma) | min(1, gamma / SNR) | Hang et al. 2023, arXiv:2303.09556, equation 8 |
| `P2(k, gamma)` | SNR / (k + SNR)^gamma | 1 / (k + SNR)^gamma | Choi et al. 2022, arXiv:2204.00227, equation 8 |
| `EDM(sigma_data)` | 1/s^2 + 1/sigma_data^2 | | Karras et al. 2022, arXiv:2206.00364, table 1 |

with SNR = alpha^2 / sigma^2 and s = 1 / sqrt(SNR).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.prediction import Parametrization, error_scale
from jaxdiff.types import Array, Level


@runtime_checkable
class Weight(Protocol):
    """(level, prediction) -> the weight on the squared x0 error, in the shape of the level."""

    def __call__(self, level: Level, prediction: Parametrization) -> Array: ...


@dataclass(frozen=True)
class Simple:
    """1 on the network's own target."""

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        return error_scale(prediction, level) ** 2


@dataclass(frozen=True)
class SNR:
    """1 on the noise, whatever the network's target is."""

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return jnp.exp(level.log_snr)


@dataclass(frozen=True)
class MinSNR:
    """The SNR, capped at `gamma`.

    Reference: Hang et al. Efficient diffusion training via min-SNR weighting. 2023. arXiv:2303.09556.
    """

    gamma: float = 5.0

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return jnp.minimum(jnp.exp(level.log_snr), self.gamma)


@dataclass(frozen=True)
class P2:
    """Less weight on levels so clean that there is little to learn.

    Reference: Choi et al. Perception prioritized training of diffusion models. 2022. arXiv:2204.00227.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        snr = jnp.exp(level.log_snr)
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class EDM:
    """Weight 1 on EDM's unit-variance target."""

    sigma_data: float = 0.5

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return jnp.exp(level.log_snr) + self.sigma_data**-2
