"""Weights of OpenAI's U-Nets, upsamplers and classifiers: our networks answer as their code did."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.convert import openai
from jaxdiff.convert.table import leaves, read, write
from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.presets import REGISTRY
from jaxdiff.models.presets.spec import Spec
from tests.parity.common import load_cases, load_shapes, relative_error, tensors

CASES = load_cases("openai")
CONFIGS = CASES.pop("published")["config"]
SHAPES = load_shapes("openai")
PRESETS = {name: spec for name, spec in REGISTRY.items() if spec.layout.get("family") == "openai"}

pytestmark = pytest.mark.usefixtures("quick_compile")


def spec_of(config):
    """The spec of the original classes' arguments."""
    block, conv = config.get("resblock_updown"), config.get("conv_resample", True)
    size, mult = config.get("size", [8, 8]), config["channel_mult"]
    channels, classes = config["model_channels"], config.get("num_classes") or 0
    head_dim = config["num_head_channels"] if config.get("num_head_channels", -1) > 0 else None
    down = "block" if block else "conv" if conv else "pool"
    fields = {
        "channels": channels,
        "first_channels": None if mult[0] == 1 else int(channels * mult[0]),
        "channel_mult": mult,
        "num_res_blocks": config["num_res_blocks"],
        "attention_resolutions": [max(size) // rate for rate in config["attention_resolutions"]],
        "num_heads": 1 if head_dim else config.get("num_heads", 1),
        "head_dim": head_dim,
        "conditioning": "scale_shift" if config.get("use_scale_shift_norm") else "add",
        "downsample": down,
        "downsample_padding": "symmetric" if down == "conv" else "same",
        "num_classes": classes,
        "null_label": not classes,
        "concat": ("low_res",) if "low" in config else (),
        "norm_epsilon": 1e-5,
        "freq_shift": 0.0,
        "dropout": float(config.get("dropout", 0)),
    }
    if "pool" in config:
        fields |= {"num_labels": config["out_channels"], "pool": config["pool"].replace("adaptive", "mean")}
    else:
        up = "block" if block else "conv" if conv else "repeat"
        fields |= {"upsample": up, "learned_variance": config.get("out_channels") == 6}
    steps = config.get("diffusion_steps", 1000)
    process = {"name": f"ddpm_{config.get('noise_schedule', 'linear')}", "num_steps": steps}
    if steps != 1000 and process["name"] == "ddpm_linear":
        process |= {"beta_start": 1e-4 * 1000 / steps, "beta_end": 0.02 * 1000 / steps}
    rescaled = config.get("rescale_timesteps") and steps != 1000
    return Spec(
        "classifier" if "pool" in config else "unet",
        fields,
        (*size, 3),
        process={key: value for key, value in process.items() if value != 1000},
        time_input={"name": "index", "factor": 1000 / steps} if rescaled else {"name": "index"},
        layout={"family": "openai", "attention_order": "new" if config.get("use_new_attention_order") else "legacy"},
    )


def last(image):
    """NCHW to NHWC."""
    return jnp.asarray(np.moveaxis(image, 1, -1))


def inputs_of(case):
    """(x, t, cond) as our networks take them."""
    cond = {"label": jnp.asarray(case["y"], jnp.int32)} if "y" in case else {}
    if "low_res" in case:
        cond["low_res"] = last(case["low_res"])
    return last(case["x"]), jnp.asarray(case["t"]), cond


def like(spec, cond):
    """The network, and the shapes of its parameters."""
    net = Network(openai.NETWORKS[spec.network](**spec.fields))
    example = jax.ShapeDtypeStruct((1, *spec.shape), "float32")
    return net, jax.eval_shape(net.init, jax.random.key(0), example, None, cond)


@pytest.mark.parametrize("name", CASES)
def test_the_output_is_that_of_the_original_code(name):
    case = CASES[name]
    spec, (x, t, cond) = spec_of(case["config"]), inputs_of(case)
    net, shapes = like(spec, jax.tree.map(lambda v: v[:1], cond))
    theirs = tensors(case["shapes"])
    params = read(openai.table(spec), theirs, shapes)
    out = jax.jit(net)(params, x, t, cond)
    want = case["out"] if "pool" in case["config"] else last(case["out"])
    assert relative_error(out, want) < 1e-5
    back = write(openai.table(spec), params)
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[key], theirs[key]) for key in theirs)


def published(spec):
    """The arguments, and the names and shapes, of the file that a preset names."""
    file = re.search(r"(\w+)\.pt", spec.reference)[1]
    if file == "512x512_diffusion_uncond_finetune_008100":
        labelled = "512x512_diffusion"
        config = {**CONFIGS[labelled], "num_classes": None}
        return config, {name: shape for name, shape in SHAPES[labelled].items() if name != "label_emb.weight"}
    return CONFIGS[file], SHAPES[file]


# One of each kind; that the rest are of the networks their files are of is held by the flags, below, and by the count.
KINDS = ("adm_64", "adm_512_uncond", "adm_upsampler_64_256", "adm_classifier_64", "iddpm_lsun_bedroom")


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_a_preset_has_the_names_and_shapes_of_the_published_file(name):
    spec = PRESETS[name]
    low = {"low_res": jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")} if spec.fields.get("concat") else None
    ours, theirs = leaves(like(spec, low)[1]), {}
    for row in openai.table(spec):
        written = row.rule.write(np.broadcast_to(np.float32(0), ours.pop(row.ours).shape))
        theirs |= {key: value.shape for key, value in zip(row.theirs, written, strict=True)}
    assert not ours
    assert theirs == published(spec)[1]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_the_flags_of_the_published_file_say(name):
    """By the correspondence of arguments that the outputs above hold; shapes do not know heads or epsilons."""
    spec, want = PRESETS[name], spec_of(published(PRESETS[name])[0])
    network = openai.NETWORKS[spec.network]
    assert network(**spec.fields) == network(**want.fields)
    for part in ("network", "shape", "process", "prediction", "input_scale", "time_input", "layout"):
        assert getattr(spec, part) == getattr(want, part), part


def test_every_published_file_is_of_a_preset():
    """Or of the same network as one: trained by another loss, at another rate, without dropout, on other pictures."""
    named = [published(spec)[1] for spec in PRESETS.values()]
    assert all(shapes in named for shapes in SHAPES.values())


def test_a_file_is_recognised_by_its_names():
    assert all(openai.recognises(shapes) for shapes in SHAPES.values())
    names = set(SHAPES["64x64_diffusion"])
    assert not openai.recognises({f"model.diffusion_model.{name}" for name in names})
    assert not openai.recognises(names | {"input_blocks.4.1.encoder_kv.weight"})  # GLIDE
    latent = {name.replace(".1.qkv.", ".1.transformer_blocks.0.attn1.to_q.") for name in names}
    assert not openai.recognises(latent)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("unet", {}, (32, 32, 3)), r"unknown layout\['attention_order'\] 'None'.*legacy, new"),
        (Spec("unet", {}, (32, 32, 3), layout={"attention_order": "newest"}), "did you mean 'new'"),
        (Spec("dit", {}, (32, 32, 3), layout={"attention_order": "new"}), "family 'openai' 'dit'.*classifier, unet"),
        (Spec("unet", {"mid": "plain"}, (32, 32, 3), layout={"attention_order": "new"}), "mid is 'plain'.*'attention'"),
    ],
)
def test_what_cannot_be_read_is_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        openai.table(spec)
