"""Several processes on one machine: the numbers of one process, and one end for all when one fails."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.train import distributed

WORKER = '''
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxdiff.errors import UsageError
from jaxdiff.train import EMA, TrainState, distributed, make_train_step, parallel

WIDTH, ROWS = 128, 32


def loss(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)
    return ((jnp.tanh((batch["x0"] + noise) @ params["w"]) @ params["v"] - noise) ** 2).sum(-1), {}


def rows(step):
    share = ROWS // jax.process_count()
    whole = np.random.default_rng(step).normal(size=(ROWS, WIDTH)).astype(np.float32)
    return {"x0": whole[jax.process_index() * share :][:share]}


def executor(kind="pmap", fsdp=1):
    """(an executor, the state laid out for it)."""
    keys = jax.random.split(jax.random.key(0))
    params = {name: 0.1 * jax.random.normal(key, (WIDTH, WIDTH)) for name, key in zip("wv", keys)}
    tx = optax.adam(1e-3)
    state = TrainState.create(params, tx)
    build = lambda axis: make_train_step(loss, tx, {"ema": EMA(0.9)}, axis_name=axis)
    made = parallel.executor(build, state, kind=kind, fsdp=fsdp)
    return made, made.put_state(state)


def trains(out):
    """Four steps of every kind; this process's arrays go to a file."""
    found = {}
    for kind, fsdp in (("pmap", 1), ("mesh", 1), ("mesh", 8)):
        made, state = executor(kind, fsdp)
        for step in range(4):
            state, metrics = made.step(state, made.put_batch(rows(step)))
        taken = made.take(state)
        several = jax.process_count() > 1
        whole = multihost_utils.process_allgather(taken, tiled=True) if several else jax.device_get(taken)
        found |= {f"{kind}-{fsdp}-{i}": leaf for i, leaf in enumerate(jax.tree.leaves(whole))}
        found[f"{kind}-{fsdp}-loss"] = made.scalars(metrics)["loss"]
    np.savez(out, **found)


def fails(how, here):
    """Steps without end, until this process fails if it is the one."""
    made, state = executor()
    with distributed.Watchdog(3 if how == "stuck" else 0) as watchdog:
        for step in range(1_000_000):
            if here and step == 5:
                if how == "raises":
                    raise RuntimeError("a fault of this process")
                if how == "usage":
                    raise UsageError("x=1: allowed is 2")
                if how == "stuck":
                    time.sleep(1000)
            if how == "usage" and step == 5:
                time.sleep(1000)  # in no collective, whose broken connection would tell
            state, metrics = made.step(state, made.put_batch(rows(step)))
            loss = made.scalars(metrics)["loss"]
            watchdog.beat()
            print(step, loss, flush=True)


def main(what, out, address, processes, process, heartbeat, failing):
    if address == "detected":
        distributed.start(heartbeat=int(heartbeat))
    elif address:
        distributed.start(address, int(processes), int(process), int(heartbeat))
    print(f"process {jax.process_index()} of {jax.process_count()}", flush=True)
    with distributed.ends_all():
        trains(f"{out}_{process}.npz") if what == "trains" else fails(what, process == failing)


main(*sys.argv[1:])
'''


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def launch(tmp_path):
    """A function that starts processes and gives them back; they end with the test."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    started = []

    def start(what, processes, devices, *, heartbeat=100, failing=-1, address=None, env=()):
        address = f"127.0.0.1:{free_port()}" if address is None else address
        for i in range(processes):
            flags = [what, tmp_path / f"out{devices}", address, processes, i, heartbeat, failing]
            given = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
            given |= {name: value.format(i) for name, value in dict(env).items()}
            log = (tmp_path / f"log{devices}_{i}").open("w+")
            command = [sys.executable, script, *map(str, flags)]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=given)
            process.log = tmp_path / f"log{devices}_{i}"
            started.append(process)
        return started[-processes:]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until_all_step(processes, step=4):
    """Wait until every process has printed a step."""
    deadline = time.monotonic() + 60
    while not all(f"\n{step} " in f"\n{process.log.read_text()}" for process in processes):
        assert time.monotonic() < deadline, [process.log.read_text() for process in processes]
        time.sleep(0.02)


def seconds_to_end(processes, limit=60):
    begin = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        for process in processes:
            process.wait(max(begin + limit - time.monotonic(), 0.1))
    assert all(process.poll() is not None for process in processes), [process.log.read_text() for process in processes]
    return time.monotonic() - begin


def results(tmp_path, devices, process):
    with np.load(tmp_path / f"out{devices}_{process}.npz") as file:
        return {name: file[name] for name in file.files}


def test_two_processes_of_four_devices_are_one_of_eight(launch, tmp_path):
    """Bit for bit; where XLA divides a step over devices, it is XLA that sums, in an order that knows processes."""
    running = [*launch("trains", 2, 4), *launch("trains", 1, 8, address="")]
    seconds_to_end(running, 120)
    assert [process.returncode for process in running] == [0, 0, 0], [process.log.read_text() for process in running]
    expected = results(tmp_path, 8, 0)
    assert len(expected) > 30
    for process in range(2):
        for name, value in results(tmp_path, 4, process).items():
            if name.startswith("mesh-8"):
                np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)
            else:
                np.testing.assert_array_equal(value, expected[name], name)
            if not name.startswith("mesh-8"):
                np.testing.assert_array_equal(value, expected[name.replace("mesh-1", "pmap-1")], name)


def test_slurms_variables_are_found(launch, tmp_path):
    variables = {
        "SLURM_JOB_ID": str(free_port()),  # decides the port
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "{}",
        "SLURM_LOCALID": "{}",
        "SLURM_STEP_NUM_NODES": "1",
    }
    running = launch("raises", 2, 1, address="detected", env=variables)
    until_all_step(running, 0)
    for i, process in enumerate(running):
        assert f"process {i} of 2\n" in process.log.read_text()


@pytest.mark.parametrize(
    ("what", "failing", "code"),
    [("raises", 1, 1), pytest.param("raises", 0, 1, marks=pytest.mark.slow), ("usage", 1, 2)],
)
def test_an_exception_in_one_process_ends_all(launch, what, failing, code):
    running = launch(what, 2, 1, failing=failing)
    until_all_step(running)
    assert seconds_to_end(running) < 5
    text = running[failing].log.read_text()
    assert running[failing].returncode == code
    assert running[1 - failing].returncode not in (0, None)
    if what == "usage":
        assert running[1 - failing].returncode == distributed.ENDED
        assert "jaxdiff: x=1: allowed is 2\n" in text
        assert "Traceback" not in text
    else:
        assert "RuntimeError: a fault of this process" in text


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_others(launch, killed):
    running = launch("killed", 2, 1, heartbeat=5)
    until_all_step(running)
    running[killed].send_signal(signal.SIGKILL)
    assert seconds_to_end(running) < 5 + 5
    assert running[1 - killed].returncode not in (0, None)


@pytest.mark.slow
def test_a_stopped_process_counts_as_dead(launch):
    """SIGSTOP leaves the connections open: only the heartbeat tells."""
    running = launch("killed", 2, 1, heartbeat=5)
    until_all_step(running)
    running[1].send_signal(signal.SIGSTOP)
    assert seconds_to_end(running[:1]) < 5 + 5
    assert running[0].returncode not in (0, None)


@pytest.mark.slow
def test_a_stuck_step_ends_all_and_says_where(launch):
    running = launch("stuck", 2, 1, failing=1)
    until_all_step(running)
    assert seconds_to_end(running) < 3 + 5
    assert {process.returncode for process in running} <= {distributed.STUCK, distributed.ENDED}
    assert distributed.STUCK in {process.returncode for process in running}
    text = "".join(process.log.read_text() for process in running)
    assert "jaxdiff: no step for 3 s" in text
    assert "worker.py" in text


def test_the_coordinator_listens_on_the_given_address_alone(launch):
    port = free_port()
    running = launch("killed", 2, 1, address=f"127.0.0.1:{port}")
    until_all_step(running, 0)
    with open(f"/proc/{running[0].pid}/net/tcp") as four, open(f"/proc/{running[0].pid}/net/tcp6") as six:
        lines = [line.split() for line in [*four, *six]]
    listening = [line[1] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "0A"]
    assert listening, lines
    for address in listening:
        assert address.partition(":")[0].endswith("0100007F"), address


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"coordinator": "127.0.0.1:1234"},
            "num_processes is missing: give coordinator, num_processes and process_id, or none",
        ),
        ({"coordinator": "127.0.0.1:1234", "num_processes": 2}, "process_id is missing"),
        ({"process_id": 0}, "coordinator is missing"),
        ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "coordinator=here: need host:port"),
        ({"coordinator": "here:99999", "num_processes": 2, "process_id": 0}, "coordinator=here:99999: need host:port"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "process_id=2: allowed is 0 to 1"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": -2}, "process_id=-2: allowed is 0 to 1"),
        ({"coordinator": "h:1", "num_processes": -1, "process_id": 0}, "num_processes=-1: allowed is 1 or more"),
        ({"heartbeat": 0}, "train.heartbeat=0: allowed is 1 second or more"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(arguments, message):
    with pytest.raises(UsageError) as caught:
        distributed.start(**arguments)
    assert str(caught.value).startswith(message)


def test_where_jax_is_in_use_already_nothing_happens():
    assert np.sum(jax.numpy.ones(2)) == 2
    distributed.start()
    assert jax.process_count() == 1
    with pytest.raises(RuntimeError, match="mine"), distributed.ends_all():
        raise RuntimeError("mine")


def test_watchdogs_that_are_off_or_fed_do_nothing():
    with distributed.Watchdog(0) as off, distributed.Watchdog(0.2) as fed, distributed.Watchdog(0.1):
        off.beat()
        for _ in range(10):
            fed.beat()
            time.sleep(0.05)
    with pytest.raises(UsageError, match=r"train.watchdog=-1: allowed is 0 \(off\) or more seconds"):
        distributed.Watchdog(-1)
