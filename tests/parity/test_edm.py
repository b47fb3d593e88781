"""Weights of EDM's networks: ours answer as its code did, bare and preconditioned, and write the files back."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff.build import model_of
from jaxdiff.convert import edm
from jaxdiff.convert.table import Constant, read, write
from jaxdiff.errors import UsageError
from jaxdiff.models import presets
from jaxdiff.models.presets.spec import Spec
from tests.parity.common import load_cases, load_shapes, relative_error, tensors

pytestmark = pytest.mark.usefixtures("quick_compile")
STORED = load_cases("edm")
CASES = {name: case for name, case in STORED.items() if not name.startswith("published")}
SHAPES = load_shapes("edm")
BARE = [name for name in CASES if not name.startswith("precond")]
MEANING = {
    "precond_edm": {
        "process": {"name": "edm"}, "prediction": "edm", "input_scale": "unit_variance",
        "time_input": {"name": "log_sigma"},
    },
    "precond_vp": {"process": {"name": "vp_sde"}, "time_input": {"name": "time", "factor": 999.0}},
    "precond_ve": {
        "process": {"name": "ve_sde", "sigma_min": 0.02, "sigma_max": 100.0},
        "time_input": {"name": "log_sigma", "unit": 2.0},
    },
}  # fmt: skip


def spec_of(name):
    """The spec of the original classes' arguments."""
    config = STORED[name]["config"]
    song = config["kind"] == "SongUNet"
    channels = config["model_channels"]
    fields = {
        "channels": channels,
        "first_channels": channels if song else channels * config["channel_mult"][0],
        "channel_mult": tuple(config["channel_mult"]),
        "num_res_blocks": config["num_blocks"],
        "attention_resolutions": tuple(config["attn_resolutions"]),
        "downsample": "block",
        "upsample": "block",
        "norm_group_size": 4,
        "num_classes": config["label_dim"],
        "augment_dim": config["augment_dim"],
        "dropout": config["dropout"],
    }
    if song:
        taps = tuple(float(tap) for tap in config["resample_filter"])
        fields |= {
            "attention_last": True,
            "resample_shortcut": True,
            "skip_scale": 0.5**0.5,
            "label_into": "features",
            "fir": () if taps == (1, 1) else taps,
            "progressive_input": config["encoder_type"].replace("standard", "none"),
            "progressive_output": config["decoder_type"].replace("standard", "none"),
            "time_embedding": config["embedding_type"].replace("positional", "sinusoidal"),
        }
    else:
        fields |= {"conditioning": "scale_shift", "head_dim": 64, "norm_epsilon": 1e-5, "freq_shift": 0.0}
    layout = {"network": "song" if song else "dhariwal"}
    if name in CASES:
        layout["prefix"] = edm.prefix(CASES[name]["shapes"])
    if name == "precond_ve":
        layout |= {"negative": True, "time_scale": 4.0}
    size = config["img_resolution"]
    return Spec("unet", fields, (size, size, 3), layout=layout, **MEANING.get(name, MEANING["precond_edm"]))


def theirs_of(name):
    """The state dict: made weights, and filters by their definition."""
    config, shapes = CASES[name]["config"], CASES[name]["shapes"]
    f = np.array(config.get("resample_filter", [1, 1]), np.float32)  # DhariwalUNet has the box
    made = tensors(shapes)
    filters = {key: (np.outer(f, f) / f.sum() ** 2)[None, None] for key in shapes if key.endswith("resample_filter")}
    return made | filters


def like(spec):
    """The shapes of the network's parameters."""
    net = models.make(spec.network, **spec.fields)
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *spec.shape)))


@functools.cache
def params_of(name):
    """(spec, parameters) of a case."""
    spec = spec_of(name)
    return spec, read(edm.table(spec), theirs_of(name), like(spec))


def cond_of(name, *, augment=True):
    """What the original was given beside x and time."""
    case, config = CASES[name], CASES[name]["config"]
    cond = {"label": jnp.asarray(case["label"])} if config["label_dim"] else {}
    if augment and config["augment_dim"]:
        cond["augment"] = jnp.asarray(case["augment"])
    return cond


@pytest.mark.parametrize("name", BARE)
def test_the_network_answers_as_the_original(name):
    case = CASES[name]
    spec, params = params_of(name)
    net = jax.jit(models.make(spec.network, **spec.fields))
    out = net(params, case["x"], case["t"], cond_of(name))
    assert relative_error(out, case.get("out_augment", case["out"])) <= 1e-5


def test_without_augmentation_the_network_answers_as_the_original():
    name, case = "ddpmpp", CASES["ddpmpp"]
    spec, params = params_of(name)
    net = jax.jit(models.make(spec.network, **spec.fields))
    out = net(params, case["x"], case["t"], cond_of(name, augment=False))
    assert relative_error(out, case["out"]) <= 1e-5
    assert relative_error(out, case["out_augment"]) > 1e-2


@pytest.mark.parametrize("name", MEANING)
def test_the_denoiser_answers_as_the_preconditioned_original(name):
    case = CASES[name]
    spec, params = params_of(name)
    model = model_of(spec)
    level = model.process.at(-2 * jnp.log(jnp.asarray(case["sigma"])))
    # Theirs is x0 + sigma eps whatever the process.
    x = jnp.asarray(case["x"]) * level.alpha[:, None, None, None]
    x0 = jax.jit(model.denoiser(params))(x, level, cond_of(name)).x0
    assert relative_error(x0, case["x0"]) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_writing_gives_the_file_back(name):
    spec, params = params_of(name)
    theirs, back = theirs_of(name), write(edm.table(spec), params)
    assert back.keys() == theirs.keys()
    # sqrt(n) W + b is undone to rounding only.
    inexact = "map_label.weight" if spec.fields.get("label_into") == "features" else "none"
    for key, value in theirs.items():
        assert back[key].shape == value.shape
        np.testing.assert_allclose(back[key], value, rtol=0, atol=2e-7 if key.endswith(inexact) else 0, err_msg=key)
    again = read(edm.table(spec), back, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-7), again, params)


PRESETS = [name for name, spec in presets.REGISTRY.items() if spec.layout.get("family") == "edm"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_network(name):
    ours, theirs = presets.get(name), spec_of(f"published {name}")
    null_label = {"null_label": False} if name == "edm_imagenet64" else {}  # trained without a label left out
    # In EDM's code the first convolution of SongUNet is as wide as `channels`, which is ours where it is not said.
    first = theirs.fields["first_channels"] if "first_channels" in ours.fields else None
    fields = {**theirs.fields, **null_label, "first_channels": first}
    if not ours.fields.get("num_classes"):
        fields["label_into"] = "embedding"  # of nothing
    assert models.make("unet", **ours.fields) == models.make("unet", **fields)
    assert ours.layout == {"family": "edm", **theirs.layout}
    for part in ("shape", "process", "prediction", "input_scale", "time_input", "sigma_data"):
        assert getattr(ours, part) == getattr(theirs, part)


@pytest.mark.parametrize("name", PRESETS)
def test_published_names(name):
    table = edm.table(presets.get(name))
    names = {key for row in table for key in ((row.theirs,) if isinstance(row, Constant) else row.theirs)}
    assert names == set(SHAPES[name])
    assert {key for key in names if key.endswith("resample_filter")} == {
        row.theirs for row in table if isinstance(row, Constant)
    }
    assert edm.recognises(names)


# Of the others, every layer is of a kind that is among these.
@pytest.mark.parametrize("name", ["edm_cifar10_ncsnpp_cond", "edm_imagenet64"])
def test_published_shapes(name):
    spec = presets.get(name)
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like(spec))
    assert {key: value.shape for key, value in write(edm.table(spec), zeros).items()} == SHAPES[name]


def test_the_original_counts():
    learned = {
        name: sum(int(np.prod(shape)) for key, shape in shapes.items() if not re.search("resample_filter|freqs", key))
        for name, shapes in SHAPES.items()
    }
    assert learned["edm_cifar10_ddpmpp"] == 55_733_891
    for name, count in learned.items():
        frequencies = 128 if "ncsnpp" in name else 0
        assert presets.get(name).parameters == count + frequencies


def test_labels_of_song_have_the_null_row_last():
    spec, params = params_of("ddpmpp")
    theirs, rows = theirs_of("ddpmpp"), params["label"]["embedding"]
    np.testing.assert_array_equal(rows[-1], theirs["map_label.bias"])
    want = theirs["map_label.weight"][:, 2] * np.sqrt(spec.fields["num_classes"]) + theirs["map_label.bias"]
    np.testing.assert_allclose(rows[2], want, atol=1e-6)


def test_a_null_row_that_theirs_lacks_is_not_written():
    spec, params = params_of("adm")
    rows = params["label"]["embedding"]
    assert not rows[-1].any()
    with pytest.raises(UsageError, match="null row"):
        write(edm.table(spec), params | {"label": {"embedding": rows + 1}})


def test_a_prefix_changes_nothing_else_of_a_constant():
    given = Constant("filter", np.ones(2), optional=True, tolerance=1e-6)
    made = edm._prefixed(given, "model.")
    assert (made.theirs, made.optional, made.tolerance) == ("model.filter", True, 1e-6)
    assert made.value is given.value


def test_another_filter_is_refused():
    (spec, params), theirs = params_of("ncsnpp"), theirs_of("ncsnpp")
    name = next(key for key in theirs if key.endswith("resample_filter"))
    with pytest.raises(UsageError, match="resample_filter"):
        read(edm.table(spec), theirs | {name: theirs[name][..., ::-1] * 1.01}, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "dit"}, "allowed for weights of the family 'edm' is unet"),
        ({"layout": {"network": "dhariwl"}}, "did you mean 'dhariwal'"),
        ({"layout": {"network": "dhariwal"}}, "allowed for 'dhariwal' is 'embedding'"),
    ],
)
def test_what_cannot_be_theirs_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        edm.table(dataclasses.replace(spec_of("ddpmpp"), **changes))


def test_recognised_are_its_own_files_alone():
    for name in CASES:
        assert edm.recognises(CASES[name]["shapes"])
    assert not edm.recognises(load_shapes("score_sde")["ncsnpp_cifar10"])
