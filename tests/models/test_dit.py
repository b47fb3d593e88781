"""Patches, positions, features of time; DiT: sizes, conditioning, scan and remat, dtypes, errors."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.dit import DiT
from jaxdiff.models.vit import patchify, position_table, time_features, unpatchify

pytestmark = pytest.mark.usefixtures("quick_compile")


def dit(**fields):
    return Network(DiT(**{"channels": 16, "depth": 2, "num_heads": 2, "num_classes": 3, **fields}))


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


@pytest.mark.parametrize(("size", "millions"), [("s", 33), ("b", 130), ("l", 458), ("xl", 675)])
def test_sizes_are_the_papers(size, millions):
    """Table 1's widths and depths, counted by hand."""
    from jaxdiff.models.presets.dit import PRESETS

    spec = PRESETS[f"dit_{size}_2"]
    w, depth = spec.fields["channels"], spec.fields["depth"]
    block = 3 * w * w + 3 * w + w * w + w + 8 * w * w + 5 * w + 6 * w * w + 6 * w
    ends = 16 * w + w + 256 * w + w + w * w + w + 1001 * w + 2 * w * w + 2 * w + 32 * w + 32
    tree = jax.eval_shape(
        partial(Network(DiT(**spec.fields)).init, jax.random.key(0)), jax.ShapeDtypeStruct((1, *spec.shape), "float32")
    )
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == depth * block + ends == spec.parameters
    assert round(spec.parameters / 1e6) == millions


def test_begins_as_the_identity_and_answers_zero():
    net, x = dit(), jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    params = net.init(jax.random.key(0), x)
    assert not jax.jit(net)(params, x, jnp.zeros(2)).any()
    stacks = params["blocks"]
    assert not stacks["modulation"]["kernel"].any()
    for name in ("qkv", "proj"):
        kernel = np.asarray(stacks["attention"][name]["kernel"])
        assert not np.allclose(kernel[0], kernel[1])  # every block draws its own
        bound = math.sqrt(6 / sum(kernel.shape[1:]))
        assert 0.9 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((2, 8, 3), {"patch_size": 4}),
        ((2, 4, 6, 3), {"learned_variance": True}),
        ((2, 3, 4, 4, 2), {"patch_size": (1, 2, 2), "out_channels": 5}),
    ],
)
def test_any_number_of_spatial_axes(shape, fields, ready):
    net = dit(num_classes=0, **fields)
    params, x, t = ready(net, shape)
    run = jax.jit(net)
    out = run(params, x, t)
    channels = fields.get("out_channels", shape[-1]) * (1 + fields.get("learned_variance", False))
    assert (out.shape, out.dtype) == ((*shape[:-1], channels), jnp.float32)
    # Every token hears of every other.
    there = run(params, x.at[:, -1].add(1.0), t)
    assert float(jnp.abs(there - out)[:, 0].max()) > 1e-4


def unstacked(params, depth):
    rest = {name: leaf for name, leaf in params.items() if name != "blocks"}
    return rest | {f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}


def test_scan_changes_no_value(ready):
    params, x, t = ready(dit(depth=3), (2, 4, 4, 3))
    want, got = jax.jit(dit(depth=3))(params, x, t), jax.jit(dit(depth=3, scan=False))(unstacked(params, 3), x, t)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_remat_changes_no_gradient(ready):
    params, x, t = ready(dit(), (3, 4, 4, 3))
    label = {"label": jnp.arange(3)}

    def gradient(**fields):
        net = dit(**fields)
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
        net = dit(**fields)
        x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
        params = jax.eval_shape(partial(net.init, jax.random.key(0)), x)
        return len(str(jax.make_jaxpr(net)(params, x, jax.ShapeDtypeStruct((1,), jnp.float32))).splitlines())

    assert length(depth=2) == length(depth=9)
    assert length(depth=9, scan=False) > 2 * length(depth=2, scan=False)


def test_remat_keeps_less():
    """At a batch where activations outweigh parameters, which are kept as well."""

    def kept(remat):
        net = dit(depth=4, channels=32, remat=remat)
        x, t = jax.ShapeDtypeStruct((32, 8, 8, 3), jnp.float32), jnp.zeros(32)
        params = jax.eval_shape(partial(net.init, jax.random.key(0)), x)
        return sum(
            leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p, x: jax.vjp(net, p, x, t)[1], params, x))
        )

    assert kept("blocks") < kept("none") / 8


def test_conditioning(ready):
    net = dit()
    params, x, t = ready(net, (4, 4, 4, 3))
    run = jax.jit(net)
    label = jnp.array([0, 1, 2, 3])
    out = run(params, x, t, {"label": label})
    null = run(params, x, t, None)
    np.testing.assert_array_equal(out[3], null[3])  # the null label is num_classes
    assert float(jnp.abs(out - null)[:3].max(axis=(1, 2, 3)).min()) > 1e-3
    assert jnp.isnan(run(params, x, t, {"label": label.at[0].set(4)})[0]).all()
    assert float(jnp.abs(run(params, x, t + 1, None) - null).max()) > 1e-3
    # An example's answer does not depend on those beside it.
    alone = run(params, x[1:2], t[1:2], {"label": label[1:2]})
    np.testing.assert_allclose(alone[0], out[1], atol=2e-5 * float(jnp.abs(out).max()))


def test_bfloat16(ready):
    net = dit(learned_variance=True)
    params, x, t = ready(net, (2, 8, 8, 3))
    want, got = jax.jit(net)(params, x, t), jax.jit(dit(learned_variance=True, dtype="bfloat16"))(params, x, t)
    assert got.dtype == jnp.float32
    scale = float(jnp.abs(want).max())
    assert 1e-5 < float(jnp.abs(got - want).max()) / scale < 0.05
    made = jax.eval_shape(partial(dit(dtype="bfloat16").init, jax.random.key(0)), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


def test_normalisation_holds_for_large_means():
    """E[h^2] - E[h]^2 would have no digit left."""
    from jaxdiff.models.dit import _modulated

    h = jax.random.normal(jax.random.key(0), (1, 3, 64))
    zero = jnp.zeros((1, 64))
    want = _modulated(h, zero, zero, 1e-6, jnp.float32)
    np.testing.assert_allclose(_modulated(h + 3000.0, zero, zero, 1e-6, jnp.float32), want, atol=2e-3)
    np.testing.assert_allclose(want.var(axis=-1), 1.0, rtol=1e-4)


def test_fields_of_one_meaning_are_equal():
    assert DiT(patch_size=[2, 2], dtype="bfloat16") == DiT(patch_size=(2, 2), dtype=jnp.bfloat16)
    assert hash(dit(patch_size=[2, 2])) == hash(dit(patch_size=(2, 2)))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"channels": 0}, "channels is 0: allowed is a whole number, 4 or more"),
        ({"num_heads": 3}, "num_heads is 3: allowed is a divisor of the 16 channels"),
        ({"depth": 0}, "depth is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"patch_size": ()}, "patch_size is"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"out_channels": -1}, "out_channels is -1"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"freq_shift": 2.0}, "freq_shift is 2.0"),
        ({"mlp_norm_epsilon": 0.0}, "mlp_norm_epsilon is 0.0"),
        ({"position_reach": 0}, "position_reach is 0"),
        ({"remat": "block"}, "unknown remat 'block': did you mean 'blocks'"),
        ({"dtype": "int8"}, "dtype is int8"),
        ({"dtype": "float33"}, "dtype is float33"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, text):
    with pytest.raises(UsageError, match=text) as caught:
        dit(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "shape", "t", "cond", "text"),
    [
        ({}, (2, 4), (2,), None, "the shape of x"),
        ({}, (2, 4, 4, 3), (3,), None, "the shape of t"),
        ({}, (2, 5, 4, 3), (2,), None, r"spatial size \(5, 4\): allowed are multiples of the patch's \(2, 2\)"),
        ({"patch_size": (2, 2, 2)}, (2, 4, 4, 3), (2,), None, "patch_size is"),
        ({}, (2, 4, 4, 3), (2,), {"label": np.zeros((2, 1), np.int32)}, "label"),
        ({}, (2, 4, 4, 3), (2,), {"label": np.zeros(2, np.float32)}, "label"),
        ({"null_label": False}, (2, 4, 4, 3), (2,), None, "no null label"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(fields, shape, t, cond, text):
    good = dit(**{k: v for k, v in fields.items() if k != "patch_size"})
    params = jax.eval_shape(partial(good.init, jax.random.key(0)), jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32))
    with pytest.raises(UsageError, match=text) as caught:
        jax.eval_shape(lambda params: dit(**fields)(params, jnp.zeros(shape), jnp.zeros(t), cond), params)
    assert "\n" not in str(caught.value)
