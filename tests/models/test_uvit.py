"""U-ViT: sizes, long skips, initial values, errors of its own. (What it shares with DiT: test_patch_networks.)"""

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


def test_initial_values():
    params = uvit(channels=64).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    for leaf in (params["positions"], params["out"]["kernel"], params["up"]["skip"]["kernel"]):
        np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.15)
    np.testing.assert_allclose(np.abs(params["patch"]["kernel"]).max(), 12**-0.5, rtol=0.05)


def test_an_odd_depth_and_other_sizes_are_refused():
    with pytest.raises(UsageError, match="depth is 5: allowed is an even number"):
        uvit(depth=5)
    net = uvit()
    with pytest.raises(UsageError, match="x makes 18 tokens: allowed are the 6 that this network has positions for"):
        jax.eval_shape(lambda p: net(p, jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)), shapes(net, (2, 4, 4, 3)))
