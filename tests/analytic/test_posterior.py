"""Posteriors under y = A x0 + std n: Kalman's formulas, Bayes' rule point by point, and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from jaxdiff import processes
from jaxdiff.analytic import Empirical, Gaussian, Mixture, gaussian
from jaxdiff.errors import UsageError

CLEAN = processes.vp_sde().at(np.inf)
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(4, 4))
MEAN, COV = RNG.normal(size=4), ROOT @ ROOT.T / 4


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_gaussian_is_kalmans_update(rows, x64):
    operator, y, std = RNG.normal(size=(rows, 4)), RNG.normal(size=rows), 0.3
    gain = COV @ operator.T @ np.linalg.inv(operator @ COV @ operator.T + std**2 * np.eye(rows))
    got = Gaussian(jnp.asarray(MEAN), jnp.asarray(COV)).posterior(jnp.asarray(operator), jnp.asarray(y), std)
    np.testing.assert_allclose(got.mean, MEAN + gain @ (y - operator @ MEAN), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.cov, COV - gain @ operator @ COV, rtol=1e-9, atol=1e-12)
    prior = gaussian.axes(jnp.asarray(MEAN), jnp.asarray(COV))
    evidence = gaussian.condition(prior, jnp.asarray(operator), jnp.asarray(y), std)[2]
    seen = multivariate_normal(operator @ MEAN, operator @ COV @ operator.T + std**2 * np.eye(rows))
    assert float(evidence) == pytest.approx(seen.logpdf(y), rel=1e-9)


def test_without_noise_the_observation_holds_exactly(x64):
    """Also where two rows of A say the same, and where the prior has no width."""
    operator = jnp.array([[1.0, 1, 0, 0], [2.0, 2, 0, 0], [0, 0, 1, 0]])
    y = jnp.array([0.4, 0.8, -1.0])
    for cov in (COV, np.diag([1.0, 2, 3, 0])):
        got = Gaussian(jnp.asarray(MEAN), jnp.asarray(cov)).posterior(operator, y, 0.0)
        np.testing.assert_allclose(operator @ got.mean, y, atol=1e-12)
        np.testing.assert_allclose(operator @ got.cov @ operator.T, 0, atol=1e-12)
        assert np.isfinite(got.denoiser(processes.vp_sde())(got.mean[None], CLEAN).x0).all()


def test_float32_keeps_the_digits_of_a_precise_observation():
    got = Gaussian(jnp.zeros(2), jnp.array([[2.0, 1.0], [1.0, 1.0]])).posterior(jnp.eye(2), jnp.ones(2), 1e-3)
    np.testing.assert_allclose(np.diag(got.cov), 1e-6, rtol=1e-3)
    np.testing.assert_allclose(got.mean, 1, rtol=1e-5)


def bayes(prior, posterior, operator, y, std, x):
    """log posterior - log prior - log likelihood at each x: by Bayes' rule one number, -log p(y)."""
    likelihood = -0.5 * np.sum((y[None] - x @ operator.T) ** 2, 1) / std**2 - len(y) * np.log(std * np.sqrt(2 * np.pi))
    return posterior.log_prob(jnp.asarray(x), CLEAN) - prior.log_prob(jnp.asarray(x), CLEAN) - likelihood


@pytest.mark.parametrize("rows", [1, 3])
def test_mixture_is_bayes_rule_at_every_point(rows, x64):
    covs = jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.5]], [[0.1, -0.05], [-0.05, 0.1]]])
    prior = Mixture(jnp.array([0.5, 0.3, 0.2]), jnp.array([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]]), covs)
    operator, y, std = RNG.normal(size=(rows, 2)), RNG.normal(size=rows), 0.5
    posterior = prior.posterior(jnp.asarray(operator), jnp.asarray(y), std)
    line = np.linspace(-7, 7, 281)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    difference = bayes(prior, posterior, operator, y, std, grid)
    np.testing.assert_allclose(difference, difference[0], rtol=1e-7)
    misfit = np.sum((y[None] - grid @ operator.T) ** 2, 1)
    likelihood = np.exp(-0.5 * misfit / std**2) / (std * np.sqrt(2 * np.pi)) ** rows
    evidence = np.sum(np.exp(prior.log_prob(jnp.asarray(grid), CLEAN)) * likelihood) * (line[1] - line[0]) ** 2
    assert float(difference[0]) == pytest.approx(-np.log(evidence), abs=1e-6)


def test_gaussian_evidence_is_bayes_rule_too(x64):
    """A mixture of one: its weight says nothing, so the evidence shows in the density alone."""
    prior = Gaussian(jnp.asarray(MEAN), jnp.asarray(COV))
    operator, y = RNG.normal(size=(2, 4)), RNG.normal(size=2)
    posterior = prior.posterior(jnp.asarray(operator), jnp.asarray(y), 0.4)
    difference = bayes(prior, posterior, operator, y, 0.4, RNG.normal(size=(20, 4)))
    np.testing.assert_allclose(difference, difference[0], rtol=1e-8)


def test_empirical_reweighs_its_points(x64):
    points, weights = RNG.normal(size=(5, 2, 2)), np.array([1.0, 2, 1, 3, 1])
    operator, y, std = RNG.normal(size=(3, 4)), RNG.normal(size=3), 0.7
    likelihood = [np.exp(-0.5 * sum((y - operator @ p.ravel()) ** 2) / std**2) for p in points]
    got = Empirical(jnp.asarray(points), jnp.asarray(weights)).posterior(jnp.asarray(operator), jnp.asarray(y), std)
    np.testing.assert_allclose(got.weights, weights * likelihood / sum(weights * likelihood), rtol=1e-9)
    sharp = got.posterior(jnp.asarray(operator), jnp.asarray(operator @ points[2].ravel()), 0.0)
    np.testing.assert_allclose(sharp.weights, np.eye(5)[2], atol=1e-12)
    again = Empirical(jnp.asarray(points), sharp.weights).denoiser(processes.vp_sde())
    np.testing.assert_allclose(again(jnp.zeros((1, 2, 2)), processes.vp_sde()(0.5)).x0[0], points[2], atol=1e-12)


def test_bad_observations_are_one_line():
    data = (
        Gaussian(jnp.zeros(2), jnp.eye(2)),
        Mixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None]),
        Empirical(jnp.zeros((3, 2))),
    )
    for prior in data:
        with pytest.raises(UsageError, match=r"operator must have shape \[M, 2\].*got \(1, 3\)"):
            prior.posterior(jnp.ones((1, 3)), jnp.ones(1), 1.0)
        with pytest.raises(UsageError, match=r"y must have shape \(1,\).*got \(2,\)"):
            prior.posterior(jnp.ones((1, 2)), jnp.ones(2), 1.0)


def test_denoisers_made_anew_share_a_compilation_and_no_decomposition():
    traces = []

    @jax.jit
    def call(denoise, x):
        traces.append(denoise)
        return denoise(x, processes.vp_sde()(0.5)).x0

    mixture = Mixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
    for data in (Gaussian(jnp.zeros(2), jnp.eye(2)), mixture, Empirical(jnp.zeros((3, 2)))):
        del traces[:]
        for _ in range(2):
            call(data.denoiser(processes.vp_sde()), jnp.ones((4, 2)))
        assert len(traces) == 1
        jaxpr = jax.make_jaxpr(lambda denoise: denoise(jnp.ones((4, 2)), CLEAN).x0)(data.denoiser(processes.vp_sde()))
        assert "eigh" not in str(jaxpr)
