"""The training step: its numbers do not depend on devices or on how a batch is cut, and each rule is its formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, ScaledTime
from jaxdiff.objectives import ConditionDropout, Denoising, Stratified
from jaxdiff.prediction import EPS, V
from jaxdiff.train import EMA, TrainState, make_train_step, parallel

BATCH = 16


def network(params, x, t, cond, *, train=False, rngs=None):
    """A small network that uses everything: time, labels, and per-example dropout keys."""
    h = jnp.tanh(x @ params["w"] + t[:, None] * params["u"][None] + params["label"][cond["label"]])
    if train:
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.8, h.shape[1:]))(rngs["dropout"])
        h = jnp.where(keep, h / 0.8, 0.0)
    return h @ params["v"]


def parts(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"w": (3, 8), "u": (8,), "label": (6, 8), "v": (8, 3)}
    params = {name: jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}
    model = Model(network, processes.ddpm_linear(), EPS, time_input=ScaledTime(1.0))
    objective = ConditionDropout(Denoising(Stratified()), 0.2, (("label", 5),))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    return params, tx, lambda p, batch, k: objective(model, p, batch, k)


def batch(step=0):
    rng = np.random.default_rng(step)
    labels = rng.integers(0, 5, BATCH).astype(np.int32)
    return {"x0": rng.normal(size=(BATCH, 3)).astype(np.float32), "cond": {"label": labels}}


def run(steps=3, *, seed=0, **kwargs):
    params, tx, loss = parts()
    state = TrainState.create(params, tx)
    step = jax.jit(make_train_step(loss, tx, {"ema": EMA(0.9)}, seed=seed, **kwargs))
    for i in range(steps):
        state, metrics = step(state, batch(i))
    return state, metrics


def assert_close(a, b, tolerance):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


def test_eight_devices_agree_with_one():
    assert jax.local_device_count() == 8
    params, tx, loss = parts()
    state = parallel.replicate(TrainState.create(params, tx))
    step = parallel.pmap_step(make_train_step(loss, tx, {"ema": EMA(0.9)}, axis_name=parallel.AXIS))
    for i in range(3):
        state, metrics = step(state, parallel.shard(batch(i)))
    for leaf in jax.tree.leaves(state):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    alone, expected = run()
    assert_close(parallel.unreplicate(state), alone, 2e-6)
    assert_close({name: value[0] for name, value in metrics.items()}, expected, 2e-6)


def test_the_second_step_does_not_compile_again():
    traces = []
    params, tx, loss = parts()

    def counted(*args):
        traces.append(0)
        return loss(*args)

    step = parallel.pmap_step(make_train_step(counted, tx, {"ema": EMA(0.9)}, axis_name=parallel.AXIS))
    state = parallel.replicate(TrainState.create(params, tx))
    sharding = jax.tree.leaves(state)[0].sharding
    for i in range(3):
        state, _ = step(state, parallel.shard(batch(i)))
    assert len(traces) == 1
    assert jax.tree.leaves(state)[0].sharding == sharding


def test_accumulation_equals_the_large_batch():
    assert_close(run(accum=4)[0], run()[0], 2e-6)


def test_the_step_is_the_only_clock():
    _, tx, loss = parts()
    step = jax.jit(make_train_step(loss, tx, {"ema": EMA(0.9)}))
    whole, _ = run(3)
    half, _ = run(2)
    resumed, _ = step(jax.tree.map(jnp.array, jax.device_get(half)), batch(2))
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_seed_changes_the_noise():
    assert float(run(1, seed=1)[1]["loss"]) != float(run(1)[1]["loss"])


def test_ema_is_its_formula():
    values = [jnp.float32(v) for v in (1.0, -2.0, 0.5, 3.0)]
    for rule, decays in (
        (EMA(0.9), [min(0.9, (1 + n) / (10 + n)) for n in range(1, 5)]),
        (EMA(0.3), [2 / 11, 3 / 12, 0.3, 0.3]),
        (EMA(0.5, warmup=False), [0.5] * 4),
    ):
        average, expected = jnp.float32(7.0), 7.0
        for n, (value, decay) in enumerate(zip(values, decays, strict=True), 1):
            average = rule.update(average, value, jnp.int32(n))
            expected = decay * expected + (1 - decay) * float(value)
        assert float(average) == pytest.approx(expected, rel=1e-6)


def test_the_step_updates_its_average_after_the_parameters():
    params, tx, loss = parts()
    state, _ = jax.jit(make_train_step(loss, tx, {"ema": EMA(0.9)}))(TrainState.create(params, tx), batch())
    expected = jax.tree.map(lambda old, new: 2 / 11 * old + 9 / 11 * new, params, state.params)
    assert_close(state.ema["ema"], expected, 1e-6)
    assert int(state.step) == 1


def test_gradient_in_a_linear_model_is_the_closed_form(x64):
    """For v-prediction by y = w x, the expected gradient at w is 2 E[x (w x - v)] over the drawn noise."""

    def linear(params, x, t, cond, *, train=False, rngs=None):
        return params * x

    seen = {}

    class Recorded(Stratified):
        def __call__(self, process, keys, strata=None):
            level = super().__call__(process, keys, strata)
            seen["level"] = level
            return level

    model = Model(linear, processes.vp_sde(), V)
    objective = Denoising(Recorded())
    data = {"x0": jax.random.normal(jax.random.key(0), (64, 1))}
    keys = jax.random.split(jax.random.key(1), 64)
    w = jnp.float64(0.3)
    gradient = jax.grad(lambda w: objective(model, w, data, keys)[0].mean())(w)
    objective(model, w, data, keys)
    noise_keys = jax.vmap(lambda k: jax.random.split(k, 3)[1])(keys)
    eps = jax.vmap(lambda k: jax.random.normal(k, (1,)))(noise_keys)
    alpha, sigma = seen["level"].alpha[:, None], seen["level"].sigma[:, None]
    x = alpha * data["x0"] + sigma * eps
    expected = jnp.mean(2 * x * (w * x - (alpha * eps - sigma * data["x0"])))
    assert float(gradient) == pytest.approx(float(expected), rel=1e-9)


def test_bad_batches_are_one_line():
    with pytest.raises(UsageError, match=r"accum=3"):
        run(1, accum=3)
    with pytest.raises(UsageError, match=r"ema decay=1"):
        EMA(1.0)
