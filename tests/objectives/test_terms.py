"""Divergences and log-probabilities of Gaussians against quadrature, SciPy and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxdiff.errors import UsageError
from jaxdiff.objectives.terms import discretized_gaussian_log_prob, gaussian_kl

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_gaussian_kl_is_the_integral():
    """The integral of q log(q / p), by a fine sum; 0 between equals."""
    x = np.linspace(-30, 30, 600_001)
    for m1, s1, m2, s2 in ((0.3, 0.5, -0.7, 1.2), (1.0, 1.5, 1.0, 0.4), (0.0, 0.1, 2.0, 3.0)):
        q, p = norm(m1, s1), norm(m2, s2)
        expected = np.sum(q.pdf(x) * (q.logpdf(x) - p.logpdf(x))) * (x[1] - x[0])
        arguments = (m1, 2 * np.log(s1), m2, 2 * np.log(s2))
        assert float(gaussian_kl(*map(jnp.float32, arguments))) == pytest.approx(expected, rel=1e-5)
    log_var = jnp.linspace(-20, 3, 7)
    np.testing.assert_array_equal(gaussian_kl(jnp.ones(7), log_var, jnp.ones(7), log_var), 0.0)


@pytest.mark.parametrize("bins", [256, 8])
def test_discretized_gaussian_is_scipys(bins):
    """Every bin, from standard deviations far below a bin to far above, means inside and outside the data; float32."""
    x0, half = np.linspace(-1, 1, bins), 1 / (bins - 1)
    mean, std = (g.ravel()[:, None] for g in np.meshgrid([-3, -0.5, 0, 0.7, 5], [1e-3, 1e-2, 0.1, 1, 10]))
    upper = np.where(np.arange(bins) == bins - 1, np.inf, (x0 + half - mean) / std)
    lower = np.where(np.arange(bins) == 0, -np.inf, (x0 - half - mean) / std)
    a, b = np.where(upper + lower > 0, -upper, lower), np.where(upper + lower > 0, -lower, upper)
    expected = norm.logcdf(b) + np.log(-np.expm1(norm.logcdf(a) - norm.logcdf(b)))

    def log_prob(mean, log_std):
        return discretized_gaussian_log_prob(jnp.broadcast_to(jnp.float32(x0), mean.shape), mean, log_std, bins=bins)

    shape = (25, bins)
    arguments = [jnp.broadcast_to(jnp.float32(value), shape) for value in (mean, np.log(std))]
    found = log_prob(*arguments)
    np.testing.assert_allclose(found, expected, rtol=5e-5, atol=5e-5)
    np.testing.assert_allclose(np.exp(np.asarray(found, np.float64)).sum(axis=1), 1, rtol=2e-5)
    by_mean, by_log_std = jax.grad(lambda m, s: log_prob(m, s).sum(), (0, 1))(*arguments)
    ends = [np.where(np.isinf(z), 0, z) for z in (upper, lower)]
    high, low = (np.where(np.isinf(z), 0, np.exp(norm.logpdf(z) - expected)) for z in (upper, lower))
    np.testing.assert_allclose(by_mean, (low - high) / std, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(by_log_std, low * ends[1] - high * ends[0], rtol=2e-3, atol=2e-3)


def test_discretized_gaussian_far_from_the_data_pulls_by_the_distance():
    """d log p / d mean = (x0 - mean) / std^2 and finite: an untrained network at a clean level, float32."""
    mean = jnp.array([2.0, 30.0, 1e3, 1e5])
    slope = jax.grad(lambda m: discretized_gaussian_log_prob(jnp.zeros(4), m, jnp.full(4, -7.0)).sum())(mean)
    np.testing.assert_allclose(slope, -(mean - 1 / 255) * np.exp(14.0), rtol=1e-4)


def test_a_fine_bin_is_the_density_times_its_width():
    value = discretized_gaussian_log_prob(jnp.zeros(1), jnp.full(1, 0.2), jnp.log(jnp.full(1, 0.5)))
    assert float(value[0]) == pytest.approx(norm(0.2, 0.5).logpdf(0) + np.log(2 / 255), abs=1e-4)
    with pytest.raises(UsageError, match="bins=1"):
        discretized_gaussian_log_prob(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), bins=1)
