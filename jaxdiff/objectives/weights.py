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
| `SoftMinSNR(gamma)` | SNR gamma / (SNR + gamma) | gamma / (SNR + gamma) | Crowson et al. 2024, arXiv:2401.11605 |
| `Sigmoid(bias)` | SNR sigmoid(bias - log SNR) | sigmoid(bias - log SNR) | Kingma & Gao 2023, arXiv:2303.00848 |
| `importance.Likelihood(process)` | -d SNR/dt / 2 | -d log SNR/dt / 2 | Song et al. 2021, arXiv:2101.09258 |

with SNR = alpha^2 / sigma^2 and s = 1 / sqrt(SNR).

`Sigmoid(log gamma)` is `SoftMinSNR(gamma)`: gamma / (SNR + gamma) = sigmoid(log gamma - log SNR). The two papers differ
in the times: Kingma & Gao's weight is said per unit of log-SNR, which `UniformLogSNR` draws from.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.errors import UsageError
from jaxdiff.prediction import Parametrization, error_scale
from jaxdiff.types import Array, Level


@runtime_checkable
class Weight(Protocol):
    """(level, prediction) -> the weight on the squared x0 error, in the shape of the level."""

    def __call__(self, level: Level, prediction: Parametrization) -> Array: ...


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name}={value:g}: need {name} > 0")


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

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return jnp.minimum(jnp.exp(level.log_snr), self.gamma)


@dataclass(frozen=True)
class P2:
    """Less weight on levels so clean that there is little to learn.

    Args:
        k: the SNR around which the weight falls.
        gamma: how fast it falls; 0 is `SNR`.

    Reference: Choi et al. Perception prioritized training of diffusion models. 2022. arXiv:2204.00227.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _positive("k", self.k)

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        snr = jnp.exp(level.log_snr)
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class EDM:
    """Weight 1 on EDM's unit-variance target, for data of standard deviation `sigma_data`."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _positive("sigma_data", self.sigma_data)

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return jnp.exp(level.log_snr) + self.sigma_data**-2


@dataclass(frozen=True)
class SoftMinSNR:
    """1 / (1 / SNR + 1 / gamma): `MinSNR` with a smooth corner, half as high there.

    Args:
        gamma: the cap; 4, which is 1 / sigma_data^2 for data of standard deviation 0.5, in the authors' code.

    Reference: Crowson et al. Scalable high-resolution pixel-space image synthesis with hourglass diffusion
    transformers. 2024. arXiv:2401.11605, "soft-min-SNR"; k-diffusion's weighting of that name.
    """

    gamma: float = 4.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UsageError(f"gamma={self.gamma:g}: need gamma > 0")

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return 1 / (jnp.exp(-level.log_snr) + 1 / self.gamma)


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - log SNR) on the noise.

    Args:
        bias: the log-SNR where the weight on the noise is one half; larger images want a smaller one.

    Reference: Kingma, Gao. Understanding diffusion objectives as the ELBO with simple data augmentation. 2023.
    arXiv:2303.00848; Hoogeboom et al. Simpler diffusion (SiD2). 2024. arXiv:2410.19324.
    """

    bias: float = -1.0

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return 1 / (jnp.exp(-level.log_snr) + math.exp(-self.bias))
