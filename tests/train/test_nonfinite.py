"""Steps whose loss or gradient is not finite: skipped on all devices alike, counted, otherwise as if never there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.train import EMA, TrainState, make_train_step, parallel

STEPS, BAD, ROWS, DEVICES = 2000, 1000, 16, 8


def loss(params, batch, keys):
    """Regression with noise of its own for each example, so that a step knows its number."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    error = jnp.tanh((batch["x0"] + noise) @ params["w"]) @ params["v"] - batch["x0"][:, :2]
    return (error**2).sum(-1), {}


def parts():
    keys = jax.random.split(jax.random.key(0))
    params = {"w": jax.random.normal(keys[0], (4, 8)), "v": jax.random.normal(keys[1], (8, 2))}
    # Both the schedule and Adam count their own steps.
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    return TrainState.create(params, tx), tx, {"ema": EMA(0.99)}


def poisoned():
    """Batches [STEPS, ROWS, 4], of which BAD have one number, of one device, that is not finite; and which."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(STEPS, ROWS, 4)).astype(np.float32)
    bad = np.sort(rng.choice(STEPS, BAD, replace=False))
    rows[bad, rng.integers(0, ROWS, BAD), rng.integers(0, 4, BAD)] = rng.choice([np.nan, np.inf, -np.inf], BAD)
    return rows, bad


def test_a_thousand_steps_that_are_not_finite_leave_no_trace():
    state, tx, ema = parts()
    rows, bad = poisoned()
    step = make_train_step(loss, tx, ema, axis_name=parallel.AXIS)

    def keep(state, batch):
        state, metrics = step(state, {"x0": batch})
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
        return state, (metrics, finite)

    def renumbered(state, numbered):
        number, batch = numbered
        return step(state.replace(step=number), {"x0": batch})[0], None

    def over(body, *in_axes):
        return jax.pmap(lambda s, xs: jax.lax.scan(body, s, xs), axis_name=parallel.AXIS, in_axes=(0, *in_axes))

    shares = rows.reshape(STEPS, DEVICES, ROWS // DEVICES, 4).swapaxes(0, 1)
    end, (metrics, finite) = over(keep, 0)(parallel.replicate(state), shares)
    assert np.asarray(finite).all()
    for leaf in jax.tree.leaves((end, metrics)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    assert int(end.step[0]) == STEPS
    is_bad = np.isin(np.arange(STEPS), bad)
    np.testing.assert_array_equal(metrics["skipped"][0], np.cumsum(is_bad))
    np.testing.assert_array_equal(np.isfinite(metrics["loss"][0]) & np.isfinite(metrics["grad_norm"][0]), ~is_bad)
    in_a_row = STEPS - 1 - np.flatnonzero(~is_bad)[-1]
    assert end.skipped[0].tolist() == [BAD, in_a_row]

    good = np.flatnonzero(~is_bad).astype(np.int32)
    alone, _ = over(renumbered, (None, 0))(parallel.replicate(state), (good, shares[:, good]))
    for a, b in zip(
        jax.tree.leaves((end.params, end.opt_state, end.ema)),
        jax.tree.leaves((alone.params, alone.opt_state, alone.ema)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too():
    tx = optax.sgd(0.1)
    state = TrainState.create({"w": jnp.zeros(1)}, tx)
    step = jax.jit(make_train_step(lambda p, b, k: (jnp.sqrt(jnp.abs(p["w"] * b["x0"][:, 0])), {}), tx, {"ema": EMA()}))
    new, metrics = step(state, {"x0": jnp.ones((2, 1))})
    assert float(metrics["loss"]) == 0
    assert not np.isfinite(metrics["grad_norm"])
    assert new.params["w"].tolist() == new.ema["ema"]["w"].tolist() == [0.0]
    assert new.skipped.tolist() == [1, 1]
    again, _ = step(new.replace(params={"w": jnp.ones(1)}), {"x0": jnp.ones((2, 1))})
    assert again.skipped.tolist() == [1, 0]
    assert again.params["w"].tolist() == [0.949999988079071]
