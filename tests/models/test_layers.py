"""Normalisation, initialisers, resampling and the residual block against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Downsample, GroupNorm, Norm, ResBlock, Upsample, conv, ddpm_init


def group_norm64(x, groups, gamma, beta, epsilon):
    x = np.asarray(x, np.float64)
    g = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, var = g.mean((1, 3), keepdims=True), g.var((1, 3), keepdims=True)
    return ((g - mean) / np.sqrt(var + epsilon)).reshape(x.shape) * gamma + beta


def normed(x, num_groups=32, **kwargs):
    channels = x.shape[-1]
    gamma = np.linspace(0.5, 1.5, channels).astype(np.float32)
    beta = np.linspace(-1, 1, channels).astype(np.float32)
    params = {"params": {"scale": gamma, "bias": beta}}
    y = jax.jit(GroupNorm(num_groups).apply)(params, jnp.asarray(x), **kwargs)
    return y, gamma.astype(np.float64), beta.astype(np.float64)


@pytest.mark.parametrize(("shape", "num_groups", "groups"), [
    ((2, 5, 7, 64), 32, 32),
    ((2, 4, 4, 48), 32, 24),
    ((3, 9, 10), 4, 2),
    ((2, 3, 4, 5, 6), 3, 3),
    ((2, 1, 1, 8), 4, 4),
])  # fmt: skip
def test_group_norm_is_the_formula(shape, num_groups, groups):
    x = np.random.default_rng(0).normal(0.3, 2.0, shape).astype(np.float32)
    y, gamma, beta = normed(x, num_groups)
    np.testing.assert_allclose(y, group_norm64(x, groups, gamma, beta, 1e-6), atol=4e-6)


def test_group_norm_epsilon():
    x = 1e-3 * np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype(np.float32)  # a variance near epsilon
    y, gamma, beta = normed(x, 4)
    np.testing.assert_allclose(y, group_norm64(x, 4, gamma, beta, 1e-6), atol=4e-6)


@pytest.mark.parametrize("mean", [30.0, 1e3, 1e4])
@pytest.mark.parametrize("alternating", [False, True])
def test_group_norm_keeps_its_digits_for_large_means(mean, alternating):
    """One mean for all channels, and one of its own for each (where a shift per group would not help)."""
    offset = mean * (np.arange(16) if alternating else 1)
    x = (offset + np.random.default_rng(0).normal(size=(2, 16, 16, 16))).astype(np.float32)
    y, gamma, beta = normed(x, 16 if alternating else 4)
    groups = 16 if alternating else 4
    # float32 moves the input itself by 6e-8 of its size; a mean of it adds a few times that.
    np.testing.assert_allclose(y, group_norm64(x, groups, gamma, beta, 1e-6), atol=5e-6 + 5e-7 * np.abs(offset).max())


def test_group_norm_joins_channels_of_different_means():
    offset = np.tile([0.0, 100.0], 8)
    x = (offset + np.random.default_rng(0).normal(size=(2, 8, 8, 16))).astype(np.float32)
    y, gamma, beta = normed(x, 4)
    np.testing.assert_allclose(y, group_norm64(x, 4, gamma, beta, 1e-6), atol=1e-5)


def test_group_norm_scale_and_shift():
    rng = np.random.default_rng(0)
    x, scale, shift = (rng.normal(size=s).astype(np.float32) for s in ((2, 4, 4, 8), (2, 8), (2, 8)))
    y, gamma, beta = normed(x, 2, scale=jnp.asarray(scale), shift=jnp.asarray(shift))
    plain = group_norm64(x, 2, gamma, beta, 1e-6)
    np.testing.assert_allclose(y, plain * (1 + scale[:, None, None]) + shift[:, None, None], atol=1e-5)


def test_group_norm_of_a_constant_is_the_bias_with_finite_gradient():
    x = jnp.full((1, 4, 4, 8), 7.0)
    y, _, beta = normed(x, 2)
    np.testing.assert_allclose(y, np.broadcast_to(beta, x.shape), atol=1e-6)
    grad = jax.grad(lambda v: jnp.sin(normed(v, 2)[0]).sum())(x)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_group_norm_gradient(mean):
    """Against the textbook gradient (g - mean g - y mean(g y)) / std of a norm without gain, in float64."""
    rng = np.random.default_rng(0)
    x, g = (mean + rng.normal(size=(2, 6, 6, 8))).astype(np.float32), rng.normal(size=(2, 6, 6, 8)).astype(np.float32)
    params = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    got = jax.grad(lambda v: (GroupNorm(2).apply(params, v) * g).sum())(jnp.asarray(x))

    def grouped(v):
        return np.asarray(v, np.float64).reshape(2, 36, 2, 4)

    def average(v):
        return v.mean((1, 3), keepdims=True)

    gg, std = grouped(g), np.sqrt(grouped(x).var((1, 3), keepdims=True) + 1e-6)
    y = grouped(group_norm64(x, 2, 1.0, 0.0, 1e-6))
    want = ((gg - average(gg) - y * average(gg * y)) / std).reshape(x.shape)
    np.testing.assert_allclose(got, want, atol=3e-6 + 1e-6 * mean)


def test_initialiser_is_uniform_over_the_average_fan():
    w = np.asarray(ddpm_init()(jax.random.key(0), (3, 3, 40, 80)))
    bound = np.sqrt(3 / ((9 * 40 + 9 * 80) / 2))
    assert np.abs(w).max() <= bound
    assert np.abs(w).max() > 0.999 * bound
    np.testing.assert_allclose(w.var(), bound**2 / 3, rtol=0.02)
    assert not np.asarray(ddpm_init(0.0)(jax.random.key(0), (3, 3, 4, 8))).any()


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_shapes_for_any_number_of_spatial_axes(spatial):
    x = jax.ShapeDtypeStruct((2, *(4, 6, 2)[:spatial], 5), jnp.float32)
    for module, factor in ((Downsample(), 0.5), (Downsample("pool"), 0.5), (Upsample(), 2), (Upsample("repeat"), 2)):
        y, variables = jax.eval_shape(module.init_with_output, jax.random.key(1), x)
        assert y.shape == (2, *(int(factor * s) for s in x.shape[1:-1]), 5)
        assert bool(variables) == (module.kind == "conv")
    y, _ = jax.eval_shape(conv(7, spatial).init_with_output, jax.random.key(1), x)
    assert y.shape == (*x.shape[:-1], 7)


def test_resampling_without_parameters():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    down = Downsample("pool").apply({}, jnp.asarray(x))
    np.testing.assert_allclose(down, x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4)), atol=1e-6)
    up = np.asarray(Upsample("repeat").apply({}, jnp.asarray(x)))
    np.testing.assert_array_equal(up, np.kron(x, np.ones((1, 2, 2, 1))))


@pytest.mark.parametrize("features", [6, 8])
def test_fresh_res_block_is_its_shortcut(features):
    x, emb = jax.random.normal(jax.random.key(0), (2, 4, 4, 6)), jax.random.normal(jax.random.key(1), (2, 5))
    y, variables = jax.jit(ResBlock(features).init_with_output)(jax.random.key(2), x, emb)
    assert ("shortcut" in variables["params"]) == (features != 6)
    want = x if features == 6 else x @ variables["params"]["shortcut"]["kernel"]
    np.testing.assert_allclose(y, want, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_res_block_is_its_formula(conditioning):
    """With kernels that act at their centre alone the whole block is arithmetic of one position."""
    rng = np.random.default_rng(0)
    x, emb = rng.normal(size=(2, 3, 3, 4)), rng.normal(size=(2, 5))
    k1, k2, short = rng.normal(size=(4, 6)), rng.normal(size=(6, 6)), rng.normal(size=(4, 6))
    time = rng.normal(size=(5, 12 if conditioning == "scale_shift" else 6))

    def centred(k):
        kernel = np.zeros((3, 3, *k.shape))
        kernel[1, 1] = k
        return {"kernel": kernel, "bias": np.zeros(k.shape[1])}

    def silu(v):
        return v / (1 + np.exp(-v))

    params = {
        "norm1": {"scale": np.ones(4), "bias": np.zeros(4)}, "conv1": centred(k1),
        "norm2": {"scale": np.ones(6), "bias": np.zeros(6)}, "conv2": centred(k2),
        "time": {"kernel": time, "bias": np.zeros(time.shape[1])}, "shortcut": {"kernel": short, "bias": np.zeros(6)},
    }  # fmt: skip
    params32 = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
    block = ResBlock(6, norm=Norm(2), conditioning=conditioning)
    got = jax.jit(block.apply)({"params": params32}, jnp.asarray(x, jnp.float32), jnp.asarray(emb, jnp.float32))

    h = silu(group_norm64(x, 2, 1.0, 0.0, 1e-6)) @ k1
    proj = (silu(emb) @ time)[:, None, None, :]
    if conditioning == "add":
        h = group_norm64(h + proj, 2, 1.0, 0.0, 1e-6)
    else:
        h = group_norm64(h, 2, 1.0, 0.0, 1e-6) * (1 + proj[..., :6]) + proj[..., 6:]
    np.testing.assert_allclose(got, x @ short + silu(h) @ k2, atol=1e-4)


def test_res_block_refuses():
    with pytest.raises(UsageError, match="did you mean 'add'") as e:
        ResBlock(4, conditioning="ad").init(jax.random.key(0), jnp.ones((1, 4, 4)), jnp.ones((1, 4)))
    assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match="shape"):
        ResBlock(4).init(jax.random.key(0), jnp.ones((1, 4)), jnp.ones((1, 4)))
