"""The fixed filters against their formulas, written as matrices in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models.fir import double, halve, smooth
from jaxdiff.models.resample import SmoothDownsample

TAPS = [(), (1, 3, 3, 1), (1, 2), (1, 5, 10, 10, 5, 1)]


def matrix(kind, taps, size):
    """Rows: outputs; columns: inputs; equations (1) and (2) of the module, entry by entry."""
    f = np.array(taps or (1, 1), float)
    f, p = f / f.sum(), (f.size - 2) // 2
    made = np.zeros((size // 2, size) if kind == "halve" else (2 * size, size))
    for i in range(made.shape[0]):
        for j in range(size):
            k = j - 2 * i + p if kind == "halve" else i - 2 * j + p
            if 0 <= k < f.size:
                made[i, j] = f[k] if kind == "halve" else 2 * f[k]
    return made


@pytest.mark.parametrize("taps", TAPS)
def test_they_are_their_formulas(taps):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    for kind, function in (("halve", halve), ("double", double)):
        want = np.einsum("im,jn,bmnc->bijc", matrix(kind, taps, 6), matrix(kind, taps, 8), x.astype(float))
        np.testing.assert_allclose(function(jnp.asarray(x), taps), want, atol=2e-6)


def test_published_taps():
    """StyleGAN2's smoothing: an impulse spreads as 1, 3, 3, 1 quarters; a constant stays, away from the border."""
    impulse = jnp.zeros((1, 8, 1)).at[0, 4, 0].set(1.0)
    np.testing.assert_allclose(double(impulse, (1, 3, 3, 1)).ravel()[6:12], [0, 0.25, 0.75, 0.75, 0.25, 0], atol=1e-7)
    np.testing.assert_allclose(halve(jnp.ones((1, 8, 1)), (1, 3, 3, 1)).ravel(), [7 / 8, 1, 1, 7 / 8], atol=1e-7)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_smooth_and_a_strided_convolution_see_one_zero_continuation(taps):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=8), rng.normal(size=3)
    f = np.array(taps) / sum(taps)
    p = (f.size - 2) // 2
    wide = np.pad(x, 16)
    want = [
        sum(kernel[a] * f[k] * wide[16 + 2 * i + a - 1 + k - p] for a in range(3) for k in range(f.size))
        for i in range(4)
    ]
    params = {"conv": {"kernel": jnp.asarray(kernel, jnp.float32).reshape(3, 1, 1), "bias": jnp.zeros(1)}}
    got = SmoothDownsample(1, taps).apply({"params": params}, jnp.asarray(x, jnp.float32).reshape(1, 8, 1))
    np.testing.assert_allclose(np.ravel(got), want, atol=1e-6)
    assert smooth(jnp.ones((1, 8, 6, 1)), taps, 1).shape == (1, 9, 7, 1)


def test_types_stay_and_odd_taps_are_refused():
    x = jnp.ones((1, 4, 1), jnp.bfloat16)
    assert halve(x, (1, 3, 3, 1)).dtype == double(x, (1, 3, 3, 1)).dtype == jnp.bfloat16
    for taps in ((1, 2, 1), (1, -1)):
        with pytest.raises(UsageError, match=r"fir is .* allowed is an even number of taps"):
            halve(x, taps)
