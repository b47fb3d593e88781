"""EDM2's U-Net: magnitudes through its depth, conditioning, dtypes, gradients, errors. (Numbers: tests/parity.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.edm2 import EDM2UNet
from jaxdiff.models.edm2_blocks import MPBlock, _resampled
from jaxdiff.models.magnitude import force_normalize

SMALL = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "head_dim": 8}
KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_compile")


def small(**fields):
    return Network(EDM2UNet(**{**SMALL, **fields}))


def tiny(**fields):
    """One level, with attention in the middle alone: quick to compile."""
    return small(channel_mult=(1,), attention_resolutions=(), **fields)


def ready(net, shape, gain=0.8):
    """(params, x, t): parameters as `init` draws them, but the gains, moved off zero so that time and output are on."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    shapes = jax.eval_shape(net.init, KEY, x)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) if leaf.ndim else gain, leaf.dtype), shapes
    )
    return params, x, jnp.linspace(-1.5, 1.0, shape[0])


def test_a_fresh_network_answers_zero_in_float32():
    net = tiny(dtype="bfloat16")
    x = jnp.ones((2, 4, 4, 3))
    params = net.init(KEY, x)
    y = jax.jit(net)(params, x, jnp.zeros(2))
    assert y.dtype == jnp.float32
    assert not y.any()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert 0.95 < np.concatenate([k.ravel() for k in kernels]).std() < 1.05


def test_magnitudes_stay_one_through_the_depth():
    """At init, with inputs of variance 1, every block's output has a root mean square near 1.

    Never above; padding with zeros and the averages that attention takes are the part that is missing.
    """
    net = small(channels=32, num_res_blocks=2, head_dim=16, num_classes=4, attention_resolutions=())
    params, x, _ = ready(net, (8, 8, 8, 3), gain=0.0)

    @jax.jit
    def run(params):
        variables, kept = {"params": params}, lambda module, _: isinstance(module, MPBlock)
        call = {"method": lambda module: module(x, jnp.linspace(-1.5, 1, 8), {"label": jnp.arange(8) % 5})}
        return net.module.apply(variables, capture_intermediates=kept, mutable=["intermediates"], **call)[1]

    tree = run(params)["intermediates"]
    sizes = {name: float(jnp.sqrt(jnp.mean(out["__call__"][0] ** 2))) for name, out in tree.items()}
    assert len(sizes) == len(net.module.plan(8)) == 2 + 1 + 2 + 2 + 3 + 1 + 3
    assert all(0.78 < size < 1.03 for size in sizes.values()), sizes


def test_normalising_the_weights_keeps_the_function():
    net = small(num_classes=3)
    params, x, t = ready(net, (2, 8, 8, 3))
    apply, forced = jax.jit(net), jax.jit(force_normalize)
    grown = jax.tree_util.tree_map_with_path(lambda p, w: 20 * w if p[-1].key == "kernel" else w, params)
    once = forced(params)
    twice = forced(once)
    label = {"label": jnp.array([0, 2])}
    want = apply(params, x, t, label)
    assert 0.1 < jnp.std(want) < 3
    np.testing.assert_allclose(apply(once, x, t, label), want, atol=1e-3)
    np.testing.assert_allclose(apply(grown, x, t, label), want, atol=4e-3)
    np.testing.assert_allclose(apply(twice, x, t, label), apply(once, x, t, label), atol=3e-6)


def test_labels_and_time_matter_and_null_is_none():
    net = tiny(num_classes=4)
    params, x, t = ready(net, (3, 4, 4, 3))
    apply = jax.jit(lambda label, t: net(params, x, t, {"label": label}))
    null = apply(jnp.full((3,), 4), t)
    np.testing.assert_allclose(jax.jit(net)(params, x, t), null, atol=1e-5)
    mixed = apply(jnp.array([0, 4, 3]), t)
    np.testing.assert_allclose(mixed[1], null[1], atol=1e-5)
    assert np.abs(mixed[0] - null[0]).max() > 1e-2
    assert np.abs(apply(jnp.full((3,), 4), t + 0.2) - null).max() > 1e-2
    assert np.isnan(apply(jnp.array([0, 7, 3]), t)[1]).all()


def test_gradients_bfloat16_and_recomputation():
    grads = []
    for fields in ({}, {"remat": "blocks", "dtype": "bfloat16"}):
        net = tiny(dropout=0.2, **fields)
        params, x, t = ready(net, (2, 4, 4, 3))

        @jax.jit
        def value(params, keys, net=net, x=x, t=t):
            return jnp.mean(net(params, x, t, train=True, rngs={"dropout": keys}) ** 2)

        grads.append(jax.value_and_grad(value)(params, jax.random.split(KEY, 2)))
    (value, exact), (rough_value, rough) = grads
    constant = exact.pop("fourier")
    assert not any(leaf.any() for leaf in jax.tree.leaves(constant))
    assert all(leaf.any() and np.isfinite(leaf).all() for leaf in jax.tree.leaves(exact))
    np.testing.assert_allclose(rough_value, value, rtol=0.03)
    rough.pop("fourier")
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (exact, rough))
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)


def test_dropout_is_per_example_and_off_without_train():
    net = tiny(dropout=0.5)
    params, x, t = ready(net, (3, 4, 4, 3))
    keys = jax.random.split(KEY, 3)
    apply = jax.jit(lambda x, t, keys: net(params, x, t, train=True, rngs={"dropout": keys}))
    whole = apply(x, t, keys)
    np.testing.assert_allclose(apply(x[::-1], t[::-1], keys[::-1])[::-1], whole, atol=1e-5)
    assert np.abs(apply(x, t, keys[::-1]) - whole).max() > 1e-2
    with pytest.raises(UsageError, match="rngs"):
        jax.eval_shape(lambda: net(params, x, t, train=True))
    jaxprs = [str(jax.make_jaxpr(made)(params, x, t)) for made in (net, tiny())]
    assert jaxprs[0] == jaxprs[1]


def test_three_spatial_axes_and_other_output_channels():
    net = tiny(out_channels=5)
    params, x, t = ready(net, (1, 4, 4, 2, 3))
    y = jax.jit(net)(params, x, t)
    assert y.shape == (1, 4, 4, 2, 5)
    assert np.isfinite(y).all()


def test_resampling_is_means_and_repetition_along_every_axis():
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 2, 3)).astype(np.float32)
    halves = x.reshape(1, 2, 2, 3, 2, 1, 2, 3).mean((2, 4, 6))
    np.testing.assert_allclose(_resampled(jnp.asarray(x), "down"), halves, atol=1e-6)
    line = jnp.asarray(x[:, :, 0, 0])
    np.testing.assert_array_equal(_resampled(line, "up"), np.repeat(line, 2, axis=1))
    np.testing.assert_array_equal(_resampled(line, "keep"), line)


def test_activations_are_clipped():
    block = MPBlock(8, clip=0.5)
    x, emb = 100 * jnp.ones((1, 4, 4, 8)), jnp.ones((1, 8))
    y, _ = block.init_with_output(KEY, x, emb)
    assert float(jnp.abs(y).max()) == 0.5
    assert float(jnp.abs(MPBlock(8, clip=None).init_with_output(KEY, x, emb)[0]).max()) > 50


@pytest.mark.parametrize(("fields", "message"), [
    ({"channels": 0}, "channels is 0"),
    ({"num_res_blocks": 0}, "num_res_blocks is 0"),
    ({"head_dim": 0}, "head_dim is 0"),
    ({"channel_mult": ()}, "channel_mult is"),
    ({"channel_mult": (1, 0)}, "channel_mult is"),
    ({"attention_resolutions": (4, 0)}, "attention_resolutions is"),
    ({"concat_balance": 1.5}, "concat_balance is 1.5"),
    ({"clip": 0.0}, "clip is 0.0"),
    ({"remat": "block"}, "did you mean 'blocks'"),
])  # fmt: skip
def test_fields_out_of_range(fields, message):
    with pytest.raises(UsageError, match=message) as e:
        EDM2UNet(**fields)
    assert "allowed" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("fields", "shape", "t", "cond", "message"), [
    ({}, (2, 8, 7, 3), (2,), None, r"spatial size of x is \(8, 7\).*multiples of 2"),
    ({}, (2, 3), (2,), None, "shape of x"),
    ({}, (2, 8, 8, 3), (1,), None, "shape of t"),
    ({"head_dim": 5}, (2, 8, 8, 3), (2,), None, "head_dim is 5"),
    ({"num_classes": 2}, (2, 8, 8, 3), (2,), {"label": jnp.zeros(3, int)}, "label"),
])  # fmt: skip
def test_arguments_that_do_not_fit(fields, shape, t, cond, message):
    with pytest.raises(UsageError, match=message) as e:
        small(**fields).init(KEY, jax.ShapeDtypeStruct(shape, jnp.float32), jnp.zeros(t), cond)
    assert "allowed" in str(e.value)
    assert "\n" not in str(e.value)
