"""Rows drawn by their losses: the paper's probabilities, and a mean that stays what it was."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import prediction, processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.objectives import VLB, Denoising, LossSecondMoment, Resampled, Stratified, Uniform

from .conftest import keys_of

STEPS, NUM = 5, 4000
TABLE = processes.from_betas(np.linspace(1e-3, 0.3, STEPS))
SCALES = np.array([100.0, 10.0, 3.0, 1.0, 0.5])

pytestmark = pytest.mark.usefixtures("quick_compile")


def filled(rule):
    """A history of 2 x 10 losses per row around SCALES, of which the last 10 count; and those."""
    losses = SCALES[None] * np.random.default_rng(0).uniform(0.5, 1.5, (20, STEPS))
    rows = np.tile(np.arange(STEPS), 20)
    return rule.update(rule.init(STEPS), jnp.asarray(rows), jnp.asarray(losses.ravel(), jnp.float32)), losses[10:]


def test_probabilities_are_the_papers():
    """p proportional to the root of the mean square of the last 10, uniform until every row has 10."""
    rule = LossSecondMoment()
    state, last = filled(rule)
    np.testing.assert_allclose(state.losses, last.T, rtol=1e-6)
    root = np.sqrt((last**2).mean(axis=0))
    np.testing.assert_allclose(rule.probabilities(state), 0.999 * root / root.sum() + 0.001 / STEPS, rtol=1e-5)
    np.testing.assert_allclose(rule.probabilities(rule.init(STEPS)), 1 / STEPS, rtol=1e-6)
    rows = np.array([0] * 50 + list(np.repeat(np.arange(1, STEPS), 10)))
    early = rule.update(rule.init(STEPS), jnp.asarray(rows[:-1]), jnp.ones(len(rows) - 1))
    assert early.seen.tolist() == [10, 10, 10, 10, 9]
    np.testing.assert_allclose(rule.probabilities(early), 1 / STEPS, rtol=1e-6)
    zero = rule.update(rule.init(1), jnp.zeros(10, int), jnp.zeros(10))
    np.testing.assert_allclose(rule.probabilities(zero), 1.0)


def test_rows_are_drawn_with_p_and_weighed_by_1_over_t_p():
    rule = LossSecondMoment()
    state, _ = filled(rule)
    p = np.asarray(rule.probabilities(state))
    rows, weight = rule.draw(state, (jnp.arange(NUM) + 0.5) / NUM)
    np.testing.assert_allclose(np.bincount(rows, minlength=STEPS) / NUM, p, atol=2 / NUM)
    np.testing.assert_allclose(weight, 1 / (STEPS * p[rows]), rtol=1e-6)


def test_the_resampled_loss_is_unbiased():
    """The mean over even draws is the mean over rows, to the width of a draw; its variance is the least there is."""
    rule = LossSecondMoment()
    state, _ = filled(rule)

    def network(params, x, t, cond, *, train=False, rngs=None):
        return 0 * x + jnp.sqrt(jnp.asarray(SCALES, x.dtype))[jnp.round(t).astype(int)][:, None]

    model = Model(network, TABLE, prediction.X0)  # its squared error on data at 0 is SCALES by row
    batch = {"x0": jnp.zeros((NUM, 2)), "strata": (jnp.arange(NUM) + 0.5) / NUM}
    objective = Resampled(Denoising(Stratified()), rule)
    loss, metrics = objective(model, None, {**batch, "resampling": state}, keys_of(NUM))
    assert float(loss.mean()) == pytest.approx(SCALES.mean(), rel=5e-3)
    np.testing.assert_allclose(metrics["term"], SCALES[metrics["row"]], rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["term"] * rule.draw(state, batch["strata"])[1], rtol=1e-6)
    even, _ = Denoising(Stratified())(model, None, batch, keys_of(NUM))
    assert float(loss.std()) < 0.1 * float(even.std())
    turned = {"x0": batch["x0"], "strata": batch["strata"][::-1], "resampling": state}
    np.testing.assert_allclose(objective(model, None, turned, keys_of(NUM)[::-1])[0][::-1], loss, rtol=1e-6)
    del batch["strata"]
    drawn, metrics = objective(model, None, {**batch, "resampling": state}, keys_of(NUM))
    assert float(drawn.mean()) == pytest.approx(SCALES.mean(), abs=5 * float(drawn.std()) / np.sqrt(NUM))
    state = rule.update(state, metrics["row"], metrics["term"])
    np.testing.assert_allclose(state.losses[0], 100.0, rtol=1e-5)


def test_what_cannot_work_is_one_line():
    def network(params, x, t, cond, *, train=False, rngs=None):
        return x

    model, batch = Model(network, TABLE, prediction.X0), {"x0": jnp.zeros((2, 2))}
    for make, words in [
        (lambda: Resampled(VLB(Uniform())), "times Stratified"),
        (lambda: Resampled(VLB(Stratified()))(model, None, batch, keys_of(2)), "history of a process with steps"),
        (lambda: LossSecondMoment(history=0), "history=0"),
        (lambda: LossSecondMoment(uniform=0.0), "uniform=0"),
    ]:
        with pytest.raises(UsageError, match=words):
            make()
