"""Cutting into patches, positions, features of time."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.token_layers import time_features
from jaxdiff.models.vit import patchify, position_table, unpatchify


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 6, 3), 3), ((2, 4, 6, 3), 2), ((2, 4, 6, 3), (1, 3)), ((1, 2, 4, 6, 3), (2, 2, 3))]
)
def test_a_linear_map_of_patches_is_a_convolution(shape, patch):
    sizes = (patch,) * (len(shape) - 2) if isinstance(patch, int) else patch
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (*sizes, 3, 5))
    want = nn.Conv(5, sizes, strides=sizes, padding="VALID", use_bias=False).apply({"params": {"kernel": kernel}}, x)
    got = patchify(x, patch) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=1e-5)
    grid = tuple(n // p for n, p in zip(shape[1:-1], sizes, strict=True))
    np.testing.assert_array_equal(unpatchify(patchify(x, patch), grid, patch), x)


def test_positions_are_sines_then_cosines_of_the_column_then_of_the_row():
    table = position_table((3, 5), 8)
    for row in range(3):
        for column in range(5):
            want = [f(i * w) for i in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
            np.testing.assert_allclose(table[row * 5 + column], want, atol=1e-7)
    want = [f(i * w) for i in (1.5, 1.0) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
    np.testing.assert_allclose(position_table((4, 4), 8, reach=2)[2 * 4 + 3], want, atol=1e-7)


def test_positions_of_any_number_of_axes_tell_tokens_apart():
    assert position_table((7,), 6).shape == (7, 6)
    table = position_table((2, 3, 4), 16)  # 16 is no multiple of 2 * 3
    assert len(np.unique(table, axis=0)) == 24
    assert not table[:, 12:].any()


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_time_features_are_cosines_first(shift):
    got = time_features(jnp.array([7.0]), 8, shift)[0]
    angles = [7.0 * 10000 ** (-k / (4 - shift)) for k in range(4)]
    np.testing.assert_allclose(got, np.cos(angles).tolist() + np.sin(angles).tolist(), atol=1e-6)
