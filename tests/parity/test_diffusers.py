"""diffusers' UNet2DModel: our networks answer as theirs, and configurations and weights come back as they were."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import build, convert, processes
from jaxdiff.convert import diffusers
from jaxdiff.convert.native import spec_from_json, spec_to_json
from jaxdiff.convert.table import leaves, read, write
from jaxdiff.errors import UsageError
from jaxdiff.models import presets
from jaxdiff.models.presets import Spec
from jaxdiff.numerics import sigmoid
from jaxdiff.prediction import to_prediction
from tests.parity.common import load_cases, load_shapes, relative_error, tensors

CASES = load_cases("diffusers")
SCHEDULES = load_cases("diffusers_schedules")
PUBLISHED = load_cases("diffusers_published")
SHAPES = load_shapes("diffusers")
COUNTS = {
    "ddpm_cifar10": 35_746_307,
    "ddpm_256": 113_673_219,
    "ncsnpp_256": 65_574_549,
    "ldm_celebahq": 274_056_163,
    "cd_imagenet64": 295_899_267,
}

pytestmark = pytest.mark.usefixtures("quick_compile")


def level_of(case, model):
    """The level of a case's times."""
    t = jnp.asarray(case["t"])
    steps = model.process.num_steps
    return model.process.at(-2 * jnp.log(t)) if steps is None else model.process((t + 1) / steps)


@pytest.mark.parametrize("name", CASES)
def test_the_output_is_that_of_diffusers(name):
    case = CASES[name]
    spec = diffusers.spec(case["config"])
    theirs, model = tensors(case["shapes"]), build.model_of(spec)
    params = read(diffusers.table(spec), theirs, convert.shapes(spec))
    x, level = jnp.asarray(case["x"]), level_of(case, model)
    label = jnp.asarray(case["label"]) if "label" in case else None
    cond = dict.fromkeys(("label", "aug_level", "pooled"), label)
    out = jax.jit(model.apply)(params, x, model.time_input(level), cond)
    want = case["out"]
    if case["config"]["time_embedding_type"] == "fourier":
        sigma = case["t"].reshape(-1, 1, 1, 1)
        want = -want * sigma  # the score is -eps / sigma
        got = to_prediction(model.prediction, out, x, level)
        assert relative_error(got.x0, case["x"] + sigma**2 * case["out"]) < 1e-5
    assert relative_error(out, want) < 1e-5
    if "x0" in case:  # what DDPMScheduler makes of the output
        assert relative_error(to_prediction(model.prediction, out, x, level).x0, case["x0"]) < 1e-5
    back = write(diffusers.table(spec), params)
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", [*CASES, *PUBLISHED])
def test_a_configuration_comes_back_as_it_was(name):
    config = {**CASES, **PUBLISHED}[name]["config"]
    spec = diffusers.spec({"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", **config})
    assert diffusers.config(spec) == config
    stored = spec_from_json(json.loads(json.dumps(spec_to_json(spec))))
    assert stored == spec
    assert diffusers.config(stored) == config
    assert diffusers.recognises(SHAPES[name] if name in SHAPES else CASES[name]["shapes"])


@pytest.mark.parametrize("name", [*CASES, *PUBLISHED])
def test_a_configuration_is_made_of_the_fields_alone(name):
    config = {**CASES, **PUBLISHED}[name]["config"]
    spec = dataclasses.replace(diffusers.spec(config), layout={})
    made = diffusers.config(spec)
    other = {key: value for key, value in made.items() if value != config[key]}
    # What is free: the order of sines and cosines, and what no layer asks.
    assert other.pop("flip_sin_to_cos", False) is False
    if "ResnetUpsampleBlock2D" in config["up_block_types"]:  # at the first level, which is not resampled
        assert other.pop("up_block_types") == [*config["up_block_types"][:-1], "UpBlock2D"]
    assert other == {}
    # The weights are the same but for the rows that trade halves.
    one, two = diffusers.table(spec), diffusers.table(diffusers.spec(made))
    assert [row[:2] for row in one] == [row[:2] for row in two]
    assert one[0].rule.name == "dense"
    flipped = diffusers.table(diffusers.spec(config))[0].rule.name == "permuted dense"
    assert flipped is (config["flip_sin_to_cos"] and config["time_embedding_type"] == "positional")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_size(name):
    spec = diffusers.spec(PUBLISHED[name]["config"])
    ours, theirs = leaves(convert.shapes(spec)), {}
    for row in diffusers.table(spec):
        written = row.rule.write(np.broadcast_to(np.float32(0), ours.pop(row.ours).shape))
        theirs |= {key: value.shape for key, value in zip(row.theirs, written, strict=True)}
    assert not ours
    assert theirs == SHAPES[name]
    assert sum(int(np.prod(shape)) for shape in theirs.values()) == COUNTS[name]


@pytest.mark.parametrize("name", ["ddpm_cifar10", "ddpm_256"])
def test_our_preset_is_the_published_model(name):
    preset = presets.get(name)
    made = diffusers.config(dataclasses.replace(preset, fields={**preset.fields, "dropout": 0.0}))
    config = PUBLISHED[name]["config"]
    assert {key: value for key, value in made.items() if value != config[key]} == {}
    assert diffusers.scheduler(preset)["beta_end"] == 0.02


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_that_of_diffusers(name):
    case = SCHEDULES[name]
    config = {"sample_size": 8}
    if name == "ve":
        config["time_embedding_type"] = "fourier"
    if name == "learned_range":
        config["out_channels"] = 6
    spec = diffusers.spec(config, case["config"])
    process = build.model_of(spec).process
    if "alphas_cumprod" in case:
        want = case["alphas_cumprod"]
        steps = len(want)
        assert process.num_steps == steps
        got = np.asarray(sigmoid(process(np.arange(1, steps + 1) / steps).log_snr))
        assert np.abs(got - want).max() < 2e-6  # theirs is a product in float32
        seen = want > 1e-6
        assert np.abs(got[seen] / want[seen] - 1).max() < 5e-4
        assert spec.time_input == {"name": "index"}
    if "sigmas" in case:
        got = process(np.linspace(0, 1, len(case["sigmas"]))).sigma
        assert np.abs(got / case["sigmas"] - 1).max() < 1e-5
    predictions = {"scaled_linear": "v", "zero_snr": "v", "cosine": "x0", "flow": "flow"}
    assert spec.prediction == predictions.get(name, "eps")
    assert diffusers.scheduler(spec) == case["config"]
    # The same from what the spec says alone.
    derived = diffusers.scheduler(dataclasses.replace(spec, layout={}))
    again = diffusers.spec(config, derived)
    assert processes.make(**again.process) == process
    assert (again.prediction, again.time_input) == (spec.prediction, spec.time_input)
    assert again.fields == spec.fields
    assert (derived.get("variance_type") == "learned_range") == (name == "learned_range")
    # Another schedule than the one it was read with.
    other = dataclasses.replace(spec, process={"name": "ddpm_linear", "num_steps": 7}, prediction="eps",
                                time_input={"name": "index"})  # fmt: skip
    assert diffusers.scheduler(other)["num_train_timesteps"] == 7


def test_zero_terminal_snr_is_exactly_zero():
    config = SCHEDULES["zero_snr"]["config"]
    assert diffusers.spec({"sample_size": 8}, config).process["betas"][-1] == 1


def test_schedulers_differ_in_their_defaults():
    betas = {name: diffusers.spec({"sample_size": 8}, {"_class_name": name}).process for name in
             ("DDPMScheduler", "HeunDiscreteScheduler", "LCMScheduler")}  # fmt: skip
    assert betas["DDPMScheduler"] == {"name": "ddpm_linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    assert betas["HeunDiscreteScheduler"]["beta_end"] == 0.012
    assert betas["LCMScheduler"]["name"] == "ddpm_scaled_linear"


def test_without_a_scheduler_it_is_the_usual_one():
    assert diffusers.spec(CASES["ncsnpp"]["config"]).process == {
        "name": "ve_sde",
        "sigma_min": 0.01,
        "sigma_max": 1348.0,
    }
    assert diffusers.spec(CASES["plain"]["config"]).process["name"] == "ddpm_linear"
    assert diffusers.spec(CASES["tables"]["config"]).process["num_steps"] == 20


@pytest.mark.parametrize("older", [False, True])
def test_a_folder_is_loaded_and_saved(tmp_path, older):
    case = CASES["attention_heads"]
    theirs = tensors(case["shapes"])
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"} if older else {}

    def then(name):
        for today, before in names.items():
            name = name.replace(f".{today}.", f".{before}.")
        return name

    stored = {then(name): value for name, value in theirs.items()}
    assert (stored.keys() != theirs.keys()) is older
    for part, name, value in (
        ("unet", "config.json", {"_class_name": "UNet2DModel", **case["config"]}),
        ("scheduler", "scheduler_config.json", SCHEDULES["scaled_linear"]["config"]),
    ):
        (tmp_path / "there" / part).mkdir(parents=True)
        (tmp_path / "there" / part / name).write_text(json.dumps(value))
    convert.write_tensors(tmp_path / "there/unet/diffusion_pytorch_model.safetensors", stored)
    spec, params = convert.load_spec(tmp_path / "there")
    assert spec.process["name"] == "ddpm_scaled_linear"
    convert.save(tmp_path / "back", spec, params, family="diffusers")
    back = convert.read_tensors(tmp_path / "back/unet/diffusion_pytorch_model.safetensors")
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[key], theirs[key]) for key in theirs)
    config = json.loads((tmp_path / "back/unet/config.json").read_text())
    assert config == {"_class_name": "UNet2DModel", **case["config"]}
    scheduler = json.loads((tmp_path / "back/scheduler/scheduler_config.json").read_text())
    assert scheduler == SCHEDULES["scaled_linear"]["config"]


def test_a_network_of_ours_with_labels_is_written_with_its_null_label():
    fields = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "num_classes": 3}
    spec = Spec("unet", {**fields, "attention_resolutions": (4,)}, (8, 8, 1))
    config = diffusers.config(spec)
    assert config["num_class_embeds"] == 4
    assert config["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    like = convert.shapes(spec)
    params = jax.tree.map(lambda leaf: np.random.RandomState(leaf.size).normal(size=leaf.shape).astype("f4"), like)
    again = diffusers.spec(config)
    got = read(diffusers.table(again), write(diffusers.table(spec), params), convert.shapes(again))
    assert jax.tree.all(jax.tree.map(np.array_equal, got, params))


def test_a_changed_network_has_a_changed_configuration():
    spec = diffusers.spec(CASES["resnet"]["config"])
    changed = dataclasses.replace(spec, fields={**spec.fields, "dropout": 0.25})
    assert diffusers.config(changed)["dropout"] == 0.25
    assert diffusers.config(changed)["down_block_types"] == CASES["resnet"]["config"]["down_block_types"]
    wider = dataclasses.replace(spec, shape=(16, 16, 3))
    assert diffusers.config(wider)["sample_size"] == 16


SMALL = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
SKIPS = {"down_block_types": ["SkipDownBlock2D"] * 2, "up_block_types": ["SkipUpBlock2D"] * 2, "norm_num_groups": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_size": None}, "sample_size is null: allowed is a whole number, or a height and a width"),
        ({"sample_size": [8, 8, 8]}, "sample_size"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is UNet2DConditionModel: allowed is UNet2DModel"),
        ({"dropuot": 0.1}, "unknown key.*'dropuot': did you mean 'dropout'"),
        ({"act_fn": "gelu"}, "act_fn is gelu: allowed is silu, swish"),
        ({"center_input_sample": True}, "center_input_sample is True: allowed is false"),
        ({"down_block_types": ["DownBlock2D", "AttnDwonBlock2D"]}, "down_block_types.*AttnDwonBlock2D.*allowed is"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types.*one for each of the 2"),
        ({"block_out_channels": 8}, "block_out_channels is 8: allowed is a list"),
        ({"block_out_channels": [2, 4], "norm_num_groups": 2}, "block_out_channels.*4 or more"),
        ({"layers_per_block": [1, 2]}, "layers_per_block"),
        ({"layers_per_block": True}, "layers_per_block is True"),
        ({"norm_num_groups": 3}, r"norm_num_groups is 3: allowed is a divisor of every one.*\[8, 16\]"),
        ({"norm_num_groups": None}, "norm_num_groups is null: allowed is a whole number"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups is 8: allowed is norm_num_groups"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups is null.*add_attention false"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is spatial: allowed is default, scale_shift"),
        ({"attention_head_dim": 3}, "attention_head_dim is 3: allowed is null, or a divisor of the 16"),
        ({"time_embedding_dim": 64}, "time_embedding_dim is 64: allowed is null, or 32"),
        ({"time_embedding_type": "sine"}, "time_embedding_type is sine: allowed is positional, fourier, learned"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps is null.*learned"),
        ({"time_embedding_type": "fourier", "class_embed_type": "timestep"}, "class_embed_type is timestep"),
        ({"class_embed_type": "projection"}, "class_embed_type is projection: allowed is null, timestep, identity"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type.*allowed is UNetMidBlock2D, null"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor is 0: allowed is a number above 0"),
        ({"out_channels": 4}, "out_channels is 4: allowed is 3, that of the input, or 6 for a learned variance"),
        ({"in_channels": 6}, "out_channels is 3: allowed is 6"),
        ({"downsample_padding": 2}, "downsample_padding is 2: allowed is 1, 0"),
        ({"downsample_type": None}, "downsample_type is null: allowed is conv, resnet"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "allowed is Skip blocks at every level both ways"),
        ({**SKIPS, "in_channels": 1}, "in_channels is 1: allowed is 3 with Skip blocks"),
        ({**SKIPS, "out_channels": 6}, "out_channels is 6: allowed is 3, that of the input"),
        ({**SKIPS, "norm_num_groups": 8}, "block_out_channels.*the middle has 8 groups of its 16 channels.*ours 4"),
        (
            {**SKIPS, "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"], "block_out_channels": [32, 64]},
            "block_out_channels.*attention has 32 groups of its 64 channels, NCSN.. and ours 16",
        ),
        (
            {**SKIPS, "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"], "block_out_channels": [8, 128]},
            "a block of AttnSkipUpBlock2D has 32 groups of its 136 channels",
        ),
    ],
)  # fmt: skip
def test_what_a_unet_cannot_be_is_refused(change, message):
    with pytest.raises(UsageError, match=message) as raised:
        diffusers.spec({**SMALL, **change})
    assert "\n" not in str(raised.value)


def test_what_averaging_leaves_is_no_matter():
    spec = diffusers.spec({**SMALL, "decay": 0.9999, "optimization_step": 7, "use_ema_warmup": False})
    assert diffusers.config(spec)["decay"] == 0.9999


@pytest.mark.parametrize(
    ("config", "scheduler", "message"),
    [
        ({}, {}, r"unknown scheduler \(_class_name\) 'None'"),
        ({}, {"_class_name": "KarrasVeScheduler"}, "unknown scheduler.*KarrasVeScheduler.*allowed"),
        ({}, {"_class_name": "DDPMSchedular"}, "did you mean 'DDPMScheduler'"),
        ({}, {"_class_name": "ScoreSdeVeScheduler"}, "scheduler is ScoreSdeVe.*time_embedding_type is positional"),
        ({"time_embedding_type": "fourier"}, {}, "allowed is ScoreSdeVeScheduler where time_embedding_type is fourier"),
        ({}, {"beta_schedule": "laplace"}, "unknown beta_schedule 'laplace'.*allowed: linear, scaled_linear"),
        ({}, {"beta_start": -1}, "beta_start is -1: allowed is a number above 0"),
        ({}, {"beta_end": 2.0}, "betas"),
        ({}, {"trained_betas": 0.1}, "trained_betas is 0.1: allowed is null, or a list of numbers in"),
        ({}, {"num_train_timesteps": 0}, "num_train_timesteps is 0: allowed is a whole number from 1 to"),
        ({}, {"rescale_betas_zero_snr": "no"}, "rescale_betas_zero_snr is no: allowed is true or false"),
        ({}, {"prediction_type": "flow_prediction"}, "unknown prediction_type 'flow_prediction'.*epsilon"),
        ({}, {"predict_epsilon": False}, "predict_epsilon is False: allowed is True"),
        ({}, {"variance_type": "learned"}, "variance_type is learned: allowed is learned_range"),
        ({}, {"variance_type": "learned_range"}, "out_channels is 3: allowed is twice in_channels"),
        ({}, {"use_flow_sigmas": True}, "use_flow_sigmas is True: allowed is False"),
        ({}, {"timestep_type": "continuous"}, "timestep_type is continuous: allowed is discrete"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 50}, {}, "num_train_timesteps is 50.*of steps"),
        ({}, {"_class_name": "ScoreSdeVeScheduler", "sigma_max": "big"}, "sigma_max is big: allowed is a number"),
    ],
)  # fmt: skip
def test_what_a_process_cannot_be_is_refused(config, scheduler, message):
    given = (
        scheduler
        if "_class_name" in scheduler or not (scheduler or config)
        else {"_class_name": "DDPMScheduler", **scheduler}
    )
    with pytest.raises(UsageError, match=message) as raised:
        diffusers.spec({**SMALL, **config}, given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "dit"}, "network, shape.*'unet' for images"),
        ({"shape": (8, 3)}, "network, shape"),
        ({"num_res_blocks": (1, 2)}, r"num_res_blocks is \[1, 2\]: allowed is \[1, 1\] for a UNet2DModel"),
        ({"first_channels": 16}, "first_channels is 16: allowed is 8"),
        ({"downsample": "pool"}, r"downsample is \['pool'\]: allowed is \['conv'\]"),
        ({"upsample": "repeat"}, "upsample"),
        ({"concat": ("self_cond",)}, "concat"),
        ({"augment_dim": 9}, "augment_dim is 9: allowed is 0"),
        ({"pooled": "project"}, "pooled is project: allowed is none"),
        ({"attention": "transformer"}, "attention"),
        ({"attention_last": True}, "attention_last"),
        ({"num_heads": 2, "attention_resolutions": (8, 4)}, "num_heads, head_dim"),
        ({"skip_scale": 0.5}, "skip_scale is 0.5: allowed is 1"),
        ({"norm_group_size": 4}, "norm_group_size is 4: allowed is 1"),
        ({"norm_groups": 32}, "norm_num_groups is 32: allowed is a divisor"),
        ({"progressive_input": "residual"}, "progressive_input, progressive_output"),
        ({"label_into": "features", "num_classes": 2}, "label_into is features: allowed is embedding"),
        ({"time_embedding": "fourier", "prediction": "score"}, "prediction, time_input.*log_sigma"),
    ],
)  # fmt: skip
def test_what_a_unet2dmodel_cannot_be_is_refused(change, message):
    fields = {
        "channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "norm_groups": 4,
        "attention_resolutions": (4,),
    }
    of_spec = {key: change[key] for key in ("network", "shape", "prediction") if key in change}
    fields |= {key: value for key, value in change.items() if key not in of_spec}
    spec = dataclasses.replace(Spec("unet", fields, (8, 8, 3)), **of_spec)
    for call in (diffusers.config, diffusers.table):
        with pytest.raises(UsageError, match=message) as raised:
            call(spec)
        assert "\n" not in str(raised.value)


FLOW = {"prediction": "flow", "time_input": {"name": "time"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process": {"name": "cosine"}}, "process is.*cosine.*allowed is one made of betas, ve_sde"),
        ({"process": {"name": "rectified_flow", "shift": 3.0}, **FLOW}, "process is.*rectified_flow without shift"),
        ({"process": {"name": "rectified_flow"}}, "prediction, time_input.*'flow'.*with rectified_flow"),
        ({"process": {"name": "ve_sde"}}, "prediction, time_input.*'eps'.*with ve_sde"),
        ({"prediction": "edm"}, "unknown prediction for a diffusers scheduler 'edm'.*epsilon|allowed: eps, v, x0"),
        ({"time_input": {"name": "log_snr"}}, "time_input is.*allowed is index"),
        ({"input_scale": "unit_variance"}, "input_scale is unit_variance: allowed is none"),
    ],
)  # fmt: skip
def test_what_a_scheduler_cannot_be_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        diffusers.scheduler(dataclasses.replace(Spec("unet", {}, (8, 8, 3)), **change))


def test_other_networks_are_not_taken_for_it():
    names = set(SHAPES["ddpm_cifar10"])
    assert diffusers.recognises(names)
    assert not diffusers.recognises({f"unet.{name}" for name in names})
    assert not diffusers.recognises(names | {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"})
    assert not diffusers.recognises(names - {"time_embedding.linear_1.weight"})


def test_only_attention_is_renamed():
    given = {"mid_block.attentions.0.query.weight": 1, "value": 2, "some.key.weight": 3}
    assert diffusers.renamed(given) == {"mid_block.attentions.0.to_q.weight": 1, "value": 2, "some.key.weight": 3}
    both = {"mid_block.attentions.0.query.weight": 1, "mid_block.attentions.0.to_q.weight": 2}
    assert diffusers.renamed(both) == both
