"""Networks are values: equal, hashable, static under jit; the registry explains what it does not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import REGISTRY, Network, UNet, make


def test_equal_fields_are_equal_networks():
    a = Network(UNet(channels=8, channel_mult=(1, 2), dtype=jnp.bfloat16))
    b = Network(UNet(channels=8, channel_mult=[1, 2], dtype="bfloat16"))
    assert a == b
    assert hash(a) == hash(b)
    assert a != Network(UNet(channels=8, channel_mult=(1, 3), dtype=jnp.bfloat16))
    assert len({a, b, Network(UNet())}) == 2


def test_equal_networks_share_one_trace(small):
    traces = []

    def run(net, params, x, t):
        traces.append(1)
        return net(params, x, t)

    jitted = jax.jit(run, static_argnums=0)
    x, t = jnp.ones((1, 8, 8, 1)), jnp.zeros(1)
    params = jax.eval_shape(small().init, jax.random.key(0), x)
    for _ in range(3):
        jitted.eval_shape(small(), params, x, t)
    assert len(traces) == 1
    jitted.eval_shape(small(norm_groups=2), params, x, t)
    assert len(traces) == 2


def test_apply_takes_the_bare_tree(small, ready):
    net = small()
    params, x, t = ready(net, (2, 8, 8, 1))
    assert "params" not in params
    assert "conv_in" in params
    bare = jax.make_jaxpr(net)(params, x, t)
    assert str(bare) == str(jax.make_jaxpr(lambda p, x, t: net.module.apply({"params": p}, x, t))(params, x, t))
    assert str(bare) == str(jax.make_jaxpr(net)(params, np.asarray(x), np.asarray(t)))


def test_make():
    assert make("unet", channels=64) == Network(UNet(channels=64))
    assert all(isinstance(make(name), Network) for name in REGISTRY)


@pytest.mark.parametrize(("name", "fields", "message"), [
    ("unt", {}, "unknown model 'unt': did you mean 'unet'"),
    ("unet", {"chanels": 3}, "'chanels': did you mean 'channels'"),
    ("unet", {"parent": None}, "unknown field"),
    ("unet", {"dropout": 2.0}, "dropout is 2.0"),
])  # fmt: skip
def test_make_refuses(name, fields, message):
    with pytest.raises(UsageError, match=message) as e:
        make(name, **fields)
    assert "allowed" in str(e.value)
    assert "\n" not in str(e.value)
