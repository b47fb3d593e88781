r"""Any power-function average of the parameters, after training, from stored ones.

An average of exponent g at step T has the profile p(t) = (g + 1) t^g / T^(g + 1) for t <= T (`jaxdiff.train.ema`).
A weighted sum of snapshots has the weighted sum of their profiles for its own, so the snapshots p_i are weighed by the
c that bring that sum nearest to a wanted profile q,

    min_c |sum_i c_i p_i - q|^2 with sum_i c_i = 1:    <p_i, p_j> c_j + mu = <p_i, q>,                    (1)

    <p_a, p_b> = (g_a + 1)(g_b + 1) / (g_a + g_b + 1) (m / T_a)^g_a (m / T_b)^g_b / max(T_a, T_b),        (2)

with m = min(T_a, T_b). That the weights sum to 1 is not in the paper, whose networks do not feel the size of their
kernels: without it a parameter that hardly moves, such as a gain, comes back scaled, by percents where snapshots are
few. The profile is as near with it. The weights may be negative, and they are float64 because the sum cancels.

Keep two averages, `PowerEMA(0.05)` and `PowerEMA(0.10)`, and a few dozen snapshots of both, evenly over the run.

Reference: Karras et al. 2023. arXiv:2312.02696, equation 151 (2) and algorithm 3 (1).
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.train.ema import exponent
from jaxdiff.types import PyTree


def weights(
    times: Sequence[int | float],
    sigma_rels: Sequence[float],
    target_time: int | float,
    target_sigma_rel: float,
) -> np.ndarray:
    """How much of each snapshot makes the wanted average, equation (1).

    Args:
        times: the step each snapshot was taken at, 1 or later.
        sigma_rels: the width of each snapshot's `PowerEMA`; one step may be there with several.
        target_time: the step of the wanted average, at most the last of `times`.
        target_sigma_rel: its width.

    Returns:
        float64 [snapshots], in their order.

    Raises:
        UsageError: for lists of unequal lengths, or a step or width out of range.

    Examples:
        >>> weights([500, 1000], [0.1, 0.1], 1000, 0.1).round(6).tolist()
        [0.0, 1.0]
    """
    if not 0 < len(times) == len(sigma_rels):
        raise UsageError(f"{len(times)} times and {len(sigma_rels)} sigma_rels: allowed is one of each per snapshot")
    steps = np.asarray(times, np.float64)
    if not steps.min() >= 1:
        raise UsageError(f"times has {steps.min():g}: allowed is 1 or more")
    if not 1 <= target_time <= steps.max():
        raise UsageError(f"target_time={target_time:g}: allowed is 1 to {steps.max():g}, the last snapshot's")
    powers = np.array([exponent(float(sigma)) for sigma in sigma_rels])
    target = _inner(steps, powers, float(target_time), exponent(float(target_sigma_rel)))
    gram = _inner(steps[:, None], powers[:, None], steps[None], powers[None])
    # Profiles of unit length, or the earliest, which are the tallest, would decide what counts as rank.
    unit = 1 / np.sqrt(np.diag(gram))
    row = unit / np.linalg.norm(unit)
    system = np.block([[unit[:, None] * gram * unit[None], row[:, None]], [row[None], np.zeros((1, 1))]])
    found, *_ = np.linalg.lstsq(system, np.append(unit * target, 1 / np.linalg.norm(unit)), rcond=None)
    return unit * found[:-1]


def reconstruct(snapshots: Iterable[PyTree], coefficients: Sequence[float] | np.ndarray) -> PyTree:
    """The weighted sum of snapshots, added up in float64.

    Args:
        snapshots: parameter trees in the order of the coefficients; one at a time is in memory if they are loaded so.
        coefficients: from `weights`.

    Returns:
        The tree, each leaf a NumPy array of its own dtype.

    Raises:
        UsageError: if there are more or fewer snapshots than coefficients.

    Examples:
        >>> reconstruct([{"w": np.float32([1])}, {"w": np.float32([3])}], [0.5, 0.5])
        {'w': array([2.], dtype=float32)}
    """
    total, like, count = None, None, 0
    for count, snapshot in enumerate(snapshots, 1):
        if count > len(coefficients):
            break
        share = float(coefficients[count - 1])
        like = snapshot if like is None else like
        part = jax.tree.map(lambda a, share=share: share * np.asarray(a, np.float64), snapshot)
        total = part if total is None else jax.tree.map(np.add, total, part)
    if count != len(coefficients) or not count:
        more = "or more " if count > len(coefficients) else ""
        raise UsageError(f"{count} {more}snapshots and {len(coefficients)} coefficients: allowed is one for each")
    return jax.tree.map(lambda a, b: np.asarray(a, b.dtype), total, like)


def _inner(
    time_a: np.ndarray, power_a: np.ndarray, time_b: np.ndarray | float, power_b: np.ndarray | float
) -> np.ndarray:
    """Equation (2)."""
    first, last = np.minimum(time_a, time_b), np.maximum(time_a, time_b)
    scale = (power_a + 1) * (power_b + 1) / (power_a + power_b + 1)
    return scale * (first / time_a) ** power_a * (first / time_b) ** power_b / last
