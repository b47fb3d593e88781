"""NCSNv2's network against NumPy in float64, part by part; sizes, types, independence of the examples, errors.

That the whole answers as the original code did is in tests/parity/test_ncsnv2.py.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models.network import Network
from jaxdiff.models.refinenet import RefineNet
from jaxdiff.models.refinenet_blocks import DilatedBlock, InstanceNormPlus, Refine, ResidualUnits, _stretch

pytestmark = pytest.mark.usefixtures("quick_compile")


def draw(shape, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1, shape).astype(np.float32)


def filled(module, *args, seed=0):
    """Parameters of the size of trained ones, and the module jitted."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [draw(leaf.shape, seed + i, mean=float(leaf.ndim == 1)) for i, leaf in enumerate(leaves)]
    drawn = [leaf / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else leaf for leaf in drawn]
    params = jax.tree.unflatten(tree, drawn)
    return params, jax.jit(lambda params, *args: module.apply({"params": params}, *args))


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def conv64(x, p, dilation=1):
    """Kernel 3 in two dimensions, position by position."""
    x, kernel = np.pad(np.asarray(x, np.float64), [(0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0)]), p["kernel"]
    rows, columns = (size - 2 * dilation for size in x.shape[1:3])
    windows = (
        x[:, dilation * i : dilation * i + rows, dilation * j : dilation * j + columns] @ kernel[i, j].astype(float)
        for i, j in itertools.product(range(3), repeat=2)
    )
    return sum(windows) + p.get("bias", 0.0)


def norm64(x, p):
    x = np.asarray(x, np.float64)
    space = tuple(range(1, x.ndim - 1))
    mean, var = x.mean(space, keepdims=True), x.var(space, keepdims=True)
    centre, spread = mean.mean(-1, keepdims=True), mean.var(-1, ddof=1, keepdims=True)
    h = (x - mean) / np.sqrt(var + 1e-5) + p["alpha"] * (mean - centre) / np.sqrt(spread + 1e-5)
    return p["gamma"] * h + p["beta"]


def pool64(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def units64(x, p, num):
    for unit in range(num):
        x = x + conv64(elu(conv64(elu(x), p[f"conv_{unit}_0"])), p[f"conv_{unit}_1"])
    return x


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (3, 9, 2), (1, 1, 1, 4)])
def test_the_norm_is_the_formula(shape):
    x = draw(shape, mean=3.0) * np.linspace(0.1, 2, shape[-1], dtype=np.float32)
    params, apply = filled(InstanceNormPlus(), x)
    np.testing.assert_allclose(apply(params, x), norm64(x, params), atol=2e-5)


def test_the_norm_s_statistics_are_float32():
    """With bfloat16 in and out, a mean of 30 would leave no digit of the spread if they were not."""
    x = jnp.asarray(draw((2, 16, 16, 4), mean=30.0), jnp.bfloat16)
    params, apply = filled(InstanceNormPlus(dtype=jnp.bfloat16), x)
    want = norm64(np.asarray(x, np.float64), params)
    assert np.abs(np.asarray(apply(params, x), np.float64) - want).max() <= 2**-8 * np.abs(want).max()


def test_a_channel_s_mean_survives_the_norm():
    """Images that differ by constants per channel are one image to instance normalisation."""
    x = draw((1, 8, 8, 4))
    params, apply = filled(InstanceNormPlus(), x)
    moved = apply(params, x + jnp.array([0.0, 0.0, 2.0, 0.0]).reshape(1, 1, 1, 4))
    assert np.abs(moved - apply(params, x)).max() > 0.1


@pytest.mark.parametrize(("features", "dilation", "first"), [
    (4, 1, False), (6, 1, False), (4, 1, True), (6, 1, True), (4, 2, True), (6, 4, True), (4, 2, False),
])  # fmt: skip
def test_a_block_is_the_formula(features, dilation, first):
    x = draw((2, 6, 4, 4))
    params, apply = filled(DilatedBlock(features, dilation, first), x)
    h = conv64(elu(norm64(x, params["norm1"])), params["conv1"], dilation)
    h = conv64(elu(norm64(h, params["norm2"])), params["conv2"], dilation)
    short = x
    if "shortcut" in params:
        kernel = params["shortcut"]["kernel"]
        short = x @ kernel + params["shortcut"]["bias"] if kernel.ndim == 2 else conv64(x, params["shortcut"], dilation)
    want = h + short
    want = pool64(want) if first and dilation == 1 else want
    np.testing.assert_allclose(apply(params, x), want, atol=2e-5)
    assert ("shortcut" in params) == (first or features != 4)
    assert params["conv1"]["kernel"].shape[-1] == (4 if first else features)


@pytest.mark.parametrize(("have", "size"), [(4, 8), (3, 5), (1, 4), (5, 2)])
def test_stretching_keeps_the_corners(have, size):
    values = draw((2, have, 3))
    got = np.asarray(_stretch(jnp.asarray(values), (size,)))
    at = np.linspace(0, have - 1, size)
    for b, c in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(got[b, :, c], np.interp(at, np.arange(have), values[b, :, c]), atol=1e-6)


def test_a_refinement_is_the_formula():
    maps = [draw((1, 6, 4, 3)), draw((1, 3, 2, 5), 1)]
    params, apply = filled(Refine(4, units=3), maps)
    parts = [conv64(units64(h, params[f"adapt_{i}"], 2), params[f"fuse_{i}"]) for i, h in enumerate(maps)]
    for axis, size in ((1, 6), (2, 4)):
        at = np.linspace(0, parts[1].shape[axis] - 1, size)
        low = np.minimum(at.astype(int), parts[1].shape[axis] - 2)
        rest = np.moveaxis((at - low) * np.ones((1, 1, 1, size)), -1, axis)
        parts[1] = np.take(parts[1], low, axis) * (1 - rest) + np.take(parts[1], low + 1, axis) * rest
    h = path = elu(parts[0] + parts[1])
    for i in range(2):
        wide = np.pad(path, [(0, 0), (2, 2), (2, 2), (0, 0)], constant_values=-np.inf)
        path = np.max([wide[:, i : i + 6, j : j + 4] for i, j in itertools.product(range(5), repeat=2)], axis=0)
        path = conv64(path, params[f"pool_{i}"])
        h = h + path
    np.testing.assert_allclose(apply(params, maps), units64(h, params["output"], 3), rtol=1e-4, atol=1e-4)


def test_units_are_the_formula():
    x = draw((1, 5, 4, 3))
    params, apply = filled(ResidualUnits(2), x)
    np.testing.assert_allclose(apply(params, x), units64(x, params, 2), atol=2e-5)


def net(**fields):
    return Network(RefineNet(**{"channels": 4, "channel_mult": (1, 2, 2), "dilations": (1, 1, 2), **fields}))


def test_the_plan():
    """The 128x128 network's: two stages halve after the first, two dilate, and refinement narrows a stage early."""
    plan = RefineNet(channels=8, channel_mult=[1, 2, 2, 4, 4], dilations=[1, 1, 1, 2, 4]).plan()
    assert [stage.features for stage in plan] == [8, 16, 16, 32, 32]
    assert [stage.refined for stage in plan] == [8, 8, 16, 16, 32]
    assert [stage.halves for stage in plan] == [False, True, True, False, False]
    assert [s.refined for s in RefineNet(channels=8, channel_mult=(3,), dilations=(1,)).plan()] == [24]


def test_any_batch_time_and_type():
    """An example does not depend on its batch, nor on time, labels or training; bfloat16 gives nearly the same."""
    fields = {"channel_mult": (1, 2), "dilations": (1, 1), "num_res_blocks": 1}
    x, network = jnp.asarray(draw((3, 4, 8, 3))), net(**fields)
    params, _ = filled(network.module, x, jnp.zeros(3))
    y = jax.jit(network)(params, x, jnp.zeros(3))
    assert y.shape == x.shape
    assert y.dtype == jnp.float32
    one = jax.jit(lambda p, x, t, label: network(p, x, t, {"label": label}, train=True))(
        params, x[1:2], jnp.full(1, 5.0), jnp.array([3])
    )
    np.testing.assert_allclose(one, y[1:2], atol=1e-5 * np.abs(y).max())
    low = net(dtype="bfloat16", **fields)
    shapes = jax.eval_shape(low.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    half = jax.jit(low)(params, x, jnp.zeros(3))
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - y).max() < 0.1 * np.abs(y).max()


@pytest.mark.parametrize("shape", [(2, 8, 3), (1, 2, 4, 2, 3)])
def test_audio_and_video(shape):
    shapes = jax.eval_shape(net().init, jax.random.key(0), jnp.zeros(shape))
    assert jax.eval_shape(net(), shapes, jnp.zeros(shape), jnp.zeros(shape[0])).shape == shape
    assert jax.eval_shape(net(out_channels=5).init, jax.random.key(0), jnp.zeros(shape))["conv_out"]["bias"].shape == (
        5,
    )


@pytest.mark.parametrize(("fields", "message"), [
    ({"channels": 1}, "channels is 1"),
    ({"channel_mult": ()}, r"channel_mult is \(\)"),
    ({"dilations": (1, 1)}, r"dilations is \(1, 1\).*3 stages"),
    ({"dilations": (1, 0, 1)}, "dilations"),
    ({"num_res_blocks": 0}, "num_res_blocks is 0"),
    ({"num_classes": 10}, "num_classes is 10.*no labels"),
])  # fmt: skip
def test_fields_that_cannot_work(fields, message):
    with pytest.raises(UsageError, match=message):
        net(**fields)


def test_inputs_that_cannot_work():
    with pytest.raises(UsageError, match=r"spatial size of x is \(7, 8\).*multiples of 2"):
        net().init(jax.random.key(0), jnp.zeros((1, 7, 8, 3)))
    with pytest.raises(UsageError, match="1 channel:"):
        jax.eval_shape(InstanceNormPlus().init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
