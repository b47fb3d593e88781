"""Runs of fewer than 15 steps end with low order: no more earlier predictions in a step than steps after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, processes
from jaxdiff.process import stack
from jaxdiff.samplers import DDIM, DEIS, DPMpp2M, DPMpp3M, SASolver, UniPC, sample, trajectory

VP, KEY = processes.vp_sde(), jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_compile", "x64")


def path(sampler, n):
    """x after every step, and the levels; the last level is noisy."""
    data = analytic.Mixture(jnp.ones(2), jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.04))
    levels, x = stack(VP.at(np.linspace(-6.0, 4.0, n + 1))), jnp.linspace(-1.5, 1.5, 5)[:, None]
    denoise = data.denoiser(VP)
    return sample(denoise, sampler, levels, x, KEY, collect=trajectory, max_steps=15)[1], levels, denoise


@pytest.mark.parametrize(
    ("third", "second"),
    [(DPMpp3M(), DPMpp2M()), (DEIS(3), DEIS(2)), (UniPC(3), UniPC(2)), (SASolver(3, 0, 0.0), SASolver(2, 0, 0.0))],
)
def test_four_steps_of_order_3_are_those_of_order_2(third, second):
    """Orders 1, 2, 2, 1: started low, ended low."""
    np.testing.assert_allclose(path(third, 4)[0], path(second, 4)[0], rtol=1e-10)
    assert not np.allclose(path(third, 5)[0], path(second, 5)[0], rtol=1e-4)


@pytest.mark.parametrize("sampler", [DPMpp3M(), DEIS(3), SASolver(2, 0, 0.0)], ids=repr)
def test_below_15_steps_the_last_is_ddims(sampler):
    for n, ddims in ((14, True), (15, False)):
        x, levels, denoise = path(sampler, n)
        cur, nxt = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (-2, -1))
        last = DDIM().step(denoise, DDIM().init(x[-2]), cur, nxt, KEY, None).x
        assert np.allclose(x[-1], last, rtol=1e-10) == ddims
