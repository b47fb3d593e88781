"""Uniform in the log-SNR."""

import math
from dataclasses import dataclass
from typing import Any

from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace


@dataclass(frozen=True)
class Geometric:
    r"""sigma/alpha = sigma_min^(1 - t) sigma_max^t: uniform in the log-SNR. t = 0 keeps the noise sigma_min.

    Reference: Song et al. 2021. arXiv:2011.13456, equation 30.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UsageError(
                f"sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}: need 0 < sigma_min < sigma_max"
            )

    num_steps = None
    span = (0.0, 1.0)

    def log_snr(self, t: Any) -> Any:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        # From the middle, where the terms are smallest: half the rounding of low + t (high - low).
        return -(low + high) - 2 * (t - 0.5) * (high - low)

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return xp.clip((-0.5 * log_snr - low) / (high - low), 0.0, 1.0)
