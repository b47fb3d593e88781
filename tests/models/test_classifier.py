"""The classifier of noisy images: its pooling by the formulas, what it shares with the U-Net, dtypes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Network, UNet
from jaxdiff.models.classifier import POOL, AttentionPool, Classifier

BASE = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "norm_groups": 4}
LABELS = 5
FLAT = {"channel_mult": (1,), "mid": "none", "attention_resolutions": ()}  # one block, quick to compile

pytestmark = pytest.mark.usefixtures("quick_compile")


def build(**fields):
    return Network(Classifier(**{**BASE, "num_labels": LABELS, "head_dim": 4, **fields}))


def softmax(scores):
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def attended(params, x, heads):
    """Equation (2), all queries of it, one head at a time in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    tokens = np.asarray(x, np.float64).reshape(x.shape[0], -1, x.shape[-1])
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + p["positions"]
    q, k, v = np.split(tokens @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, -1)
    out = []
    for i in range(heads):
        qi, ki, vi = (np.split(a, heads, -1)[i] for a in (q, k, v))
        out.append(softmax(qi @ ki.swapaxes(1, 2) / np.sqrt(qi.shape[-1])) @ vi)
    return (np.concatenate(out, -1) @ p["proj"]["kernel"] + p["proj"]["bias"])[:, 0]


@pytest.mark.parametrize(("fields", "heads"), [({"head_dim": 2}, 4), ({"num_heads": 2}, 2)])
def test_the_pool_is_attention_from_the_mean(fields, heads, ready):
    pool = AttentionPool(LABELS, **fields)
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 8))
    shapes = jax.eval_shape(pool.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)
    out = jax.jit(pool.apply)({"params": params}, x)
    np.testing.assert_allclose(out, attended(params, x, heads), rtol=0, atol=2e-5)


@pytest.mark.parametrize("pool", POOL)
def test_what_it_shares_with_the_unet_has_the_same_parameters(pool):
    example = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    ours = jax.eval_shape(build(pool=pool).init, jax.random.key(0), example)
    unet = jax.eval_shape(Network(UNet(**BASE)).init, jax.random.key(0), example)
    heads = {"attention": {"norm_out", "pool"}, "mean": {"norm_out", "logits"}, "spatial": {"hidden", "logits"}}
    shared = {name for name in unet if not name.startswith(("up_", "conv_out", "norm_out"))}
    assert ours.keys() - shared == heads[pool]
    assert {name: ours[name] for name in shared} == {name: unet[name] for name in shared}


@pytest.mark.parametrize("pool", POOL)
def test_logits_depend_on_everything_that_is_given(pool, ready):
    net = build(pool=pool, **FLAT)
    params, x, t = ready(net, (2, 4, 4, 3))
    logits = jax.jit(lambda x, t: net(params, x, t))
    out = logits(x, t)
    assert out.shape == (2, LABELS)
    assert out.dtype == jnp.float32
    assert bool((jnp.abs(logits(x, t + 50) - out) > 1e-3).any(1).all())
    # What guidance follows: the derivative of the log-probability of one label.
    slope = jax.jit(jax.grad(lambda x: jax.nn.log_softmax(net(params, x, t))[:, 1].sum()))(x)
    assert bool(jnp.isfinite(slope).all())
    step = 1e-2 * slope / jnp.linalg.norm(slope)
    rise = jax.nn.log_softmax(logits(x + step, t))[:, 1].sum() - jax.nn.log_softmax(logits(x - step, t))[:, 1].sum()
    np.testing.assert_allclose(rise, 2 * (step * slope).sum(), rtol=2e-2)


def test_the_mean_of_a_network_without_context_is_a_mean(ready):
    """Equation (1), with the way to the features from the U-Net's own output layer."""
    net = build(pool="mean", **FLAT)
    params, x, t = ready(net, (2, 4, 4, 3))
    zero = jax.tree.map(jnp.zeros_like, params["down_0_block_0"])
    params = {**params, "down_0_block_0": zero}  # the block passes its input on
    kernel = jnp.zeros_like(params["conv_in"]["kernel"]).at[1, 1].set(params["conv_in"]["kernel"][1, 1])
    params["conv_in"] = {**params["conv_in"], "kernel": kernel}  # and the first convolution looks at one position
    roll = jnp.roll(x, (1, 2), (1, 2))
    run = jax.jit(net)
    np.testing.assert_allclose(run(params, x, t), run(params, roll, t), atol=1e-5)
    assert float(jnp.abs(run(params, x, t)).max()) > 0.1
    h = x @ kernel[1, 1] + params["conv_in"]["bias"].reshape(1, 1, 1, -1)
    grouped = h.reshape(2, 16, 4, 2)
    grouped = (grouped - grouped.mean((1, 3), keepdims=True)) / jnp.sqrt(grouped.var((1, 3), keepdims=True) + 1e-6)
    norm = {name: value.reshape(1, 1, -1) for name, value in params["norm_out"].items()}
    u = jax.nn.silu(grouped.reshape(2, 16, 8) * norm["scale"] + norm["bias"]).mean(1)
    want = u @ params["logits"]["kernel"] + params["logits"]["bias"].reshape(1, -1)
    np.testing.assert_allclose(run(params, x, t), want, atol=1e-5)


def test_bfloat16_is_near_float32(ready):
    net, half = build(channel_mult=(1,)), build(channel_mult=(1,), dtype="bfloat16")
    params, x, t = ready(net, (2, 8, 8, 3))
    got, want = jax.jit(half)(params, x, t), jax.jit(net)(params, x, t)
    assert got.dtype == jnp.float32
    error = float(jnp.abs(got - want).max() / jnp.abs(want).max())
    assert 1e-5 < error < 0.05


def test_it_takes_any_number_of_spatial_axes(ready):
    net = build(channel_mult=(1,))
    params, x, t = ready(net, (2, 8, 3))
    assert jax.jit(net)(params, x, t).shape == (2, LABELS)


def test_what_cannot_work_is_refused(ready):
    with pytest.raises(UsageError, match=r"unknown pool 'atention': did you mean 'attention'"):
        Classifier(pool="atention")
    with pytest.raises(UsageError, match="num_labels is 0"):
        Classifier(num_labels=0)
    with pytest.raises(UsageError, match="head_dim is 5: allowed is a divisor of the 8 channels"):
        jax.eval_shape(build(**{**FLAT, "head_dim": 5}).init, jax.random.key(0), np.ones((1, 8, 8, 3)))
    net = build(channel_mult=(1,), attention_resolutions=())
    params, _, _ = ready(net, (1, 4, 4, 3))
    with pytest.raises(UsageError, match="16 positions of 8 channels: x gives 64 of 8"):
        jax.eval_shape(net, params, np.ones((1, 8, 8, 3)), np.zeros(1))
