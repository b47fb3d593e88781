"""The U-Net: sizes as published, conditioning, independence of the examples, dtypes, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Network, UNet


def count(net, shape):
    tree = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def unet_count(c, mult, blocks, attended, cin, cout, adaptive=False):
    """Parameters of DDPM's U-Net, added up from the paper's description, without any of our modules."""

    def conv(a, b, k=9):
        return k * a * b + b

    def res(a, b):
        skip = 0 if a == b else conv(a, b, 1)
        return 2 * a + conv(a, b) + conv(4 * c, 2 * b if adaptive else b, 1) + 2 * b + conv(b, b) + skip

    def att(a):
        return 2 * a + 4 * conv(a, a, 1)

    total, width, skips = conv(c, 4 * c, 1) + conv(4 * c, 4 * c, 1) + conv(cin, c), c, [c]
    for level, m in enumerate(mult):
        for _ in range(blocks):
            total += res(width, m * c) + (att(m * c) if level in attended else 0)
            width = m * c
            skips.append(width)
        if level < len(mult) - 1:
            total += conv(width, width)
            skips.append(width)
    total += 2 * res(width, width) + att(width)
    for level, m in reversed(list(enumerate(mult))):
        for _ in range(blocks + 1):
            total += res(width + skips.pop(), m * c) + (att(m * c) if level in attended else 0)
            width = m * c
        if level:
            total += conv(width, width)
    return total + 2 * width + conv(width, cout)


def test_ddpm_cifar10_has_its_published_size():
    assert count(Network(UNet()), (1, 32, 32, 3)) == 35_746_307 == unet_count(128, (1, 2, 2, 2), 2, {1}, 3, 3)


def test_improved_diffusion_cifar10_has_its_published_size():
    """52.5 M in Nichol and Dhariwal."""
    net = UNet(num_res_blocks=3, attention_resolutions=(16, 8), num_heads=4, conditioning="scale_shift",
               learned_variance=True, dropout=0.3)  # fmt: skip
    want = unet_count(128, (1, 2, 2, 2), 3, {1, 2}, 3, 6, adaptive=True)
    assert count(Network(net), (1, 32, 32, 3)) == want
    assert round(want / 1e5) == 525


def test_ddpm_lsun_has_its_published_size():
    """114 M for 256 x 256 in appendix B of DDPM."""
    net = UNet(channel_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)
    assert round(count(Network(net), (1, 256, 256, 3)) / 1e6) == 114


def test_fresh_parameters(tiny):
    """They give exactly zero, are float32 for any compute type, and depend on the key and not on values."""
    net = tiny(dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    a, c = net.init(jax.random.key(0), x), net.init(jax.random.key(1), x)
    b = net.init(jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))
    np.testing.assert_array_equal(jax.jit(net)(a, x, jnp.array([0.0, 5.0])), jnp.zeros_like(x))
    assert {leaf.dtype for leaf in jax.tree.leaves(a)} == {jnp.dtype("float32")}
    assert jax.tree.all(jax.tree.map(lambda u, v: bool((u == v).all()), a, b))
    assert (a["conv_in"]["kernel"] != c["conv_in"]["kernel"]).all()


def test_the_time_matters(tiny, ready):
    for fields in ({}, {"conditioning": "scale_shift"}, {"time_embedding": "fourier"}):
        net = tiny(**fields)
        params, x, t = ready(net, (2, 4, 4, 3))
        apply = jax.jit(net)
        assert np.abs(apply(params, x, t) - apply(params, x, t + 0.3)).max() > 1e-3


def test_labels(tiny, ready):
    net = tiny(num_classes=4)
    params, x, t = ready(net, (3, 4, 4, 3))
    apply = jax.jit(lambda label: net(params, x, t, {"label": label}))
    null = apply(jnp.full((3,), 4))
    np.testing.assert_allclose(null, jax.jit(net)(params, x, t), atol=1e-5)
    assert str(jax.make_jaxpr(net)(params, x, t)) == str(jax.make_jaxpr(net)(params, x, t, {}))
    zero, mixed = apply(jnp.array([0, 0, 0])), apply(jnp.array([0, 3, 4]))
    assert np.abs(zero - null).max(axis=(1, 2, 3)).min() > 1e-2
    np.testing.assert_allclose(mixed[0], zero[0], atol=1e-5)
    np.testing.assert_allclose(mixed[2], null[2], atol=1e-5)
    assert np.abs(mixed[1] - zero[1]).max() > 1e-2
    assert np.isnan(apply(jnp.array([0, 5, 1]))[1]).any()


def test_an_example_is_the_same_in_any_batch(tiny, ready):
    net = tiny(conditioning="scale_shift", num_classes=3, dropout=0.5)
    params, x, t = ready(net, (7, 4, 4, 3))
    label, keys = jnp.arange(7) % 4, jax.random.split(jax.random.key(3), 7)

    @jax.jit
    def apply(x, t, label, keys):
        cond = {"label": label}
        return net(params, x, t, cond, train=True, rngs={"dropout": keys}), net(params, x, t, cond)

    trained, evaluated = apply(x, t, label, keys)
    one = slice(4, 5)
    for got, want in zip(apply(x[one], t[one], label[one], keys[one]), (trained, evaluated), strict=True):
        np.testing.assert_allclose(got, want[one], atol=1e-5)
    assert np.abs(trained - evaluated).max() > 1e-2
    again = apply(x, t, label, jax.random.split(jax.random.key(4), 7))
    assert np.abs(again[0] - trained).max() > 1e-2
    np.testing.assert_array_equal(again[1], evaluated)


@pytest.mark.parametrize("shape", [(2, 8, 3), (2, 2, 4, 2, 3)])
def test_audio_and_video(small, ready, shape):
    net = small(channels=4)
    params, x, t = ready(net, shape)
    y = jax.jit(net)(params, x, t)
    assert y.shape == shape
    assert np.isfinite(y).all()
    pooled = small(downsample="pool", upsample="repeat")
    shapes = jax.eval_shape(pooled.init, jax.random.key(0), x)
    assert jax.eval_shape(pooled, shapes, x, t).shape == shape
    assert not any("sample" in name for name in shapes)


def test_attention_follows_the_largest_size(small):
    def attended(shape, at):
        params = jax.eval_shape(
            small(attention_resolutions=at).init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
        )
        return {name for name in params if "attn" in name}

    assert attended((1, 8, 8, 3), ()) == {"mid_attn"}
    assert attended((1, 8, 8, 3), (4,)) == {"mid_attn", "down_1_attn_0", "up_1_attn_0", "up_1_attn_1"}
    assert attended((1, 4, 8, 3), (8,)) == {"mid_attn", "down_0_attn_0", "up_0_attn_0", "up_0_attn_1"}
    assert attended((1, 4, 8, 3), (2,)) == {"mid_attn"}


def test_output_channels(small):
    x, t = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jnp.zeros(2)
    for fields, channels in (({}, 3), ({"learned_variance": True}, 6), ({"out_channels": 5}, 5),
                             ({"out_channels": 5, "learned_variance": True}, 10)):  # fmt: skip
        net = small(**fields)
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        assert jax.eval_shape(net, params, x, t).shape == (2, 8, 8, channels)


def test_bfloat16_computes_near_float32(tiny, ready):
    exact, rough = tiny(num_classes=2), tiny(num_classes=2, dtype=jnp.bfloat16)
    params, x, t = ready(exact, (2, 8, 8, 3))
    want, got = jax.jit(exact)(params, x, t), jax.jit(rough)(params, x, t)
    assert want.dtype == got.dtype == jnp.float32
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert 1e-4 < error < 0.05  # 8 bits over a dozen layers; and it did compute in bfloat16
    text = str(jax.make_jaxpr(rough)(params, x, t))
    assert "conv_general_dilated" in text
    assert all("bf16" in line for line in text.splitlines() if "= conv_general_dilated" in line)


def test_jit_vmap_grad(tiny, ready):
    net = tiny(num_classes=2)
    params, x, t = ready(net, (2, 4, 4, 3))
    grad = jax.jit(jax.grad(lambda p: (net(p, x, t) ** 2).sum()))(params)
    zero = [jax.tree_util.keystr(k) for k, v in jax.tree_util.tree_leaves_with_path(grad) if not np.asarray(v).any()]
    assert zero == []
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(grad))
    stacked = jax.jit(jax.vmap(net, in_axes=(None, 0, 0)))(params, x[:, None], t[:, None])
    y, tangent = jax.jit(lambda v: jax.jvp(lambda x: net(params, x, t), (v,), (jnp.ones_like(v),)))(x)
    np.testing.assert_allclose(stacked[:, 0], y, atol=1e-5)
    step = 1e-2
    ahead, behind = (jax.jit(net)(params, x + s * step, t) for s in (1, -1))
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=2e-2 * float(np.abs(tangent).max()))


@pytest.mark.parametrize(("fields", "message"), [
    ({"conditioning": "ad"}, "unknown conditioning 'ad': did you mean 'add'"),
    ({"time_embedding": "sin"}, "unknown time_embedding 'sin'"),
    ({"channels": 3}, "channels is 3"),
    ({"channels": True}, "channels is True"),
    ({"channel_mult": ()}, "channel_mult is"),
    ({"channel_mult": (1, 0)}, "channel_mult is"),
    ({"num_res_blocks": 0}, "num_res_blocks is 0"),
    ({"attention_resolutions": (0,)}, "attention_resolutions is"),
    ({"num_heads": 0}, "num_heads is 0"),
    ({"head_dim": 0}, "head_dim is 0"),
    ({"norm_groups": 0}, "norm_groups is 0"),
    ({"freq_shift": 64}, "freq_shift is 64"),
    ({"norm_epsilon": 0}, "norm_epsilon is 0"),
    ({"fir": (1, 2, 1)}, "fir is"),
    ({"attention_levels": ((1,),)}, "attention_levels is"),
    ({"upsample": ("repeat",)}, "upsample is"),
    ({"remat": "all"}, "unknown remat 'all'"),
])  # fmt: skip
def test_fields_out_of_range(fields, message):
    with pytest.raises(UsageError, match=message) as e:
        UNet(**fields)
    assert "allowed" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("fields", "shape", "t", "cond", "message"), [
    ({}, (2, 8, 7, 3), (2,), None, r"spatial size of x is \(8, 7\).*multiples of 2"),
    ({"channel_mult": (1, 1, 1)}, (2, 6, 4), (2,), None, "multiples of 4"),
    ({}, (2, 3), (2,), None, "shape of x"),
    ({}, (2, 8, 8, 3), (1,), None, "shape of t"),
    ({}, (2, 8, 8, 3), (), None, "shape of t"),
    ({"num_heads": 3}, (2, 8, 8, 3), (2,), None, "num_heads is 3"),
    ({"num_classes": 2}, (2, 8, 8, 3), (2,), {"label": jnp.zeros(3, int)}, "label"),
    ({"num_classes": 2}, (2, 8, 8, 3), (2,), {"label": jnp.zeros(2)}, "label"),
])  # fmt: skip
def test_arguments_that_do_not_fit(small, fields, shape, t, cond, message):
    with pytest.raises(UsageError, match=message) as e:
        small(**fields).init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32), jnp.zeros(t), cond)
    assert "allowed" in str(e.value)
    assert "\n" not in str(e.value)


def test_training_with_dropout_needs_keys(small, ready):
    net = small()
    params, x, t = ready(net, (2, 8, 8, 3))
    with pytest.raises(UsageError, match="rngs"):
        net(params, x, t, train=True)


def test_the_plan_is_what_the_network_has(small):
    """Every part of the plan is a branch of the parameters, and nothing else is but the ends and the embeddings."""
    for fields in ({}, {"mid": "none", "attention_levels": ((0,), ())}, {"num_res_blocks": (1, 2), "mid": "plain"},
                   {"downsample": "block", "upsample": ("block", "conv"), "attention_last": True}):  # fmt: skip
        net = small(**fields)
        plan = net.module.plan(8)
        parts = [*plan.down, *plan.mid, *plan.up]
        named = {p.name for p in parts} | {p.attention for p in parts if p.attention}
        params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
        assert set(params) == named | {"conv_in", "time", "norm_out", "conv_out"}


def test_widths_that_are_not_multiples(small):
    net = small(channels=8, channel_mult=(0.5, 1.25), first_channels=6)
    params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    widths = [params[name]["conv1"]["bias"].shape[0] for name in ("down_0_block_0", "down_1_block_0")]
    assert [*widths, params["conv_in"]["bias"].shape[0]] == [4, 10, 6]
    with pytest.raises(UsageError, match=r"channel_mult is \(1, 0.3\)"):
        small(channel_mult=(1, 0.3))
    with pytest.raises(UsageError, match=r"num_res_blocks is \(1,\): allowed is one value, or one for each"):
        small(num_res_blocks=(1,))


def test_recomputing_changes_memory_and_not_numbers(tiny, ready):
    """The numbers in the forward pass are the same; the gradient's own trace has the convolutions again."""
    plain = tiny(dropout=0.3)
    params, x, t = ready(plain, (2, 4, 4, 3))
    rngs = {"dropout": jax.random.split(jax.random.key(1), 2)}

    def grad_of(net):
        return jax.value_and_grad(lambda p: (net(p, x, t, train=True, rngs=rngs) ** 2).mean())

    want, counted = jax.jit(grad_of(plain))(params), {}
    for remat in ("none", "convs", "blocks"):
        function = grad_of(tiny(dropout=0.3, remat=remat))
        counted[remat] = str(jax.make_jaxpr(function)(params)).count("= conv_general_dilated")
        if remat != "none":
            got = jax.jit(function)(params)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), got, want)
    assert counted["none"] == counted["convs"] < counted["blocks"]
