r"""Does a sampler do what it says? Measured against exact flows and exact moments, on problems with a known answer.

The order is measured on a mixture of Gaussians in float64, between two levels of finite log-SNR, as the slope of
log(error) in log(steps). The grid is quadratic,

    log_snr_k = first + (last - first) (k / n)^2,   k = 0..n,                           (1)

because a multistep method begins with steps of lower order: the first step of an equal grid, of length h = 1/n, leaves
an error h^2 of its own that hides an order above 2. In (1) the first step is h^2 long and leaves h^4.

A stochastic sampler is measured by the mean and the variance of its samples of a mixture, whose truth is known. Both
have a Monte-Carlo error s, so the question asked is the one that can be answered: of a method of weak order p,

    |bias(2n)| <= |bias(n)| / 2^(p - 0.35) + 4 s.                                      (2)
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids, processes
from jaxdiff.analytic.gaussian import Gaussian
from jaxdiff.analytic.mixture import Mixture
from jaxdiff.analytic.report import Check, Report
from jaxdiff.errors import unknown
from jaxdiff.model import Denoiser
from jaxdiff.process import ForwardProcess, stack
from jaxdiff.samplers import Sampler, sample
from jaxdiff.types import Array, Cond, Level, Prediction

_ENDS = (-6.0, 6.0)  # log-SNR: from little signal to little noise
_VP = processes.vp_sde()
_STEPS = 12


def check_sampler(
    sampler: Sampler,
    *,
    steps: tuple[int, ...] = (80, 160, 320),
    weak_steps: tuple[int, ...] = (32, 64),
    num: int = 2**16,
    only: Sequence[str] | None = None,
) -> Report:
    """Measure a sampler against closed forms. A method that fails or raises gives a report, not an exception.

    What is checked, by name: "order" (deterministic: distance to the exact probability flow by number of steps) or
    "mean" and "variance" (stochastic: their bias by number of steps, within Monte-Carlo error); "scaling" (the same
    log-SNR grid gives the same sample in VP, VE and flow scaling); "finite" (down to clean data in 1, 2 and 3 steps);
    "batch" (the same key gives the same sample whatever the batch); "bf16" (bfloat16 in, bfloat16 out); "one trace"
    (for three calls); "nfe" (evaluations counted as they run). Takes a few seconds, most of it compilation.

    Args:
        sampler: any object with `order`, `nfe`, `init` and `step` (`jaxdiff.samplers.Sampler`), hashable. With
            `nfe = None` (adaptive) "order" and "nfe" are left out, and "flow" is its distance to the exact flow.
        steps: increasing numbers of steps; the order is measured between the last two.
        weak_steps: the same for a stochastic sampler.
        num: samples from which moments are estimated, one number each.
        only: names of checks; None makes all that apply.

    Returns:
        A report: `print(report)`, `report.ok`, `report["order"].value`.

    Raises:
        UsageError: for an unknown name in `only`.

    Examples:
        >>> from jaxdiff.samplers import DDIM
        >>> report = check_sampler(DDIM(), only=["bf16", "nfe"])
        >>> print(report)
        DDIM(eta=0.0): ok
          pass  bf16           1  (bfloat16 and finite)
          pass  nfe            1  (1 per step)
    """
    for name in only or ():
        if name not in _ALL:
            raise unknown("check", name, _ALL)
    with jax.enable_x64(True):
        checks = _applicable(sampler, steps, weak_steps, num)
        chosen = [name for name in checks if only is None or name in only]
        return Report(str(sampler), tuple(_attempt(name, checks[name]) for name in chosen))


def _applicable(
    sampler: Sampler, steps: tuple[int, ...], weak_steps: tuple[int, ...], num: int
) -> dict[str, Callable[[], Check]]:
    checks: dict[str, Callable[[], Check]] = {}
    adaptive = getattr(sampler, "nfe", None) is None
    if _attempt("stochastic", partial(_stochastic, sampler)).value > 0:
        ends = cache(partial(_end_points, sampler, weak_steps, num))  # both moments from one run
        checks |= {name: partial(_weak_order, sampler, weak_steps, ends, name) for name in ("mean", "variance")}
    else:
        checks |= {"flow": partial(_flow, sampler, steps)} if adaptive else {"order": partial(_order, sampler, steps)}
    for name, check in {"scaling": _scaling, "finite": _finite, "batch": _batch, "bf16": _bf16}.items():
        checks[name] = partial(check, sampler)
    counts = cache(partial(_count, sampler))
    checks["one trace"] = partial(_one_trace, counts)
    return checks if adaptive else checks | {"nfe": partial(_nfe, sampler, counts)}


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()._replace(name=name)
    except Exception as error:  # a method that raises fails its check; the others still say something
        first_line = str(error).splitlines()[0] if str(error) else ""
        return Check(name, False, math.nan, "no exception", f"{type(error).__name__}: {first_line}")


def _grid(n: int, process: ForwardProcess = _VP, clean: bool = False) -> Level:
    """Levels by equation (1)."""
    log_snr = _ENDS[0] + (_ENDS[1] - _ENDS[0]) * (np.arange(n + 1) / n) ** 2
    return stack(process.at(np.append(log_snr, np.inf) if clean else log_snr))


def _row(levels: Level, index: int) -> Level:
    return jax.tree.map(lambda field: field[index], levels)


def _mixture() -> Mixture:
    """Two modes, tilted and overlapping: nothing in the flow is linear, and nothing so sharp that orders hide."""
    covs = jnp.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])
    return Mixture(jnp.array([0.4, 0.6]), jnp.array([[1.0, -0.5], [-0.8, 0.6]]), covs)


@cache
def _problem() -> tuple[Denoiser, Array]:
    """The exact denoiser, and 64 points at the noisiest level."""
    level = _row(_grid(1), 0)
    noise = jax.random.normal(jax.random.key(1), (64, 2))
    return _mixture().denoiser(_VP), level.alpha * _mixture().sample(jax.random.key(2), 64) + level.sigma * noise


def _run(sampler: Sampler, n: int, key: int = 0, num: int = 64) -> Array:
    # Padded to one length: one compilation for all numbers of steps.
    denoise, x = _problem()
    return sample(denoise, sampler, _grid(n), x[:num], jax.random.key(key), max_steps=max(n, 320))[0]


def _stochastic(sampler: Sampler) -> Check:
    one, other = (_run(sampler, _STEPS, key) for key in (0, 1))
    return Check("stochastic", True, float(jnp.max(jnp.abs(one - other))), "any")


def _errors(sampler: Sampler, steps: tuple[int, ...]) -> list[float]:
    exact = _mixture().flow(_problem()[1], _row(_grid(1), 0), _row(_grid(1), 1))
    return [float(jnp.sqrt(jnp.mean((_run(sampler, n) - exact) ** 2))) for n in steps]


def _order(sampler: Sampler, steps: tuple[int, ...]) -> Check:
    errors = _errors(sampler, steps)
    measured = math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])
    figures = ", ".join(f"{error:.2e}" for error in errors)
    ok = abs(measured - sampler.order) < 0.15
    return Check("", ok, measured, f"{sampler.order} +- 0.15", f"errors {figures} at {steps} steps")


def _flow(sampler: Sampler, steps: tuple[int, ...]) -> Check:
    error = _errors(sampler, steps)[-1]
    return Check("", error < 1e-2, error, "< 0.01", f"rms distance to the exact flow at {steps[-1]} steps")


def _end_points(sampler: Sampler, steps: tuple[int, ...], num: int) -> list[Array]:
    """For each number of steps, samples of a mixture from its exact start, shifted and scaled by the exact moments."""
    data = Mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0], [0.8]]), jnp.array([[[0.1]], [[0.2]]]))
    mean = 0.3 * -1.0 + 0.7 * 0.8
    var = 0.3 * (0.1 + 1.0**2) + 0.7 * (0.2 + 0.8**2) - mean**2
    first, last = _row(_grid(1), 0), _row(_grid(1), 1)
    results = []
    for n in steps:
        noise = jax.random.normal(jax.random.key(n), (num, 1))
        x = first.alpha * data.sample(jax.random.key(n + 1), num) + first.sigma * noise
        x, _ = sample(data.denoiser(_VP), sampler, _grid(n), x, jax.random.key(n + 2), max_steps=max(steps))
        results.append((x - last.alpha * mean) / jnp.sqrt(last.alpha**2 * var + last.sigma**2))
    return results


def _said(hidden: bool, coarse: float, error: float) -> str:
    if hidden:
        return ": within its Monte-Carlo error"
    return ": too small against its Monte-Carlo error to tell the order" if 8 * error > coarse else ""


def _weak_order(sampler: Sampler, steps: tuple[int, ...], ends: Callable[[], list[Array]], moment: str) -> Check:
    values = [unit if moment == "mean" else unit**2 - 1 for unit in ends()]
    biases = [float(jnp.mean(value)) for value in values]
    error = float(jnp.std(values[-1])) / math.sqrt(values[-1].size)
    coarse, fine = (abs(bias) for bias in biases[-2:])
    doublings = math.log2(steps[-1] / steps[-2])
    allowed = coarse / 2 ** (doublings * (sampler.order - 0.35)) + 4 * error
    hidden = fine < 3 * error
    measured = math.inf if hidden else math.log2(coarse / fine) / doublings
    figures = ", ".join(f"{bias:+.4f}" for bias in biases)
    note = f"bias {figures} +- {error:.4f} at {steps} steps{_said(hidden, coarse, error)}"
    return Check("", fine <= allowed, measured, f"{sampler.order} - 0.35 or better, up to Monte-Carlo error", note)


def _scaling(sampler: Sampler) -> Check:
    results = []
    for process in (_VP, processes.edm(), processes.rectified_flow()):
        levels = _grid(_STEPS, process, clean=True)
        x = _problem()[1][:8] / _row(_grid(1), 0).alpha * levels.alpha[0]  # the same point x / alpha
        results.append(sample(_mixture().denoiser(process), sampler, levels, x, jax.random.key(3))[0])
    apart = float(max(jnp.max(jnp.abs(other - results[0])) for other in results[1:]))
    return Check("", apart < 1e-6, apart, "< 1e-06 between VP, VE and flow")


def _finite(sampler: Sampler) -> Check:
    data, bad = jax.tree.map(lambda a: a.astype(jnp.float32), _mixture()), []
    with jax.enable_x64(False):
        for process in (_VP, processes.ddpm_linear()):
            for n in (1, 2, 3):
                x = process(1.0).sigma * jax.random.normal(jax.random.key(4), (8, 2))
                levels = grids.karras(process, n)
                x, _ = sample(data.denoiser(process), sampler, levels, x, jax.random.key(5), max_steps=3)
                if not bool(jnp.isfinite(x).all()):
                    bad.append(f"{n} steps of {type(process.schedule).__name__}")
    return Check("", not bad, float(len(bad)), "0 of 6 runs not finite", ", ".join(bad))


def _batch(sampler: Sampler) -> Check:
    alone, among = _run(sampler, _STEPS, num=3), _run(sampler, _STEPS, num=64)[:3]
    apart = float(jnp.max(jnp.abs(alone - among)))
    return Check("", apart < 1e-8, apart, "< 1e-08 between batches of 3 and 64")


def _bf16(sampler: Sampler) -> Check:
    with jax.enable_x64(False):
        data = Gaussian(jnp.ones(2), jnp.eye(2))
        x = jnp.ones((4, 2), jnp.bfloat16)
        x, _ = sample(data.denoiser(_VP), sampler, grids.karras(_VP, 6), x, jax.random.key(0))
        ok = x.dtype == jnp.bfloat16 and bool(jnp.isfinite(x.astype(jnp.float32)).all())
    return Check("", ok, float(ok), "bfloat16 and finite", "" if ok else f"gave {x.dtype}")


@dataclasses.dataclass(eq=False)
class _Counter:
    """A denoiser that counts how often it is traced, and how often it runs."""

    inner: Denoiser
    traces: int = 0
    runs: int = 0

    def __call__(self, x: Array, level: Level, cond: Cond) -> Prediction:
        self.traces += 1
        jax.debug.callback(self._ran, x.reshape(-1)[0])
        return self.inner(x, level, cond)

    def _ran(self, _: Any) -> None:
        self.runs += 1


def _count(sampler: Sampler) -> tuple[list[int], int]:
    """The traces after each of three calls (new key, grid, starting point, equal sampler), and the runs of all."""
    counter = _Counter(_problem()[0])
    traces = []
    for call, levels in enumerate((_grid(_STEPS), grids.karras(_VP, _STEPS), grids.log_snr(_VP, _STEPS))):
        x = jnp.full((2, 2), float(call))
        sample(Denoiser(counter, _VP), copy.copy(sampler), levels, x, jax.random.key(call))[0].block_until_ready()
        traces.append(counter.traces)
    jax.effects_barrier()
    return traces, counter.runs


def _one_trace(counts: Callable[[], tuple[list[int], int]]) -> Check:
    traces, _ = counts()
    return Check("", traces[0] == traces[-1], float(traces[-1] - traces[0]), "0 new traces in calls 2 and 3")


def _nfe(sampler: Sampler, counts: Callable[[], tuple[list[int], int]]) -> Check:
    runs, nfe = counts()[1], sampler.nfe or 0
    # Two of the three grids end at clean data, where later stages need not be evaluated.
    allowed = (3 * _STEPS * nfe, 3 * _STEPS * nfe - 2 * (nfe - 1))
    return Check(
        "", runs in allowed, runs / (3 * _STEPS), f"{nfe} per step{', 1 for that to clean data' if nfe > 1 else ''}"
    )


_ALL = ("order", "flow", "mean", "variance", "scaling", "finite", "batch", "bf16", "one trace", "nfe")
