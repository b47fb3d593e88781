"""Weights of score_sde's networks: ours answer as its code did, by the meaning of each SDE, and write them back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff.build import model_of
from jaxdiff.convert import score_sde
from jaxdiff.convert.table import Constant, read, write
from jaxdiff.errors import UsageError
from jaxdiff.models import presets
from jaxdiff.models.presets.spec import Spec
from tests.parity.common import load_cases, load_shapes, relative_error, tensors

pytestmark = pytest.mark.usefixtures("quick_compile")
STORED = load_cases("score_sde")
CASES = {name: case for name, case in STORED.items() if not name.startswith("published")}
SHAPES = load_shapes("score_sde")
PROCESS = {"vpsde": {"name": "vp_sde"}, "subvpsde": {"name": "sub_vp_sde"}}


def spec_of(config):
    """The spec of one of the original's configurations."""
    ncsnpp, exploding = config["name"] == "ncsnpp", config["sde"] == "vesde"
    kind = "block" if ncsnpp else "conv"
    fields = {
        "channels": config["nf"],
        "channel_mult": tuple(config["ch_mult"]),
        "num_res_blocks": config["num_res_blocks"],
        "attention_resolutions": tuple(config["attn_resolutions"]),
        "attention_last": True,
        "downsample": kind,
        "upsample": kind,
        "norm_group_size": 4 if ncsnpp else 1,
        "dropout": config["dropout"],
    }
    if ncsnpp:
        fields |= {
            "resample_shortcut": True,
            "skip_scale": 0.5**0.5 if config["skip_rescale"] else 1.0,
            "fir": tuple(float(tap) for tap in config["fir_kernel"]) if config["fir"] else (),
            "progressive_input": config["progressive_input"].replace("input_", ""),
            "progressive_output": config["progressive"].replace("output_", ""),
            "time_embedding": "fourier" if config["embedding_type"] == "fourier" else "sinusoidal",
        }
    layout = {
        "network": config["name"],
        "sigmas": (config["sigma_min"], float(config["sigma_max"]), config["num_scales"]),
    }
    process, time = PROCESS.get(config["sde"]), {"name": "time", "factor": 999.0}
    if exploding:
        layout |= {"negative": True, "time_scale": 4.0}
        process = {"name": "ve_sde", "sigma_min": 2 * config["sigma_min"], "sigma_max": 2.0 * config["sigma_max"]}
        time = {"name": "log_sigma", "unit": 2.0}
    elif not config["continuous"]:
        process, time = {"name": "ddpm_linear"}, {"name": "index"}
    shape = (config["image_size"], config["image_size"], config["num_channels"])
    return Spec("unet", fields, shape, process=process, time_input=time, layout=layout)


def theirs_of(name):
    """The state dict: made weights, and the table of noise levels that went with them."""
    return tensors(CASES[name]["shapes"]) | {"sigmas": CASES[name]["sigmas"]}


def like(spec):
    """The shapes of the network's parameters."""
    net = models.make(spec.network, **spec.fields)
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *spec.shape)))


@functools.cache
def params_of(name):
    """(spec, parameters) of a case."""
    spec = spec_of(CASES[name]["config"])
    return spec, read(score_sde.table(spec), theirs_of(name), like(spec))


@pytest.mark.parametrize("name", CASES)
def test_the_score_is_that_of_the_original(name):
    case, config = CASES[name], CASES[name]["config"]
    spec, params = params_of(name)
    model = model_of(spec)
    steps = model.process.num_steps
    # A row i of a table process sits at (i + 1) / steps.
    level = model.process(jnp.asarray((case["labels"].round() + 1) / steps if steps else case["t"], jnp.float32))
    # Images y in [0, 1] are x = 2 y - 1 in [-1, 1], and the score of y is twice that of x.
    unit = 1 if config["centered"] else 2
    x = unit * case["x"] - (unit - 1)
    out, _ = jax.jit(model.output)(params, x, level)
    score = -unit * out / level.sigma[:, None, None, None]
    sign = -1 if config["sde"] == "vesde" else 1
    want = case["out"] * (case["labels"][:, None, None, None] if sign < 0 else 1)
    assert relative_error(sign * out, want) <= 1e-5
    assert relative_error(score, case["score"]) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_writing_gives_the_file_back_exactly(name):
    spec, params = params_of(name)
    theirs, back = theirs_of(name), write(score_sde.table(spec), params)
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        if key == "sigmas":
            assert back[key].dtype == np.float64
            np.testing.assert_allclose(back[key], value, rtol=1e-12)
        else:
            np.testing.assert_array_equal(back[key], value, err_msg=key)


PRESETS = [name for name, spec in presets.REGISTRY.items() if spec.layout.get("family") == "score_sde"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_configuration(name):
    ours, theirs = presets.get(name), spec_of(STORED[f"published {name}"]["config"])
    assert models.make("unet", **ours.fields) == models.make("unet", **theirs.fields)
    assert ours.layout == {"family": "score_sde", **theirs.layout}
    for part in ("shape", "process", "prediction", "input_scale", "time_input"):
        assert getattr(ours, part) == getattr(theirs, part)


@pytest.mark.parametrize("name", PRESETS)
def test_published_names_and_sizes(name):
    spec = presets.get(name)
    table = score_sde.table(spec)
    names = {key for row in table for key in ((row.theirs,) if isinstance(row, Constant) else row.theirs)}
    assert names == set(SHAPES[name])
    assert score_sde.recognises(names)
    assert spec.parameters == sum(int(np.prod(shape)) for key, shape in SHAPES[name].items() if key != "sigmas")


# Of the others, blocks and maps are among these.
@pytest.mark.parametrize("name", ["ncsnpp_church256", "score_sde_ddpm_cifar10"])
def test_published_shapes(name):
    spec = presets.get(name)
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like(spec))
    assert {key: value.shape for key, value in write(score_sde.table(spec), zeros).items()} == SHAPES[name]


def test_the_trainers_prefix_is_read_and_written():
    spec, params = params_of("ddpmpp")
    theirs = {f"module.{key}": value for key, value in theirs_of("ddpmpp").items()}
    assert score_sde.recognises(theirs)
    spec = dataclasses.replace(spec, layout=spec.layout | {"prefix": score_sde.prefix(theirs)})
    again = read(score_sde.table(spec), theirs, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert write(score_sde.table(spec), again).keys() == theirs.keys()


def test_another_table_of_noise_levels_is_refused():
    (spec, params), theirs = params_of("ncsnpp"), theirs_of("ncsnpp")
    with pytest.raises(UsageError, match="constants of another value: sigmas"):
        read(score_sde.table(spec), theirs | {"sigmas": theirs["sigmas"][::-1]}, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "dit"}, "allowed for weights of the family 'score_sde' is unet"),
        ({"layout": {"network": "ncsnp"}}, "did you mean 'ncsnpp'"),
    ],
)
def test_what_cannot_be_theirs_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        score_sde.table(dataclasses.replace(spec_of(CASES["ncsnpp"]["config"]), **changes))


@pytest.mark.parametrize("sigmas", [None, 5, (0.01, 50), ("a", "b", "c"), (0.0, 50, 10), (0.01, 50, 10.5)])
def test_noise_levels_that_are_none_are_refused(sigmas):
    layout = {"network": "ncsnpp"} | ({} if sigmas is None else {"sigmas": sigmas})
    fields = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    with pytest.raises(UsageError, match=r"layout\['sigmas'\] is .*: needed are the least, the most and how many"):
        score_sde.table(Spec("unet", fields, (8, 8, 3), layout=layout))


def test_recognised_are_its_own_files_alone():
    assert not score_sde.recognises(load_shapes("edm")["edm_cifar10_ncsnpp"])
    assert not score_sde.recognises(["sigmas", "begin_conv.weight"])
