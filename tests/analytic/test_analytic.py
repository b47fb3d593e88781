"""The oracles themselves, against SciPy, quadrature and autodiff in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from jaxdiff import processes
from jaxdiff.analytic import Gaussian, Mixture

PROCESSES = [processes.vp_sde(), processes.edm(), processes.rectified_flow()]
MEANS = np.array([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]])
COVS = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.5]], [[0.1, -0.05], [-0.05, 0.1]]])
WEIGHTS = np.array([0.5, 0.3, 0.2])


def gaussian():
    return Gaussian(jnp.asarray(MEANS[0]), jnp.asarray(COVS[0]))


def mixture():
    return Mixture(jnp.asarray(2 * WEIGHTS), jnp.asarray(MEANS), jnp.asarray(COVS))


def noisy_density(x, level):
    alpha, sigma = float(level.alpha), float(level.sigma)
    return sum(
        w * multivariate_normal(alpha * m, alpha**2 * s + sigma**2 * np.eye(2)).pdf(x)
        for w, m, s in zip(WEIGHTS, MEANS, COVS, strict=True)
    )


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_densities_against_scipy(process, t, x64):
    level, x = process(t), jax.random.normal(jax.random.key(0), (6, 2))
    np.testing.assert_allclose(jnp.exp(mixture().log_prob(x, level)), noisy_density(x, level), rtol=1e-9)
    alone = Mixture(jnp.ones(1), jnp.asarray(MEANS[:1]), jnp.asarray(COVS[:1]))
    np.testing.assert_allclose(gaussian().log_prob(x, level), alone.log_prob(x, level), rtol=1e-12)


@pytest.mark.parametrize("data", [gaussian, mixture])
@pytest.mark.parametrize("process", PROCESSES)
def test_denoiser_and_score_follow_from_the_density(data, process, x64):
    """Tweedie: E[x0 | x] = (x + sigma^2 grad log q(x)) / alpha, with the gradient by autodiff."""
    data, level, x = data(), process(0.4), jax.random.normal(jax.random.key(0), (6, 2))
    score = jax.grad(lambda x: data.log_prob(x, level).sum())(x)
    np.testing.assert_allclose(data.score(x, level), score, rtol=1e-7, atol=1e-9)
    answer = data.denoiser(process)(x, level)
    np.testing.assert_allclose(answer.x0, (x + level.sigma**2 * score) / level.alpha, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(level.alpha * answer.x0 + level.sigma * answer.eps, x, rtol=1e-10, atol=1e-12)


def test_denoiser_is_the_posterior_mean_by_quadrature(x64):
    data = Mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0], [1.5]]), jnp.array([[[0.1]], [[0.4]]]))
    level = processes.vp_sde()(0.4)
    x, x0 = 0.3, np.linspace(-8, 8, 200_001)
    prior = np.exp(data.log_prob(jnp.asarray(x0)[:, None], processes.vp_sde().at(jnp.inf)))
    posterior = prior * np.exp(-0.5 * ((x - float(level.alpha) * x0) / float(level.sigma)) ** 2)
    mean = np.trapezoid(posterior * x0, x0) / np.trapezoid(posterior, x0)
    got = data.denoiser(processes.vp_sde())(jnp.array([[x]]), level).x0
    assert float(got[0, 0]) == pytest.approx(mean, rel=1e-8)


@pytest.mark.parametrize("data", [gaussian, mixture])
def test_samples_have_the_moments(data):
    data = jax.tree.map(lambda a: a.astype(jnp.float32), data())
    x = np.asarray(data.sample(jax.random.key(0), 40_000))
    if isinstance(data, Gaussian):
        mean, cov = MEANS[0], COVS[0]
    else:
        mean = WEIGHTS @ MEANS
        cov = np.einsum("k,kij->ij", WEIGHTS, COVS + np.einsum("ki,kj->kij", MEANS - mean, MEANS - mean))
    np.testing.assert_allclose(x.mean(0), mean, atol=4 * np.sqrt(cov.max() / 40_000))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.03 * cov.max())


def test_bayes_risk_is_the_denoisers_error(x64):
    data, process = gaussian(), processes.vp_sde()
    level = process(0.4)
    key = jax.random.key(0)
    x0 = data.sample(key, 100_000)
    x = level.alpha * x0 + level.sigma * jax.random.normal(jax.random.key(1), x0.shape)
    error = jnp.mean((data.denoiser(process)(x, level).x0 - x0) ** 2)
    assert float(error) == pytest.approx(float(data.bayes_risk(level)), rel=0.02)
    assert data.bayes_risk(process(jnp.array([0.1, 0.5]))).shape == (2,)


def test_flow_solves_the_probability_flow(x64):
    """dx/dt = (d alpha / dt) x0 + (d sigma / dt) eps along the exact map, by finite differences."""
    data, x = gaussian(), jax.random.normal(jax.random.key(0), (5, 2))
    for process in PROCESSES:
        start, t, h = process(0.7), 0.4, 1e-5
        here = data.flow(x, start, process(t))
        slope = (data.flow(x, start, process(t + h)) - data.flow(x, start, process(t - h))) / (2 * h)
        answer = data.denoiser(process)(here, process(t))
        alpha, sigma = process.velocity(t)
        np.testing.assert_allclose(slope, alpha * answer.x0 + sigma * answer.eps, rtol=1e-6, atol=1e-6)
