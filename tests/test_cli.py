"""The command line in this process: what each command writes, and that every mistake is one line and exit code 2."""

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import cli

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"
SMALL = [
    f"--config={CONFIG}",
    "--config.model.channels=8",
    "--config.train.steps=4",
    "--config.train.log_every=2",
    "--config.train.checkpoint_every=2",
    "--config.sample.steps=3",
]


def jaxdiff(*args):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main([str(arg) for arg in args])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def small(tfds_dir):
    return [*SMALL, f"--config.data.data_dir={tfds_dir}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, small, quick_compile):
    workdir = tmp_path_factory.mktemp("run")
    code, out, err = jaxdiff("train", *small, f"--workdir={workdir}")
    assert (code, err) == (0, "")
    assert re.search(r"step 4/4 +loss [\d.]+ +[\d.]+ step/s +\d+ images/s +0:00 left", out)
    return workdir


def test_training_leaves_what_it_should(run):
    record = json.loads((run / "config.json").read_text())
    assert record["config"]["train"]["steps"] == 4
    assert set(record["versions"]) >= {"jaxdiff", "jax", "flax", "python"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4]
    assert any("eval_loss" in line for line in lines)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]
    assert list((run / "tensorboard").glob("events*"))
    assert Image.open(run / "samples" / "samples_0000004.png").size[0] > 300


def test_the_same_command_again_goes_on_and_ends_at_once(run, small):
    before = (run / "metrics.jsonl").read_text()
    code, out, _ = jaxdiff("train", *small, f"--workdir={run}")
    assert code == 0
    assert "going on from step 4" in out
    assert (run / "metrics.jsonl").read_text() == before


def test_sample_writes_grid_array_and_moving_picture(run, tmp_path):
    args = ["sample", f"--workdir={run}", "--steps=3", "--sampler=ddim", "--guidance=2.0", "--seed=7"]
    code, out, _ = jaxdiff(*args, "--num=50", "--labels=0,1,2", "--batch_size=8", f"--out={tmp_path / 'a'}")
    assert code == 0
    assert all(str(tmp_path / f"a.{ending}") in out for ending in ("png", "npz", "gif"))
    found = np.load(tmp_path / "a.npz")
    assert found["images"].shape == (50, 8, 8, 1)
    assert found["images"].dtype == np.uint8
    np.testing.assert_array_equal(found["labels"], np.arange(50) % 3)
    assert 2 <= Image.open(tmp_path / "a.gif").n_frames <= 4  # the noise and three steps; equal ones are merged
    # The same seed gives the same images, whatever is drawn beside them.
    jaxdiff(*args, "--num=9", "--labels=0,1,2", f"--out={tmp_path / 'b.png'}")
    few = np.load(tmp_path / "b.npz")["images"].astype(int)
    assert np.abs(few - found["images"][:9]).max() <= 1
    jaxdiff(*args, "--num=20", f"--out={tmp_path / 'c'}")
    np.testing.assert_array_equal(np.load(tmp_path / "c.npz")["labels"], np.arange(20) % 10)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_forward_and_info(small, tmp_path):
    code, _, _ = jaxdiff("forward", *small, "--num=3", f"--out={tmp_path / 'f'}")
    assert code == 0
    assert Image.open(tmp_path / "f.gif").n_frames == 40
    assert {path.name for path in tmp_path.iterdir()} == {"f.png", "f.gif", "f_schedules.png"}
    code, out, _ = jaxdiff("info", f"--config={CONFIG}")
    assert code == 0
    assert "756,417" in out
    assert "GFLOPs per image" in out


def test_flops_are_counted_right():
    import jax.numpy as jnp

    from jaxdiff.commands.info import count_flops

    assert count_flops(jnp.matmul, jnp.ones((32, 64)), jnp.ones((64, 16))) == 2 * 32 * 64 * 16


def test_help():
    code, out, _ = jaxdiff("--help")
    assert code == 0
    for name, command in cli.COMMANDS.items():
        assert name in out
        assert command.summary in out
        assert jaxdiff(name, "--help")[0] == 0
    assert "--guidance" in jaxdiff("sample", "--help")[1]
    assert jaxdiff("--version")[1].startswith("jaxdiff 0.")


def one_line(words, *args):
    code, _, err = jaxdiff(*args)
    assert code == 2
    assert err.count("\n") == 1, err
    assert words in err


def test_mistakes_in_training_are_one_line(small, tmp_path):
    new = f"--workdir={tmp_path / 'new'}"
    one_line("did you mean 'train.steps'", "train", *small, new, "--config.trian.steps=5")
    one_line("did you mean 'digits'", "train", *small, new, "--config.data.name=digts")
    one_line("did you mean 'ddpm_linear'", "train", *small, new, "--config.process.name=ddpm_liner")
    one_line("did you mean 'ddim'", "train", *small, new, "--config.sample.sampler=dim")
    one_line("did you mean 'stratified'", "train", *small, new, "--config.objective.times=stratifed")
    one_line("invalid literal", "train", *small, new, "--config.train.steps=many")
    one_line("train.steps=0", "train", *small, new, "--config.train.steps=0")
    one_line("batch_size=12 does not divide by 8 devices", "train", *small, new, "--config.train.batch_size=12")
    one_line("steps=0", "train", *small, new, "--config.sample.steps=0")
    one_line("is between the rows", "train", *small, new, "--config.sample.grid=karras")
    one_line("data.num_classes=7", "train", *small, new, "--config.data.num_classes=7")
    one_line("argument of process", "train", *small, new, "--config.process.name=vp_sde")
    one_line("path", "train", *small, new, "--config.data.name=image_folder")
    one_line("no such file", "train", "--config=configs/nothing.py", new)
    one_line("--workdir is missing", "train", *small)
    one_line("did you mean 'train'", "trian")
    one_line("flags are written --name=value", "train", *small, new, "extra")
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_mistakes_in_sampling_are_one_line_and_write_nothing(run, tmp_path):
    sample = ["sample", f"--workdir={run}", f"--out={tmp_path / 'x'}", "--num=2"]
    one_line("no trained run", "sample", f"--workdir={tmp_path / 'none'}", f"--out={tmp_path / 'x'}")
    one_line("labels=3,10: allowed are whole numbers 0 to 9", *sample, "--labels=3,10")
    one_line("labels=-1", *sample, "--labels=-1")
    one_line("steps=0", *sample, "--steps=0")
    one_line("this process has 1000 steps", *sample, "--steps=1001")
    one_line("did you mean 'ddim'", *sample, "--sampler=dimm")
    one_line("did you mean 'karras'", *sample, "--grid=karas")
    one_line("is between the rows", *sample, "--grid=karras")
    one_line("evaluates between the rows", *sample, "--sampler=dpm_solver")
    one_line("num=0", *sample, "--num=0")
    one_line("no checkpoint of step 3", *sample, "--checkpoint=3")
    one_line("allowed is latest, best, or a step", *sample, "--checkpoint=newest")
    one_line("--out is missing", "sample", f"--workdir={run}")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_one_line(run, small, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = (copy / "config.json").read_text()
    one_line("of another model", "train", *small, f"--workdir={copy}", "--config.model.channels=16")
    assert (copy / "config.json").read_text() == before
    text = before.replace('"channels": 8', '"channels": 16')
    assert text != before
    (copy / "config.json").write_text(text)
    one_line("of another model", "sample", f"--workdir={copy}", f"--out={tmp_path / 'x'}")


def test_a_run_goes_on_with_its_own_meaning_only(run, small):
    """The arrays fit, but eps read as v would be noise."""
    before = (run / "config.json").read_text()
    one_line("prediction is eps there and v here", "train", *small, f"--workdir={run}", "--config.prediction=v")
    one_line("is at step 4 already", "train", *small, f"--workdir={run}", "--config.train.steps=3")
    one_line("sample.guidance=2 needs", "train", *small, f"--workdir={run}", "--config.data.num_classes=0")
    assert (run / "config.json").read_text() == before


def test_a_corrupt_image_is_one_line(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")
    data = (folder / "7.png").read_bytes()
    (folder / "7.png").write_bytes(data[: len(data) // 2])
    args = [*SMALL, "--config.data.name=image_folder", f"--config.data.path={folder}"]
    args += ["--config.data.num_classes=0", "--config.sample.guidance=1.0"]
    one_line("7.png", "train", *args, f"--workdir={tmp_path / 'run'}")


def test_a_path_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    one_line("file", "sample", f"--workdir={run}", "--num=2", "--steps=2", f"--out={tmp_path / 'file' / 'x'}")
