"""U-ViT: sizes, tokens, long skips, scan and remat, dtypes, errors."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.presets.uvit import PRESETS
from jaxdiff.models.uvit import UViT

pytestmark = pytest.mark.usefixtures("quick_compile")


def uvit(**fields):
    return Network(UViT(**{"channels": 16, "depth": 4, "num_heads": 2, "num_classes": 3, **fields}))


def shapes(net, shape):
    return jax.eval_shape(partial(net.init, jax.random.key(0)), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_by_hand(name):
    """From the paper's description, without any of our modules."""
    spec = PRESETS[name]
    w, half, p = spec.fields["channels"], spec.fields["depth"] // 2, spec.fields["patch_size"]
    side, c = spec.shape[0], spec.shape[-1]
    classes = spec.fields.get("num_classes", 0)
    block = 4 * w + 3 * w * w + w * w + w + 8 * w * w + 5 * w
    blocks = (2 * half + 1) * block + half * (2 * w * w + w)
    tokens = (side // p) ** 2 + 1 + bool(classes)
    labels = (classes + spec.fields.get("null_label", True)) * w if classes else 0
    ends = (p * p * c + 1) * w + tokens * w + labels + 2 * w + (w + 1) * p * p * c
    conv = (9 * c + 1) * c if spec.fields.get("conv", True) else 0
    tree = shapes(Network(UViT(**spec.fields)), (1, *spec.shape))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    assert count == blocks + ends + conv == spec.parameters


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((2, 8, 3), {"patch_size": 4}),
        ((2, 4, 6, 3), {"learned_variance": True, "conv": False}),
        ((2, 2, 4, 4, 2), {"patch_size": (1, 2, 2), "out_channels": 5, "time_mlp": True, "num_classes": 0}),
    ],
)
def test_any_number_of_spatial_axes(shape, fields, ready):
    net = uvit(**fields)
    params, x, t = ready(net, shape)
    run = jax.jit(net)
    out = run(params, x, t)
    channels = fields.get("out_channels", shape[-1]) * (1 + fields.get("learned_variance", False))
    assert (out.shape, out.dtype) == ((*shape[:-1], channels), jnp.float32)
    there = run(params, x.at[:, -1].add(1.0), t)
    assert float(jnp.abs(there - out)[:, 0].max()) > 1e-4


def unstacked(params, half):
    rest = {name: leaf for name, leaf in params.items() if name not in ("down", "up")}
    for name in ("down", "up"):
        rest |= {f"{name}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params[name]) for i in range(half)}
    return rest


@pytest.mark.parametrize("long_skips", [True, False])
def test_scan_changes_no_value(long_skips, ready):
    net, alone = (uvit(depth=6, long_skips=long_skips, scan=scan) for scan in (True, False))
    params, x, t = ready(net, (2, 4, 4, 3))
    want, got = jax.jit(net)(params, x, t), jax.jit(alone)(unstacked(params, 3), x, t)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_remat_changes_no_gradient(ready):
    params, x, t = ready(uvit(), (3, 4, 4, 3))
    label = {"label": jnp.arange(3)}

    def gradient(**fields):
        net = uvit(**fields)
        return jax.jit(jax.grad(lambda p: jnp.sum((net(p, x, t, label) - jnp.roll(x, 1)) ** 2)))(params)

    want = gradient()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max())),
        gradient(remat="blocks"),
        want,
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        assert float(jnp.abs(leaf).max()) > 0, path


def test_program_does_not_grow_with_depth():
    def length(**fields):
        net = uvit(**fields)
        params, x = shapes(net, (1, 4, 4, 3)), jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
        return len(str(jax.make_jaxpr(net)(params, x, jax.ShapeDtypeStruct((1,), jnp.float32))).splitlines())

    assert length(depth=4) == length(depth=10)
    assert length(depth=10, scan=False) > 1.5 * length(depth=4, scan=False)


def test_the_first_up_takes_the_last_skip(ready):
    """With every block the identity but for the skips' maps, the result names the skip it is made of."""
    net = uvit(depth=4, num_classes=0, conv=False, patch_size=1)
    params, x, t = ready(net, (1, 2, 2, 3))
    run = jax.jit(net)

    def emptied(blocks):
        zero = {name: jax.tree.map(jnp.zeros_like, blocks[name]) for name in ("attention", "mlp")}
        return {**blocks, **zero}

    params = {**params, **{name: emptied(params[name]) for name in ("down", "mid", "up")}}
    # The second block on the way down adds 1 to every channel; a map to the first skip must not see it.
    bias = params["down"]["mlp"]["dense1"]["bias"].at[1].set(jnp.arange(16.0))
    params["down"]["mlp"]["dense1"]["bias"] = bias
    take = jnp.concatenate([jnp.zeros((16, 16)), jnp.eye(16)])
    maps = {"kernel": jnp.stack([take, take]), "bias": jnp.zeros((2, 16))}
    last = {**maps, "kernel": jnp.stack([take, jnp.eye(32)[:, :16]])}  # the second map: what it is given, no skip
    first_skip = run({**params, "up": {**params["up"], "skip": maps}}, x, t)
    last_skip = run({**params, "up": {**params["up"], "skip": last}}, x, t)
    none = {**params["down"]["mlp"]["dense1"], "bias": bias * 0}
    params["down"]["mlp"]["dense1"] = none
    plain = run({**params, "up": {**params["up"], "skip": maps}}, x, t)
    np.testing.assert_allclose(first_skip, plain, atol=1e-6)
    assert float(jnp.abs(last_skip - plain).max()) > 0.1


def test_conditioning(ready):
    net = uvit()
    params, x, t = ready(net, (4, 4, 4, 3))
    run = jax.jit(net)
    label = jnp.array([0, 1, 2, 3])
    out, null = run(params, x, t, {"label": label}), run(params, x, t, None)
    np.testing.assert_array_equal(out[3], null[3])
    assert float(jnp.abs(out - null)[:3].max(axis=(1, 2, 3)).min()) > 1e-3
    assert jnp.isnan(run(params, x, t, {"label": label.at[0].set(4)})[0]).all()
    assert float(jnp.abs(run(params, x, t + 1, None) - null).max()) > 1e-3
    alone = run(params, x[1:2], t[1:2], {"label": label[1:2]})
    np.testing.assert_allclose(alone[0], out[1], atol=2e-5 * float(jnp.abs(out).max()))


def test_bfloat16(ready):
    net = uvit()
    params, x, t = ready(net, (2, 8, 8, 3))
    want, got = jax.jit(net)(params, x, t), jax.jit(uvit(dtype="bfloat16"))(params, x, t)
    assert got.dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(got - want).max() / jnp.abs(want).max()) < 0.05
    made = shapes(uvit(dtype="bfloat16"), (2, 8, 8, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


def test_initial_values():
    params = uvit(channels=64).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    for leaf in (params["positions"], params["out"]["kernel"], params["up"]["skip"]["kernel"]):
        np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.15)
    np.testing.assert_allclose(np.abs(params["patch"]["kernel"]).max(), 12**-0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"depth": 5}, "depth is 5: allowed is an even number"),
        ({"depth": 0}, "depth is 0"),
        ({"num_heads": 5}, "num_heads is 5"),
        ({"remat": "all"}, "unknown remat 'all'"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, text):
    with pytest.raises(UsageError, match=text) as caught:
        uvit(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "shape", "text"),
    [
        ({}, (2, 8, 8, 3), "x makes 18 tokens: allowed are the 6 that this network has positions for"),
        ({}, (2, 5, 4, 3), "spatial size"),
        ({}, (2, 4), "the shape of x"),
        ({"null_label": False}, (2, 4, 4, 3), "no null label"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(fields, shape, text):
    net = uvit(**fields)
    with pytest.raises(UsageError, match=text) as caught:
        jax.eval_shape(lambda p: net(p, jnp.zeros(shape), jnp.zeros(2)), shapes(net, (2, 4, 4, 3)))
    assert "\n" not in str(caught.value)
