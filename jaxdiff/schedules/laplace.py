r"""A log-SNR that is Laplace distributed when t is uniform: most training time where signal and noise are alike.

log_snr = mu - b sgn(1/2 - t) log(1 - 2 |t - 1/2|).                                              (1)
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace


@dataclass(frozen=True)
class Laplace:
    """log_snr ~ Laplace(mu, b) for t ~ U(0, 1), equation (1): mu - b log(2 t) up to t = 1/2, mu + b log(2 - 2 t) after.

    Args:
        mu: the log-SNR at t = 1/2.
        b: the distribution's scale, positive.

    Reference: Hang, Gu, Geng, Guo. Improved noise schedule for diffusion training. 2024. arXiv:2407.03297, table 1.
    """

    mu: float = 0.0
    b: float = 0.5

    def __post_init__(self) -> None:
        if not self.b > 0 or not math.isfinite(self.mu):
            raise UsageError(f"mu={self.mu:g}, b={self.b:g}: need a finite mu and b > 0")

    num_steps = None
    span = (1e-3, 1 - 1e-3)

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return self.mu + self.b * xp.where(t < 0.5, -xp.log(2 * t), xp.log(2 * (1 - t)))

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        z = (log_snr - self.mu) / self.b
        return xp.where(z >= 0, 0.5 * xp.exp(-xp.maximum(z, 0.0)), 1 - 0.5 * xp.exp(xp.minimum(z, 0.0)))
