"""Executors: the same step on the same rows, however state and batch lie on the devices."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.build import model_of
from jaxdiff.errors import UsageError
from jaxdiff.models import presets
from jaxdiff.models.presets.spec import Spec
from jaxdiff.objectives import ConditionDropout, Denoising, Stratified
from jaxdiff.train import EMA, TrainState, make_train_step, parallel

SPECS = {
    "unet": Spec(
        "unet",
        {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "dropout": 0.1, "num_classes": 10},
        (8, 8, 1),
    ),
    "dit": Spec("dit", {"channels": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "num_classes": 10}, (8, 8, 1)),
}


def batch(step, rows=8):
    rng = np.random.default_rng(step)
    labels = rng.integers(0, 10, rows).astype(np.int32)
    return {"x0": rng.normal(size=(rows, 8, 8, 1)).astype(np.float32), "cond": {"label": labels}}


def make(name, accum):
    """(axis name -> step, the state it starts from) of a small network whose parameters are all random."""
    model = model_of(SPECS[name])
    objective = ConditionDropout(Denoising(Stratified()), 0.2, (("label", 10),))
    zeros = {"label": jnp.zeros(1, jnp.int32)}
    params = model.apply.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), cond=zeros)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [a + 0.02 * jax.random.normal(key, a.shape) for a, key in zip(leaves, keys, strict=True)]
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = TrainState.create(tree.unflatten(drawn), tx)
    built = partial(make_train_step, partial(objective, model), tx, {"ema": EMA(0.9)}, accum=accum)
    return lambda axis: built(axis_name=axis), state


@cache
def run(name, kind, *, fsdp=1, rows=128, accum=1):
    """The state after three steps, whole, and the last metrics."""
    build, state = make(name, accum)
    made = parallel.executor(build, state, kind=kind, fsdp=fsdp)
    laid = made.put_state(state)
    for i in range(3):
        laid, metrics = made.step(laid, made.put_batch(batch(i, rows)))
    return jax.device_get(made.take(laid)), made.scalars(metrics)


def toy():
    """(axis name -> a step, its state): enough where the numbers do not matter."""
    tx = optax.adam(1e-3)
    state = TrainState.create({"w": jnp.arange(512.0).reshape(16, 32), "b": jnp.ones(8), "g": jnp.ones(3)}, tx)

    def loss(params, batch, keys):
        return jnp.square(
            batch["x0"].mean(axis=(1, 2, 3)) * params["w"].mean() - params["b"].sum() * params["g"].sum()
        ), {}

    return lambda axis: make_train_step(loss, tx, {"ema": EMA(0.9)}, axis_name=axis), state


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def all_cut(monkeypatch):
    """Small leaves are cut as well, so that small networks are."""
    monkeypatch.setattr(parallel, "SMALL", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("dit", 128), ("unet", 48)])
def test_a_mesh_of_data_gives_the_bits_of_pmap(name, rows):
    same(run(name, "mesh", rows=rows), run(name, "pmap", rows=rows))


@pytest.mark.slow
def test_a_mesh_of_data_gives_the_bits_of_pmap_when_it_accumulates():
    same(run("dit", "mesh", accum=8), run("dit", "pmap", accum=8))


@pytest.mark.slow
def test_a_cut_state_gives_the_same_numbers(all_cut):
    ours = run("dit", "mesh", fsdp=4)
    chex.assert_trees_all_close(ours, run("dit", "pmap"), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_cut_state_gathers_parameters_and_leaves_activations_where_they_are(all_cut):
    """Moving activations about instead of parameters shows as permutations, and as memory."""
    build, state = make("dit", 1)
    used = {}
    for fsdp in (1, 8):
        made = parallel.executor(build, state, kind="mesh", fsdp=fsdp)
        compiled = made.step.lower(state, batch(0, 512)).compile()
        used[fsdp] = compiled.memory_analysis().temp_size_in_bytes
        assert "collective-permute" not in compiled.as_text()
    assert used[8] < 1.2 * used[1]


def test_accumulating_eight_times_sixteen_is_the_large_batch():
    chex.assert_trees_all_close(run("dit", "pmap", accum=8), run("dit", "pmap"), rtol=1e-6, atol=1e-6)


def test_state_bytes_of_a_device_are_their_share():
    spec = presets.get("dit_s_2")
    model = model_of(spec)
    zeros = {"label": jnp.zeros(1, jnp.int32)}

    def create():
        params = model.apply.init(jax.random.key(0), jnp.zeros((1, *spec.shape)), cond=zeros)
        return TrainState.create(params, optax.adam(1e-3))

    like = jax.eval_shape(create)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    assert whole > 4 * 4 * 30e6  # parameters, two moments, one average
    for fsdp in (1, 2, 8):
        made = parallel.executor(lambda axis: lambda state, batch: (state, {}), like, kind="mesh", fsdp=fsdp)
        laid = jax.tree.leaves(made.abstract(like))
        held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in laid)
        assert held == pytest.approx(whole / fsdp, rel=0.05)


def test_a_cut_state_takes_its_share_of_memory_and_keeps_it(all_cut):
    build, state = toy()
    made = parallel.executor(build, state, kind="mesh", fsdp=8)
    laid = made.put_state(state)
    for i in range(2):
        laid, _ = made.step(laid, made.put_batch(batch(i)))
    leaves = [leaf for leaf in jax.tree.leaves(laid) if any(size % 8 == 0 for size in leaf.shape)]
    assert len(leaves) == 8  # two parameters, their average and moments
    for leaf in leaves:
        assert [shard.data.nbytes for shard in leaf.addressable_shards] == [leaf.nbytes // 8] * 8


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((28, 1152, 4608), (None, None, "fsdp")),
        ((1152, 1152), (None, "fsdp")),
        ((3, 3, 1024, 512), (None, None, "fsdp")),
        ((1001, 1152), (None, "fsdp")),
        ((1001, 1001), ()),
        ((128, 8), ()),
        ((), ()),
    ],
)
def test_the_largest_dimension_that_divides_is_cut(shape, spec):
    laid = parallel.shardings(jax.ShapeDtypeStruct(shape, jnp.float32), parallel.grid(8))
    assert tuple(laid.spec) == spec


@pytest.mark.parametrize(("kind", "fsdp"), [("pmap", 1), ("mesh", 1), ("mesh", 4)])
def test_what_is_put_is_taken(all_cut, kind, fsdp):
    build, state = toy()
    before = jax.device_get(state)
    made = parallel.executor(build, state, kind=kind, fsdp=fsdp)
    laid = made.put_state(state)
    taken = made.take(laid)
    same(taken, before)
    for leaf, wanted in zip(jax.tree.leaves(taken), jax.tree.leaves(made.abstract(state)), strict=True):
        assert leaf.sharding == wanted.sharding
    again = made.put_state(taken)  # as a restored state is
    same(made.take(again), before)
    made.step(again, made.put_batch(batch(0)))
    same(taken, before)
    held = jax.tree.map(np.asarray, taken)
    made.step(laid, made.put_batch(batch(0)))
    same(held, before)  # what a checkpoint is still writing
    same(state, before)  # the step was given copies


@pytest.mark.parametrize(("kind", "fsdp"), [("pmap", 1), ("mesh", 4)])
def test_every_device_has_its_rows(kind, fsdp):
    build, state = toy()
    rows = parallel.executor(build, state, kind=kind, fsdp=fsdp).put_batch({"x": np.arange(16)})["x"]
    assert [np.ravel(shard.data).tolist() for shard in rows.addressable_shards] == [
        [2 * i, 2 * i + 1] for i in range(8)
    ]


@pytest.mark.parametrize(("kind", "fsdp"), [("pmap", 1), ("mesh", 1), ("mesh", 4)])
def test_three_steps_compile_once(all_cut, kind, fsdp):
    traces = []

    def build(axis):
        def step(state, batch):
            traces.append(0)
            return jax.tree.map(lambda a: a + 1, state), {"loss": batch["x0"].sum()}

        return step

    like = {"w": jnp.zeros((8, 16)), "n": jnp.zeros((), jnp.int32)}
    made = parallel.executor(build, like, kind=kind, fsdp=fsdp)
    state = made.put_state(like)
    for i in range(3):
        state, _ = made.step(state, made.put_batch(batch(i)))
    assert len(traces) == 1
    assert float(made.take(state)["w"][0, 0]) == 3


def test_what_cannot_work_is_one_line():
    build, state = toy()
    with pytest.raises(UsageError, match=r"unknown train.executor 'mash': did you mean 'mesh'\? allowed: mesh, pmap"):
        parallel.executor(build, state, kind="mash")
    for fsdp in (0, 3, 16):
        with pytest.raises(UsageError, match=rf"train.fsdp={fsdp}: allowed are divisors of the 8 devices"):
            parallel.executor(build, state, kind="mesh", fsdp=fsdp)
    with pytest.raises(UsageError, match=r"train.fsdp=2 needs train.executor='mesh'"):
        parallel.executor(build, state, fsdp=2)
    with pytest.raises(UsageError, match=r"batch_size=12 does not divide by 8 devices: use a multiple of 8"):
        parallel.check_batch(12)
    with pytest.raises(UsageError, match=r"use a multiple of 16"):
        parallel.check_batch(24, 2)
