"""Time grids: which levels a sampler visits.

Every grid is a function `(process, n) -> Level` of n + 1 stacked rows, the noisiest first and clean data
(sigma = 0) last, so n is the number of sampler steps. Rows are computed in float64 NumPy and cast once.

| grid | rows | from |
|---|---|---|
| `uniform` | equal steps in t; for a table, from the last row to the first, both included | Lin et al. "linspace" |
| `trailing` | t = 1, 1 - 1/n, ...; for a table, the nearest rows | Lin et al. 2024, arXiv:2305.08891, table 2 |
| `leading` | a table's rows 0, T // n, 2 (T // n), ...: starts below t = 1 | Lin et al., DDIM's code |
| `log_snr` | equal steps in log-SNR | Lu et al. 2022, arXiv:2206.00927, section 3.3 (their lambda is half ours) |
| `karras` | equal steps in (sigma / alpha)^(1 / rho) | Karras et al. 2022, arXiv:2206.00364, equation 5 |
| `steps` | rows of a table by index | |
| `explicit` | process times | |
"""

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

    Example:
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


def log_snr(process: ForwardProcess, n: int) -> Level:
    """Equal steps in log-SNR over the process's span, then clean data. See `uniform` for the arguments."""
    _check(process, n)
    noisy, clean = _log_snr_span(process)
    return _then_clean(process, np.linspace(noisy, clean, n))


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
    """A table's rows by index in 0..T-1, noisiest first, then clean data."""
    rows = np.asarray(indices, np.int64)
    if process.num_steps is None:
        raise UsageError("grid 'steps' needs a process with steps; use 'explicit' with times in [0, 1]")
    if rows.size == 0 or rows.min() < 0 or rows.max() >= process.num_steps or (np.diff(rows) >= 0).any():
        raise UsageError(f"indices must decrease within 0..{process.num_steps - 1}, got {list(indices)[:8]}")
    return _rows(process, rows + 1)


def explicit(process: ForwardProcess, times: Sequence[float] | np.ndarray) -> Level:
    """The given process times, decreasing in [0, 1]; a last time of 0 is clean data."""
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or t.size < 2 or t.min() < 0 or t.max() > 1 or (np.diff(t) >= 0).any():
        raise UsageError(f"times must be two or more numbers that decrease within [0, 1], got {t.tolist()[:8]}")
    level = process(t)
    clean = process.at(np.float64(np.inf))
    return stack(jax.tree.map(lambda row, end: np.where(t == 0, end, row), level, clean))


REGISTRY = {f.__name__: f for f in (uniform, trailing, leading, log_snr, karras)}


def make(name: str, process: ForwardProcess, n: int) -> Level:
    """A grid by its name in `REGISTRY`.

    Raises:
        UsageError: for an unknown name, with the nearest one.
    """
    if name not in REGISTRY:
        raise unknown("grid", name, REGISTRY)
    return REGISTRY[name](process, n)
