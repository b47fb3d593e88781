"""What holds for DiT and U-ViT alike: spatial axes, scan and remat, conditioning, dtypes, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.dit import DiT
from jaxdiff.models.uvit import UViT

pytestmark = pytest.mark.usefixtures("quick_compile")

NETWORKS = {"dit": partial(DiT, depth=2), "uvit": partial(UViT, depth=4)}
STACKS = {"blocks": "block", "down": "down", "up": "up"}


def build(name, **fields):
    return Network(NETWORKS[name](**{"channels": 16, "num_heads": 2, "num_classes": 3, **fields}))


def shapes(net, shape):
    return jax.eval_shape(partial(net.init, jax.random.key(0)), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(("name", "shape", "fields"), [
    ("dit", (2, 8, 3), {"patch_size": 4, "num_classes": 0}),
    ("dit", (2, 4, 6, 3), {"learned_variance": True}),
    ("dit", (2, 3, 4, 4, 2), {"patch_size": (1, 2, 2), "out_channels": 5}),
    ("uvit", (2, 8, 3), {"patch_size": 4}),
    ("uvit", (2, 4, 6, 3), {"learned_variance": True, "conv": False}),
    ("uvit", (2, 2, 4, 4, 2), {"patch_size": (1, 2, 2), "out_channels": 5, "time_mlp": True, "num_classes": 0}),
])  # fmt: skip
def test_any_number_of_spatial_axes(name, shape, fields, ready):
    net = build(name, **fields)
    params, x, t = ready(net, shape)
    run = jax.jit(net)
    out = run(params, x, t)
    channels = fields.get("out_channels", shape[-1]) * (1 + fields.get("learned_variance", False))
    assert (out.shape, out.dtype) == ((*shape[:-1], channels), jnp.float32)
    # Every token hears of every other.
    there = run(params, x.at[:, -1].add(1.0), t)
    assert float(jnp.abs(there - out)[:, 0].max()) > 1e-4


def unstacked(params):
    """Blocks that are stacked for the scan, each under a name of its own."""
    alone = {}
    for name, tree in params.items():
        length = len(jax.tree.leaves(tree)[0]) if name in STACKS else 0
        alone |= {f"{STACKS[name]}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(length)}
        alone |= {} if name in STACKS else {name: tree}
    return alone


@pytest.mark.parametrize(("name", "fields"), [
    ("dit", {"depth": 3}), ("uvit", {"depth": 6}), ("uvit", {"depth": 6, "long_skips": False}),
])  # fmt: skip
def test_scan_changes_no_value(name, fields, ready):
    net, alone = (build(name, scan=scan, **fields) for scan in (True, False))
    params, x, t = ready(net, (2, 4, 4, 3))
    want, got = jax.jit(net)(params, x, t), jax.jit(alone)(unstacked(params), x, t)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_remat_changes_no_gradient(name, ready):
    params, x, t = ready(build(name), (3, 4, 4, 3))
    label = {"label": jnp.arange(3)}

    def gradient(**fields):
        net = build(name, **fields)
        return jax.jit(jax.grad(lambda p: jnp.sum((net(p, x, t, label) - jnp.roll(x, 1)) ** 2)))(params)

    want, got = gradient(), gradient(remat="blocks")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max())), got, want)
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        assert float(jnp.abs(leaf).max()) > 0, path


@pytest.mark.parametrize(("name", "less"), [("dit", 8), ("uvit", 4)])
def test_remat_keeps_less(name, less):
    """At a batch where activations outweigh parameters, which are kept as well."""

    def kept(remat):
        net = build(name, depth=4, channels=32, remat=remat)
        x, t = jax.ShapeDtypeStruct((32, 8, 8, 3), jnp.float32), jnp.zeros(32)
        residuals = jax.eval_shape(lambda p, x: jax.vjp(net, p, x, t)[1], shapes(net, x.shape), x)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept("blocks") < kept("none") / less


@pytest.mark.parametrize("name", NETWORKS)
def test_program_does_not_grow_with_depth(name):
    def length(**fields):
        net, x = build(name, **fields), jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
        times = jax.ShapeDtypeStruct((1,), jnp.float32)
        return len(str(jax.make_jaxpr(net)(shapes(net, x.shape), x, times)).splitlines())

    assert length(depth=4) == length(depth=10)
    assert length(depth=10, scan=False) > 1.5 * length(depth=4, scan=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_conditioning(name, ready):
    net = build(name)
    params, x, t = ready(net, (4, 4, 4, 3))
    run = jax.jit(net)
    label = jnp.array([0, 1, 2, 3])
    out, null = run(params, x, t, {"label": label}), run(params, x, t, None)
    np.testing.assert_array_equal(out[3], null[3])  # the null label is num_classes
    assert float(jnp.abs(out - null)[:3].max(axis=(1, 2, 3)).min()) > 1e-3
    assert jnp.isnan(run(params, x, t, {"label": label.at[0].set(4)})[0]).all()
    assert float(jnp.abs(run(params, x, t + 1, None) - null).max()) > 1e-3
    # An example's answer does not depend on those beside it.
    alone = run(params, x[1:2], t[1:2], {"label": label[1:2]})
    np.testing.assert_allclose(alone[0], out[1], atol=2e-5 * float(jnp.abs(out).max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16(name, ready):
    net, half = build(name, learned_variance=True), build(name, learned_variance=True, dtype="bfloat16")
    params, x, t = ready(net, (2, 8, 8, 3))
    want, got = jax.jit(net)(params, x, t), jax.jit(half)(params, x, t)
    assert got.dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(got - want).max() / jnp.abs(want).max()) < 0.05
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, x.shape))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("fields", "text"), [
    ({"channels": 0}, "channels is 0: allowed is a whole number, 4 or more"),
    ({"num_heads": 3}, "num_heads is 3: allowed is a divisor of the 16 channels"),
    ({"depth": 0}, "depth is 0"),
    ({"patch_size": 0}, "patch_size is 0"),
    ({"patch_size": ()}, "patch_size is"),
    ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
    ({"remat": "block"}, "unknown remat 'block': did you mean 'blocks'"),
])  # fmt: skip
def test_fields_that_cannot_work_are_refused(name, fields, text):
    with pytest.raises(UsageError, match=text) as caught:
        build(name, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("fields", "shape", "t", "cond", "text"), [
    ({}, (2, 4), (2,), None, "the shape of x"),
    ({}, (2, 4, 4, 3), (3,), None, "the shape of t"),
    ({}, (2, 5, 4, 3), (2,), None, r"spatial size \(5, 4\): allowed are multiples of the patch's \(2, 2\)"),
    ({"patch_size": (2, 2, 2)}, (2, 4, 4, 3), (2,), None, "patch_size is"),
    ({}, (2, 4, 4, 3), (2,), {"label": np.zeros((2, 1), np.int32)}, "label"),
    ({}, (2, 4, 4, 3), (2,), {"label": np.zeros(2, np.float32)}, "label"),
    ({"null_label": False}, (2, 4, 4, 3), (2,), None, "no null label"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(name, fields, shape, t, cond, text):
    params = shapes(build(name, **{k: v for k, v in fields.items() if k != "patch_size"}), (2, 4, 4, 3))
    with pytest.raises(UsageError, match=text) as caught:
        jax.eval_shape(lambda p: build(name, **fields)(p, jnp.zeros(shape), jnp.zeros(t), cond), params)
    assert "\n" not in str(caught.value)
