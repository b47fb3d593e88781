"""DiT: sizes, initial values, normalisation, errors of its own. (What it shares with U-ViT: test_patch_networks.)"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.dit import DiT, _modulated
from jaxdiff.models.presets.dit import PRESETS

pytestmark = pytest.mark.usefixtures("quick_compile")


def dit(**fields):
    return Network(DiT(**{"channels": 16, "depth": 2, "num_heads": 2, "num_classes": 3, **fields}))


@pytest.mark.parametrize(("size", "millions"), [("s", 33), ("b", 130), ("l", 458), ("xl", 675)])
def test_sizes_are_the_papers(size, millions):
    """Table 1's widths and depths, counted by hand."""
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


def test_normalisation_holds_for_large_means():
    """E[h^2] - E[h]^2 would have no digit left."""
    h = jax.random.normal(jax.random.key(0), (1, 3, 64))
    zero = jnp.zeros((1, 64))
    want = _modulated(h, zero, zero, 1e-6, jnp.float32)
    np.testing.assert_allclose(_modulated(h + 3000.0, zero, zero, 1e-6, jnp.float32), want, atol=2e-3)
    np.testing.assert_allclose(want.var(axis=-1), 1.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"freq_shift": 2.0}, "freq_shift is 2.0"),
        ({"mlp_norm_epsilon": 0.0}, "mlp_norm_epsilon is 0.0"),
        ({"position_reach": 0}, "position_reach is 0"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, text):
    with pytest.raises(UsageError, match=text) as caught:
        dit(**fields)
    assert "\n" not in str(caught.value)
