"""The training command as several processes: the numbers of one, one end for all, and one resumption from another."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff.commands.sample import load_run
from jaxdiff.train.logging import read_metrics

CONFIG = Path(__file__).parents[2] / "configs" / "digits.py"
STEPS = 12


@pytest.fixture(scope="module")
def launch(tfds_dir, tmp_path_factory):
    """A function: workdir -> the running processes of one training run, compilations shared."""
    cache = tmp_path_factory.mktemp("cache")
    values = {
        "model.channels": 8, "model.channel_mult": "(1,)", "train.steps": STEPS, "train.batch_size": 16,
        "train.log_every": 1, "train.checkpoint_every": 4, "train.eval_every": 4, "train.sample_every": 0,
        "optimizer.schedule": "constant",
        "data.data_dir": str(tfds_dir),
    }  # fmt: skip
    started = []

    def start(workdir, processes=1, devices=2, **changed):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        given = {
            **os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        flags = [f"--config.{key}={value}" for key, value in {**values, **changed}.items()]
        made = []
        for i in range(processes):
            several = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={i}"]
            command = [sys.executable, "-m", "jaxdiff", "train", f"--config={CONFIG}", f"--workdir={workdir}", *flags]
            made.append(
                subprocess.Popen(
                    command + several * (processes > 1), env=given, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        started.extend(made)
        return made

    yield start
    for process in started:
        process.kill()
        process.wait()


def ends(processes, code=0):
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), "\n".join(said)
    return said


def numbers(workdir):
    found = {}
    for step, values in read_metrics(workdir / "metrics.jsonl"):
        found.setdefault(step, {}).update(values)
    return {step: {k: v for k, v in values.items() if k != "steps_per_second"} for step, values in found.items()}


def same(a, b):
    assert numbers(a) == numbers(b)
    assert sorted(numbers(a)) == list(range(1, STEPS + 1))
    for x, y in zip(*(jax.tree.leaves(load_run(w)[2]) for w in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """One process with two devices, uninterrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    ends(launch(workdir))
    return workdir


@pytest.mark.slow
def test_two_processes_stopped_in_one_and_gone_on_with_as_one_give_the_numbers_of_one(launch, whole, tmp_path):
    two = launch(tmp_path, processes=2, devices=1)
    for line in two[0].stdout:
        if line.startswith("step 5/"):
            break
    two[1].send_signal(signal.SIGTERM)
    said = ends(two, 128 + signal.SIGTERM)
    assert "saved; run the same command to go on" in said[0]
    assert said[1] == "" or "step" not in said[1]  # of several processes the first one tells
    stopped = max(numbers(tmp_path))
    assert 5 <= stopped < STEPS
    ends(launch(tmp_path))
    same(tmp_path, whole)


@pytest.mark.slow
def test_mesh_gives_the_numbers_of_pmap_and_goes_on_where_it_stopped(launch, whole, tmp_path):
    ends(launch(tmp_path, **{"train.steps": 8, "train.executor": "mesh"}))
    ends(launch(tmp_path))
    same(tmp_path, whole)


@pytest.mark.slow
def test_a_state_spread_over_processes_trains_and_is_evaluated(launch, tmp_path):
    wide = {"model.channels": 64, "train.steps": 4}  # wide enough for kernels to be cut
    ends(launch(tmp_path / "whole", **wide))
    ends(launch(tmp_path / "spread", processes=2, devices=1, **wide, **{"train.executor": "mesh", "train.fsdp": 2}))
    ours, theirs = numbers(tmp_path / "spread"), numbers(tmp_path / "whole")
    for step in theirs:
        for name, value in theirs[step].items():
            assert ours[step][name] == pytest.approx(value, rel=1e-4), (step, name)
