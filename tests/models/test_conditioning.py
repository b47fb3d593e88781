"""What enters a U-Net beside x: it counts, it is optional where it says so, and what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models.conditioning import inputs

B, C = 2, 8
ENTRIES = {
    "context": ({"context_dim": 5, "attention": "transformer"}, (B, 3, 5)),
    "GLIDE's context": ({"context_dim": 5}, (B, 3, 5)),
    "augment": ({"augment_dim": 4}, (B, 4)),
    "augment of NCSN++": ({"augment_dim": 4, "time_embedding": "fourier"}, (B, 4)),
    "aug_level": ({"aug_level": True}, (B,)),
    "pooled": ({"pooled": "add"}, (B, 4 * C)),
    "pooled, projected": ({"pooled": "project"}, (B, 7)),
    "self_cond": ({"concat": ("self_cond",)}, (B, 4, 4, 3)),
    "low_res": ({"concat": ("low_res",)}, (B, 2, 2, 3)),
}
OPTIONAL = ("augment", "self_cond")


def key_of(name):
    return name.split(",")[0].split(" of")[0].removeprefix("GLIDE's ")


def prepared(tiny, fields, name, shape):
    net = tiny(**fields)
    x, t = jax.random.normal(jax.random.key(0), (B, 4, 4, 3)), jnp.array([1.0, 700.0])
    cond = {key_of(name): jax.random.normal(jax.random.key(1), shape)}
    shapes = jax.eval_shape(net.init, jax.random.key(2), x, t, cond)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    filled = [jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    return net, jax.tree.unflatten(tree, filled), x, t, cond


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_counts_for_its_own_example(tiny, name):
    fields, shape = ENTRIES[name]
    net, params, x, t, cond = prepared(tiny, fields, name, shape)
    key = key_of(name)
    run = jax.jit(lambda value: net(params, x, t, {key: value}))
    here, other = run(cond[key]), run(cond[key].at[1].multiply(-2.0))
    np.testing.assert_allclose(here[0], other[0], atol=1e-5)
    assert np.abs(here[1] - other[1]).max() > 1e-3
    if key in OPTIONAL:
        np.testing.assert_allclose(jax.jit(net)(params, x, t), run(jnp.zeros_like(cond[key])), atol=1e-5)
        return
    with pytest.raises(UsageError, match=rf"cond\['{key}'\] is missing"):
        net(params, x, t)
    with pytest.raises(UsageError, match=rf"cond\['{key}'\] has shape .* allowed is"):
        net(params, x, t, {key: cond[key][:1]})


@pytest.mark.parametrize("attention", ["self", "transformer"])
def test_masked_context_is_no_context(tiny, attention):
    net, params, x, t, cond = prepared(tiny, {"context_dim": 5, "attention": attention}, "context", (B, 3, 5))
    mask = jnp.array([[True, True, False]] * B)
    got = jax.jit(lambda c: net(params, x, t, {"context": c, "context_mask": mask}))(cond["context"])
    want = jax.jit(lambda c: net(params, x, t, {"context": c}))(cond["context"][:, :2])
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(UsageError, match="context_mask"):
        net(params, x, t, {**cond, "context_mask": mask[:, :2]})


def test_low_res_is_resized_bilinearly_with_half_pixel_centres():
    """PyTorch's interpolate(mode="bilinear", align_corners=False) of 0, 1, computed by hand."""
    image = jnp.array([0.0, 1.0]).reshape(1, 2, 1)
    got = inputs(("low_res",), jnp.zeros((1, 8, 1)), {"low_res": image})[0, :, 1]
    np.testing.assert_allclose(got, [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-7)


def test_a_network_without_a_null_label_needs_labels(tiny, ready):
    net = tiny(num_classes=3, null_label=False)
    params, x, t = ready(net, (2, 4, 4, 3))
    assert params["label"]["embedding"].shape[0] == 3
    with pytest.raises(UsageError, match="no null label"):
        net(params, x, t)
    assert np.isfinite(jax.jit(net)(params, x, t, {"label": jnp.array([0, 2])})).all()


def test_labels_among_the_features_of_time(tiny, ready):
    net = tiny(num_classes=3, label_into="features")
    params, x, t = ready(net, (2, 4, 4, 3))
    assert params["label"]["embedding"].shape == (4, C)
    run = jax.jit(lambda label: net(params, x, t, {"label": label}))
    np.testing.assert_allclose(run(jnp.array([3, 3])), jax.jit(net)(params, x, t), atol=1e-5)
    assert np.abs(run(jnp.array([3, 0])) - run(jnp.array([3, 3])))[1].max() > 1e-3


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_gives_nan(tiny, ready, label):
    net = tiny(num_classes=3)
    params, x, t = ready(net, (2, 4, 4, 3))
    y = jax.jit(net)(params, x, t, {"label": jnp.array([0, label])})
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()
