"""EDM2 against stored outputs of the original code, its published sizes, and its weights both ways."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import convert
from jaxdiff.convert import edm2, table
from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.edm2 import EDM2UNet
from jaxdiff.models.presets.edm2 import PRESETS
from jaxdiff.models.presets.spec import Spec
from tests.parity.common import load_cases, load_shapes, relative_error, tensors

CASES, FULL = load_cases("edm2"), load_shapes("edm2")


def spec_of(config):
    fields = {
        "channels": config["channels"], "channel_mult": config["mult"], "num_res_blocks": config["blocks"],
        "attention_resolutions": config["attention"], "head_dim": config["head"], "num_classes": config["classes"],
    }  # fmt: skip
    return Spec("edm2", fields, (config["size"], config["size"], 3))


def scaled(made):
    """As in make_edm2.py."""
    for name in made:
        if name.endswith("gain"):
            made[name] = np.float32(0.7) + np.float32(3) * made[name]
        if name.endswith(("freqs", "phases")):
            made[name] = np.float32(20) * made[name]
    return made


def loaded(case):
    spec = spec_of(case["config"])
    net = Network(EDM2UNet(**spec.fields))
    like = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
    theirs = scaled(tensors({name: tuple(shape) for name, shape in case["shapes"].items()}))
    return net, spec, theirs, table.read(edm2.table(spec), theirs, like)


@pytest.mark.parametrize("name", list(CASES))
def test_outputs_are_the_original_ones(name):
    case = CASES[name]
    net, spec, theirs, params = loaded(case)
    apply = jax.jit(net)
    cond = {"label": jnp.asarray(case["label"])} if spec.fields["num_classes"] else None
    got = apply(params, case["x"], case["t"], cond)
    assert np.std(case["y"]) > 0.1
    assert relative_error(got, case["y"]) <= 1e-5
    back = table.write(edm2.table(spec), params)
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[key].reshape(theirs[key].shape), theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["edm2_img64_xs", "edm2_img512_xxs", "edm2_img512_m", "edm2_img512_xxl"])
def test_every_tensor_of_the_published_networks_has_its_place(name):
    spec = PRESETS[name]
    net = Network(EDM2UNet(**spec.fields))
    like = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    rows = [row for row in edm2.table(spec) if isinstance(row, table.Row)]
    mine = {k: v for row in rows for k, v in shapes_of(row, table.leaves(zeros)).items()}
    assert mine == {f"unet.{key}": value for key, value in FULL[name].items()}
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like)) == spec.parameters


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_published_sizes(name):
    """The count of the original code, and the millions of the paper's table."""
    size, total = name.rsplit("_", 1)[1], sum(math.prod(shape) for shape in FULL[name].values())
    assert PRESETS[name].parameters == total
    constants = {"emb_fourier.freqs", "emb_fourier.phases"}  # buffers there
    weights = total - sum(math.prod(FULL[name][key]) for key in constants)
    paper = {"xs": 125, "s": 280, "m": 498, "l": 777, "xl": 1119, "xxl": 1523}
    assert size == "xxs" or round(total / 1e6) == round(weights / 1e6) == paper[size]


def shapes_of(row, ours):
    return {k: v.shape for k, v in zip(row.theirs, row.rule.write(ours[row.ours]), strict=True)}


def test_a_whole_state_dict():
    """With the preconditioning around the U-Net, and the uncertainty that is read and dropped."""
    _, spec, theirs, params = loaded(CASES["plain"])
    names = {"logvar_fourier.freqs": (128,), "logvar_fourier.phases": (128,), "logvar_linear.weight": (1, 128)}
    whole = {f"unet.{k}": v for k, v in theirs.items()} | tensors(names)
    assert edm2.recognises(whole)
    assert edm2.recognises(theirs)
    assert not edm2.recognises(names)
    rows = edm2.table(Spec("edm2", spec.fields, spec.shape, layout={"prefix": "unet."}))
    again = table.read(rows, whole, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    assert table.write(rows, params).keys() == whole.keys()


@pytest.mark.parametrize(("spec", "message"), [
    (Spec("unet", {}, (8, 8, 3)), "network is 'unet'"),
    (Spec("edm2", {}, (8, 8, 3), layout={"prefix": "unet"}), "did you mean 'unet.'"),
    (Spec("edm2", {}, (8, 16, 3)), "square"),
])  # fmt: skip
def test_specs_that_have_no_table(spec, message):
    with pytest.raises(UsageError, match=message):
        edm2.table(spec)


@pytest.mark.parametrize("before", ["", "unet."])
def test_a_file_says_which_module_it_is_of(tmp_path, before):
    case = CASES[next(iter(CASES))]
    _, spec, theirs, _ = loaded(case)
    bare = {before + name: np.asarray(w) for name, w in theirs.items()}
    whole = {name: np.ones(shape, np.float32) for name, shape in edm2._UNCERTAINTY.items()} if before else {}
    file = convert.write_tensors(tmp_path / "a.safetensors", bare | whole)
    other = dataclasses.replace(spec, layout={"family": "edm2", "prefix": "unet." if not before else ""})
    found = convert.find(file, preset=other)
    assert found.spec.layout["prefix"] == before
    found.read()
