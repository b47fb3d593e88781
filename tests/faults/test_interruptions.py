"""Runs that are killed, stopped, or out of disk, as processes of their own."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff.commands.sample import load_run

CONFIG = Path(__file__).parents[2] / "configs" / "digits.py"
STEPS = 60


@pytest.fixture(scope="module")
def command(tfds_dir, tmp_path_factory):
    """A function: workdir -> the training command and its environment; compilations are shared by all runs."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    overrides = {
        "model.channels": 8,
        "model.channel_mult": "(1,)",
        "model.dropout": 0.1,
        "train.steps": STEPS,
        "train.batch_size": 16,
        "train.log_every": 1,
        "train.checkpoint_every": 7,
        "train.eval_every": 20,
        "train.sample_every": 0,
        "data.data_dir": str(tfds_dir),
        "data.transforms": "('flip',)",
    }

    def build(workdir):
        flags = [f"--config.{key}={value}" for key, value in overrides.items()]
        base = [sys.executable, "-m", "jaxdiff", "train", f"--config={CONFIG}", f"--workdir={workdir}"]
        return {"args": [*base, *flags], "env": environment, "text": True}

    return build


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(command(workdir))
    return workdir


def finish(spec):
    done = subprocess.run(**spec, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def same_end(workdir, whole):
    for a, b in zip(*(jax.tree.leaves(load_run(w)[2]) for w in (workdir, whole)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(workdir) == losses(whole)
    assert losses(workdir)[-2]["step"] == STEPS


def reached(workdir):
    try:
        return losses(workdir)[-1]["step"]
    except (OSError, IndexError, json.JSONDecodeError):
        return 0


def start_until(command, workdir, step):
    process = subprocess.Popen(**command(workdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while reached(workdir) < step and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, process.stdout.read()
    return process


def test_killed_and_run_again_ends_bit_for_bit_the_same(command, whole, tmp_path):
    moments = random.Random(0)
    for step in (moments.randint(8, 25), moments.randint(30, 50)):
        process = start_until(command, tmp_path, step)
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5')  # what a kill in the middle of a line leaves
    done = finish(command(tmp_path))
    assert "going on from step" in done.stdout
    same_end(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_saves_that_step_and_goes_on(command, whole, tmp_path, number):
    process = start_until(command, tmp_path, 10)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = reached(tmp_path)
    assert f"{number.name} at step {step}: saved; run the same command to go on" in out
    assert str(step) in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert "Traceback" not in out
    finish(command(tmp_path))
    same_end(tmp_path, whole)


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(command, tmp_path):
    process = start_until(command, tmp_path, 10)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    spec = command(tmp_path)
    # With a cache of compiled programs, which cannot be written either and says nothing of it.
    given = {k: v for k, v in spec["env"].items() if not k.startswith("JAX_")}
    spec["env"] = {**given, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(**spec, capture_output=True, preexec_fn=little_room)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("jaxdiff: ")
    assert done.stderr.count("\n") == 1, done.stderr
    _, _, params = load_run(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert set(before) <= {path.name for path in (tmp_path / "checkpoints").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_with_workers_still_saves(command, tmp_path, number):
    spec = command(tmp_path)
    spec["args"] = [*spec["args"], "--config.data.workers=1"]
    process = subprocess.Popen(**spec, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while reached(tmp_path) < 10 and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, out
    assert f"{number.name} at step {reached(tmp_path)}: saved" in out
