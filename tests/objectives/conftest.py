"""Batches whose moments are exact, so that expectations of quadratic losses are exact too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic
from jaxdiff.model import Model, ScaledTime
from jaxdiff.prediction import target

MEAN = np.array([0.5, -0.5])
COV = np.array([[0.5, 0.2], [0.2, 0.3]])

NUM = 960  # one shape for all tests, so that they share their compilations


def keys_of(num=NUM, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num))


class At:
    """Every example at one time, or each at its own."""

    def __init__(self, t):
        self.t = t

    def __call__(self, process, keys, strata=None):
        return process(jnp.broadcast_to(jnp.asarray(self.t), keys.shape))


def exact(process, p, data=None, frac=None, **fields):
    """The exact denoiser as a network with the target p; with `frac`, two channels of variance too."""
    data = data or analytic.Gaussian(jnp.asarray(MEAN), jnp.asarray(COV))

    def network(params, x, t, cond, *, train=False, rngs=None):
        level = process(t)
        answer = data.denoiser(process)(x, level)
        output = target(p, answer.x0, answer.eps, level)
        if frac is None:
            return output
        return jnp.concatenate([output, jnp.broadcast_to(2 * frac - 1, x.shape)], axis=-1)

    return Model(network, process, p, time_input=ScaledTime(1.0), learned_variance=frac is not None, **fields)


@pytest.fixture
def points(monkeypatch):
    """(x0, eps) whose mean and covariance are exactly those of data and noise: any quadratic has its exact mean.

    `points(mean, cov)` gives x0 [NUM, 2], eight points over and over, and makes every objective draw their eps.
    """

    def make(mean=MEAN, cov=COV):
        z = 2 * np.concatenate([np.eye(4), -np.eye(4)])
        x0 = mean + z[:, :2] @ np.linalg.cholesky(cov).T
        eps = jnp.asarray(np.tile(z[:, 2:], (NUM // 8, 1)))
        for module in ("base", "sliced"):
            monkeypatch.setattr(f"jaxdiff.objectives.{module}.normal_like", lambda key, x: eps.astype(x.dtype))
        return jnp.asarray(np.tile(x0, (NUM // 8, 1)))

    return make
