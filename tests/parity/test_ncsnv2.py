"""NCSNv2's own weights: our network answers as its code did, and has its sizes and names."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import convert, processes
from jaxdiff.convert import ncsnv2
from jaxdiff.convert.table import read, write
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, time_input
from jaxdiff.models import presets
from jaxdiff.models.network import Network
from jaxdiff.models.presets.ncsnv2 import PRESETS
from jaxdiff.models.refinenet import RefineNet
from jaxdiff.prediction import EPS
from tests.parity.common import load_cases, load_shapes, relative_error, tensors

CASES = load_cases("ncsnv2")
SHAPES = load_shapes("ncsnv2")
LIKE = {"NCSNv2": "ncsnv2_cifar10", "NCSNv2Deeper": "ncsnv2_lsun_tower128", "NCSNv2Deepest": "ncsnv2_ffhq256"}


def spec_of(case):
    """The preset of the same class at the case's width, with the case's noise levels as a preset makes them."""
    config, preset = case["config"], PRESETS[LIKE[case["config"]["kind"]]]
    sigmas = 2 * np.geomspace(0.01, config["largest"], config["levels"])
    fields, process = {**preset.fields, "channels": config["width"]}, {"name": "ncsn", "sigmas": sigmas.tolist()}
    return replace(preset, fields=fields, process=process, shape=case["x"].shape[1:])


def made(case):
    """The state dict that the original was given."""
    shapes = {name: tuple(shape) for name, shape in case["shapes"].items()}
    weights = tensors(shapes, case["config"]["seed"])
    return {k: v + np.float32(k.endswith(("gamma", "alpha"))) for k, v in weights.items()} | {"sigmas": case["sigmas"]}


def like(spec):
    net = Network(RefineNet(**spec.fields))
    return net, jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("quick_compile")
def test_the_score_is_the_original_s(case):
    """On the original's images in [0, 1] and its own noise levels, through everything that a preset says."""
    case = CASES[case]
    spec, weights = spec_of(case), made(case)
    net, shapes = like(spec)
    params = read(ncsnv2.table(spec), weights, shapes)
    process = processes.make(**spec.process)
    model = Model(net, process, EPS, time_input=time_input(spec.time_input["name"], process))
    rows = len(case["sigmas"])
    level = process(jnp.asarray((rows - case["row"]) / rows, jnp.float32))
    eps = jax.jit(lambda params, x: model.denoiser(params)(x, level).eps)(params, 2 * jnp.asarray(case["x"]) - 1)
    # The gradient of ln p(x') by x' at x = 2 x' - 1 is twice that of ln p(x) by x.
    score = 2 * -np.asarray(eps) / np.asarray(level.sigma)[:, None, None, None]
    for got, want in zip(score, case["score"], strict=True):  # apart, as they differ by the noise levels' ratio
        assert relative_error(got, want) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_written_weights_are_the_original_s(case):
    spec, weights = spec_of(CASES[case]), made(CASES[case])
    back = write(ncsnv2.table(spec), read(ncsnv2.table(spec), weights, like(spec)[1]))
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-6 if name == "sigmas" else 0, err_msg=name)


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_networks_have_their_names_shapes_and_size(name):
    spec = PRESETS[name]
    shapes = like(spec)[1]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == spec.parameters
    assert sum(math.prod(s) for k, s in SHAPES[name].items() if k != "sigmas") == spec.parameters
    assert ncsnv2.recognises(SHAPES[name])
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    assert {key: value.shape for key, value in write(ncsnv2.table(spec), zeros).items()} == SHAPES[name]


@pytest.mark.parametrize(
    ("name", "first", "last", "num"),
    [("ncsnv2_cifar10", 0.02, 100, 232), ("ncsnv2_celeba64", 0.02, 180, 500), ("ncsnv2_lsun_church96", 0.02, 280, 788),
     ("ncsnv2_lsun_tower128", 0.02, 380, 1086), ("ncsnv2_ffhq256", 0.02, 696, 2311)],
)  # fmt: skip
def test_noise_levels_are_the_paper_s_doubled(name, first, last, num):
    sigmas = PRESETS[name].process["sigmas"]
    assert (len(sigmas), round(sigmas[0], 12), round(sigmas[-1], 9)) == (num, first, last)
    np.testing.assert_allclose(np.diff(np.log(sigmas)), np.log(last / first) / (num - 1), rtol=1e-9)


def test_weights_of_other_noise_levels_are_refused():
    case = CASES["small"]
    spec, weights = spec_of(case), made(case)
    with pytest.raises(UsageError, match="sigmas"):
        read(ncsnv2.table(spec), weights | {"sigmas": 2 * weights["sigmas"]}, like(spec)[1])
    del weights["sigmas"]  # an average of the parameters alone has none
    read(ncsnv2.table(spec), weights, like(spec)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"network": "unet", "fields": {}},
            "network is 'unet': allowed for weights of the family 'ncsnv2'",
        ),
        ({"process": {"name": "ve_sde"}}, "allowed for weights of the family 'ncsnv2' is ncsn with its sigmas"),
        ({"process": {"name": "ncsn"}}, "allowed for weights of the family 'ncsnv2' is ncsn with its sigmas"),
        ({"fields": {"channel_mult": (1,) * 3, "dilations": (1,) * 3}}, "channel_mult has 3 entries"),
        ({"fields": {"channel_mult": (1,) * 7, "dilations": (1,) * 7}}, "channel_mult has 7 entries"),
    ],
)
def test_what_cannot_be_theirs_is_refused(change, words):
    with pytest.raises(UsageError, match=words):
        ncsnv2.table(replace(PRESETS["ncsnv2_cifar10"], **change))


def test_a_file_of_it_is_no_other_preset(tmp_path):
    case = CASES["small"]
    file = convert.write_tensors(tmp_path / "a.safetensors", made(case))
    with pytest.raises(UsageError, match="network is 'unet'"):
        convert.find(file, preset=replace(presets.get("ddpm_cifar10"), layout={}))


def test_names_of_others_are_not_recognised():
    assert not ncsnv2.recognises(["begin_conv.weight", "conv_in.weight"])
