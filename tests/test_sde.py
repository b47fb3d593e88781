"""The SDE view against the papers' coefficients, and the probability flow against its exact solution."""

import sys
from functools import cache

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdiff import analytic, processes, sde
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser

TIMES = np.array([1e-3, 0.0203, 0.1003, 0.3003, 0.5003, 0.7707, 0.9507])


def beta(t):
    """beta(t) and its integral, 0.1 to 20."""
    return 0.1 + 19.9 * t, 0.1 * t + 0.5 * 19.9 * t**2


def vp(t):
    """Song et al. 2021, equation 11."""
    return -0.5 * beta(t)[0], beta(t)[0]


def sub_vp(t):
    """Song et al. 2021, equation 12."""
    return -0.5 * beta(t)[0], beta(t)[0] * -np.expm1(-2 * beta(t)[1])


def exploding(low, high):
    """Song et al. 2021, equation 9: g^2 = d sigma^2 / dt of a geometric sigma."""
    return lambda t: (0.0 * t, 2 * np.log(high / low) * (low * (high / low) ** t) ** 2)


def geometric(t):
    """VDM: with gamma linear, d log alpha / dt = -sigma^2 gamma' / 2 and g^2 = sigma^2 gamma'."""
    variance = 1 / (1 + np.exp(13.3 - 18.3 * t))
    return -0.5 * variance * 18.3, variance * 18.3


# (f, g^2), each from the paper or by hand from its alpha and sigma.
FORMULAS = {
    "vp_sde": (processes.vp_sde(), vp),
    "sub_vp_sde": (processes.sub_vp_sde(), sub_vp),
    "ve_sde": (processes.ve_sde(), exploding(0.01, 50.0)),
    "geometric": (processes.geometric(), geometric),
    "rectified_flow": (processes.rectified_flow(), lambda t: (-1 / (1 - t), 2 * t / (1 - t))),
    "cosine": (processes.cosine(), lambda t: (-np.pi / 2 * np.tan(np.pi * t / 2), np.pi * np.tan(np.pi * t / 2))),
}
# Without a formula of their own: against the marginals.
OTHERS = {
    "ddpm_linear": processes.ddpm_linear(),
    "ncsn": processes.ncsn(),
    "zero_terminal": processes.zero_terminal_snr(processes.ddpm_scaled_linear()),
    "sigmoid": processes.sigmoid(),
    "laplace": processes.laplace(),
}
ALL = {name: process for name, (process, _) in FORMULAS.items()} | OTHERS


@cache
def coefficients(name):
    """f and g of a process in float64, compiled once: at TIMES, then at the ends."""
    with jax.enable_x64(True):
        t = jnp.asarray(np.append(TIMES, [0.0, 1.0]))
        return tuple(np.asarray(c) for c in jax.jit(lambda t: sde.drift_and_diffusion(ALL[name], t))(t))


@pytest.mark.parametrize("name", FORMULAS)
def test_coefficients_are_the_papers(name):
    f, g = coefficients(name)
    drift, variance = FORMULAS[name][1](TIMES)
    np.testing.assert_allclose(f[:-2], drift, rtol=1e-9)
    np.testing.assert_allclose(g[:-2] ** 2, variance, rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_coefficients_give_the_marginals(name):
    # alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2, by differences in NumPy.
    h, (f, g) = 1e-6, coefficients(name)
    level, up, down = (ALL[name](t) for t in (TIMES[1:], TIMES[1:] + h, TIMES[1:] - h))
    f, g, ends = f[1:-2], g[1:-2], np.stack([f[-2:], g[-2:]])
    np.testing.assert_allclose(f * level.alpha, (up.alpha - down.alpha) / (2 * h), rtol=2e-5, atol=1e-7)
    rate = (up.sigma**2 - down.sigma**2) / (2 * h)
    np.testing.assert_allclose(2 * f * level.sigma**2 + g**2, rate, rtol=2e-5, atol=1e-7)
    assert np.isfinite(ends).all()
    assert (ends[0] <= 0).all()
    assert (ends[1] >= 0).all()


@pytest.mark.parametrize("name", ["zero_terminal", "rectified_flow", "sub_vp_sde"])
def test_float32_is_finite_at_the_ends(name):
    f, g = jax.jit(lambda t: sde.drift_and_diffusion(ALL[name], t))(jnp.array([0.0, 1e-7, 0.999, 0.9995, 1.0]))
    assert np.isfinite(f).all()
    assert np.isfinite(g).all()
    np.testing.assert_array_less(-1e-6, g)


def gaussian():
    root = jax.random.normal(jax.random.key(0), (3, 3))
    return analytic.Gaussian(jnp.array([1.0, -2.0, 0.5]), 0.3 * root @ root.T)


@pytest.mark.parametrize("name", ["sub_vp_sde", "ve_sde", "rectified_flow", "ddpm_linear"])
def test_reverse_sde_and_probability_flow_follow_the_score(name, x64):
    data, process = gaussian(), ALL[name]
    x = jax.random.normal(jax.random.key(1), (4, 3))
    t = jnp.array([0.0303, 0.2, 0.5003, 0.93])

    @jax.jit
    def run(x, t):
        denoise = data.denoiser(process)
        f, g = (c[:, None] for c in sde.drift_and_diffusion(process, t))
        score = data.score(x, process(t))
        reverse, noise = sde.reverse_sde(denoise, x, t)
        flow = sde.probability_flow(denoise, x, t)
        return (reverse, f * x - g**2 * score), (noise[:, None], g), (flow, f * x - 0.5 * g**2 * score)

    for found, expected in run(x, t):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_reverse_sde_keeps_the_variance(x64):
    # Of N(0, s^2) data in one dimension the reverse drift is a(t) x, and v = alpha^2 s^2 + sigma^2 must solve
    # the variance equation of the SDE run backwards, v' = 2 a v - g^2.
    process, h, t = processes.sub_vp_sde(), 1e-6, np.array([0.05, 0.4, 0.9])
    denoise = analytic.Gaussian(jnp.zeros(1), jnp.full((1, 1), 0.25)).denoiser(process)
    a, g = jax.jit(lambda t: sde.reverse_sde(denoise, jnp.ones((3, 1)), t))(jnp.asarray(t))
    before, now, after = (0.25 * level.alpha**2 + level.sigma**2 for level in map(process, (t - h, t, t + h)))
    np.testing.assert_allclose((after - before) / (2 * h), 2 * a[:, 0] * now - g**2, rtol=1e-6)


@pytest.mark.parametrize(("process", "scale"), [(processes.ve_sde(), 50.0), (processes.rectified_flow(), 1.0)])
def test_prior_log_prob_is_the_normal_density(process, scale):
    x = scale * np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
    expected = scipy.stats.norm(scale=scale).logpdf(x).sum((1, 2))
    np.testing.assert_allclose(sde.prior_log_prob(process, jnp.asarray(x)), expected, rtol=1e-5)


def test_diffrax_solves_the_probability_flow():
    data, process, end = gaussian(), processes.sub_vp_sde(), 1e-3
    x = jax.random.normal(jax.random.key(2), (5, 3))
    traces = []

    def fn(x, level, cond):
        traces.append(1)
        return analytic.Gaussian(cond["mean"][0], data.cov).denoiser(process)(x, level)

    def solve(x, t0, t1):
        cond = {"mean": jnp.broadcast_to(data.mean[None], x.shape)}
        return sde.solve_diffrax(denoise, x, t0, t1, solver=diffrax.Tsit5(), rtol=1e-6, atol=1e-6, cond=cond)

    denoise = Denoiser(fn, process)
    found, steps = solve(x, 1.0, end)
    noisy, clean = (jax.tree.map(jnp.asarray, process(np.float64(t))) for t in (1.0, end))
    np.testing.assert_allclose(found, data.flow(x, noisy, clean), rtol=1e-4, atol=1e-4)
    assert 10 < int(steps) < 200
    before = len(traces)
    back, _ = solve(found, end, 1.0)
    np.testing.assert_allclose(back, x, atol=1e-3)
    assert len(traces) == before  # the times are no constants: nothing compiles again


def test_diffrax_goes_from_pure_noise_to_clean_data():
    # From alpha = 0 to sigma = 0, where the score is infinite and the velocity is not.
    data, process = gaussian(), processes.rectified_flow()
    x = jax.random.normal(jax.random.key(3), (2, 3))
    found, steps = sde.solve_diffrax(data.denoiser(process), x, 1.0, 0.0)
    noisy, clean = (jax.tree.map(jnp.asarray, process(np.float64(t))) for t in (1.0, 0.0))
    np.testing.assert_allclose(found, data.flow(x, noisy, clean), atol=1e-3)
    assert int(steps) < 20


def test_bad_input_is_one_line(monkeypatch):
    denoise = gaussian().denoiser(processes.vp_sde())
    with pytest.raises(UsageError, match=r"t1=2: a process time lies in \[0, 1\]"):
        sde.solve_diffrax(denoise, jnp.ones((2, 3)), 1.0, 2.0)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(UsageError, match=r"pip install 'jaxdiff\[diffrax\]'") as error:
        sde.solve_diffrax(denoise, jnp.ones((2, 3)))
    assert "\n" not in str(error.value)
