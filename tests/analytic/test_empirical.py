"""The denoiser of a finite data set, against NumPy in float64, quadrature and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from jaxdiff import processes
from jaxdiff.analytic import Empirical
from jaxdiff.errors import UsageError

VP = processes.vp_sde()
SHAPE = (3, 2, 1)


def images():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (12, *SHAPE)), rng.uniform(0.5, 2, 12)


def brute_force(points, weights, x, alpha, sigma):
    """The density, the posterior mean and the score, one example and one point at a time."""
    shares = weights / sum(weights)
    pairs = list(zip(points, shares, strict=True))
    logs = np.array([[np.log(w) + norm(alpha * p, sigma).logpdf(y).sum() for p, w in pairs] for y in x])
    log_prob = logsumexp(logs, axis=1)
    share = np.exp(logs - log_prob[:, None])
    x0 = np.einsum("bn,n...->b...", share, points)
    return log_prob, x0, (alpha * x0 - x) / sigma**2


@pytest.mark.parametrize("log_snr", [-8.0, 0.0, 5.0, 15.0, 27.0])
def test_float32_against_brute_force_in_float64(log_snr):
    points, weights = images()
    points32 = points.astype(np.float32)
    data, level = Empirical(jnp.asarray(points32), jnp.asarray(weights, jnp.float32)), VP.at(log_snr)
    alpha, sigma = float(level.alpha), float(level.sigma)
    noise = np.random.default_rng(1).normal(size=(5, *SHAPE))
    x = jnp.asarray(alpha * points[:5] + sigma * noise, jnp.float32)
    log_prob, x0, score = brute_force(points32.astype(float), weights, np.asarray(x, float), alpha, sigma)
    answer = jax.jit(data.denoiser(VP))(x, level)
    # What one float32 rounding of x does to it: up to 1e-7 / sigma of a noise of about 1.
    slack = 4e-7 / sigma
    np.testing.assert_allclose(answer.x0, x0, atol=2e-6)
    np.testing.assert_allclose(answer.eps, (x - alpha * x0) / sigma, atol=2e-6 + slack)
    np.testing.assert_allclose(data.log_prob(x, level), log_prob, rtol=2e-6, atol=1e-5 + 20 * slack)
    np.testing.assert_allclose(sigma * data.score(x, level), sigma * score, atol=2e-6 + slack)


def test_density_integrates_to_one_and_the_score_is_its_gradient(x64):
    data = Empirical(jnp.array([[-1.0], [0.2], [1.5]]), jnp.array([1.0, 2.0, 0.5]))
    level, x = VP(0.3), jnp.linspace(-9, 9, 4001)[:, None]
    density = np.exp(data.log_prob(x, level))
    assert np.trapezoid(density, x[:, 0]) == pytest.approx(1, abs=1e-10)
    gradient = jax.grad(lambda x: data.log_prob(x, level).sum())(x)
    np.testing.assert_allclose(data.score(x, level), gradient, rtol=1e-9, atol=1e-9)


def test_ends_are_finite_with_their_gradients():
    points, _ = images()
    data = Empirical(jnp.asarray(points, jnp.float32))
    denoise = jax.jit(data.denoiser(VP))
    x = jnp.asarray(points[3:5] + 1e-3, jnp.float32)

    @jax.jit
    def gradient(level):
        return jax.grad(lambda x: sum(a.sum() for a in denoise(x, level)[:2]) + data.log_prob(x, level).sum())(x)

    for log_snr in (np.inf, 80.0, -80.0, -np.inf):
        level = VP.at(log_snr)
        answer = denoise(x, level)
        assert all(np.isfinite(a).all() for a in (*answer[:2], data.score(x, level), data.log_prob(x, level)))
        assert np.isfinite(gradient(level)).all()
        np.testing.assert_allclose(answer.x0, points[3:5] if log_snr > 0 else [points.mean(0)] * 2, atol=1e-6)


def test_a_weight_of_two_is_a_point_twice():
    points = jnp.array([[0.0, 1.0], [1.0, -1.0], [0.5, 0.5]])
    weighted, twice = Empirical(points, jnp.array([1.0, 2.0, 1.0])), Empirical(points[jnp.array([0, 1, 1, 2])])
    x, level = jnp.array([[0.2, 0.1], [3.0, 0.0]]), VP(0.4)
    np.testing.assert_allclose(weighted.log_prob(x, level), twice.log_prob(x, level), rtol=1e-5)
    np.testing.assert_allclose(weighted.denoiser(VP)(x, level).x0, twice.denoiser(VP)(x, level).x0, rtol=1e-5)
    with pytest.raises(UsageError, match=r"one per point, got \(2,\)"):
        Empirical(points, jnp.ones(2)).denoiser(VP)


def test_samples_are_points_as_often_as_their_weights_say():
    weights, num = np.array([0.1, 0.2, 0.7]), 20_000
    drawn = Empirical(jnp.array([[0.0], [1.0], [2.0]]), jnp.asarray(3 * weights)).sample(jax.random.key(0), num)
    share = np.bincount(np.asarray(drawn[:, 0], int), minlength=3) / num
    assert np.all(np.abs(share - weights) < 4 * np.sqrt(weights * (1 - weights) / num))
    one = Empirical(jnp.array([[0.0], [1.0], [2.0]])).sample(jax.random.key(0), 5)
    np.testing.assert_array_equal(one, Empirical(jnp.array([[0.0], [1.0], [2.0]])).sample(jax.random.key(0), 9)[:5])
