"""The adaptive sampler against the paper's algorithm, its tolerance, its count, and what must not stop it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand
from jaxdiff.process import stack
from jaxdiff.samplers import Adaptive, DPMSolver, adaptive, invert, sample, trajectory
from jaxdiff.types import Prediction

pytestmark = pytest.mark.usefixtures("quick_compile")
VP = processes.vp_sde()
WEIGHTS, MEANS, VARS = np.array([0.3, 0.7]), np.array([-1.0, 0.6]), np.array([0.01, 0.25])
KEY = jax.random.key(0)


def predict(x, level, cond=None):
    """The exact answer for the mixture, written out: analytic.Mixture takes longer to compile."""
    a, s = expand(level.alpha, x), expand(level.sigma, x)
    total, away = a**2 * VARS[None] + s**2, x - a * MEANS[None]
    density = WEIGHTS[None] * jnp.exp(-(away**2) / (2 * total)) / jnp.sqrt(total)
    share = density / density.sum(1, keepdims=True)
    x0 = (share * (MEANS[None] + a * VARS[None] * away / total)).sum(1, keepdims=True)
    return Prediction(x0, (share * s * away / total).sum(1, keepdims=True))


def mixture(process):
    return Denoiser(predict, process)


def levels_of(*half_log_snr):
    return stack(VP.at(2 * np.array(half_log_snr, np.float64)))


def alpha_sigma(lam):
    return 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))


def eps_model(x, lam):
    """The mixture's exact noise prediction in float64 NumPy, for one number x."""
    a, s = alpha_sigma(lam)
    total = a**2 * VARS + s**2
    density = WEIGHTS * np.exp(-((x - a * MEANS) ** 2) / (2 * total)) / np.sqrt(total)
    return float((density * s * (x - a * MEANS) / total).sum() / density.sum())


def solver(order, x, lam, h, eps, r1=None):
    """Lu et al. 2022: DPM-Solver-1, -2 (any r1) and -3 (r1 = 1/3, r2 = 2/3) from lambda to lambda + h."""
    a0, _ = alpha_sigma(lam)

    def linear(r):
        a, s = alpha_sigma(lam + r * h)
        return a / a0 * x - s * (np.exp(r * h) - 1) * eps, s

    end, sigma = linear(1.0)
    if order == 1:
        return end
    d1 = eps_model(linear(r1)[0], lam + r1 * h) - eps
    if order == 2:
        return end - sigma / (2 * r1) * (np.exp(h) - 1) * d1
    r2 = 2 / 3
    u2, s2 = linear(r2)
    u2 = u2 - s2 * r2 / r1 * ((np.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
    d2 = eps_model(u2, lam + r2 * h) - eps
    return end - sigma / r2 * ((np.exp(h) - 1) / h - 1) * d2


def paper(order, x, lam, end, atol, rtol, h, theta=0.9):
    """Appendix C's algorithm for one number x; returns x, the evaluations and the verdicts."""
    count, verdicts, r1 = 0, [], {2: 1 / 2, 3: 1 / 3}[order]
    h = min(h, end - lam)
    while lam < end:
        eps = eps_model(x, lam)
        low, high = solver(order - 1, x, lam, h, eps, r1), solver(order, x, lam, h, eps, r1)
        error = abs(high - low) / max(atol, rtol * max(abs(low), abs(x)))
        verdicts.append(error <= 1)
        if error <= 1:
            x, lam = high, end if lam + h >= end - 1e-12 else lam + h
        h = min(theta * h * error ** (-1 / order), end - lam)
        count += order
    return x, count, verdicts


@pytest.mark.parametrize("order", [2, 3])
def test_it_is_the_papers_algorithm_for_each_example(order, x64):
    start, end, options = -2.0, 2.0, {"atol": 1e-3, "rtol": 1e-2, "h_init": 1.0}
    x = np.array([-1.2, -0.3, 0.4, 2.0])
    expected = [paper(order, value, start, end, options["atol"], options["rtol"], options["h_init"]) for value in x]
    sampler, rows = Adaptive(order, **options), levels_of(start, end)
    got, count = sample(mixture(VP), sampler, rows, jnp.array(x)[:, None], KEY, collect=adaptive.evaluations)
    np.testing.assert_allclose(got[:, 0], [e[0] for e in expected], rtol=1e-9)
    np.testing.assert_array_equal(count[-1], [e[1] for e in expected])
    assert any(False in e[2] for e in expected)  # some attempts were rejected
    assert len({e[1] for e in expected}) > 1  # and examples differ


def test_the_error_follows_the_tolerance(x64):
    data = analytic.Gaussian(jnp.array([1.0, 0.2]), jnp.array([[0.5, 0.1], [0.1, 0.02]]))
    rows, x = levels_of(-4.0, 3.0), jax.random.normal(KEY, (8, 2))
    exact = data.flow(x, *(jax.tree.map(lambda a, i=i: a[i], rows) for i in (0, 1)))
    errors, counts = [], []
    for order, atol in ((2, 1e-5), (3, 1e-5), (3, 1e-7)):
        sampler = Adaptive(order, 0.0, atol)
        got, count = sample(data.denoiser(VP), sampler, rows, x, KEY, collect=adaptive.evaluations)
        errors.append(float(jnp.abs(got - exact).max()))
        counts.append(float(count[-1].mean()))
    assert np.all(np.array(errors) < [1e-4, 1e-4, 1e-6])
    assert errors[2] < errors[1] / 30
    # A step's error is the tolerance and goes as h^order: the number of steps grows with its root.
    assert counts[2] / counts[1] == pytest.approx(100 ** (1 / 3), rel=0.35)
    assert counts[1] < counts[0] / 2


def test_with_one_step_per_row_it_is_dpm_solver_3(x64):
    rows, x = levels_of(*np.linspace(-3.0, 2.0, 11), np.inf), jnp.array([[-1.0], [0.3]])
    loose = Adaptive(atol=100.0, h_init=1.0)
    got, count = sample(mixture(VP), loose, rows, x, KEY, collect=adaptive.evaluations)
    np.testing.assert_array_equal(count[-1], 3 * 10 + 1)
    single, _ = sample(mixture(VP), DPMSolver(order=3), rows, x, KEY)
    np.testing.assert_allclose(got, single, rtol=1e-8)


@dataclass
class Counter:
    """The mixture's denoiser, counting its calls."""

    calls: int = 0

    def count(self, _):
        self.calls += 1

    def __call__(self, x, level, cond):
        jax.debug.callback(self.count, x[0, 0])
        return predict(x, level)

    __hash__ = object.__hash__


def test_the_count_is_true_and_no_example_depends_on_another():
    counter, rows = Counter(), levels_of(-2.0, 2.0, np.inf)
    denoise, sampler = Denoiser(counter, VP), Adaptive(atol=1e-3, rtol=0.0)

    def run(x):
        counter.calls = 0
        end, count = sample(denoise, sampler, rows, x, KEY, collect=adaptive.evaluations)
        jax.block_until_ready(end)
        jax.effects_barrier()
        return end, count, counter.calls

    x = jnp.array([[-1.2], [0.4], [3.0]])
    together, count, calls = run(x)
    assert calls == int(jnp.diff(count, axis=0, prepend=0).max(axis=1).sum())
    assert len(set(count[-1].tolist())) > 1
    for i in range(3):
        alone, one, calls = run(x[i : i + 1])
        assert calls == one[-1, 0] == count[-1, i]
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_the_last_step_is_x0_and_no_signal_is_a_start(x64):
    """From lambda = -inf: first order to -8, which is exact for the flow to rounding; to clean data: x0."""
    data = analytic.Gaussian(jnp.array([0.7]), jnp.array([[0.09]]))
    x, sampler = jnp.array([[0.5], [-1.0]]), Adaptive(rtol=0.0, atol=1e-7)
    denoise, rows = data.denoiser(VP), levels_of(-np.inf, 6.0, np.inf)
    first, noisy, clean = (jax.tree.map(lambda a, i=i: a[i], rows) for i in range(3))
    assert first.alpha == 0
    run = jax.jit(lambda x: sample(denoise, sampler, rows, x, KEY, collect=trajectory))
    (got, path), (tangent, _) = jax.jvp(run, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(path[0], data.flow(x, first, noisy), atol=2e-5)
    np.testing.assert_allclose(got, denoise(path[0], noisy).x0, rtol=1e-12)
    # The flow and the last jump are affine in x with the same factor everywhere.
    np.testing.assert_allclose(tangent, np.full((2, 1), (got[0, 0] - got[1, 0]) / 1.5), rtol=1e-3)
    back = invert(denoise, sampler, rows, got, KEY)  # and the way back ends at no signal
    np.testing.assert_allclose(back, data.flow(got, clean, first), atol=2e-3)


def test_nothing_stops_the_loop():
    """A denoiser that is no number, and a tolerance below rounding, both end."""
    nothing = Denoiser(lambda x, level, cond: Prediction(x * jnp.nan, x * jnp.nan), VP)
    x, _ = sample(nothing, Adaptive(), levels_of(-1.0, 1.0, np.inf), jnp.ones((2, 1)), KEY)
    assert np.isnan(x).all()
    rough = Denoiser(
        lambda x, level, cond: Prediction(jnp.ones_like(x), jnp.sin(1e6 * expand(level.log_snr, x)) + 0 * x), VP
    )
    x, count = sample(
        rough, Adaptive(atol=1e-9, rtol=0.0), levels_of(0.0, 0.02), jnp.ones((2, 1)), KEY, collect=adaptive.evaluations
    )
    assert np.isfinite(x).all()
    assert 3 * 100 < count[-1, 0] < 3 * 500  # steps of 1e-4 at the least


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adaptive(order=1), "order=1: allowed is 2 or 3"),
        (lambda: Adaptive(rtol=-1.0), "rtol=-1"),
        (lambda: Adaptive(atol=0.0), "atol=0"),
        (lambda: Adaptive(h_init=0.0), "h_init=0"),
    ],
)
def test_bad_input_is_one_line(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
