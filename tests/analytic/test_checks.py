"""The checks a user runs on a method of their own: they pass what is right and name what is broken."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes, samplers
from jaxdiff.analytic import Empirical, Gaussian, Mixture, check_denoiser, check_sampler
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import normal_like
from jaxdiff.process import q_posterior
from jaxdiff.samplers import DDIM, DDPM
from jaxdiff.types import Prediction


def test_ddim_passes_every_check():
    report = check_sampler(DDIM())
    names = ["order", "scaling", "finite", "batch", "bf16", "one trace", "nfe"]
    assert report.ok, f"{report}"
    assert [check.name for check in report.checks] == names
    assert report["order"].value == pytest.approx(1, abs=0.03)
    assert str(report).splitlines()[0] == "DDIM(eta=0.0): ok"
    assert all(line.startswith("  pass") for line in str(report).splitlines()[1:])


@pytest.mark.slow
def test_ddpm_passes_with_its_weak_order():
    report = check_sampler(DDPM(), only=["mean", "variance", "batch"])
    assert report.ok, f"{report}"
    assert [check.name for check in report.checks][:2] == ["mean", "variance"]
    assert report["variance"].value == pytest.approx(1, abs=0.2)


class History(NamedTuple):
    x: Any
    slopes: Any
    nodes: Any
    filled: Any


@dataclass(frozen=True)
class Adams:
    """Adams-Bashforth on du/ds = eps with unequal steps, begun with Euler's: a method of known order 1, 2 or 3."""

    order: int
    nfe = 1

    def init(self, x):
        return History(x, jnp.zeros((2, *x.shape), x.dtype), jnp.zeros(2), jnp.zeros((), jnp.int32))

    def step(self, denoise, state, cur, nxt, key, cond):
        def divided(a, b, s, r):
            return (a - b) / jnp.where(s == r, 1.0, s - r)

        s, h = cur.sigma / cur.alpha, nxt.sigma / nxt.alpha - cur.sigma / cur.alpha
        slope = denoise(state.x, cur, cond).eps
        first = divided(slope, state.slopes[0], s, state.nodes[0])
        second = divided(first, divided(*state.slopes, *state.nodes), s, state.nodes[1])
        move = slope * h + jnp.where((state.filled > 0) & (self.order > 1), first * h**2 / 2, 0.0)
        third = second * (h**3 / 3 + h**2 * (s - state.nodes[0]) / 2)
        move += jnp.where((state.filled > 1) & (self.order > 2), third, 0.0)
        x = nxt.alpha * (state.x / cur.alpha + move)
        return History(x, jnp.stack([slope, state.slopes[0]]), jnp.stack([s, state.nodes[0]]), state.filled + 1)


@pytest.mark.parametrize("order", [2, 3])
def test_a_multistep_method_that_starts_with_euler_shows_its_order(order):
    assert check_sampler(Adams(order), only=["order"])["order"].value == pytest.approx(order, abs=0.08)


class Broken(DDIM):
    """DDIM, to be broken in one place."""

    def step(self, denoise, state, cur, nxt, key, cond):
        x0, eps, _ = denoise(state.x, cur, cond)
        return state._replace(x=self.moved(x0, eps, cur, nxt, key))


class WrongCoefficient(Broken):
    def moved(self, x0, eps, cur, nxt, key):
        return nxt.alpha * x0 + 0.99 * nxt.sigma * eps


class AlphaForNextAlpha(Broken):
    def moved(self, x0, eps, cur, nxt, key):
        return cur.alpha * x0 + nxt.sigma * eps


class OrderClaimed(DDIM):
    order = 2


class EvaluationsClaimed(DDIM):
    nfe = 2


class LogSigmaOfCleanData(Broken):
    def moved(self, x0, eps, cur, nxt, key):
        return nxt.alpha * x0 + jnp.exp(jnp.log(nxt.sigma) * 2) / nxt.sigma * eps


class Widened(DDIM):
    def init(self, x):
        return super().init(x.astype(jnp.float32))


@dataclass(frozen=True, eq=False)
class NotAValue(DDIM):
    """Not equal to another of the same settings, so that every call compiles again."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Noisy(DDPM):
    """DDPM, to be broken in its noise."""

    share = 1.0

    def step(self, denoise, state, cur, nxt, key, cond):
        mean, var = q_posterior(cur, nxt, state.x, denoise(state.x, cur, cond).x0)
        return state._replace(x=mean + self.share * jnp.sqrt(var) * self.noise(key, mean))

    def noise(self, key, x):
        return normal_like(key, x)


class LastKeyForAll(Noisy):
    def noise(self, key, x):
        return jax.random.normal(key[-1], x.shape, x.dtype)


class LoudAndShifted(Noisy):
    share = 1.3

    def noise(self, key, x):
        return normal_like(key, x) + 0.05


class Raises(DDIM):
    def step(self, *_):
        raise RuntimeError("no such thing\nand more")


@pytest.mark.parametrize(
    ("sampler", "fails"),
    [
        (WrongCoefficient(), "order"),
        (AlphaForNextAlpha(), "scaling"),
        (OrderClaimed(), "order"),
        (EvaluationsClaimed(), "nfe"),
        (LogSigmaOfCleanData(), "finite"),
        (Widened(), "bf16"),
        (NotAValue(), "one trace"),
        (LastKeyForAll(), "batch"),
        (LoudAndShifted(), "variance"),
        (LoudAndShifted(), "mean"),
        (Raises(), "bf16"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_broken_sampler_fails_the_check_that_is_meant_for_it(sampler, fails):
    report = check_sampler(sampler, only=[fails], num=2**13)
    assert not report.ok, f"{report}"
    assert f"  FAIL  {fails}" in str(report)
    assert len(str(report).splitlines()) == 2
    if isinstance(sampler, Raises):
        assert "RuntimeError: no such thing" in str(report)


def test_an_adaptive_sampler_is_measured_by_its_distance():
    class Adaptive(DDIM):
        nfe = None

    assert [check.name for check in check_sampler(Adaptive(), only=["flow", "nfe", "order"]).checks] == ["flow"]


def test_an_unknown_check_is_refused():
    with pytest.raises(UsageError, match="unknown check 'ordr': did you mean 'order'"):
        check_sampler(DDIM(), only=["ordr"])


MIXTURE = Mixture(jnp.array([0.4, 0.6]), jnp.array([[1.0, -0.5], [-0.8, 0.6]]), jnp.stack([0.2 * jnp.eye(2)] * 2))


def changed(change):
    """The mixture's exact denoiser with its answer changed."""
    exact = MIXTURE.denoiser(processes.vp_sde())
    return Denoiser(lambda x, level, cond: change(*exact(x, level)[:2], x, level), exact.process)


def consistent(x0, x, level):
    return Prediction(x0, jnp.where(level.sigma > 0, (x - level.alpha * x0) / level.sigma, 0.0))


@pytest.mark.parametrize(
    ("data", "process"),
    [
        (MIXTURE, processes.ddpm_linear()),
        (Gaussian(MIXTURE.means[0], MIXTURE.covs[0]), processes.edm()),
        (Empirical(MIXTURE.means), processes.rectified_flow()),
    ],
    ids=["mixture", "gaussian", "empirical"],
)
def test_exact_denoisers_pass(data, process):
    report = check_denoiser(data.denoiser(process), data, num=128)
    assert report.ok, f"{report}"
    assert sum("finite" in check.name for check in report.checks) == 2
    assert max(check.value for check in report.checks if check.name.startswith(("x0", "eps"))) < 1e-3


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (lambda x0, eps, x, level: consistent(1.2 * x0, x, level), {"x0", "eps", "invariant"}),
        (lambda x0, eps, x, level: Prediction(x0, 1.2 * eps), {"eps", "invariant"}),
        (lambda x0, eps, x, level: Prediction(x0, (x - level.alpha * x0) / level.sigma), {"finite", "invariant"}),
        (lambda x0, eps, x, level: Prediction(x0[:, :1], eps @ eps), {"x0"}),
    ],
    ids=["x0 scaled", "eps scaled", "0/0 at clean data", "raises"],
)
def test_a_broken_denoiser_fails(change, fails):
    report = check_denoiser(changed(change), MIXTURE, num=128)
    assert not report.ok
    assert {check.name.split(" at ")[0] for check in report.checks if not check.ok} == fails, f"{report}"


def test_the_measured_error_is_the_added_one():
    """An error of 0.3 of the Bayes error is measured as 0.3, at every level and in x0 as in eps."""
    data = Gaussian(jnp.zeros(2), 0.5 * jnp.eye(2))
    exact = data.denoiser(processes.vp_sde())

    def off(x, level, cond):
        added = 0.3 * jnp.sqrt(data.bayes_risk(level))
        x0, eps, _ = exact(x, level)
        return Prediction(x0 + added, eps - jnp.where(level.sigma > 0, level.alpha / level.sigma, 0.0) * added)

    report = check_denoiser(replace(exact, fn=off), data, num=4096)
    ratios = [check.value for check in report.checks if check.name.startswith(("x0", "eps"))]
    np.testing.assert_allclose(ratios, 0.3, rtol=0.1)


@pytest.mark.parametrize("name", ["heun", "dpm_solver", "predictor_corrector", "unipc"])
def test_the_librarys_own_samplers_keep_their_evaluations(name):
    assert check_sampler(samplers.make(name), only=["nfe"]).ok
