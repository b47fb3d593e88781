"""Checkpoints whose files are damaged: what is restored is what was saved, or the step before, and it is said.

`python -m pytest -m slow -s tests/faults/test_damage.py` flips bits until 100 were caught and prints what it saw.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.train import TrainState
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.paths import named

STEPS = (1, 2)


def state(step):
    keys = jax.random.split(jax.random.key(step), 3)
    shapes = {"conv": (3, 3, 4, 16), "dense": (16, 8), "bias": (8,)}
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    return TrainState.create(params, optax.adam(1e-3)).replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    checkpoints = Checkpoints(folder)
    for step in STEPS:
        checkpoints.save(step, state(step), eval_loss=1 / step)
    checkpoints.close()
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "c")
    return tmp_path / "c"


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def outcome(folder):
    """ "harmless" when step 2 comes back bit for bit, else what was said when step 1 did; all else is an error."""
    said = []
    restored = Checkpoints(folder, read_only=True, say=said.append).restore(jax.eval_shape(lambda: state(0)))
    if not said:
        assert equal(restored, state(2)), "restored silently, and wrong"
        return "harmless"
    assert equal(restored, state(1))
    assert len(said) == 1
    assert "\n" not in said[0]
    assert said[0].startswith(f"checkpoint 2 in {folder} is damaged: ")
    assert said[0].endswith("; going back to step 1")
    return said[0].removeprefix(f"checkpoint 2 in {folder} is damaged: ").removesuffix("; going back to step 1")


def files(folder, step=2):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file() and path.stat().st_size)


def flip(path, bit):
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def flips(folder, choose):
    """Flip one bit after the other, each in whole files; yields the file's name and the outcome."""
    while True:
        path, bit = choose()
        before = path.read_bytes()
        flip(path, bit)
        yield path.relative_to(folder / "2").parts[0], outcome(folder)
        path.write_bytes(before)


def test_flipped_bits_are_caught_or_harmless(copy):
    """One in every file, then ten anywhere."""
    draw = random.Random(0)
    there = files(copy)
    queue = [*there, *draw.choices(there, [path.stat().st_size for path in there], k=10)]
    chosen = iter([(path, draw.randrange(8 * path.stat().st_size)) for path in queue])
    seen = Counter(
        result == "harmless" for _, (_, result) in zip(queue, flips(copy, lambda: next(chosen)), strict=False)
    )
    assert seen[False] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("by", ["byte", "file"])
def test_a_hundred_flipped_bits_are_caught(copy, by):
    """Every byte alike, where most hit arrays; and every file alike, where most hit what describes them."""
    draw = random.Random(1)
    there = files(copy)
    weights = [path.stat().st_size if by == "byte" else 1 for path in there]

    def choose():
        (path,) = draw.choices(there, weights)
        return path, draw.randrange(8 * path.stat().st_size)

    seen, caught = Counter(), 0
    for name, result in flips(copy, choose):
        seen[name, "harmless" if result == "harmless" else "caught"] += 1
        caught += result != "harmless"
        if caught == 100:
            break
    print(f"\nflipped bits, by {by}: {sum(seen.values())} flips, {caught} caught, none restored wrongly; {dict(seen)}")


@pytest.mark.parametrize("damage", ["empty", "half", "deleted"])
def test_files_cut_short_or_missing(copy, damage):
    """Every file in turn: named, or not needed."""
    told = {}
    for path in files(copy):
        before = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(before[: len(before) // 2 if damage == "half" else 0])
        told[path.relative_to(copy).as_posix()] = outcome(copy)
        path.write_bytes(before)
    assert outcome(copy) == "harmless"
    arrays = tuple(named(state(0)))
    for name, text in told.items():
        assert text == "harmless" or name in text or text.startswith((*arrays, "2/state/_METADATA or array_metadatas"))
    assert told["2/record/record.json"] != "harmless"
    assert sum(text != "harmless" for text in told.values()) >= 4


@pytest.mark.parametrize("part", ["", "state", "record", "state/d", "state/manifest.ocdbt", "record/record.json"])
def test_files_of_two_steps_that_changed_places(copy, part):
    """The state is then another step's, whole in itself: only its record tells. Whole folders: neither is good."""
    one, other = copy / "1" / part, copy / "2" / part
    one.rename(copy / "between")
    other.rename(one)
    (copy / "between").rename(other)
    with pytest.raises(UsageError, match=r"no good checkpoint in .*: 2: .*; 1: ") as error:
        outcome(copy)
    assert "\n" not in str(error.value)


def test_leaves_that_changed_places(copy, monkeypatch):
    """Equal in shape: the parameters as the average."""
    load = Checkpoints._load

    def swapped(self, step, want):
        found = load(self, step, want)
        if step == 2:
            found["ema/ema/conv"], found["opt_state/0/mu/conv"] = found["opt_state/0/mu/conv"], found["ema/ema/conv"]
        return found

    monkeypatch.setattr(Checkpoints, "_load", swapped)
    assert outcome(copy) == "opt_state/0/mu/conv is not as it was saved (and 1 more)"


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from pathlib import Path
port, index, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from jaxdiff.train.checkpoint import Checkpoints
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
def state(step):
    value = np.random.default_rng(step).normal(size=(8, 1000)).astype(np.float32)
    def put(spec): return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda i: value[i])
    return {"sharded": put(P("data")), "whole": put(P())}
said = []
checkpoints = Checkpoints(folder, keep=3, say=said.append)
for step in (1, 2, 3):
    checkpoints.save(step, state(step), eval_loss=float(step))
    checkpoints.check()
checkpoints.wait()
if index == 0:
    for path in (*(folder / "3/state").rglob("d/*"), *(folder / "2/state/ocdbt.process_1").rglob("d/*")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
jax.experimental.multihost_utils.sync_global_devices("damaged")
restored = checkpoints.restore(state(0))
assert restored["sharded"].sharding == state(0)["sharded"].sharding
for name, a in state(1).items():
    for x, y in zip(a.addressable_shards, restored[name].addressable_shards):
        np.testing.assert_array_equal(x.data, y.data)
checkpoints.save(4, state(4))
checkpoints.close()
print("RESULT", checkpoints.steps, *said, sep="|")
"""


def test_two_processes_go_back_to_the_same_step(tmp_path):
    """Global arrays, sharded and replicated; files damaged that both processes read, or only one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", PROCESS, str(port)]
    # Files, because a pipe that nobody reads fills up.
    logs = [tmp_path / f"{index}.txt" for index in range(2)]
    made = []
    try:
        for index, log in enumerate(logs):
            with log.open("w") as file:
                spec = {"env": environment, "stdout": file, "stderr": subprocess.STDOUT}
                made.append(subprocess.Popen([*command, str(index), str(tmp_path / "c")], **spec))
        for process in made:
            process.wait(timeout=100)
    finally:
        for process in made:
            process.kill()
    texts = [log.read_text() for log in logs]
    results = [[line for line in text.splitlines() if line.startswith("RESULT")] for text in texts]
    assert results[1] == ["RESULT|[1, 4]"], texts[1]
    steps, *said = results[0][0].split("|")[1:]
    assert steps == "[1, 4]"
    starts = [f"checkpoint {step} in {tmp_path / 'c'} is damaged: " for step in (3, 2)]
    assert [line.startswith(start) for line, start in zip(said, starts, strict=True)] == [True, True]
    assert '"2/state/": ' in said[1]
    assert all(line.endswith("; going back to step 1") for line in said)
