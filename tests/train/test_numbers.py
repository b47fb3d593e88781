"""Numbers of training as a whole: parts of a batch against the batch, and averages kept side by side in one run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import processes
from jaxdiff.model import Model
from jaxdiff.models import MLP, Network
from jaxdiff.objectives import Denoising, Stratified
from jaxdiff.prediction import EPS
from jaxdiff.train import EMA, TrainState, make_train_step
from jaxdiff.train.ema import PowerEMA
from jaxdiff.train.optimizers import make
from jaxdiff.train.paths import named
from jaxdiff.train.posthoc import reconstruct, weights

pytestmark = pytest.mark.usefixtures("quick_compile")


def setting(module, shape, batch):
    """A loss, parameters off their zero initialisers, and a batch."""
    net, rng = Network(module), np.random.default_rng(0)
    params = net.init(jax.random.key(0), jnp.zeros((1, *shape)))
    params = jax.tree.map(lambda a: a + jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype), params)
    data = {"x0": jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32), "cond": {}}
    return partial(Denoising(Stratified()), Model(net, processes.vp_sde(), EPS)), params, data


def distance(one, other):
    """The largest difference over the leaves, each relative to the leaf's largest value."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.float64(a) - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("tx", [optax.sgd(1.0), make("adamw", learning_rate=1e-3, steps=9, clip=1.0)])
def test_eight_parts_of_sixteen_are_a_batch_of_128(tx):
    loss, params, data = setting(MLP(features=32, num_blocks=1, dropout=0.1), (8,), 128)

    def train(accum):
        step = jax.jit(make_train_step(loss, tx, {"ema": EMA(0.5)}, accum=accum))
        state = TrainState.create(params, tx)
        for _ in range(2):
            state, metrics = step(state, data)
        return state, metrics

    (parted, metrics), (whole, expected) = train(8), train(1)
    found = {name: distance(getattr(parted, name), getattr(whole, name)) for name in ("params", "ema")}
    assert max(found.values()) < 1e-6
    for name in ("loss", "grad_norm"):
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-6)


def test_averages_side_by_side_make_a_third_that_was_tracked_too():
    steps, every, kept, target = 256, 8, (0.05, 0.10), 0.15
    loss, params, data = setting(MLP(features=16, num_blocks=1), (2,), 32)
    rules = {str(width): PowerEMA(width) for width in (*kept, target)}
    tx = make("adam", learning_rate=1e-2, steps=steps)
    step = jax.jit(make_train_step(loss, tx, rules))
    state, stored = TrainState.create(params, tx, tuple(rules)), []
    for n in range(1, steps + 1):
        state, _ = step(state, data)
        if n % every == 0:
            stored += [(n, width, jax.device_get(state.ema[str(width)])) for width in kept]
    times, widths, trees = zip(*stored, strict=True)
    made = reconstruct(trees, weights(times, widths, steps, target))
    wanted, near, last = (named(tree) for tree in (state.ema[str(target)], state.ema[str(kept[1])], state.params))
    learned = {path for path in wanted if not np.array_equal(named(params)[path], last[path])}
    assert len(learned) > 5
    for path, leaf in named(made).items():
        if path in learned:
            error, change = (np.linalg.norm(other - wanted[path]) for other in (leaf, near[path]))
            assert error < 0.02 * change, path
