"""Settings and small networks for the tests of this folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import Network, UNet


@pytest.fixture(autouse=True)
def _no_implicit_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def _randomised(shapes, seed):
    """Parameters of these shapes, of the size of trained ones; no branch stays behind a zero initialiser."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        return rng.normal(path[-1].key == "scale", 0.1, leaf.shape)

    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(draw(path, leaf), leaf.dtype), shapes)


@pytest.fixture(scope="session")
def small():
    """A function: fields -> a network of two levels with attention at 4."""
    base = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "norm_groups": 4}

    def build(**fields):
        return Network(UNet(**{**base, **fields}))

    return build


@pytest.fixture(scope="session")
def tiny():
    """A function: fields -> a network of one level with attention in the middle alone, quick to compile."""
    base = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (), "norm_groups": 4}

    def build(**fields):
        return Network(UNet(**{**base, **fields}))

    return build


@pytest.fixture(scope="session")
def ready():
    """A function: network, shape -> (params, x, t), every parameter moved off its zero initialiser."""

    def build(net, shape, seed=0):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
        t = jnp.linspace(0.0, 900.0, shape[0])
        return _randomised(jax.eval_shape(net.init, jax.random.key(0), x), seed), x, t

    return build
