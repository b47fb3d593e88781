r"""Noise schedules: the map between time t in [0, 1] and the log signal-to-noise ratio.

A process is a schedule times a scaling (`jaxdiff.process`). The schedule alone says how noisy time t is,

    log_snr(t) = log(alpha_t^2 / sigma_t^2),   decreasing in t,                    (1)

and its inverse finds the time of a log-SNR. The log-SNR is the primary variable because both `alpha` and `sigma`
follow from it to rounding in float32, while sigma = sqrt(1 - alpha^2) loses two digits near the data
(Kingma et al. 2021, arXiv:2107.00630, section 3.1).

Every schedule is a frozen dataclass: equal by value, hashable, a static argument of jit. `span` is the part of
[0, 1] where the log-SNR is finite and worth a sampler's step; grids spaced in the log-SNR stay inside it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace, sigmoid, softplus


@runtime_checkable
class NoiseSchedule(Protocol):
    """t in [0, 1] <-> log_snr. float64 NumPy in, float64 NumPy out; else JAX."""

    @property
    def span(self) -> tuple[float, float]:
        """The cleanest and the noisiest time of finite log-SNR that a sampler should visit."""

    @property
    def num_steps(self) -> int | None:
        """The number of rows of a table schedule; None for a continuous one."""

    def log_snr(self, t: Any) -> Any:
        """The log-SNR at time t."""

    def time(self, log_snr: Any) -> Any:
        """The time in [0, 1] of a log-SNR; what lies outside the schedule's range is clipped."""


@dataclass(frozen=True)
class Table:
    r"""The discrete schedule of a list of betas, read between its rows by interpolation.

    Row i in 0..T-1 sits at t = (i + 1) / T, exactly, with

        alpha_i^2 = prod_{j <= i} (1 - beta_j),   sigma_i^2 = 1 - alpha_i^2;        (2)

    t = 0 is clean data. Between rows the log-SNR is linear in t; between t = 0 and the first row it goes to
    infinity as -log t, as it does for any diffusion that starts at a point.

    Args:
        betas: T variances in (0, 1]; only the last may be 1 (zero terminal SNR).

    Raises:
        UsageError: if a beta is out of range.

    Reference: Ho, Jain, Abbeel. Denoising diffusion probabilistic models. 2020. arXiv:2006.11239, equation 4.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        bad = np.flatnonzero(~((betas > 0) & (betas < 1)))
        if betas.ndim != 1 or betas.size == 0:
            raise UsageError(f"betas must be a non-empty list of numbers, got shape {betas.shape}")
        if bad.size and not (bad.tolist() == [betas.size - 1] and betas[-1] == 1):
            raise UsageError(f"betas[{bad[0]}] = {betas[bad[0]]:g}: a beta must lie in (0, 1), the last may be 1")

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @property
    def span(self) -> tuple[float, float]:
        last = self.num_steps - 1 if self.betas[-1] == 1 else self.num_steps
        return 1 / self.num_steps, last / self.num_steps

    @cached_property
    def rows(self) -> np.ndarray:
        """The log-SNR of each row, float64 [T]. From sums of log1p, so that 1 - alpha^2 is never formed."""
        with np.errstate(divide="ignore"):
            log_alpha2 = np.cumsum(np.log1p(-np.asarray(self.betas, np.float64)))
            return log_alpha2 - np.log(-np.expm1(log_alpha2))

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        rows = xp.asarray(self.rows, dtype=t.dtype)
        position = t * self.num_steps
        nearest = xp.round(position)
        # t = (i + 1) / T is not exact in binary; land on the row, and keep the derivative of the interpolation.
        snap = xp.where(xp.abs(position - nearest) < 1e-4, nearest - position, 0.0)
        position = position + (jax.lax.stop_gradient(snap) if xp is jnp else snap)
        low = xp.clip(xp.floor(position), 1, max(self.num_steps - 1, 1)).astype(int)
        fraction = position - low
        here, there = rows[low - 1], rows[xp.minimum(low, self.num_steps - 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            # A terminal row at -inf times a fraction of 0 is no number; the row itself is meant.
            gap = xp.where((fraction == 0) & xp.isinf(there), 0.0, there - here)
            inside = here + fraction * gap
            before = rows[0] - xp.log(xp.where(position < 1, position, 1.0))
        return xp.where(position < 1, before, inside)

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        rows = xp.asarray(self.rows, dtype=log_snr.dtype)
        index = xp.arange(1, self.num_steps + 1, dtype=log_snr.dtype)
        inside = xp.interp(log_snr, rows[::-1], index[::-1])
        with np.errstate(over="ignore"):
            before = xp.exp(xp.minimum(rows[0] - log_snr, 0.0))
        return xp.where(log_snr > rows[0], before, inside) / self.num_steps


@dataclass(frozen=True)
class VP:
    r"""The variance-preserving SDE's linear beta(t) = beta_min + t (beta_max - beta_min).

        log alpha_t^2 = -B(t),   B(t) = beta_min t + t^2 (beta_max - beta_min) / 2,
        log_snr = -log(exp(B(t)) - 1).                                             (3)

    Reference: Song et al. Score-based generative modeling through SDEs. 2021. arXiv:2011.13456, equations 32-33;
    the span's lower end is the sampling epsilon 1e-3 of its appendix C.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise UsageError(f"beta_min={self.beta_min:g}, beta_max={self.beta_max:g}: need 0 < beta_min <= beta_max")

    num_steps = None
    span = (1e-3, 1.0)

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return -xp.log(xp.expm1(self._integral(t)))

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        integral = xp.minimum(softplus(-log_snr), self._integral(1.0))
        slope = self.beta_max - self.beta_min
        # The root of (3) in the form without cancellation.
        return 2 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def _integral(self, t: Any) -> Any:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))


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


@dataclass(frozen=True)
class Flow:
    r"""The straight path's sigma/alpha = s t / (1 - t), with the resolution shift s.

    Reference: Liu, Gong, Liu. Flow straight and fast. 2022. arXiv:2209.03003, equation 1 (s = 1);
    Esser et al. Scaling rectified flow transformers. 2024. arXiv:2403.03206, equation 23 (the shift).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UsageError(f"shift={self.shift:g}: need shift > 0")

    num_steps = None
    span = (1e-3, 1 - 1e-3)

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log1p(-t) - xp.log(t) - math.log(self.shift))

    def time(self, log_snr: Any) -> Any:
        return sigmoid(-0.5 * log_snr - math.log(self.shift))
