"""The layers that keep magnitudes: each formula against NumPy, and unit variance in, unit variance out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxdiff.models import magnitude as mp

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("quick_compile")


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))))


def test_normalize():
    x = normal(3, 4, 5) * 7
    want = x / (1e-4 + np.sqrt(np.mean(np.square(x), (0, 1), keepdims=True)) * np.ones_like(x))
    np.testing.assert_allclose(mp.normalize(x, (0, 1)), want, rtol=1e-6)
    assert mp.normalize(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    small = mp.normalize(jnp.full((8,), 1e-4))
    np.testing.assert_allclose(small, 0.5, rtol=1e-6)


def test_a_zero_vector_is_safe():
    value, grad = jax.value_and_grad(lambda x: mp.normalize(x).sum())(jnp.zeros(4))
    assert value == 0
    np.testing.assert_allclose(grad, 1e4, rtol=1e-6)


def test_the_constant_of_silu_is_its_root_mean_square():
    def squared(x):
        return (x / (1 + math.exp(-x))) ** 2 * stats.norm.pdf(x)

    want = math.sqrt(integrate.quad(squared, -12, 12)[0])
    assert abs(want - 0.596) < 5e-4
    np.testing.assert_allclose(mp.mp_silu(jnp.float32(1.3)), 1.3 / (1 + math.exp(-1.3)) / 0.596, rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_and_joins_keep_the_magnitude(t):
    a, b = normal(2000, 8), normal(2000, 8)
    assert abs(rms(mp.mp_sum(a, b, t)) - 1) < 0.02
    assert abs(rms(mp.mp_cat(a, normal(2000, 24), t)) - 1) < 0.02


def test_the_part_of_the_second():
    np.testing.assert_allclose(
        mp.mp_sum(jnp.ones(1), jnp.full((1,), 3.0), 0.3), (0.7 + 0.9) / math.sqrt(0.58), rtol=1e-6
    )
    a, b = jnp.split(mp.mp_cat(jnp.ones((1, 8)), jnp.ones((1, 2)), 0.3), [8], axis=1)
    # Contributions, as norms, are as 0.7 to 0.3 whatever the widths.
    np.testing.assert_allclose(jnp.linalg.norm(a) / jnp.linalg.norm(b), 7 / 3, rtol=1e-6)


@pytest.mark.parametrize(("layer", "shape"), [
    (mp.MPDense(64), (500, 48)), (mp.MPConv(32), (4, 16, 24)), (mp.MPConv(32), (2, 16, 16, 12)),
])  # fmt: skip
def test_layers_keep_the_magnitude_whatever_the_size_of_the_weights(layer, shape):
    x = normal(*shape)
    y, params = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    inner = y[(slice(None), *(slice(1, -1),) * (len(shape) - 2))]  # the border sees the padding
    assert abs(rms(inner) - 1) < 0.1
    grown, apply = jax.tree.map(lambda w: 30 * w, params), jax.jit(layer.apply)
    np.testing.assert_allclose(apply(grown, x, 1.0), y, atol=2e-3)
    np.testing.assert_allclose(apply(params, x, 0.25), 0.25 * y, atol=1e-5)
    kernel = np.asarray(params["params"]["kernel"], np.float64)
    fan = math.prod(kernel.shape[:-1])
    norms = np.sqrt((kernel**2).mean(tuple(range(kernel.ndim - 1))))
    used = kernel / (norms + 1e-4) / math.sqrt(fan)
    if kernel.ndim == 2:
        np.testing.assert_allclose(y, np.asarray(x, np.float64) @ used, atol=1e-5)


def test_a_convolution_against_numpy():
    x, layer = normal(1, 5, 2), mp.MPConv(3)
    y, params = layer.init_with_output(jax.random.key(0), x)
    kernel = np.asarray(mp.normalize(params["params"]["kernel"], (0, 1))) / math.sqrt(6)
    padded = np.pad(np.asarray(x[0]), ((1, 1), (0, 0)))
    want = np.stack([sum(padded[i + k] @ kernel[k] for k in range(3)) for i in range(5)])
    np.testing.assert_allclose(y[0], want, atol=1e-5)


def test_the_gradient_is_orthogonal_to_the_weights():
    x, layer = normal(16, 8), mp.MPDense(4)
    params = jax.jit(layer.init)(jax.random.key(0), x)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(layer.apply(p, x) ** 3)))(params)["params"]["kernel"]
    kernel = params["params"]["kernel"]
    along = jnp.abs((grad * kernel).sum(0)) / (jnp.linalg.norm(grad, axis=0) * jnp.linalg.norm(kernel, axis=0))
    assert along.max() < 1e-3


def test_force_normalize():
    params = {"a": {"kernel": 5 * normal(3, 3, 4, 6)}, "label": {"kernel": normal(7, 6)}, "gain": jnp.float32(3.0)}
    once = mp.force_normalize(params)
    np.testing.assert_allclose(jnp.mean(once["a"]["kernel"] ** 2, (0, 1, 2)), 1, rtol=1e-3)
    np.testing.assert_allclose(jnp.mean(once["label"]["kernel"] ** 2, 0), 1, rtol=1e-3)
    assert once["gain"] == 3
    twice = mp.force_normalize(once)
    a, b = (mp.normalize(params["a"]["kernel"], (0, 1, 2)) for params in (once, twice))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_fourier_features():
    t = jnp.linspace(-3, 3, 400)
    y, params = mp.MPFourier(256, 2.0).init_with_output(jax.random.key(0), t)
    freqs, phases = params["params"]["freqs"], params["params"]["phases"]
    np.testing.assert_allclose(y, math.sqrt(2) * np.cos(np.outer(t, freqs) + phases[None]), atol=1e-4)
    assert abs(rms(y) - 1) < 0.05
    assert abs(rms(freqs) / (4 * math.pi) - 1) < 0.2
    assert phases.min() >= 0
    assert 6 < phases.max() < 2 * math.pi
    grad = jax.grad(lambda p: mp.MPFourier(256, 2.0).apply(p, t).sum())(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grad))


def test_labels_are_rows_and_the_null_label_is_zero():
    label = jnp.array([0, 2, 5, 9])
    y, params = mp.MPLabel(5, 64).init_with_output(jax.random.key(0), label)
    one_hot = math.sqrt(5) * jnp.eye(5)[jnp.array([0, 2])]
    want = mp.MPDense(64).apply(params, one_hot)
    np.testing.assert_allclose(y[:2], want, atol=1e-6)
    assert not y[2].any()
    assert np.isnan(y[3]).all()
