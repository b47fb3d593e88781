"""Losses against the analytic Bayes risk, weights against the papers, times against their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jaxdiff import analytic, objectives, prediction, processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, ScaledTime
from jaxdiff.objectives import EDM, P2, SNR, ConditionDropout, Denoising, LogNormal, MinSNR, Simple, Stratified, Uniform
from jaxdiff.objectives.times import spread
from jaxdiff.prediction import target

DATA = analytic.Gaussian(jnp.array([0.5, -0.5]), jnp.array([[0.5, 0.2], [0.2, 0.3]]))
PROCESSES = {"vp_sde": processes.vp_sde(), "edm": processes.edm(), "flow": processes.rectified_flow()}
WEIGHTS = [Simple(), SNR(), MinSNR(), P2(), EDM(0.5)]


def keys(num, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num))


class At:
    """Every example at one time."""

    def __init__(self, t):
        self.t = t

    def __call__(self, process, keys, strata=None):
        return process(jnp.full(keys.shape, self.t))


def exact_model(process, p):
    """A network that answers the exact denoiser's prediction, turned into the target p."""

    def network(params, x, t, cond, *, train=False, rngs=None):
        level = process(t)
        answer = DATA.denoiser(process)(x, level)
        return target(p, answer.x0, answer.eps, level)

    return Model(network, process, p, time_input=ScaledTime(1.0))


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("name", ["x0", "v", "edm", "flow", "eps"])
@pytest.mark.parametrize("process", PROCESSES)
def test_loss_at_the_exact_denoiser_is_the_bayes_risk(process, name, weight):
    """The weighted x0 risk is the same number whatever the network's target."""
    if (process, name) == ("flow", "eps"):
        return  # refused by Model
    process = PROCESSES[process]
    p = prediction.make(name, process)
    num, t = 20_000, 0.4
    x0 = DATA.sample(jax.random.key(1), num)
    loss, metrics = Denoising(At(t), weight)(exact_model(process, p), None, {"x0": x0}, keys(num))
    assert loss.shape == (num,)
    level = process(jnp.float32(t))
    expected = float(weight(level, p) * DATA.bayes_risk(level))
    assert float(loss.mean()) == pytest.approx(expected, rel=5 * float(loss.std() / loss.mean()) / np.sqrt(num))
    scale = prediction.error_scale(p, level) ** 2
    assert float(metrics["mse"].mean()) == pytest.approx(float(scale * DATA.bayes_risk(level)), rel=0.05)


def test_weights_are_the_papers(x64):
    level = processes.ddpm_linear()(jnp.linspace(0.05, 1, 9))
    snr = (level.alpha / level.sigma) ** 2
    eps, v = prediction.EPS, prediction.V

    def on_target(weight, p):
        return weight(level, p) / prediction.error_scale(p, level) ** 2

    np.testing.assert_allclose(on_target(Simple(), eps), 1.0, rtol=1e-9)
    np.testing.assert_allclose(on_target(Simple(), v), 1.0, rtol=1e-9)
    np.testing.assert_allclose(on_target(SNR(), eps), 1.0, rtol=1e-9)
    # Hang et al. 2023, section 3.4: min(SNR, 5)/SNR for eps, and min(SNR, 5)/(SNR + 1) for v.
    np.testing.assert_allclose(on_target(MinSNR(5.0), eps), np.minimum(snr, 5) / snr, rtol=1e-9)
    np.testing.assert_allclose(on_target(MinSNR(5.0), v), np.minimum(snr, 5) / (snr + 1), rtol=1e-9)
    np.testing.assert_allclose(on_target(P2(1.0, 0.5), eps), (1 + snr) ** -0.5, rtol=1e-9)
    sigma = processes.edm()(jnp.array([0.2, 0.8])).sigma
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    np.testing.assert_allclose(EDM(0.5)(processes.edm()(jnp.array([0.2, 0.8])), eps), expected, rtol=1e-9)
    np.testing.assert_allclose(
        EDM(0.5)(processes.edm()(0.3), eps) / prediction.error_scale(prediction.EDM(0.5), processes.edm()(0.3)) ** 2,
        1.0,
    )


def test_uniform_times():
    t = Uniform()(processes.vp_sde(), keys(5000)).t
    assert kstest(t, "uniform").pvalue > 1e-3
    assert float(t.min()) >= 1e-5
    rows = np.asarray(Uniform()(processes.ddpm_linear(10), keys(50_000)).t * 10).round(4)
    values, counts = np.unique(rows, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1, 11))
    assert np.abs(counts / 5000 - 1).max() < 0.07


def test_stratified_times_fill_the_interval_evenly():
    for strata in (None, spread(jax.random.key(3), jnp.arange(64), 64)):
        t = np.sort(Stratified()(processes.vp_sde(), keys(64), strata).t)
        np.testing.assert_allclose(np.diff(t), (1 - 1e-5) / 64, rtol=1e-3)
    shards = [spread(jax.random.key(3), jnp.arange(16) + 16 * s, 64) for s in range(4)]
    np.testing.assert_array_equal(np.concatenate(shards), spread(jax.random.key(3), jnp.arange(64), 64))
    first = np.array([spread(jax.random.key(s), jnp.arange(4), 4)[0] for s in range(500)])
    assert kstest(first, "uniform").pvalue > 1e-3


def test_log_normal_times():
    level = LogNormal(-1.2, 1.2)(processes.edm(), keys(5000))
    assert kstest((np.log(level.sigma) + 1.2) / 1.2, "norm").pvalue > 1e-3


def test_each_example_depends_on_its_own_key_only():
    model = exact_model(PROCESSES["vp_sde"], prediction.EPS)
    x0 = DATA.sample(jax.random.key(1), 8)
    for times in (Uniform(), LogNormal()):
        whole, _ = Denoising(times)(model, None, {"x0": x0}, keys(8))
        part, _ = Denoising(times)(model, None, {"x0": x0[3:5]}, keys(8)[3:5])
        np.testing.assert_allclose(part, whole[3:5], rtol=1e-5)


def test_condition_dropout():
    seen = []

    def network(params, x, t, cond, *, train=False, rngs=None):
        seen.append(cond["label"])
        return x

    model = Model(network, PROCESSES["vp_sde"], prediction.EPS)
    batch = {"x0": jnp.zeros((4000, 2)), "cond": {"label": jnp.arange(4000) % 10}}
    for rate in (0.0, 0.25, 1.0):
        ConditionDropout(Denoising(), rate, (("label", 10),))(model, None, batch, keys(4000))
        dropped = np.asarray(seen[-1]) == 10
        assert dropped.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 4000))
        np.testing.assert_array_equal(seen[-1][~dropped], batch["cond"]["label"][~dropped])


def test_specs_are_values_and_bad_input_is_one_line():
    assert objectives.make("stratified", "min_snr") == Denoising(Stratified(), MinSNR())
    assert hash(objectives.make()) == hash(Denoising())
    for make, words in [
        (lambda: objectives.make("strat"), "did you mean 'stratified'"),
        (lambda: objectives.make(weight="snrr"), "did you mean 'snr'"),
        (lambda: Uniform(0.0), "t_min=0"),
        (lambda: Stratified(2.0), "t_min=2"),
        (lambda: LogNormal(std=0.0), "std=0"),
        (lambda: ConditionDropout(Denoising(), 1.5, ()), "rate=1.5"),
    ]:
        with pytest.raises(UsageError, match=words):
            make()
