"""Stable Diffusion's transformer block against diffusers' Transformer2DModel."""

import jax
import numpy as np
import pytest

from jaxdiff.models import SpatialTransformer
from jaxdiff.models.layers import Norm
from tests.parity.common import load_cases, relative_error, tensors

CASES = load_cases("transformer")


def params_of(theirs, depth):
    """The few names by hand; the converter of the text systems' networks is not here yet."""

    def dense(name):
        weight = theirs[f"{name}.weight"]
        bias = {"bias": theirs[f"{name}.bias"]} if f"{name}.bias" in theirs else {}
        return {"kernel": weight.reshape(weight.shape[:2]).T, **bias}

    def norm(name):
        return {"scale": theirs[f"{name}.weight"], "bias": theirs[f"{name}.bias"]}

    def block(name):
        attentions = {
            ours: {**{k: dense(f"{name}.{attn}.to_{k}") for k in "qkv"}, "proj": dense(f"{name}.{attn}.to_out.0")}
            for ours, attn in (("self", "attn1"), ("cross", "attn2"))
        }
        norms = {f"norm{i}": norm(f"{name}.norm{i}") for i in (1, 2, 3)}
        return {**attentions, **norms, "dense1": dense(f"{name}.ff.net.0.proj"), "dense2": dense(f"{name}.ff.net.2")}

    blocks = {f"block_{i}": block(f"transformer_blocks.{i}") for i in range(depth)}
    return {"norm": norm("norm"), "proj_in": dense("proj_in"), "proj_out": dense("proj_out"), **blocks}


@pytest.mark.parametrize("name", CASES)
def test_parity(name):
    case = CASES[name]
    depth = case["config"].get("num_layers", 1)
    module = SpatialTransformer(case["config"]["num_attention_heads"], depth=depth, norm=Norm(4))
    params = params_of(tensors(case["shapes"]), depth)
    x = np.moveaxis(case["x"], 1, -1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, case["context"])["params"]
    assert jax.tree.map(lambda a: a.shape, shapes) == jax.tree.map(np.shape, params)
    y = jax.jit(module.apply)({"params": params}, x, case["context"])
    assert relative_error(np.moveaxis(np.asarray(y), -1, 1), case["y"]) < 1e-5
    # A masked position counts for nothing; all of them for all.
    mask = np.ones(case["context"].shape[:2], bool)
    same = jax.jit(module.apply)({"params": params}, x, case["context"], mask)
    np.testing.assert_allclose(same, y, atol=1e-5)
    cut = jax.jit(module.apply)({"params": params}, x, case["context"], mask & (np.arange(3) < 2))
    short = jax.jit(module.apply)({"params": params}, x, case["context"][:, :2])
    np.testing.assert_allclose(cut, short, atol=1e-5)
    assert np.abs(cut - y).max() > 1e-3
