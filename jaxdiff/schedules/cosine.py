r"""The cosine schedule in continuous time, whole or cut at both ends.

    log_snr = -2 log tan(u),   u = u_0 + t (u_1 - u_0),
    u_0 = arctan exp(-log_snr_max / 2),   u_1 = arctan exp(-log_snr_min / 2).                         (1)

Uncut, u = pi t / 2: in variance-preserving scaling alpha = cos(pi t / 2) and sigma = sin(pi t / 2).

Reference: Hoogeboom, Heek, Salimans. Simple diffusion. 2023. arXiv:2301.11093, section 3.1 and its appendix's code.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace


@dataclass(frozen=True)
class Cosine:
    """log_snr = -2 log tan(u), u linear in t, equation (1).

    Args:
        log_snr_min: at t = 1; -inf is zero terminal SNR.
        log_snr_max: at t = 0; inf is clean data.
    """

    log_snr_min: float = -math.inf
    log_snr_max: float = math.inf

    def __post_init__(self) -> None:
        if not self.log_snr_min < self.log_snr_max:
            raise UsageError(
                f"log_snr_min={self.log_snr_min:g}, log_snr_max={self.log_snr_max:g}: need log_snr_min < log_snr_max"
            )

    num_steps = None

    @property
    def span(self) -> tuple[float, float]:
        return (1e-3 if math.isinf(self.log_snr_max) else 0.0), (1 - 1e-3 if math.isinf(self.log_snr_min) else 1.0)

    @property
    def _angles(self) -> tuple[float, float, float]:
        """u_0, u_1 - u_0, and pi / 2 - u_1."""
        low = math.atan(math.exp(-0.5 * self.log_snr_max))
        rest = math.atan(math.exp(0.5 * self.log_snr_min))
        return low, math.pi / 2 - low - rest, rest

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        low, width, rest = self._angles
        with np.errstate(divide="ignore"):
            # Each sine from its own end: cos(u) near u = pi / 2 would cancel.
            return 2 * (xp.log(xp.sin(rest + (1 - t) * width)) - xp.log(xp.sin(low + t * width)))

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        low, width, _ = self._angles
        with np.errstate(over="ignore"):
            return xp.clip((xp.arctan(xp.exp(-0.5 * log_snr)) - low) / width, 0.0, 1.0)
