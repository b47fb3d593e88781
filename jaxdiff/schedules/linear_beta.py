r"""The schedules of the SDEs with beta(t) = beta_min + t (beta_max - beta_min).

    B(t) = beta_min t + t^2 (beta_max - beta_min) / 2,    alpha_t = exp(-B(t) / 2).                  (1)

Reference: Song et al. Score-based generative modeling through SDEs. 2021. arXiv:2011.13456, equations 29 and 32-33;
the span's lower end is the sampling epsilon 1e-3 of its appendix C.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace, softplus


class _LinearBeta:
    beta_min: float
    beta_max: float

    num_steps = None
    span = (1e-3, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise UsageError(f"beta_min={self.beta_min:g}, beta_max={self.beta_max:g}: need 0 < beta_min <= beta_max")

    def _integral(self, t: Any) -> Any:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time(self, integral: Any) -> Any:
        xp = namespace(integral)
        integral = xp.minimum(integral, self._integral(1.0))
        slope = self.beta_max - self.beta_min
        # The root of (1) in the form without cancellation.
        return 2 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2 * slope * integral))


@dataclass(frozen=True)
class VP(_LinearBeta):
    """sigma^2 = 1 - exp(-B): log_snr = -log(exp(B) - 1), with beta from `beta_min` to `beta_max`."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return -xp.log(xp.expm1(self._integral(t)))

    def time(self, log_snr: Any) -> Any:
        return self._time(softplus(-log_snr))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """sigma = 1 - exp(-B): sigma / alpha = 2 sinh(B / 2), so log_snr = -2 log(2 sinh(B / 2)), with beta from
    `beta_min` to `beta_max`."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return -2 * xp.log(2 * xp.sinh(0.5 * self._integral(t)))

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        with np.errstate(over="ignore"):
            return self._time(2 * xp.arcsinh(0.5 * xp.exp(-0.5 * log_snr)))
