"""The convolution of a repeated feature map in one, against both steps one after the other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.resample import Upsample, conv_of_repeated

SHAPES = [(2, 5, 3), (2, 1, 3), (2, 3, 4, 3), (1, 3, 2, 5, 2)]
LAYOUT = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def drawn(shape, out=4):
    """(x, kernel, bias), none of them symmetric."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=s) for s in (shape, (*(3,) * (len(shape) - 2), shape[-1], out), (out,))]


def conv_of_repeated64(x, kernel, bias):
    """Position by position: out[p] = sum_k kernel[k] x[(p + k - 1) // 2] over the k that stay inside."""
    sizes = [2 * size for size in x.shape[1:-1]]
    out = np.zeros((x.shape[0], *sizes, kernel.shape[-1]))
    for place in itertools.product(*map(range, sizes)):
        for tap in itertools.product(range(3), repeat=len(sizes)):
            at = [p + k - 1 for p, k in zip(place, tap, strict=True)]
            if all(0 <= a < size for a, size in zip(at, sizes, strict=True)):
                out[:, *place] += x[:, *(a // 2 for a in at)] @ kernel[tap]
    return out + bias


def two_steps(x, kernel):
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis)
    ones = (1,) * (x.ndim - 2)
    return jax.lax.conv_general_dilated(x, kernel, ones, "SAME", dimension_numbers=LAYOUT[x.ndim - 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_upsampling_is_repetition_then_convolution(shape):
    x, kernel, bias = drawn(shape, out=shape[-1])
    params = {"conv": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}
    got = jax.jit(Upsample().apply)({"params": params}, jnp.float32(x))
    np.testing.assert_allclose(got, conv_of_repeated64(x, kernel, bias), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_its_gradients_are_those_of_the_two_steps(shape, x64):
    x, kernel, _ = map(jnp.asarray, drawn(shape))
    spatial = x.ndim - 2

    def one_step(x, kernel):
        return conv_of_repeated(x, kernel, (1,) * spatial, "SAME", dimension_numbers=LAYOUT[spatial])

    got, pull = jax.vjp(one_step, x, kernel)
    want, pull_want = jax.vjp(two_steps, x, kernel)
    np.testing.assert_allclose(got, want, atol=1e-12)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=want.shape))
    for a, b in zip(pull(cotangent), pull_want(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
