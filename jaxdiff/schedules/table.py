r"""Discrete schedules: T rows of log-SNR, read between them by interpolation.

Row i in 0..T-1 sits at t = (i + 1) / T, exactly; t = 0 is clean data. With p = T t the position among the rows and
l_i the log-SNR of row i, decreasing,

    log_snr = l_0 - log p                      for p <= 1, as of any diffusion that starts at a point,    (1)
    log_snr = linear in p between the rows     for 1 <= p <= T,                                           (2)
    log_snr = l_{T-2} + 2 log(T - p)           for p >= T - 1, if l_{T-1} = -inf (zero terminal SNR).     (3)

By (3) alpha falls to 0 linearly, so a schedule with zero terminal SNR is continuous and has an inverse like any other.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace


class Rows:
    """What follows from `rows`, the log-SNR of each row in float64, decreasing, shape [T]; the last may be -inf."""

    rows: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.rows)

    @property
    def _finite(self) -> int:
        """The number of rows of finite log-SNR: T, or T - 1."""
        return self.num_steps - int(np.isinf(self.rows[-1]))

    @property
    def span(self) -> tuple[float, float]:
        return 1 / self.num_steps, self._finite / self.num_steps

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        rows, total, finite = xp.asarray(self.rows, dtype=t.dtype), self.num_steps, self._finite
        position = t * total
        nearest = xp.round(position)
        # t = (i + 1) / T is not exact in binary; land on the row, and keep the derivative of the interpolation.
        close = xp.abs(position - nearest) <= 1.5 * float(jnp.finfo(t.dtype).eps) * nearest
        snap = xp.where(close & (nearest >= 1) & (nearest <= finite), nearest - position, 0.0)
        position = position + (jax.lax.stop_gradient(snap) if xp is jnp else snap)
        low = xp.clip(xp.floor(position), 1, max(finite - 1, 1)).astype(int)
        here, there = rows[low - 1], rows[xp.minimum(low, max(finite - 1, 0))]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_snr = here + (position - low) * (there - here)
            log_snr = xp.where(position < 1, rows[0] - xp.log(xp.where(position < 1, position, 1.0)), log_snr)
            if finite < total:
                left = (1 - t) * total
                end = rows[finite - 1] + 2 * xp.log(xp.where(left > 0, left, 1.0))
                log_snr = xp.where(position > finite, xp.where(left > 0, end, -xp.inf), log_snr)
        return log_snr

    def time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        rows, total, finite = xp.asarray(self.rows, dtype=log_snr.dtype), self.num_steps, self._finite
        index = xp.arange(1, finite + 1, dtype=log_snr.dtype)
        position = xp.interp(log_snr, rows[:finite][::-1], index[::-1])
        position = xp.where(log_snr > rows[0], xp.exp(xp.minimum(rows[0] - log_snr, 0.0)), position)
        if finite < total:
            end = xp.exp(0.5 * xp.minimum(log_snr - rows[finite - 1], 0.0))
            position = xp.where(log_snr < rows[finite - 1], total - end, position)
        return position / total


@dataclass(frozen=True)
class Table(Rows):
    r"""The discrete schedule of a list of betas:

        alpha_i^2 = prod_{j <= i} (1 - beta_j),   sigma_i^2 = 1 - alpha_i^2.        (4)

    Args:
        betas: T variances in (0, 1]; only the last of two or more may be 1 (zero terminal SNR).

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
        if bad.size and not (bad.tolist() == [betas.size - 1] and betas[-1] == 1 and betas.size > 1):
            raise UsageError(f"betas[{bad[0]}] = {betas[bad[0]]:g}: a beta must lie in (0, 1), the last may be 1")

    @cached_property
    def rows(self) -> np.ndarray:  # type: ignore[override]
        """The log-SNR of each row, float64 [T]. From sums of log1p, so that 1 - alpha^2 is never formed."""
        with np.errstate(divide="ignore"):
            log_alpha2 = np.cumsum(np.log1p(-np.asarray(self.betas, np.float64)))
            return log_alpha2 - np.log(-np.expm1(log_alpha2))


@dataclass(frozen=True)
class NoiseLevels(Rows):
    """The discrete schedule of a list of noise levels sigma / alpha: log_snr_i = -2 log(sigma_i).

    Args:
        sigmas: T positive noise levels, increasing.

    Raises:
        UsageError: if they do not increase from above 0.

    Reference: Song, Ermon. Generative modeling by estimating gradients of the data distribution. 2019.
        arXiv:1907.05600, section 4.
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        sigmas = np.asarray(self.sigmas, np.float64)
        if sigmas.ndim != 1 or sigmas.size == 0 or not sigmas[0] > 0 or not (np.diff(sigmas) > 0).all():
            raise UsageError(f"sigmas must increase from above 0, the least noise first, got {list(self.sigmas)[:8]}")

    @cached_property
    def rows(self) -> np.ndarray:  # type: ignore[override]
        return -2 * np.log(np.asarray(self.sigmas, np.float64))
