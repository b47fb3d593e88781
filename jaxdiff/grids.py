"""Time grids: which levels a sampler visits.

Every grid is a function `(process, n) -> Level` of n + 1 stacked rows, the noisiest first and clean data
(sigma = 0) last, so n is the number of sampler steps. Rows are computed in float64 NumPy and cast once.

| grid | rows | from |
|---|---|---|
| `uniform` | equal steps in t; for a table, from the last row to the first, both included | Lin et al. "linspace" |
| `trailing` | t = 1, 1 - 1/n, ...; for a table, the nearest rows | Lin et al. 2024, arXiv:2305.08891, table 2 |
| `leading` | a table's rows 0, T // n, 2 (T // n), ...: starts below t = 1 | Lin et al., DDIM's code |
| `quadratic` | t = (1 - k / n)^2; for a table, the nearest rows | Song et al. 2021, arXiv:2010.02502, appendix D |
| `log_snr` | equal steps in log-SNR | Lu et al. 2022, arXiv:2206.00927, section 3.3 (their lambda is half ours) |
| `exponential` | `log_snr` by its other name: equal steps in log(sigma / alpha) | k-diffusion |
| `beta` | quantiles of Beta(0.6, 0.6); for a table, the nearest rows | Lee et al. 2024, arXiv:2407.12173 |
| `karras` | equal steps in (sigma / alpha)^(1 / rho) | Karras et al. 2022, arXiv:2206.00364, equation 5 |
| `steps` | rows of a table by index | |
| `explicit` | process times | |
"""

import math
from collections.abc import Sequence

import jax
import numpy as np

from jaxdiff.errors import UsageError, unknown
from jaxdiff.process import ForwardProcess, stack
from jaxdiff.types import Level


def _check(process: ForwardProcess, n: int) -> None:
    if n < 1:
        raise UsageError(f"steps={n}: a grid needs at least 1 step")
    if process.num_steps is not None and n > process.num_steps:
        raise UsageError(f"steps={n}: this process has {process.num_steps} steps, ask for at most that many")


def _rows(process: ForwardProcess, positions: np.ndarray) -> Level:
    """Table rows by position i + 1, then clean data."""
    return explicit(process, np.append(np.asarray(positions, np.float64) / (process.num_steps or 1), 0.0))


def _nearest(process: ForwardProcess, times: np.ndarray) -> Level:
    """The rows of a table nearest to `times`, no row twice, then clean data; of a continuous process, the times."""
    if process.num_steps is None:
        return explicit(process, np.append(times, 0.0))
    rank = np.arange(times.size, 0, -1)
    # Rows that fall together are moved apart, towards the noisy end unless that is full.
    room = np.maximum.accumulate((np.round(times * process.num_steps) - rank)[::-1])[::-1]
    return _rows(process, np.clip(room, 0, process.num_steps - times.size) + rank)


def _then_clean(process: ForwardProcess, log_snr: np.ndarray) -> Level:
    return stack(process.at(np.append(log_snr, np.inf)))


def _log_snr_span(process: ForwardProcess) -> np.ndarray:
    """The log-SNR at the noisy and the clean end of the process's span."""
    clean, noisy = process.schedule.span
    return process.schedule.log_snr(np.array([noisy, clean], np.float64))


def uniform(process: ForwardProcess, n: int) -> Level:
    """Equal steps in t. A table is read on its rows, from the last to the first.

    Args:
        process: any process.
        n: number of steps, at least 1 and at most a table's number of rows.

    Returns:
        n + 1 stacked levels.

    Examples:
        >>> from jaxdiff import processes
        >>> uniform(processes.ddpm_linear(), 50).t.shape
        (51,)
    """
    _check(process, n)
    if process.num_steps is None:
        return explicit(process, np.linspace(1.0, 0.0, n + 1))
    return _rows(process, np.round(np.linspace(process.num_steps, 1, n)))


def trailing(process: ForwardProcess, n: int) -> Level:
    """t = 1 - k / n, k = 0..n, on the nearest rows of a table. See `uniform` for the arguments.

    Reference: Lin et al. Common diffusion noise schedules are flawed. 2024. arXiv:2305.08891, table 2.
    """
    _check(process, n)
    times = np.linspace(1.0, 0.0, n + 1)
    if process.num_steps is None:
        return explicit(process, times)
    return _rows(process, np.round(times[:-1] * process.num_steps))


def leading(process: ForwardProcess, n: int, offset: int = 0) -> Level:
    """A table's rows 0, T // n, 2 (T // n), ... plus `offset`, noisiest first. See `uniform` for the arguments.

    Reference: Lin et al. 2024. arXiv:2305.08891, table 2; Stable Diffusion uses offset 1.
    """
    _check(process, n)
    if process.num_steps is None:
        raise UsageError("grid 'leading' needs a process with steps; use 'uniform', 'trailing', 'log_snr' or 'karras'")
    return _rows(process, np.arange(n)[::-1] * (process.num_steps // n) + 1 + offset)


def quadratic(process: ForwardProcess, n: int) -> Level:
    """t = (1 - k / n)^2, on the nearest rows of a table: more steps near the data. See `uniform` for the arguments.

    The paper's tau_i = floor(c i^2) with c = T / n^2, so that the last is T (its code stops at 0.8 T). Where several
    fall on one row, the rows next to it are taken.

    Reference: Song, Meng, Ermon. Denoising diffusion implicit models. 2021. arXiv:2010.02502, appendix D.
    """
    _check(process, n)
    return _nearest(process, np.linspace(1.0, 0.0, n + 1)[:-1] ** 2)


def log_snr(process: ForwardProcess, n: int) -> Level:
    """Equal steps in log-SNR over the process's span, then clean data. See `uniform` for the arguments."""
    _check(process, n)
    noisy, clean = _log_snr_span(process)
    return _then_clean(process, np.linspace(noisy, clean, n))


def exponential(process: ForwardProcess, n: int) -> Level:
    """Equal steps in log(sigma / alpha), then clean data: `log_snr`, under the name that k-diffusion gives it.

    See `uniform` for the arguments.
    """
    return log_snr(process, n)


def beta(process: ForwardProcess, n: int, a: float = 0.6, b: float = 0.6) -> Level:
    """t = F^-1(1 - k / n), F the distribution function of Beta(a, b), on the nearest rows of a table.

    With a and b below 1 the steps crowd at both ends: early, where the picture is laid out, and late, where its
    details are. Where several fall on one row, the rows next to it are taken.

    Args:
        process: any process.
        n: number of steps, at least 1 and at most a table's number of rows.
        a: in 0.1 to 10; smaller spends more steps near the data.
        b: in 0.1 to 10; smaller spends more steps near the noise.

    Reference: Lee et al. Beta sampling is all you need. 2024. arXiv:2407.12173; 0.6 is what
        the samplers in use take (ComfyUI, diffusers).
    """
    _check(process, n)
    if not (0.1 <= a <= 10 and 0.1 <= b <= 10):
        raise UsageError(f"a={a:g}, b={b:g}: allowed are 0.1 to 10")
    return _nearest(process, _beta_quantile(np.linspace(1.0, 0.0, n + 1)[:-1], a, b))


def _beta_quantile(probability: np.ndarray, a: float, b: float) -> np.ndarray:
    """F^-1 of Beta(a, b), to about 1e-14 for a and b of order 1, float64."""
    low = probability <= _beta_power(np.array([0.5]), a, b)[0]
    found = _beta_solve(np.where(low, probability, 0.0), a, b)
    return np.where(low, found, 1 - _beta_solve(np.where(low, 0.0, 1 - probability), b, a))


def _beta_power(x: np.ndarray, a: float, b: float) -> np.ndarray:
    """F(x) of Beta(a, b) for x <= 1/2 by its power series x^a / B(a, b) sum_k (1 - b)_k x^k / (k! (a + k))."""
    k = np.arange(60)
    terms = np.cumprod(np.append(1.0, (k[1:] - b) / k[1:])) / (a + k)
    return x**a * np.polynomial.polynomial.polyval(x, terms) * math.gamma(a + b) / (math.gamma(a) * math.gamma(b))


def _beta_solve(probability: np.ndarray, a: float, b: float) -> np.ndarray:
    """The x <= 1/2 of F(x) = probability, by bisection in x^a, in which F is nearly a straight line."""
    low, high = np.zeros_like(probability), np.full_like(probability, 0.5**a)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = _beta_power(middle ** (1 / a), a, b) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high ** (1 / a) * (probability > 0)


def karras(process: ForwardProcess, n: int, rho: float = 7.0) -> Level:
    """Equal steps in (sigma / alpha)^(1 / rho) over the process's span, then clean data.

    Args:
        process: any process; for `edm` these are the paper's noise levels.
        n: number of steps.
        rho: 7 in the paper; larger spends more steps near the data.
    """
    _check(process, n)
    if not rho > 0:
        raise UsageError(f"rho={rho:g}: need rho > 0")
    noisy, clean = np.exp(-0.5 * _log_snr_span(process)) ** (1 / rho)
    return _then_clean(process, -2 * rho * np.log(np.linspace(noisy, clean, n)))


def steps(process: ForwardProcess, indices: Sequence[int]) -> Level:
    """A table's rows by index, then clean data.

    Args:
        process: a table process, of T steps.
        indices: decreasing, in 0..T-1.

    Raises:
        UsageError: for a continuous process, or indices that do not decrease or are out of range.
    """
    given = np.asarray(indices)
    rows = given.astype(np.int64)
    if process.num_steps is None:
        raise UsageError("grid 'steps' needs a process with steps; use 'explicit' with times in [0, 1]")
    last = process.num_steps - 1
    falling = rows.size > 0 and (rows == given).all() and (np.diff(rows) < 0).all()
    if not (falling and rows[-1] >= 0 and rows[0] <= last):
        raise UsageError(f"indices must be whole numbers that decrease within 0..{last}, got {list(indices)[:8]}")
    return _rows(process, rows + 1)


def explicit(process: ForwardProcess, times: Sequence[float] | np.ndarray) -> Level:
    """The given process times, decreasing in [0, 1]; a last time of 0 is clean data."""
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or t.size < 2 or not (t.min() >= 0 and t.max() <= 1 and (np.diff(t) < 0).all()):
        raise UsageError(f"times must be two or more numbers that decrease within [0, 1], got {t.tolist()[:8]}")
    level = process(t)
    clean = process.at(np.float64(np.inf))
    return stack(jax.tree.map(lambda row, end: np.where(t == 0, end, row), level, clean))


REGISTRY = {f.__name__: f for f in (uniform, trailing, leading, quadratic, log_snr, exponential, beta, karras)}


def make(name: str, process: ForwardProcess, n: int) -> Level:
    """A grid by its name in `REGISTRY`.

    Args:
        name: registry name.
        process: any process.
        n: number of steps.

    Raises:
        UsageError: for an unknown name, with the nearest one.
    """
    if name not in REGISTRY:
        raise unknown("grid", name, REGISTRY)
    return REGISTRY[name](process, n)
