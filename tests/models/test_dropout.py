"""Dropout: the mask is the example's own, and has the right rate."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Dropout


def keys(n, seed=5):
    return jax.random.split(jax.random.key(seed), n)


def dropped(x, k, rate=0.3):
    return np.asarray(Dropout(rate).bind({})(x, train=True, rngs={"dropout": k}))


def test_mask_depends_on_the_examples_key_alone():
    x = jnp.ones((7, 5, 6, 4))
    whole = dropped(x, keys(7))
    for i in range(7):
        np.testing.assert_array_equal(whole[i : i + 1], dropped(x[i : i + 1], keys(7)[i : i + 1]))
    assert (whole[0] != whole[1]).any()
    np.testing.assert_array_equal(whole[::-1], dropped(x, keys(7)[::-1]))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_and_expectation(rate):
    y = dropped(jnp.ones((100, 2000)), keys(100), rate)
    sd = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 5 * sd
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    assert abs(y.mean() - 1) < 5 * sd / (1 - rate)


def test_identity_without_training_or_rate():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_array_equal(Dropout(0.5).bind({})(x), x)
    np.testing.assert_array_equal(Dropout(0.0).bind({})(x, train=True), x)


def test_two_sites_have_two_masks():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, rngs):
            return tuple(Dropout(0.5, name=n)(x, train=True, rngs={"dropout": rngs}) for n in "ab")

    a, b = Two().apply({}, jnp.ones((1, 200)), keys(1))
    assert 50 < (np.asarray(a) != np.asarray(b)).sum() < 150  # independent masks of rate 1/2 differ at half the places


def test_dtype_is_kept():
    y = Dropout(0.5).bind({})(jnp.ones((2, 3), jnp.bfloat16), train=True, rngs={"dropout": keys(2)})
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize(("rngs", "message"), [
    (None, "is NoneType"),
    ({"dropout": jnp.zeros((2, 2), jnp.uint32)}, "uint32"),
    ({"dropout": jax.random.key(0)}, r"shape \(\)"),
    ({"dropout": keys(3)}, r"shape \(3,\).*\(2,\)"),
])  # fmt: skip
def test_refuses_what_is_not_one_key_per_example(rngs, message):
    with pytest.raises(UsageError, match=message) as e:
        Dropout(0.5).bind({})(jnp.ones((2, 3)), train=True, rngs=rngs)
    assert "\n" not in str(e.value)


def test_refuses_a_rate_out_of_range():
    with pytest.raises(UsageError, match="dropout is 1"):
        Dropout(1.0).bind({})(jnp.ones((2, 3)))
