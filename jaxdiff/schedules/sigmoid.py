r"""The sigmoid schedule: alpha^2 is a piece of the logistic function S, stretched to run from 1 to 0.

    alpha^2 = (S(b) - S(u)) / (S(b) - S(a)),   u = a + t w,   w = b - a,
    a = start / tau,   b = end / tau.                                                                (1)

With S(y) - S(x) = S(y) S(-x) (1 - e^(x - y)) the ratio of signal to noise has no difference left in it,

    log_snr = log(1 - e^(-(1 - t) w)) - log(1 - e^(-t w)) + log S(b) - log S(-a) - u,                (2)

and solved for t, with S(b) - S(a) from the same identity and p = S(-log_snr) = sigma^2,

    t w = log(1 + p (S(b) - S(a)) / (S(a) (p S(-b) + (1 - p) S(-a)))).                               (3)
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdiff import numerics
from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace


@dataclass(frozen=True)
class Sigmoid:
    """alpha^2 by equation (1), not below `clip_min`.

    Args:
        start: the logistic function's argument at t = 0, times tau.
        end: the same at t = 1; above `start`.
        tau: temperature, positive.
        clip_min: least alpha^2, in [0, 1); reached at t = 1.

    Reference: Chen. On the importance of noise scheduling for diffusion models. 2023. arXiv:2301.10972, algorithm 1.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    clip_min: float = 1e-9

    def __post_init__(self) -> None:
        if not self.start < self.end or not self.tau > 0:
            raise UsageError(f"start={self.start:g}, end={self.end:g}, tau={self.tau:g}: need start < end and tau > 0")
        if not 0 <= self.clip_min < 1:
            raise UsageError(f"clip_min={self.clip_min:g}: need 0 <= clip_min < 1")

    num_steps = None

    @property
    def span(self) -> tuple[float, float]:
        return 1e-3, (1.0 if self.clip_min else 1 - 1e-3)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start / self.tau, self.end / self.tau

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        low, high = self._ends
        width = high - low
        # log S(b) - log S(-a) - a of (2); softplus(-x) = -log S(x).
        offset = float(numerics.softplus(np.float64(low)) - numerics.softplus(np.float64(-high))) - low
        floor = math.log(self.clip_min) - math.log1p(-self.clip_min) if self.clip_min else -math.inf
        signal = -xp.expm1((t - 1) * width)
        with np.errstate(divide="ignore"):
            noise = xp.log(-xp.expm1(-t * width))
        log_snr = xp.log(xp.where(signal > 0, signal, 1.0)) - noise + offset - t * width
        return xp.maximum(xp.where(signal > 0, log_snr, floor), floor)

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        low, high = self._ends
        at_low, past_low, past_high = (float(numerics.sigmoid(np.float64(x))) for x in (low, -low, -high))
        drop = -math.expm1(low - high) * float(numerics.sigmoid(np.float64(high))) * past_low
        noise, signal = numerics.sigmoid(-log_snr), numerics.sigmoid(log_snr)
        odds = noise * drop / (at_low * (noise * past_high + signal * past_low))
        return xp.minimum(xp.log1p(odds) / (high - low), 1.0)
