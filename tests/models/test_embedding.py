"""Time embeddings against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import FourierEmbedding, TimeEmbedding, sinusoidal_embedding


@pytest.mark.parametrize("features", [4, 32, 128, 33])
def test_sinusoidal_is_the_formula(features):
    t = np.array([0.0, 0.25, 1.0, 17.0, 999.0])
    half = features // 2
    angle = t[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / (half - 1))
    want = np.concatenate([np.sin(angle), np.cos(angle), np.zeros((5, features % 2))], axis=1)
    got = sinusoidal_embedding(jnp.asarray(t, jnp.float32), features)
    assert got.shape == (5, features)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-4)  # an angle of 999 has steps of 6e-5 in float32


def test_sinusoidal_refuses_a_width_without_two_frequencies():
    with pytest.raises(UsageError, match="features is 3"):
        sinusoidal_embedding(jnp.zeros(1), 3)


def test_fourier_is_the_formula_and_fixed():
    t = jnp.array([-1.5, 0.0, 0.3])
    module = FourierEmbedding(1000)
    got, variables = module.init_with_output(jax.random.key(0), t)
    freqs = np.asarray(variables["params"]["freqs"], np.float64)
    assert abs(freqs.std() - 16) < 1.5
    assert abs(freqs.mean()) < 2
    angle = 2 * np.pi * np.asarray(t, np.float64)[:, None] * freqs
    np.testing.assert_allclose(got, np.concatenate([np.sin(angle), np.cos(angle)], axis=1), atol=1e-4)
    grad = jax.grad(lambda v: module.apply(v, t).sum())(variables)
    assert not np.asarray(grad["params"]["freqs"]).any()
    assert np.asarray(jax.grad(lambda v: module.apply(variables, v).sum())(t)).any()


@pytest.mark.parametrize(("kind", "width"), [("sinusoidal", 8), ("fourier", 16)])
def test_time_embedding_is_two_dense_layers(kind, width):
    t = jnp.array([0.1, 0.7])
    got, variables = TimeEmbedding(8, kind).init_with_output(jax.random.key(0), t)
    p = jax.tree.map(np.asarray, variables["params"])
    assert p["dense0"]["kernel"].shape == (width, 32)
    assert p["dense1"]["kernel"].shape == (32, 32)
    h = (
        sinusoidal_embedding(t, 8)
        if kind == "sinusoidal"
        else FourierEmbedding(8).apply({"params": variables["params"]["fourier"]}, t)
    )
    h = np.asarray(h) @ p["dense0"]["kernel"]
    np.testing.assert_allclose(got, (h / (1 + np.exp(-h))) @ p["dense1"]["kernel"], atol=1e-5)


def test_time_embedding_refuses_an_unknown_kind():
    with pytest.raises(UsageError, match="did you mean 'fourier'"):
        TimeEmbedding(8, "furier").init(jax.random.key(0), jnp.zeros(1))
