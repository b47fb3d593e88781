"""Loading and saving whole models, by `jaxdiff.convert` and by its command, with a family made for the test."""

import dataclasses
import json
import os
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff import convert
from jaxdiff.commands.convert import convert as command
from jaxdiff.convert.native import load_native_spec, save_native, spec_from_json, spec_to_json
from jaxdiff.convert.rules import CONV, DENSE, SAME
from jaxdiff.convert.table import Constant, Row, leaves
from jaxdiff.errors import UsageError
from jaxdiff.models import presets
from jaxdiff.models.presets.spec import Spec

pytestmark = pytest.mark.usefixtures("quick_compile")

FIELDS = {
    "channels": 8,
    "channel_mult": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "mid": "none",
    "norm_groups": 4,
    "num_classes": 3,
    "dropout": 0.0,
}
SPEC = Spec("unet", FIELDS, (8, 8, 3), process={"name": "ddpm_cosine", "num_steps": 20}, layout={"family": "fake"})


def values(tree, seed=0):
    """Parameters that are functions of their names' place."""
    draw = np.random.RandomState(seed)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), tree)


def fake_table(spec):
    rules = {2: DENSE, 4: CONV}
    like = leaves(convert.shapes(spec))
    before = spec.layout.get("prefix", "")
    rows = [
        Row(name, (before + name.replace("/", "."),), rules.get(len(leaf.shape), SAME)) for name, leaf in like.items()
    ]
    return [*rows, Constant(before + "fake.filter", np.float32([1, 3, 3, 1]))]


def new_family(name, monkeypatch, **more):
    module = types.ModuleType(f"{name}_family")
    module.FAMILY = name
    module.recognises = lambda names: any(f"{before}{name}.filter" in names for before in ("", "net.", "old."))
    module.table = fake_table
    vars(module).update(more)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(convert.FAMILIES, name, module.__name__)
    return module


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setitem(presets.REGISTRY, "fake_8", SPEC)
    monkeypatch.setitem(presets.REGISTRY, "fake_9", dataclasses.replace(SPEC, fields={**FIELDS, "channels": 12}))
    return new_family("fake", monkeypatch)


@pytest.fixture(scope="module")
def like():
    return convert.shapes(SPEC)


@pytest.fixture(scope="module")
def params(like):
    return values(like)


@pytest.fixture
def theirs(params, tmp_path):
    return convert.save(tmp_path / "theirs.safetensors", SPEC, params, family="fake")


def same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def refused(call, *words):
    with pytest.raises(UsageError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 1000
    for word in words:
        assert word in line, line


def test_ours_there_and_back(params, tmp_path):
    convert.save(tmp_path / "ours", SPEC, params)
    spec, got = convert.load_spec(tmp_path / "ours")
    assert spec == SPEC
    assert isinstance(spec.fields["channel_mult"], tuple)
    same(got, params)
    same(convert.load_spec(tmp_path / "ours" / "params.safetensors")[1], params)


def test_a_loaded_model_answers(params, tmp_path):
    convert.save(tmp_path / "ours", SPEC, params)
    model, got = convert.load(tmp_path / "ours")
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(got))
    x = jax.numpy.ones((2, 8, 8, 3))
    answer = model.denoiser(got)(x, model.process(0.5), {"label": jax.numpy.array([0, 2])})
    assert answer.eps.shape == x.shape
    assert np.isfinite(answer.eps).all()


def test_a_file_of_theirs_there_and_back(theirs, params, tmp_path):
    tensors = convert.read_tensors(theirs)
    kernel = params["conv_in"]["kernel"]
    np.testing.assert_array_equal(tensors["conv_in.kernel"], kernel.transpose(3, 2, 0, 1))
    for preset in ("fake_8", SPEC):
        spec, got = convert.load_spec(theirs, preset=preset)
        assert spec == SPEC
        same(got, params)
    convert.write_tensors(tmp_path / "module.safetensors", {f"module.{n}": t for n, t in tensors.items()})
    same(convert.load_spec(tmp_path / "module.safetensors", preset="fake_8")[1], params)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "any.safetensors").write_bytes(theirs.read_bytes())
    same(convert.load_spec(tmp_path / "folder", preset="fake_8")[1], params)


def test_what_stands_before_the_names_is_kept(params, tmp_path, monkeypatch):
    new_family("fake", monkeypatch, prefix=lambda names: "net." if "net.fake.filter" in names else "")
    named = dataclasses.replace(SPEC, layout={"family": "fake", "prefix": "net."})
    file = convert.save(tmp_path / "theirs.safetensors", named, params, family="fake")
    spec, got = convert.load_spec(file, preset="fake_8")
    assert spec == named
    same(got, params)


def test_older_names(theirs, params, tmp_path, monkeypatch):
    new_family("fake", monkeypatch, renamed=lambda t: {n.removeprefix("old."): v for n, v in t.items()})
    tensors = convert.read_tensors(theirs)
    convert.write_tensors(tmp_path / "old.safetensors", {f"old.{n}": t for n, t in tensors.items()})
    same(convert.load_spec(tmp_path / "old.safetensors", preset="fake_8")[1], params)


def test_half_precision_becomes_float32(theirs, tmp_path):
    half = {name: tensor.astype(np.float16) for name, tensor in convert.read_tensors(theirs).items()}
    convert.write_tensors(tmp_path / "half.safetensors", half)
    _, got = convert.load_spec(tmp_path / "half.safetensors", preset="fake_8")
    assert got["conv_in"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(got["conv_out"]["bias"], half["conv_out.bias"].astype(np.float32))


def test_what_a_file_does_not_say(theirs, tmp_path, monkeypatch):
    refused(lambda: convert.load(theirs), "fake weights", "give preset", "presets of fake: fake_8, fake_9")
    refused(lambda: convert.load(theirs, preset="fake_7"), "unknown preset 'fake_7'", "did you mean")
    refused(lambda: convert.load(theirs, preset="fake_9"), "do not fit the network", "of another shape", "instead of")
    other = dataclasses.replace(SPEC, layout={"family": "openai"})
    refused(lambda: convert.load(theirs, preset=other), "has fake weights, the preset is of openai", "fake_8")
    new_family("double", monkeypatch, recognises=lambda names: True)
    refused(lambda: convert.load(theirs), "fake or double weights", "presets of double: none")
    open_spec = dataclasses.replace(SPEC, layout={})
    refused(lambda: convert.load(theirs, preset=open_spec), "may be fake or double")
    assert convert.load_spec(theirs, preset="fake_8")[0] == SPEC


def test_what_is_not_there_or_not_known(params, tmp_path):
    refused(lambda: convert.load(tmp_path / "none"), "no such file or folder")
    refused(lambda: convert.load(tmp_path), "has no weights")
    convert.write_tensors(tmp_path / "a.safetensors", {"who.knows": np.zeros(2, np.float32)})
    refused(lambda: convert.load(tmp_path / "a.safetensors", preset="fake_8"), "of no known family", "who.knows")
    convert.write_tensors(tmp_path / "a.safetensors", {})
    refused(lambda: convert.load(tmp_path / "a.safetensors"), "of no known family", "its 0 tensors")
    (tmp_path / "a.pt").write_bytes(b"\x80\x02}.")
    refused(lambda: convert.load(tmp_path / "a.pt"), "is a pickle", "save_file")
    convert.save(tmp_path / "ours", SPEC, params)
    refused(lambda: convert.load(tmp_path / "ours", preset="fake_8"), "says itself")


def test_params_of_another_network_are_not_saved(like, params, tmp_path):
    bigger = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 1)), params)
    fewer = {name: part for name, part in params.items() if name != "conv_in"}
    for family, path in (("native", tmp_path / "a"), ("fake", tmp_path / "a.safetensors")):
        refused(lambda p=path, f=family: convert.save(p, SPEC, bigger, family=f), "not of this spec", "instead of")
        refused(lambda p=path, f=family: convert.save(p, SPEC, fewer, family=f), "missing conv_in/")
        refused(lambda p=path, f=family: convert.save(p, SPEC, {**params, "x": np.zeros(1)}, family=f), "surplus x")
    assert not list(tmp_path.iterdir())


def test_where_a_family_can_be_written(params, tmp_path):
    (tmp_path / "file").write_text("")
    refused(lambda: convert.save(tmp_path / "a", SPEC, params, family="fake"), "ends in .safetensors")
    refused(lambda: convert.save(tmp_path / "a.safetensors", SPEC, params), "named like a file")
    refused(lambda: convert.save(tmp_path / "file", SPEC, params, family="diffusers"), "is a file")
    refused(lambda: convert.save(tmp_path / "a", SPEC, params, family="fkae"), "did you mean 'fake'")
    mlp = dataclasses.replace(SPEC, network="unknown")
    refused(lambda: convert.save(tmp_path / "a", mlp, params), "unknown model 'unknown'")


def test_specs_as_json():
    spec = dataclasses.replace(
        SPEC,
        fields={**FIELDS, "attention_levels": ((1,), (0, 1)), "dtype": "bfloat16", "head_dim": None, "remat": "none"},
        process={"name": "from_betas", "betas": (0.1, np.float64(0.2))},
        layout={"rows": np.int64(3), "factor": np.float32(0.25)},
    )
    back = spec_from_json(json.loads(json.dumps(spec_to_json(spec))))
    assert back == spec
    assert type(back.fields["attention_levels"][1]) is tuple
    whole = spec_from_json(spec_to_json(SPEC) | {"sigma_data": 1})
    assert type(whole.sigma_data) is float
    for bad in ({"dtype": np.dtype}, {"a": {1: 2}}, {"a": np.zeros(2)}, {"a": {"b": (object(),)}}):
        with pytest.raises(UsageError, match="cannot be stored"):
            spec_to_json(dataclasses.replace(SPEC, fields=bad))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"netwrok": "unet"}, "did you mean 'network'"),
        ({"network": None}, "network"),
        ({"fields": [1]}, "fields"),
        ({"shape": 8}, "shape"),
        ({"shape": [8, 8.5, 3]}, "whole numbers"),
        ({"shape": [8, 0, 3]}, "whole numbers"),
        ({"shape": [8, True, 3]}, "whole numbers"),
        ({"process": "ddpm"}, "process"),
        ({"sigma_data": "1"}, "sigma_data"),
        ({"parameters": True}, "parameters"),
        ({"fields": {**FIELDS, "chanels": 8}}, "did you mean 'channels'"),
        ({"fields": {**FIELDS, "channels": "x\ny"}}, ""),
        ({"process": {"name": "none"}}, "process"),
    ],
)
def test_a_spec_file_that_lies(params, tmp_path, change, words):
    save_native(tmp_path, SPEC, params)
    file = tmp_path / "model.json"
    value = json.loads(file.read_text())
    value["spec"] |= change
    file.write_text(json.dumps(value))
    refused(
        lambda: convert.load(tmp_path), words, "model.json" if "fields" not in change and words != "process" else ""
    )


def test_a_folder_of_ours_that_is_not_whole(like, params, tmp_path):
    save_native(tmp_path, SPEC, params)
    same(convert.load_spec(tmp_path)[1], params)
    file = tmp_path / "model.json"
    for text in ("", "[]", "{}", '{"jaxdiff": 2, "spec": {}}', '{"jaxdiff": 1, "spec": {}}', '{"jaxdiff": 1}'):
        file.write_text(text)
        refused(lambda: load_native_spec(tmp_path), "model.json")
    file.unlink()
    refused(lambda: load_native_spec(tmp_path), "no such file")
    save_native(tmp_path, SPEC, params)
    (tmp_path / "params.safetensors").unlink()
    refused(lambda: convert.load(tmp_path), "params.safetensors", "no such file")


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails_at(monkeypatch, name):
    """The disk is full when a file of this name is to be written, or put in its place."""
    replace = os.replace

    def full(old, new):
        if Path(new).name == name or (name == "" and ".safetensors" in Path(new).name):
            raise OSError("full")
        replace(old, new)

    monkeypatch.setattr("os.replace", full)


@pytest.mark.parametrize("family", ["native", "diffusers"])
def test_what_could_not_be_replaced_is_whole_or_no_model(params, tmp_path, monkeypatch, family):
    spec = dataclasses.replace(SPEC, layout={})
    convert.save(tmp_path, spec, params, family=family)
    before = content(tmp_path)
    with monkeypatch.context() as patch:  # as the new weights are written
        fails_at(patch, "")
        with pytest.raises(OSError, match="full"):
            convert.save(tmp_path, spec, values(params, 1), family=family)
    assert content(tmp_path) == before
    weights = "params.safetensors" if family == "native" else "diffusion_pytorch_model.safetensors"
    with monkeypatch.context() as patch:  # as they take the place of the old
        fails_at(patch, weights)
        with pytest.raises(OSError, match="full"):
            convert.save(tmp_path, spec, values(params, 1), family=family)
    left = content(tmp_path)
    assert left.items() <= before.items()
    assert not {"model.json", "unet/config.json", "model_index.json"} & set(left)
    with monkeypatch.context() as patch:  # the new weights without their description
        fails_at(patch, "model.json" if family == "native" else "config.json")
        with pytest.raises(OSError, match="full"):
            convert.save(tmp_path, spec, values(params, 1), family=family)
    assert not {"model.json", "unet/config.json"} & set(content(tmp_path))
    convert.save(tmp_path, spec, params, family=family)
    assert content(tmp_path) == before


def test_what_would_win_over_a_new_folder_of_diffusers_is_removed(params, pipeline):
    spec = dataclasses.replace(SPEC, layout={})
    index = pipeline / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {}}')
    places = [pipeline / "scheduler_config.json", pipeline / "unet" / "scheduler_config.json",
              pipeline / "unet" / "scheduler" / "scheduler_config.json"]  # fmt: skip
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_text('{"_class_name": "DDPMScheduler", "num_train_timesteps": 7}')
    convert.save(pipeline, spec, params, family="diffusers")
    assert not any(place.exists() for place in (index, *places))
    assert convert.load_spec(pipeline)[0].process["num_steps"] == 20


def test_the_command_both_ways(theirs, params, tmp_path, capsys):
    assert command(theirs, tmp_path / "ours", preset="fake_8") == 0
    out = capsys.readouterr().out
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    for line in (
        f"parameters  {count:,}\n",
        "family      fake\n",
        "unet, one example 8 x 8 x 3",
        "ddpm_cosine",
        f"tensors     {len(leaves(params)) + 1} float32\n",
        f"wrote       {tmp_path / 'ours'} (native, ",
    ):
        assert line in out
    assert command(tmp_path / "ours", tmp_path / "back.safetensors", to="fake") == 0
    assert (tmp_path / "back.safetensors").read_bytes() == theirs.read_bytes()


def test_the_command_says_what_half_precision_becomes(theirs, tmp_path, capsys):
    tensors = convert.read_tensors(theirs)
    half = {name: t.astype(np.float16) if t.ndim > 1 else t for name, t in tensors.items()}
    convert.write_tensors(tmp_path / "half.safetensors", half)
    command(tmp_path / "half.safetensors", tmp_path / "ours", preset="fake_8")
    assert "float16 (float16 stored as float32)" in capsys.readouterr().out


def test_the_command_replaces_nothing_unasked(theirs, tmp_path, capsys):
    ours = tmp_path / "ours"
    ours.mkdir()
    command(theirs, ours, preset="fake_8")  # an empty folder is a place like any other
    capsys.readouterr()
    refused(lambda: command(theirs, ours, preset="fake_8"), "is there already", "--overwrite")
    refused(lambda: command(ours, theirs, to="fake"), "is there already")
    assert capsys.readouterr().out == ""
    assert command(theirs, ours, preset="fake_8", overwrite=True) == 0
    words = "is, holds or lies in what is to be read"
    before = content(ours)
    refused(lambda: command(ours, ours, overwrite=True), words)
    refused(lambda: command(ours / "params.safetensors", ours, overwrite=True), words)
    refused(lambda: command(ours, ours / "unet" / "more", overwrite=True), words)
    refused(lambda: command(ours, ours / "params.safetensors", to="fake", overwrite=True), words)
    assert content(ours) == before
    refused(lambda: command(theirs, tmp_path / "x", to="nativ", preset="fake_8"), "did you mean 'native'")
    refused(lambda: command(theirs, tmp_path / "x", preset="fake_9"), "do not fit")
    assert not (tmp_path / "x").exists()


@pytest.fixture
def pipeline(params, tmp_path):
    labelled = dataclasses.replace(SPEC, layout={}, process={"name": "ddpm_scaled_linear", "num_steps": 30})
    return convert.save(tmp_path / "pipe", labelled, params, family="diffusers")


def test_a_folder_of_diffusers_there_and_back(pipeline, params, tmp_path):
    names = sorted(str(path.relative_to(pipeline)) for path in pipeline.rglob("*") if path.is_file())
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert names == ["scheduler/scheduler_config.json", "unet/config.json", weights]
    assert json.loads((pipeline / "unet/config.json").read_text())["_class_name"] == "UNet2DModel"
    for folder in (pipeline, pipeline / "unet"):
        spec, got = convert.load_spec(folder)
        assert spec.process["name"] == "ddpm_scaled_linear"
        assert (spec.process["num_steps"], spec.shape) == (30, (8, 8, 3))
        same(got, params)
    command(pipeline, tmp_path / "ours")
    command(tmp_path / "ours", tmp_path / "back", to="diffusers")
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (pipeline / name).read_bytes(), name


def test_a_folder_is_not_written_into_itself(pipeline):
    before = content(pipeline)
    words = "is, holds or lies in what is to be read"
    refused(lambda: command(pipeline, pipeline / "unet", to="diffusers", overwrite=True), words)
    file = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    index = file.with_suffix(".safetensors.index.json")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(convert.read_tensors(file), file.name)}))
    refused(lambda: command(index, file, to="fake", preset="fake_8", overwrite=True), words)
    index.unlink()
    assert content(pipeline) == before


def test_a_pipeline_is_only_of_what_takes_no_labels(pipeline, tmp_path):
    """DDPMPipeline passes a network none, and one with labels fails without."""
    assert not (pipeline / "model_index.json").exists()
    for name, fields in {"plain": {}, "labels": {"num_classes": 2}, "noise": {"aug_level": True}}.items():
        spec = dataclasses.replace(SPEC, fields={**FIELDS, "num_classes": 0, **fields}, layout={})
        folder = convert.save(tmp_path / name, spec, values(convert.shapes(spec)), family="diffusers")
        assert (folder / "model_index.json").exists() == (name == "plain")
        if name == "plain":
            index = json.loads((folder / "model_index.json").read_text())
            assert (index["_class_name"], index["unet"]) == ("DDPMPipeline", ["diffusers", "UNet2DModel"])


def test_other_folders_of_diffusers(pipeline, params, tmp_path):
    flat = tmp_path / "flat"  # as the oldest are: everything in one folder, half precision as a variant
    flat.mkdir()
    (flat / "config.json").write_bytes((pipeline / "unet" / "config.json").read_bytes())
    (flat / "scheduler_config.json").write_bytes((pipeline / "scheduler" / "scheduler_config.json").read_bytes())
    tensors = convert.read_tensors(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    convert.write_tensors(flat / "diffusion_pytorch_model.fp16.safetensors", half)
    spec, got = convert.load_spec(flat)
    assert spec.process["num_steps"] == 30
    np.testing.assert_allclose(got["conv_in"]["kernel"], params["conv_in"]["kernel"], rtol=1e-3)
    (flat / "scheduler_config.json").unlink()
    assert convert.load_spec(flat)[0].process["num_steps"] == 1000


def test_folders_of_diffusers_that_do_not_fit(pipeline, tmp_path):
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    refused(lambda: convert.load(weights), "diffusers weights", "or give the folder with its config.json")
    refused(lambda: convert.load(pipeline, preset="fake_8"), "says itself")
    weights.rename(weights.with_suffix(".bin"))
    refused(lambda: convert.load(pipeline), "diffusion_pytorch_model.bin is a pickle")
    config = pipeline / "unet" / "config.json"
    for text, words in (('{"_class_name": "UNet2DConditionModel"}', "did you mean 'UNet2DModel'"), ("{", "not JSON"),
                        ("[]", "needed is a dict"), ('{"_class_name": ["x"]}', "unknown network")):  # fmt: skip
        config.write_text(text)
        refused(lambda: convert.load(pipeline), words, str(pipeline))


def test_another_format_in_the_same_folder_takes_its_place(params, pipeline):
    edm = dataclasses.replace(SPEC, process={"name": "edm"}, prediction="edm", time_input={"name": "log_sigma"})
    refused(lambda: convert.save(pipeline, edm, params, family="diffusers"), "allowed is")
    convert.save(pipeline, SPEC, values(params, 1))
    same(convert.load_spec(pipeline)[1], values(params, 1))
    convert.save(pipeline, dataclasses.replace(SPEC, layout={}), params, family="diffusers")
    same(convert.load_spec(pipeline)[1], params)


@pytest.fixture
def parts(pipeline):
    """The pipeline's weights in two parts with their index."""
    unet, stem = pipeline / "unet", "diffusion_pytorch_model"
    tensors = convert.read_tensors(unet / f"{stem}.safetensors")
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {tensor: names[i % 2] for i, tensor in enumerate(tensors)}
    for name in names:
        convert.write_tensors(unet / name, {tensor: tensors[tensor] for tensor, file in where.items() if file == name})
    (unet / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (unet / f"{stem}.safetensors").unlink()
    return [unet / name for name in names]


def test_parts_of_old_weights_go_when_the_new_are_whole(params, pipeline, parts, tmp_path, monkeypatch):
    same(convert.load_spec(pipeline)[1], params)
    before = content(pipeline)
    ours = convert.save(tmp_path / "ours", SPEC, values(params, 1))
    with monkeypatch.context() as patch:  # as the new weights take their place
        fails_at(patch, "diffusion_pytorch_model.safetensors")
        with pytest.raises(OSError, match="full"):
            command(ours, pipeline, to="diffusers", overwrite=True)
    assert {name: data for name, data in before.items() if "-of-" in name}.items() <= content(pipeline).items()
    for name, data in before.items():
        (pipeline / name).write_bytes(data)
    other = parts[0].with_name("diffusion_pytorch_model-00001-of-00009.safetensors")
    other.write_bytes(parts[0].read_bytes())  # which the index does not name
    command(ours, pipeline, to="diffusers", overwrite=True)
    assert sorted(path.name for path in (pipeline / "unet").iterdir()) == sorted(
        ["config.json", "diffusion_pytorch_model.safetensors", other.name]
    )
    same(convert.load_spec(pipeline)[1], values(params, 1))


def test_an_index_removes_nothing_but_parts(params, pipeline, parts):
    index = parts[0].with_name("diffusion_pytorch_model.safetensors.index.json")
    kept = [pipeline / "unet" / name for name in ("mine.safetensors", "notes.txt", "diffusion_pytorch_model.bin")]
    kept.append(pipeline / "diffusion_pytorch_model-00001-of-00001.safetensors")  # not beside it
    for path in kept:
        path.write_text("x")
    names = [*(path.name for path in (*kept[:-1], *parts)), "diffusion_pytorch_model.safetensors"]
    index.write_text(json.dumps({"weight_map": dict(zip("abcdef", names, strict=True))}))
    convert.save(pipeline, dataclasses.replace(SPEC, layout={}), params, family="diffusers")
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in (index, *parts))
    same(convert.load_spec(pipeline)[1], params)
    index.write_text(json.dumps({"weight_map": {"a": f"../{kept[-1].name}"}}))
    convert.save(pipeline, dataclasses.replace(SPEC, layout={}), params, family="diffusers")
    assert kept[-1].exists()
    assert not index.exists()


def test_weights_of_another_part_go_with_what_describes_them(params, pipeline):
    weights = (pipeline / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    flat, described = (pipeline / name / "diffusion_pytorch_model.safetensors" for name in (".", "transformer"))
    described.parent.mkdir()
    (described.parent / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    (pipeline / "config.json").write_text('{"config": {}}')  # a run's, of the same name
    for path in (flat, described):
        path.write_bytes(weights)
    convert.save(pipeline, dataclasses.replace(SPEC, layout={}), params, family="diffusers")
    assert (flat.exists(), described.exists()) == (True, False)
    assert (pipeline / "config.json").exists()
