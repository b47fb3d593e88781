"""Euler, Heun and DPM-2 against the papers' algorithms in their own variables, churn, ancestral noise, inversion."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from jaxdiff import analytic, grids, processes, samplers
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like
from jaxdiff.process import stack
from jaxdiff.samplers import (
    DDIM,
    DDPM,
    DPM2,
    DPM2Ancestral,
    Euler,
    EulerAncestral,
    Heun,
    SASolver,
    UniPC,
    churn,
    invert,
    sample,
)
from jaxdiff.samplers.churn import per_step
from jaxdiff.samplers.inversion import _draws
from jaxdiff.types import Prediction

pytestmark = pytest.mark.usefixtures("quick_compile")
VP, VE, FLOW = processes.vp_sde(), processes.edm(), processes.rectified_flow()
WEIGHTS, MEANS, VARS = np.array([0.3, 0.7]), np.array([-1.0, 0.6]), np.array([0.09, 0.25])
POINTS = np.linspace(-1.5, 1.5, 5)


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


def expected_x0(y, s):
    """D(y; s) of the mixture in float64 NumPy, in EDM's variables: y = x0 + s eps."""
    total = VARS + s**2
    density = WEIGHTS * np.exp(-((y[:, None] - MEANS) ** 2) / (2 * total)) / np.sqrt(total)
    each = (VARS * y[:, None] + s**2 * MEANS) / total
    return (density * each).sum(1) / density.sum(1)


def slope(y, s):
    return (y - expected_x0(y, s)) / s


def level(process, s):
    return jax.tree.map(jnp.asarray, process.at(np.float64(-2 * np.log(s)) if s else np.float64(np.inf)))


def one_step(sampler, process, y, s, s_next, keys):
    """A step of ours in `process`, from and to EDM's y = x / alpha."""
    cur, nxt = level(process, s), level(process, s_next)
    x = jnp.asarray(y)[:, None] * cur.alpha
    out = sampler.step(mixture(process), sampler.init(x), cur, nxt, keys, None).x
    return np.asarray(out / nxt.alpha)[:, 0]


def draw(keys):
    return np.asarray(normal_like(keys, jnp.zeros((len(POINTS), 1))))[:, 0]


def edm_algorithm(y, s, s_next, z, gamma, s_noise, a):
    """Karras et al. 2022, algorithm 2, with algorithm 3's second stage at a; a = None is without correction."""
    s_hat = s + gamma * s
    y_hat = y + np.sqrt(s_hat**2 - s**2) * s_noise * z
    d, h = slope(y_hat, s_hat), s_next - s_hat
    if a is None or s_next == 0:
        return y_hat + h * d
    d_prime = slope(y_hat + a * h * d, s_hat + a * h)
    return y_hat + h * ((1 - 1 / (2 * a)) * d + d_prime / (2 * a))


@pytest.mark.parametrize("process", [VP, VE], ids=["vp", "ve"])
@pytest.mark.parametrize(("make", "a"), [(Euler, None), (Heun, 1.0), (Heun, 0.5), (Heun, 2 / 3)])
def test_a_step_is_edms_algorithm(process, make, a, x64):
    keys = jax.random.split(jax.random.key(1), len(POINTS))
    kwargs = {} if make is Euler else {"alpha": a}
    for gamma, s_next in ((0.0, 0.8), (0.3, 0.8), (0.3, 0.0)):
        expected = edm_algorithm(POINTS, 1.1, s_next, draw(keys), gamma, 1.003, a)
        got = one_step(make(churn=gamma, s_noise=1.003, **kwargs), process, POINTS, 1.1, s_next, keys)
        np.testing.assert_allclose(got, expected, rtol=1e-10)


def k_diffusion_dpm_2(y, s, s_next):
    middle = np.exp((np.log(s) + np.log(s_next)) / 2)
    return y + (s_next - s) * slope(y + (middle - s) * slope(y, s), middle)


def test_dpm_2_is_k_diffusions_and_dpm_solver_2(x64):
    keys, s, s_next = jax.random.split(jax.random.key(1), len(POINTS)), 1.1, 0.6
    hat = 1.2 * s
    raised = POINTS + np.sqrt(hat**2 - s**2) * 0.9 * draw(keys)
    for sampler, expected in (
        (DPM2(), k_diffusion_dpm_2(POINTS, s, s_next)),
        (DPM2(churn=0.2, s_noise=0.9), k_diffusion_dpm_2(raised, hat, s_next)),
    ):
        np.testing.assert_allclose(one_step(sampler, VP, POINTS, s, s_next, keys), expected, rtol=1e-10)
    # Lu et al. 2022, algorithm 1, in x, alpha, sigma and lambda of the variance-preserving process.
    (a0, s0), (a2, s2) = ((1 / np.sqrt(1 + r**2), r / np.sqrt(1 + r**2)) for r in (s, s_next))
    h = np.log(a2 / s2) - np.log(a0 / s0)
    a1, s1 = (float(v) for v in VP.scaling(np.float64(2 * np.log(a0 / s0) + h)))
    x = a0 * POINTS
    u = a1 / a0 * x - s1 * np.expm1(h / 2) * slope(x / a0, s)
    x = a2 / a0 * x - s2 * np.expm1(h) * slope(u / a1, s1 / a1)
    np.testing.assert_allclose(one_step(DPM2(), VP, POINTS, s, s_next, keys), x / a2, rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 1.8])
def test_ancestral_steps_are_k_diffusions(eta, x64):
    keys, s, s_next = jax.random.split(jax.random.key(1), len(POINTS)), 1.1, 0.9
    up = min(s_next, eta * np.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
    down = np.sqrt(s_next**2 - up**2)
    noise = 0.9 * up * draw(keys)
    euler = POINTS + (down - s) * slope(POINTS, s) + noise
    np.testing.assert_allclose(one_step(EulerAncestral(eta, 0.9), VP, POINTS, s, s_next, keys), euler, rtol=1e-9)
    second = (k_diffusion_dpm_2(POINTS, s, down) if down else expected_x0(POINTS, s)) + noise
    np.testing.assert_allclose(one_step(DPM2Ancestral(eta, 0.9), VP, POINTS, s, s_next, keys), second, rtol=1e-9)


def test_euler_is_ddim_and_ancestral_is_ddim_with_eta(x64):
    keys = jax.random.split(jax.random.key(1), len(POINTS))
    for one, other in (
        (Euler(), DDIM()),
        (EulerAncestral(0.4), DDIM(0.4)),
        (EulerAncestral(), DDPM()),
        (EulerAncestral(0.0), Euler()),
        (DPM2Ancestral(0.0), DPM2()),
    ):
        for s_next in (0.7, 0.0):
            a, b = (one_step(sampler, VP, POINTS, 1.1, s_next, keys) for sampler in (one, other))
            np.testing.assert_allclose(a, b, rtol=1e-9)


def quantile_flow(y, s, s_next):
    """The exact probability flow in one dimension keeps every point's quantile; found by bisection."""

    def cdf(y, s):
        return (WEIGHTS * ndtr((y[:, None] - MEANS) / np.sqrt(VARS + s**2))).sum(1)

    low, high, goal = np.full_like(y, -9.0), np.full_like(y, 9.0), cdf(y, s)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle, s_next) < goal
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


@pytest.mark.parametrize("sampler", [Heun(), Heun(alpha=0.5), Heun(alpha=2 / 3), DPM2(), Euler()], ids=repr)
def test_the_error_of_one_step_on_a_mixture_is_of_order_plus_one(sampler, x64):
    """The midpoint rule is of order 3 on Gaussian data by chance: its order shows on a mixture only."""
    keys, errors = jax.random.split(jax.random.key(0), len(POINTS)), []
    for h in (0.04, 0.02, 0.01):
        exact = quantile_flow(POINTS, 0.8, 0.8 - h)
        errors.append(np.abs(one_step(sampler, VP, POINTS, 0.8, 0.8 - h, keys) - exact).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), sampler.order + 1, atol=0.15)


def test_churn_raises_to_the_level_it_says_with_the_variance_it_takes(x64, monkeypatch):
    """x_hat = (alpha_hat / alpha) x + std z with sigma_hat^2 = ((alpha_hat / alpha) sigma)^2 + std^2."""
    monkeypatch.setattr(churn, "normal_like", lambda key, x: jnp.ones_like(x).at[1].set(0.0))
    x, sampler = jnp.array([[0.0], [1.0]]), Euler(churn=0.25, s_min=0.05, s_max=50.0)
    for process in (VP, VE, FLOW):
        for s in (0.06, 1.0, 49.0):
            cur = level(process, s)
            (std, coef), hat = sampler.raised(process, x, cur, jax.random.key(0))
            np.testing.assert_allclose(hat.sigma / hat.alpha, 1.25 * s, rtol=1e-12)
            np.testing.assert_allclose(coef, hat.alpha / cur.alpha, rtol=1e-12)
            np.testing.assert_allclose((coef * cur.sigma) ** 2 + std**2, hat.sigma**2, rtol=1e-12)
        for s in (0.04, 51.0):  # outside the window
            same, hat = sampler.raised(process, x, level(process, s), jax.random.key(0))
            np.testing.assert_array_equal(same, x)
            np.testing.assert_allclose(hat.sigma, level(process, s).sigma)


@pytest.mark.parametrize("make", [Euler, Heun, DPM2])
def test_weak_order_with_the_papers_churn(make, x64, monkeypatch):
    """With gamma = S_churn / N the mean and variance converge at the flow's order. On Gaussian data a step is
    affine, x -> a x + b + c z: three examples say which, and mean and variance follow exactly."""
    monkeypatch.setattr(churn, "normal_like", lambda key, x: jnp.zeros_like(x).at[2].set(1.0))
    data, errors = analytic.Gaussian(jnp.array([0.7]), jnp.array([[0.09]])), []
    x, keys = jnp.array([[0.0], [1.0], [0.0]]), jax.random.split(jax.random.key(0), 3)
    for n in (32, 64, 128):
        sampler = make(churn=per_step(6.0, n))
        log_snr = np.append(np.linspace(-3.0, 3.0, n + 1), np.full(128 - n, 3.0))  # one shape for all n
        levels = stack(VP.at(log_snr))
        cur, nxt = (jax.tree.map(lambda a, i=i: a[i : 128 + i], levels) for i in (0, 1))
        ends = jax.vmap(lambda cur, nxt, s=sampler: s.step(data.denoiser(VP), s.init(x), cur, nxt, keys, None).x[:, 0])(
            cur, nxt
        )
        true_mean, true_var = (np.asarray(v) for v in (levels.alpha * 0.7, levels.alpha**2 * 0.09 + levels.sigma**2))
        mean, var = true_mean[0], true_var[0]
        for b, one, z in np.asarray(ends)[:n]:
            mean, var = (one - b) * mean + b, (one - b) ** 2 * var + (z - b) ** 2
        errors.append(max(abs(mean - true_mean[-1]), abs(var - true_var[-1])))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), make().order, atol=0.15)


def test_per_step_is_the_papers_gamma():
    assert per_step(40.0, 256) == 40 / 256
    assert per_step(80.0, 18) == pytest.approx(0.41421356, abs=1e-8)
    assert Heun(churn=per_step(80.0, 18)).between
    assert [s.between for s in (Euler(), Euler(churn=0.1), Heun(), Heun(alpha=0.5), DPM2())] == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    "sampler", [Euler(churn=0.2), Heun(churn=0.2), Heun(alpha=0.5), DPM2(), EulerAncestral(), DPM2Ancestral()], ids=repr
)
def test_from_no_signal_it_is_eulers_step(sampler, x64, monkeypatch):
    """Zero terminal SNR: finite with its derivatives, and of first order there."""
    monkeypatch.setattr(samplers.euler, "normal_like", lambda key, x: jnp.zeros_like(x))
    monkeypatch.setattr(samplers.dpm_2, "normal_like", lambda key, x: jnp.zeros_like(x))
    process = processes.from_betas([0.1, 0.5, 1.0])
    cur, nxt, keys = process(jnp.float64(1.0)), process(jnp.float64(1 / 3)), jax.random.split(jax.random.key(0), 2)
    data = analytic.Gaussian(jnp.array([0.7]), jnp.array([[0.09]]))
    assert cur.alpha == 0

    def step(x, nxt):
        return sampler.step(data.denoiser(process), sampler.init(x), cur, nxt, keys, None).x

    x = jnp.array([[0.5], [-1.0]])
    sigma = 0.0 if getattr(sampler, "eta", 0.0) else nxt.sigma
    got, tangent = jax.jvp(step, (x, nxt), (jnp.ones_like(x), jax.tree.map(jnp.ones_like, nxt)))
    np.testing.assert_allclose(got, nxt.alpha * 0.7 + sigma * x, rtol=1e-12)
    assert np.isfinite(tangent).all()


def test_inversion_starts_at_clean_data_with_a_step_of_order_3(x64):
    data = analytic.Gaussian(jnp.array([0.7]), jnp.array([[0.09]]))
    x0, errors = jnp.array([[0.2], [1.5]]), []
    for s in (0.08, 0.04, 0.02):
        levels = stack(VP.at(np.array([-2 * np.log(s), np.inf])))
        noisy, clean = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (0, 1))
        got = invert(data.denoiser(VP), Heun(), levels, x0, jax.random.key(0))
        errors.append(float(jnp.abs(got - data.flow(x0, clean, noisy)).max()))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 4, atol=0.15)


@pytest.mark.parametrize("sampler", [Euler(), Heun(), SASolver(1, 2, 0.0), UniPC(1)], ids=repr)
def test_inversion_is_the_flow_and_sampling_returns(sampler, x64):
    data = analytic.Gaussian(jnp.array([0.7, -0.2]), jnp.array([[0.4, 0.1], [0.1, 0.3]]))
    denoise, key, x0 = data.denoiser(VP), jax.random.key(0), jnp.array([[0.2, 0.1], [1.5, -1.0]])
    there, back = [], []
    for n in (32, 64):
        levels = stack(VP.at(np.append(np.linspace(-9.0, 17.0, n), np.inf)))
        x = invert(denoise, sampler, levels, x0, key)
        exact = data.flow(x0, *(jax.tree.map(lambda a, i=i: a[i], levels) for i in (-1, 0)))
        again, _ = sample(denoise, sampler, levels, x, key, max_steps=64)
        there.append(float(jnp.abs(x - exact).max()))
        back.append(float(jnp.abs(again - x0).max()))
    assert np.log2(there[0] / there[1]) == pytest.approx(sampler.order, abs=0.2)
    # Errors there and back may cancel, so returning can be better than the order, never worse.
    assert np.log2(back[0] / back[1]) > sampler.order - 0.2
    assert back[1] < 2 * there[1]


def test_inversion_refuses_what_draws_noise_and_grids_that_end_in_noise():
    denoise, levels = mixture(VP), grids.uniform(VP, 4)
    x, first = jnp.ones((2, 1)), jax.tree.map(lambda a: a[0], levels)
    for name, entry in samplers.REGISTRY.items():
        assert _draws(denoise, entry.make(), first, x) == entry.stochastic, name
    for sampler in (DDIM(0.5), Euler(churn=0.1), DDPM("learned"), EulerAncestral()):
        with pytest.raises(UsageError, match="draws noise: only deterministic samplers") as error:
            invert(denoise, sampler, levels, x, jax.random.key(0))
        assert "\n" not in str(error.value)
    for bad, words in ((jax.tree.map(lambda a: a[:-1], levels), "must end at clean data"), (first, "two or more")):
        with pytest.raises(UsageError, match=words):
            invert(denoise, Euler(), bad, x, jax.random.key(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Heun(churn=0.42), "churn=0.42: allowed is 0 to sqrt(2) - 1 = 0.4142"),
        (lambda: Euler(churn=float("nan")), "churn=nan"),
        (lambda: Heun(alpha=0.0), "alpha=0: allowed is above 0 to 1"),
        (lambda: Heun(alpha=1.5), "alpha=1.5"),
        (lambda: DPM2(s_min=2.0, s_max=1.0), "s_min=2, s_max=1"),
        (lambda: Euler(s_noise=-1.0), "s_noise=-1"),
        (lambda: EulerAncestral(eta=-0.1), "eta=-0.1"),
        (lambda: DPM2Ancestral(s_noise=-1.0), "s_noise=-1"),
        (lambda: per_step(-1.0, 10), "s_churn=-1"),
        (lambda: per_step(1.0, 0), "num_steps=0"),
        (
            lambda: sample(
                replace(mixture(processes.ddpm_linear(100)), rows_only=True),
                Heun(churn=0.1),
                grids.uniform(processes.ddpm_linear(100), 2),
                jnp.ones((1, 1)),
                jax.random.key(0),
            ),
            "evaluates between the rows",
        ),
    ],
)
def test_bad_input_is_one_line(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
