"""The probability flow: order conditions, a Gaussian's closed form, quantiles on a line, densities in the plane."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxdiff import processes
from jaxdiff.analytic import Empirical, Gaussian, Mixture, flow
from jaxdiff.errors import UsageError

VP, VE, STRAIGHT = processes.vp_sde(), processes.edm(), processes.rectified_flow()


@cache
def trees(order):
    """Rooted trees of `order` vertices, each the sorted tuple of its branches."""

    def forests(total, largest):
        if total == 0:
            yield ()
        for size in range(min(total, largest[0]), 0, -1):
            for index, tree in enumerate(trees(size)):
                if (size, index) <= largest:
                    yield from ((tree, *rest) for rest in forests(total - size, (size, index)))

    return list(forests(order - 1, (order - 1, math.inf)))


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * math.prod(map(density, tree))


def weight(tree):
    return np.prod([flow.A @ weight(branch) for branch in tree], axis=0) * np.ones(len(flow.B))


def test_runge_kutta_meets_every_condition_of_order_8_and_not_of_9():
    """Butcher's theorem: order p if and only if b . weight(tree) = 1 / density(tree) for all trees up to p vertices."""
    counts = {1: 1, 2: 1, 3: 2, 4: 4, 5: 9, 6: 20, 7: 48, 8: 115, 9: 286}
    for order, count in counts.items():
        assert len(trees(order)) == count
        error = max(abs(flow.B @ weight(tree) - 1 / density(tree)) for tree in trees(order))
        assert (error < 1e-14) == (order <= 8), (order, error)


def at(process, index):
    """Pure noise (alpha = 0 for the straight path), a level in between, and clean data."""
    return [process(jnp.float64(1.0)), process(jnp.float64(0.4)), process.at(jnp.float64(np.inf))][index]


def test_mixture_of_one_is_the_gaussians_closed_form(x64):
    mean, cov = jnp.array([1.0, -0.5, 0.2]), jnp.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.02], [0.0, -0.02, 0.02]])
    gaussian, mixture = Gaussian(mean, cov), Mixture(jnp.ones(1), mean[None], cov[None])
    noise = jax.random.normal(jax.random.key(0), (16, 3))
    for process in (VP, VE, STRAIGHT):
        for first, last in ((0, 2), (0, 1), (1, 2), (2, 0)):
            cur, nxt = at(process, first), at(process, last)
            x = cur.alpha * mean[None] + jnp.hypot(cur.alpha, cur.sigma) * noise
            exact = gaussian.flow(x, cur, nxt)
            error = jnp.max(jnp.abs(mixture.flow(x, cur, nxt) - exact)) / jnp.hypot(nxt.alpha, nxt.sigma)
            assert float(error) < 1e-12, (process, first, last)


def line_cdf(x, weights, means, stds, level):
    spread = np.sqrt((float(level.alpha) * stds) ** 2 + float(level.sigma) ** 2)
    return norm.cdf((x - float(level.alpha) * means) / spread) @ weights


def test_in_one_dimension_the_flow_keeps_the_quantile(x64):
    """dF/dt = 0 along the flow, for any density on a line; at clean points F jumps over the quantile."""
    weights, means, stds = np.array([0.2, 0.5, 0.3]), np.array([-2.0, 0.1, 1.5]), np.array([0.3, 0.02, 0.5])
    smooth = Mixture(jnp.asarray(weights), jnp.asarray(means)[:, None], jnp.asarray(stds**2)[:, None, None])
    points = Empirical(jnp.asarray(means)[:, None], jnp.asarray(weights))
    x = jnp.linspace(-2.2, 2.3, 16)[:, None]
    for process in (VP, STRAIGHT):
        start, middle, clean = (at(process, index) for index in range(3))
        for data, widths in ((smooth, stds), (points, 0 * stds)):
            quantile = line_cdf(np.asarray(x), weights, means, widths, start)
            there = np.asarray(data.flow(x, start, middle))
            np.testing.assert_allclose(line_cdf(there, weights, means, widths, middle), quantile, atol=1e-11)
            end = np.asarray(data.flow(x, start, clean))
            if data is smooth:
                np.testing.assert_allclose(line_cdf(end, weights, means, widths, clean), quantile, atol=1e-10)
            else:
                np.testing.assert_allclose(end[:, 0], means[np.searchsorted(np.cumsum(weights), quantile)], atol=1e-12)


def mixture():
    covs = jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.5]], [[1e-3, 0.0], [0.0, 1e-4]]])
    return Mixture(jnp.array([0.5, 0.3, 0.2]), jnp.array([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]]), covs)


def test_two_dimensions_densities_reversal_and_step_doubling(x64):
    """log q moves by minus log |det| of the flow's own Jacobian; forth and back is where it was."""
    data, start, clean = mixture(), at(VP, 0), at(VP, 2)
    x = jax.random.normal(jax.random.key(1), (8, 2))

    @jax.jit
    def with_jacobian(x):
        one = lambda y: data.flow(y[None], start, clean)[0]  # noqa: E731
        return jax.vmap(lambda y: (one(y), jax.jacfwd(one)(y)))(x)

    end, jacobian = with_jacobian(x)
    moved = data.log_prob(x, start) - jnp.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(data.log_prob(end, clean), moved, atol=1e-8)
    np.testing.assert_allclose(data.flow(end, clean, start), x, atol=1e-9)
    np.testing.assert_allclose(data.flow(x, start, clean, steps=400), end, atol=1e-11)


def test_levels_per_example_and_float32(x64):
    data, x = mixture(), jax.random.normal(jax.random.key(1), (16, 2))
    cur, nxt = VP(jnp.linspace(0.3, 1.0, 16)), VP(jnp.linspace(0.2, 0.0, 16))
    together = data.flow(x, cur, nxt)
    for index in (0, 15):
        one = [jax.tree.map(lambda a, index=index: a[index], level) for level in (cur, nxt)]
        np.testing.assert_allclose(data.flow(x, *one)[index], together[index], atol=1e-12)
    with jax.enable_x64(False):
        single, x32, cur32, nxt32 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (data, x, cur, nxt))
        np.testing.assert_allclose(single.flow(x32, cur32, nxt32), together, atol=1e-4)


def test_steps_below_one_are_refused():
    with pytest.raises(UsageError, match="steps=0"):
        Empirical(jnp.zeros((2, 1))).flow(jnp.zeros((1, 1)), VP(1.0), VP(0.5), steps=0)
