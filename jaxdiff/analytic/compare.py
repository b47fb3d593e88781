r"""How far is a denoiser from the best there is? A comparison with the exact one, level by level.

At x = alpha x0 + sigma eps with x0 from the data, the exact denoiser D errs by the Bayes risk and any other by more,

    E |D' - x0|^2 = E |D - x0|^2 + E |D' - D|^2,                                       (1)

so the rms distance to D is judged in units of the rms error that nobody can avoid. For eps both are alpha / sigma
times those of x0, as long as alpha x0 + sigma eps = x.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.analytic.empirical import Empirical
from jaxdiff.analytic.gaussian import Gaussian
from jaxdiff.analytic.mixture import Mixture
from jaxdiff.analytic.report import Check, Report
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import batch_keys, normal_like
from jaxdiff.types import Array, Cond, Level


def check_denoiser(
    denoise: Denoiser,
    data: Gaussian | Mixture | Empirical,
    *,
    levels: Level | None = None,
    num: int = 1024,
    key: Array | None = None,
    cond: Cond = None,
    tolerance: float = 0.1,
) -> Report:
    """Compare a denoiser with the exact one over noise levels. One that fails gives a report, not an exception.

    Three lines per level: "x0" and "eps" are the rms distances to the exact denoiser as fractions of the rms Bayes
    error, "invariant" the largest |alpha x0 + sigma eps - x| as a fraction of the rms of x. One line per end of the
    process, "finite", for pure noise and for clean data.

    Args:
        denoise: the denoiser, of a network (`model.denoiser(params)`) or of your own making.
        data: the distribution it should be exact for.
        levels: stacked levels; by default nine of `grids.uniform`, t = 1 first, clean data last.
        num: examples drawn per level.
        key: one key; `jax.random.key(0)` by default.
        cond: conditioning for a batch of `num`, or None.
        tolerance: the largest fraction that passes; 0.1 costs 1 % of the Bayes risk by (1).

    Returns:
        A report: `print(report)`, `report.ok`, `report["x0 at t=1"].value`.

    Raises:
        UsageError: if `denoise` is no `Denoiser`.

    Examples:
        >>> import jaxdiff
        >>> data = Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> check_denoiser(data.denoiser(jaxdiff.processes.vp_sde()), data).ok
        True
    """
    if not isinstance(denoise, Denoiser):
        raise UsageError(f"denoise must be a Denoiser, which knows its process, got {type(denoise).__name__}")
    process = denoise.process
    if levels is None:
        levels = grids.uniform(process, min(8, process.num_steps or 8))
    exact = data.denoiser(process)
    checks: list[Check] = []
    for index in range(levels.t.shape[0]):
        level = jax.tree.map(lambda field, index=index: field[index], levels)
        where = f"at t={float(level.t):.4g}"
        try:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0) if key is None else key, index))
            x0 = data.sample(keys[0], num)
            row = [float(value) for value in _measure(denoise, exact, x0, level, keys[1], cond)]
            checks += _judge(row, level, where, tolerance)
        except Exception as error:  # a method that raises fails its check; the others still say something
            first_line = str(error).splitlines()[0] if str(error) else ""
            checks.append(Check(f"x0 {where}", False, np.nan, "no exception", f"{type(error).__name__}: {first_line}"))
    return Report(f"denoiser against {type(data).__name__}", tuple(checks))


@jax.jit
def _measure(denoise: Denoiser, exact: Denoiser, x0: Array, level: Level, key: Array, cond: Cond) -> tuple[Array, ...]:
    x = level.alpha * x0 + level.sigma * normal_like(batch_keys(key, x0.shape[0]), x0)
    got, best = denoise(x, level, cond), exact(x, level, cond)
    rms = [jnp.sqrt(jnp.mean(a**2)) for a in (got.x0 - best.x0, got.eps - best.eps, best.x0 - x0, x)]
    gap = jnp.max(jnp.abs(level.alpha * got.x0 + level.sigma * got.eps - x))
    finite = jnp.isfinite(got.x0).all() & jnp.isfinite(got.eps).all()
    return *rms, gap, finite


def _judge(row: list[float], level: Level, where: str, tolerance: float) -> list[Check]:
    off_x0, off_eps, bayes, scale, gap, finite = row
    alpha, sigma = float(level.alpha), float(level.sigma)
    checks = []
    if alpha == 0 or sigma == 0 or float(level.t) in (0.0, 1.0):
        checks.append(Check(f"finite {where}", bool(finite), finite, "x0 and eps finite"))
    if sigma > 0:
        # Below the rounding of x nothing can be told apart.
        least = 1e-5 * scale / max(alpha, sigma)
        x0_error = off_x0 / max(bayes, least)
        eps_error = off_eps / max(bayes * alpha / sigma, 1e-4)
        note = f"rms {off_x0:.2e}, Bayes {bayes:.2e}, log_snr {float(level.log_snr):.3g}"
        checks.append(Check(f"x0 {where}", x0_error <= tolerance, x0_error, f"<= {tolerance:g}", note))
        checks.append(
            Check(f"eps {where}", eps_error <= tolerance, eps_error, f"<= {tolerance:g}", f"rms {off_eps:.2e}")
        )
    gap /= max(scale, 1e-30)
    checks.append(Check(f"invariant {where}", gap <= 1e-3, gap, "<= 0.001"))
    return checks
