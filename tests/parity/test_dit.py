"""DiT and U-ViT against stored outputs of the original code and of diffusers; their files read and written exactly."""

import json
import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import convert
from jaxdiff.convert import diffusers, dit
from jaxdiff.convert.table import leaves, read, write
from jaxdiff.errors import UsageError
from jaxdiff.models import Network
from jaxdiff.models.presets.dit import PRESETS as DIT
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.presets.uvit import PRESETS as UVIT
from tests.parity.common import load_cases, load_shapes, relative_error, tensors

CASES = load_cases("dit")
SHAPES = load_shapes("dit")
PUBLISHED = {
    **{
        f"DiT-{size.upper()}/{patch}": DIT[f"dit_{size}_{patch}"]
        for size in ("s", "b", "l", "xl")
        for patch in (2, 4, 8)
    },
    "DiT-XL/2 512": DIT["dit_xl_2_512"],
    **{re.search(r"(\w+)\.pth", spec.reference)[1]: spec for spec in UVIT.values()},
}
pytestmark = pytest.mark.usefixtures("quick_compile")
TABLES = {"diffusers": dit.diffusers_table}


def like(spec, **fields):
    net = Network(dit.NETWORKS[spec.network](**{**spec.fields, **fields}))
    return jax.eval_shape(partial(net.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))


def spec_of(name):
    """The spec of a stored case, from the arguments of the original class."""
    config = CASES[name]["config"]
    if name.startswith("diffusers"):
        return dit.spec({k: v for k, v in config.items() if k != "shown"}, {})
    if name.startswith("uvit"):
        side, channels = config["img_size"], config["in_chans"]
        renamed = {"embed_dim": "channels", "mlp_time_embed": "time_mlp", "skip": "long_skips"}
        fields = {renamed.get(k, k): v for k, v in config.items() if k not in ("img_size", "in_chans")}
        return Spec("uvit", {**fields, "null_label": False}, (side, side, channels))
    side, channels = config["input_size"], config["in_channels"]
    fields = {k: v for k, v in config.items() if k in ("patch_size", "depth", "num_heads", "mlp_ratio", "num_classes")}
    fields |= {
        "channels": config["hidden_size"], "learned_variance": config.get("learn_sigma", True),
        "null_label": config.get("class_dropout_prob", 0.1) > 0,
    }  # fmt: skip
    return Spec("dit", fields, (side, side, channels))


@cache
def theirs(name):
    """The state dict of a stored case. diffusers' copies of the embedding go by the name of the first."""
    shapes = {k: tuple(v) for k, v in CASES[name]["shapes"].items()}
    first = {k: re.sub(r"^transformer_blocks\.\d+(\.norm1\.emb\.)", r"transformer_blocks.0\1", k) for k in shapes}
    made = {k: tensors({first[k]: shape})[first[k]] for k, shape in shapes.items()}
    return made | ({"pos_embed": CASES[name]["pos_embed"]} if "pos_embed" in CASES[name] else {})


def table(name, spec):
    return TABLES.get(name.split("_")[0], dit.table)(spec)


def error(name, spec, side):
    case = CASES[name]
    params = read(table(name, spec), theirs(name), like(spec))
    cond = {"label": jnp.asarray(case["y"], jnp.int32)} if "y" in case else None
    net = Network(dit.NETWORKS[spec.network](**spec.fields))
    x = jnp.moveaxis(jnp.asarray(case[f"x{side}"]), 1, -1)
    return relative_error(np.moveaxis(jax.jit(net)(params, x, jnp.asarray(case["t"]), cond), -1, 1), case[f"out{side}"])


@pytest.mark.parametrize("name", CASES)
def test_output_is_the_originals(name):
    for side in CASES[name]["config"].get("shown", [8]):
        assert error(name, spec_of(name), side) <= 1e-5


@pytest.mark.parametrize("name", ["dit", "uvit", "diffusers"])
def test_blocks_on_their_own_read_the_same_file(name):
    spec = spec_of(name)
    alone = Spec(spec.network, {**spec.fields, "scan": False}, spec.shape)
    assert error(name, alone, 8) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_file_is_written_as_it_was(name):
    spec = spec_of(name)
    rows = table(name, spec)
    again = write(rows, read(rows, theirs(name), like(spec)))
    assert again.keys() == theirs(name).keys()
    for key, value in theirs(name).items():
        # Positions are computed on both sides, and differ by a rounding.
        np.testing.assert_allclose(again[key], value, rtol=0, atol=1e-6 if key == "pos_embed" and name[0] == "d" else 0)


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_have_every_tensor_and_their_published_size(model):
    spec = PUBLISHED[model]
    tree = like(spec)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == spec.parameters
    assert dit.recognises(SHAPES[model])
    rows = dit.table(spec)
    stored = [k for k in SHAPES[model] if k != "pos_embed" or spec.network == "uvit"]
    assert sum(math.prod(SHAPES[model][k]) for k in stored) == spec.parameters
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)
    got = {name: array.shape for name, array in shapes_written(rows, zeros).items()}
    assert got == SHAPES[model]


def shapes_written(rows, params):
    """`write` without its copies, so that a network of any size takes no memory."""
    flat = leaves(params)
    made = {}
    for row in rows:
        if hasattr(row, "value"):
            made[row.theirs] = row.value
        else:
            made |= dict(zip(row.theirs, row.rule.write(flat.pop(row.ours)), strict=True))
    assert not flat
    return made


def test_sizes_are_the_papers():
    """In millions: DiT's table 4, U-ViT's table 1."""
    dits = [round(DIT[f"dit_{size}_2"].parameters / 1e6) for size in ("s", "b", "l", "xl")]
    uvits = [round(UVIT[f"uvit_{name}"].parameters / 1e6) for name in
             ("cifar10", "imagenet_64_mid", "imagenet_256_large", "imagenet_256_huge")]  # fmt: skip
    assert dits == [33, 130, 458, 675]
    assert uvits == [44, 131, 287, 501]


def test_diffusers_published_network():
    """Its 28 embeddings are one of ours."""
    spec = dit.spec({"_class_name": "Transformer2DModel", "out_channels": 8, "num_vector_embeds": None}, {})
    assert spec.fields | {"freq_shift": 0.0, "mlp_norm_epsilon": 1e-6} == (
        DIT["dit_xl_2"].fields | {"freq_shift": 0.0, "mlp_norm_epsilon": 1e-6}
        | {"out_channels": None, "qkv_bias": True, "position_reach": 16}
    )  # fmt: skip
    tree = like(spec)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == 674_834_720
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)
    got = {name: array.shape for name, array in shapes_written(dit.diffusers_table(spec), zeros).items()}
    assert got == SHAPES["diffusers DiT-XL/2"]


@pytest.mark.parametrize("name", ["diffusers", "diffusers_patch4"])
def test_diffusers_config_comes_back(name):
    config = {k: v for k, v in CASES[name]["config"].items() if k != "shown"}
    config |= {} if "out_channels" in config else {"out_channels": config["in_channels"]}
    spec = dit.spec(config, {"beta_schedule": "scaled_linear", "beta_end": 0.012, "prediction_type": "v_prediction"})
    assert config.items() <= dit.config(spec).items()
    assert dit.spec(dit.config(spec), {}).fields == spec.fields
    assert (spec.prediction, spec.process["name"], spec.process["beta_end"]) == ("v", "ddpm_scaled_linear", 0.012)


PUBLISHED_SCHEDULER = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.12.0.dev0", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "set_alpha_to_one": True, "steps_offset": 0, "trained_betas": None,
}  # fmt: skip


def test_the_scheduler_comes_back(tmp_path):
    """Through a folder of ours as well; a sampler made anew would cut latents to [-1, 1]."""
    tiny = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "num_embeds_ada_norm": 3,
            "sample_size": 4, "out_channels": 8}  # fmt: skip
    made = dit.spec(tiny, PUBLISHED_SCHEDULER)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), convert.shapes(made))
    stored = convert.load_spec(convert.save(tmp_path / "ours", made, params))[0]
    want = {key: value for key, value in PUBLISHED_SCHEDULER.items() if key != "_diffusers_version"}
    assert stored == made
    assert diffusers.scheduler(stored) == want
    pipe = convert.save(tmp_path / "pipe", stored, params, family="diffusers")
    assert json.loads((pipe / "scheduler" / "scheduler_config.json").read_text()) == want
    betas = dit.spec(tiny, {"trained_betas": [0.1, 0.2]})
    assert diffusers.scheduler(betas) == {"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}
    assert dit.spec(tiny, {}).layout == {"family": "diffusers"}
    bare = diffusers.scheduler(dit.spec(tiny, {}))
    assert (bare["clip_sample"], bare["variance_type"]) == (False, "learned_range")
    assert "clip_sample" not in diffusers.scheduler(Spec("unet", {}, (8, 8, 3)))


WHOLE = (
    "num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size", "patch_size",
    "num_embeds_ada_norm",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in WHOLE for value in ("16", 0, -1, 2.0, True, None, [2], 10**6 + 1)),
        *(("out_channels", value) for value in ("8", 0, 8.5, True, 10**6 + 1)),
        *(("norm_eps", value) for value in ("1e-5", 0, -1.0, float("nan"), float("inf"), True, None)),
        *(("attention_bias", value) for value in ("no", 1, None)),
        ("num_layers", "a\nb" * 1000),
    ],
)
def test_numbers_of_a_configuration_are_checked(name, value):
    with pytest.raises(UsageError, match=f"{name} is ") as caught:
        dit.spec({name: value}, {})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_copies_that_differ_are_refused():
    name = "diffusers"
    spec, given = spec_of(name), dict(theirs(name))
    key = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    given[key] = given[key] + np.float32(1e-6)
    with pytest.raises(UsageError, match=r"block 1 is not that of block 0"):
        read(dit.diffusers_table(spec), given, like(spec))


def test_other_positions_are_refused():
    spec, given = spec_of("dit"), dict(theirs("dit"))
    given["pos_embed"] = given["pos_embed"] + np.float32(1e-3)
    with pytest.raises(UsageError, match="pos_embed"):
        read(dit.table(spec), given, like(spec))


def test_the_other_code_would_compute_another_function():
    """The features of time differ, and an exchange of files would go unnoticed."""
    with pytest.raises(UsageError, match="freq_shift is 1"):
        dit.table(spec_of("diffusers"))
    with pytest.raises(UsageError, match="freq_shift is 0"):
        dit.diffusers_table(spec_of("dit"))
    with pytest.raises(UsageError, match="freq_shift is 0"):
        dit.config(spec_of("dit"))


@pytest.mark.parametrize(
    ("config", "scheduler", "text"),
    [
        ({"activation_fn": "geglu"}, {}, "allowed is 'gelu-approximate'"),
        ({"num_layer": 3}, {}, "did you mean 'num_layers'"),
        ({}, {"beta_schedule": "linar"}, "did you mean 'linear'"),
        ({}, {"prediction_type": "flow"}, "unknown prediction_type"),
        ({}, {"_class_name": "DDIMSchedular"}, "did you mean 'DDIMScheduler'"),
    ],
)
def test_what_is_not_followed_is_refused(config, scheduler, text):
    with pytest.raises(UsageError, match=text):
        dit.spec(config, scheduler)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"network": "unet"}, "allowed for dit weights"),
        ({"shape": (8, 6, 3)}, "square"),
        ({"fields": {"num_classes": 0}}, "num_classes is 0"),
        ({"fields": {"num_classes": 3, "mlp_norm_epsilon": 1e-5}}, "mlp_norm_epsilon"),
        ({"fields": {"num_classes": 3, "position_reach": 7}}, "position_reach is 7"),
    ],
)
def test_networks_that_the_original_lacks_are_refused(change, text):
    given = {"network": "dit", "fields": {"num_classes": 3}, "shape": (8, 8, 3)} | change
    with pytest.raises(UsageError, match=text):
        dit.table(Spec(**given))


def test_names():
    for name in CASES:
        assert dit.recognises(CASES[name]["shapes"]) == (not name.startswith("diffusers"))
    assert not dit.recognises(["context_embed.weight", *CASES["uvit"]["shapes"]])
