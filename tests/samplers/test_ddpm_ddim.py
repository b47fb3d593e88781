"""DDPM and DDIM against their papers, and the data they must give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, grids, process, processes, samplers
from jaxdiff.model import Denoiser
from jaxdiff.samplers import DDIM, DDPM, prior_sample, sample

DDPM_1000 = processes.ddpm_linear()


def gaussian(dtype=jnp.float32):
    cov = jnp.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.02], [0.0, -0.02, 0.02]], dtype)
    return analytic.Gaussian(jnp.array([1.0, -0.5, 0.2], dtype), cov)


def run(name, *, levels=None, num=7, key=0, **kwargs):
    key = jax.random.key(key)
    x = prior_sample(DDPM_1000, key, (num, 3))
    levels = grids.uniform(DDPM_1000, 20) if levels is None else levels
    return sample(gaussian(x.dtype).denoiser(DDPM_1000), samplers.make(name, **kwargs), levels, x, key)[0]


@pytest.mark.parametrize(("name", "kwargs"), [("ddpm", {}), ("ddpm", {"variance": "beta"}), ("ddim", {"eta": 1.0})])
def test_ddpm_1000_gives_the_gaussian(name, kwargs):
    num, data = 20_000, gaussian()
    x = run(name, levels=grids.uniform(DDPM_1000, 1000), num=num, **kwargs)
    mean_error = (x.mean(0) - data.mean) / jnp.sqrt(jnp.diag(data.cov) / num)
    assert np.max(np.abs(mean_error)) < 4
    cov = jnp.cov(x.T)
    std = jnp.sqrt((data.cov**2 + jnp.outer(jnp.diag(data.cov), jnp.diag(data.cov))) / num)
    # The discretisation's own bias is at most (largest step's variance) / (data variance): 1 % where that is 0.02.
    assert (
        np.max(np.abs(cov - data.cov) / (4 * std + 0.01 * jnp.sqrt(jnp.outer(jnp.diag(data.cov), jnp.diag(data.cov)))))
        < 1
    )


def test_ddim_eta_1_is_ddpm(x64):
    np.testing.assert_allclose(run("ddim", eta=1.0), run("ddpm"), rtol=1e-9)


def test_ddim_is_the_papers_equation_12(x64):
    """Song et al. 2021: x_prev from (x0, eps) with sigma(eta) of equation 16, on DDPM's own alpha-bars."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    here, prev, eta = alpha_bar[699], alpha_bar[499], 0.5
    cur, nxt = DDPM_1000(0.7), DDPM_1000(0.5)
    x, keys = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.split(jax.random.key(1), 4)
    x0, eps, _ = gaussian(jnp.float64).denoiser(DDPM_1000)(x, cur)
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    sigma = eta * np.sqrt((1 - prev) / (1 - here)) * np.sqrt(1 - here / prev)
    expected = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * eps + sigma * noise
    sampler = DDIM(eta)
    got = sampler.step(gaussian(jnp.float64).denoiser(DDPM_1000), sampler.init(x), cur, nxt, keys, None).x
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_posterior_variance_is_right_for_a_point_and_beta_for_unit_data():
    """Ho et al. 2020, section 3.2: each variance is exact for its own data, with any number of steps."""
    process, key, num = DDPM_1000, jax.random.key(0), 50_000
    levels = grids.trailing(process, 5)
    for data, variance, std in (
        (analytic.Gaussian(jnp.ones(1), jnp.zeros((1, 1))), "posterior", 0.0),
        (analytic.Gaussian(jnp.zeros(1), jnp.ones((1, 1))), "beta", 1.0),
    ):
        cut = jax.tree.map(lambda a: a[:-1], levels)  # stop at a noisy level, where the variance still shows
        x = prior_sample(process, key, (num, 1))
        x, _ = sample(data.denoiser(process), DDPM(variance), cut, x, key)
        level = jax.tree.map(lambda a: a[-1], cut)
        expected = float(level.alpha**2 * std**2 + level.sigma**2)
        assert float(x.var()) == pytest.approx(expected, rel=4 * np.sqrt(2 / num))


def test_learned_variance_spans_posterior_to_beta(x64):
    def answer(frac):
        inner = gaussian(jnp.float64).denoiser(DDPM_1000)
        return Denoiser(lambda x, level, cond: inner(x, level)._replace(var_frac=jnp.full_like(x, frac)), DDPM_1000)

    x, key = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.key(1)
    levels = grids.uniform(DDPM_1000, 20)
    for frac, variance in ((0.0, "posterior"), (1.0, "beta")):
        learned, _ = sample(answer(frac), DDPM("learned"), levels, x, key)
        fixed, _ = sample(answer(frac), DDPM(variance), levels, x, key)
        np.testing.assert_allclose(learned, fixed, rtol=1e-9)
    cur, nxt = DDPM_1000(0.5), DDPM_1000(0.4)
    keys = jax.random.split(key, 4)
    steps = [
        DDPM(v).step(answer(0.5), DDPM(v).init(x), cur, nxt, keys, None).x for v in ("posterior", "beta", "learned")
    ]
    noiseless = process.q_posterior(cur, nxt, x, answer(0.5)(x, cur).x0)[0]
    small, large, middle = (s - noiseless for s in steps)
    np.testing.assert_allclose(middle, jnp.sign(small) * jnp.sqrt(small * large), rtol=1e-9)
