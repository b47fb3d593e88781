"""Self-attention against a softmax written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Norm, SelfAttention


def attention64(x, p, heads, groups):
    """x + proj(softmax(q k^T / sqrt(d)) v), head by head."""
    batch, channels, dim = x.shape[0], x.shape[-1], x.shape[-1] // heads
    g = x.reshape(batch, -1, groups, channels // groups)
    h = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-6)
    h = h.reshape(batch, -1, channels) * p["norm"]["scale"] + p["norm"]["bias"]
    q, k, v = np.split(h @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, axis=-1)
    out = np.zeros_like(h)
    for b in range(batch):
        for i in range(heads):
            s = slice(i * dim, (i + 1) * dim)
            w = np.exp(q[b, :, s] @ k[b, :, s].T / np.sqrt(dim))
            out[b, :, s] = (w / w.sum(-1, keepdims=True)) @ v[b, :, s]
    return x + (out @ p["proj"]["kernel"] + p["proj"]["bias"]).reshape(x.shape)


@pytest.mark.parametrize(("shape", "fields", "heads"), [
    ((2, 3, 4, 8), {}, 1),
    ((2, 3, 4, 8), {"num_heads": 4}, 4),
    ((2, 7, 8), {"head_dim": 2}, 4),
    ((2, 2, 3, 2, 8), {"num_heads": 3, "head_dim": 4}, 2),
])  # fmt: skip
def test_attention_is_the_formula(shape, fields, heads):
    rng = np.random.default_rng(0)
    module = SelfAttention(norm=Norm(4), **fields)
    x = rng.normal(size=shape)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]
    params = jax.tree.map(lambda v: rng.normal(0, 0.5, v.shape), params)
    params32 = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
    got = jax.jit(module.apply)({"params": params32}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, attention64(x, params, heads, 4), atol=2e-5)


def test_fresh_attention_is_the_identity_and_its_maps_have_the_variance_of_one():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 64))
    y, variables = jax.jit(SelfAttention().init_with_output)(jax.random.key(1), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_allclose(np.var(variables["params"]["qkv"]["kernel"]), 1 / 64, rtol=0.03)


@pytest.mark.parametrize("fields", [{"num_heads": 3}, {"head_dim": 5}, {"head_dim": 0}])
def test_heads_must_divide_the_channels(fields):
    (name, value), *_ = fields.items()
    with pytest.raises(UsageError, match=f"{name} is {value}.*8 channels"):
        SelfAttention(**fields).init(jax.random.key(0), jnp.ones((1, 4, 8)))
