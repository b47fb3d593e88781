"""Losses against the analytic Bayes risk, weights against the papers, times against their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jaxdiff import analytic, objectives, prediction, processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, ScaledTime
from jaxdiff.objectives import (
    EDM,
    P2,
    SNR,
    VLB,
    ConditionDropout,
    ContinuousELBO,
    Denoising,
    LogitNormal,
    LogNormal,
    MinSNR,
    Mode,
    Sigmoid,
    Simple,
    SoftMinSNR,
    Stratified,
    Uniform,
    UniformLogSNR,
)
from jaxdiff.objectives.times import spread
from jaxdiff.prediction import target

pytestmark = pytest.mark.usefixtures("quick_compile")

DATA = analytic.Gaussian(jnp.array([0.5, -0.5]), jnp.array([[0.5, 0.2], [0.2, 0.3]]))
PROCESSES = {"vp_sde": processes.vp_sde(), "edm": processes.edm(), "flow": processes.rectified_flow()}


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


@pytest.mark.parametrize("process", PROCESSES)
def test_loss_at_the_exact_denoiser_is_the_bayes_risk(process):
    """With the objective's own noise; `test_exact.py` has every weight and target, to rounding."""
    process, p = PROCESSES[process], prediction.V
    num, t = 4000, 0.4
    x0 = DATA.sample(jax.random.key(1), num)
    loss, metrics = Denoising(At(t))(exact_model(process, p), None, {"x0": x0}, keys(num))
    assert loss.shape == (num,)
    level = process(jnp.float32(t))
    expected = float(prediction.error_scale(p, level) ** 2 * DATA.bayes_risk(level))
    assert float(loss.mean()) == pytest.approx(expected, rel=5 * float(loss.std() / loss.mean()) / np.sqrt(num))
    np.testing.assert_allclose(metrics["mse"], loss, rtol=1e-5)


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
    # k-diffusion's soft-min-SNR on EDM's unit-variance target, (sigma s)^2 / (sigma^2 + s^2)^2 with s = 1/2.
    ve = processes.edm()(jnp.linspace(0.1, 0.9, 5))
    on_edm = SoftMinSNR(4.0)(ve, eps) / prediction.error_scale(prediction.EDM(0.5), ve) ** 2
    np.testing.assert_allclose(on_edm, (ve.sigma * 0.5) ** 2 / (ve.sigma**2 + 0.25) ** 2, rtol=1e-9)
    assert SoftMinSNR() == SoftMinSNR(4.0)
    # Kingma & Gao 2023: sigmoid(b - log SNR) for eps, and times SNR / (SNR + 1) for v.
    share = 1 / (1 + snr * np.exp(3.0))
    np.testing.assert_allclose(on_target(Sigmoid(-3.0), eps), share, rtol=1e-9)
    np.testing.assert_allclose(on_target(Sigmoid(-3.0), v), share * snr / (snr + 1), rtol=1e-9)
    np.testing.assert_allclose(Sigmoid(np.log(4.0))(level, eps), SoftMinSNR(4.0)(level, eps), rtol=1e-12)
    np.testing.assert_allclose(on_target(P2(1.0, 0.5), eps), (1 + snr) ** -0.5, rtol=1e-9)
    sigma = processes.edm()(jnp.array([0.2, 0.8])).sigma
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    np.testing.assert_allclose(EDM(0.5)(processes.edm()(jnp.array([0.2, 0.8])), eps), expected, rtol=1e-9)
    np.testing.assert_allclose(
        EDM(0.5)(processes.edm()(0.3), eps) / prediction.error_scale(prediction.EDM(0.5), processes.edm()(0.3)) ** 2,
        1.0,
    )


def test_uniform_times():
    t = Uniform()(processes.vp_sde(), keys(4000)).t
    assert kstest(t, "uniform").pvalue > 1e-3
    assert float(t.min()) >= 1e-5
    rows = np.asarray(Uniform()(processes.ddpm_linear(10), keys(4000)).t * 10).round(4)
    values, counts = np.unique(rows, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1, 11))
    assert np.abs(counts / 400 - 1).max() < 0.25


def test_stratified_times_fill_the_interval_evenly():
    for strata in (None, spread(jax.random.key(3), jnp.arange(64), 64)):
        t = np.sort(Stratified()(processes.vp_sde(), keys(64), strata).t)
        np.testing.assert_allclose(np.diff(t), (1 - 1e-5) / 64, rtol=1e-3)
    shards = [spread(jax.random.key(3), jnp.arange(16) + 16 * s, 64) for s in range(4)]
    np.testing.assert_array_equal(np.concatenate(shards), spread(jax.random.key(3), jnp.arange(64), 64))
    first = np.array([spread(jax.random.key(s), jnp.arange(4), 4)[0] for s in range(200)])
    assert kstest(first, "uniform").pvalue > 1e-3


def test_log_normal_times():
    level = LogNormal(-1.2, 1.2)(processes.edm(), keys(4000))
    assert kstest((np.log(level.sigma) + 1.2) / 1.2, "norm").pvalue > 1e-3


def density(t, name, value):
    """Esser et al. 2024: equation 19 as it stands, and the slope of the inverse of equation 20, on a grid of t."""
    if name == "logit_normal":
        m, s = value
        return np.exp(-((np.log(t / (1 - t)) - m) ** 2) / (2 * s**2)) / (s * np.sqrt(2 * np.pi) * t * (1 - t))
    u = np.linspace(0, 1, 200_001)
    f = 1 - u - value * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    return np.abs(np.gradient(np.interp(t, f[::-1], u[::-1]), t))


@pytest.mark.parametrize(
    ("times", "name", "value"),
    [
        (LogitNormal(-0.5, 0.8), "logit_normal", (-0.5, 0.8)),
        (LogitNormal(), "logit_normal", (0.0, 1.0)),
        (Mode(), "mode", 1.29),
        (Mode(-0.7), "mode", -0.7),
        (Mode(0.0), "mode", 0.0),
    ],
)
def test_flow_times_have_the_papers_densities(times, name, value):
    grid = np.linspace(1e-6, 1 - 1e-6, 20_001)
    mass = density(grid, name, value)
    below = np.concatenate([[0], np.cumsum((mass[1:] + mass[:-1]) / 2 * np.diff(grid))])
    assert below[-1] == pytest.approx(1, abs=2e-4)
    t = times(PROCESSES["flow"], keys(4000)).t
    assert kstest(t, lambda x: np.interp(x, grid, below)).pvalue > 1e-3
    rows = np.asarray(times(processes.ddpm_linear(10), keys(4000)).t * 10)
    np.testing.assert_allclose(rows, np.ceil(np.asarray(t) * 10), atol=1e-4)


def test_uniform_log_snr_is_the_papers_importance_sampling(x64):
    """Song et al. 2021, section 5.1: t with density beta(t) / sigma(t)^2 of the VP-SDE, by their own integral."""
    low, high, eps = 0.1, 20.0, 1e-3

    def integral(t):
        start, end = (0.5 * s * (s - 2) * low - 0.5 * s**2 * high for s in (eps, t))
        rest = low * (-2 * eps + eps**2 - (t - 2) * t) + high * (t**2 - eps**2)
        return 0.5 * (-2 * np.log1p(-np.exp(start)) + 2 * np.log1p(-np.exp(end)) + rest)

    u = np.linspace(0, 1, 4000)
    process, times = PROCESSES["vp_sde"], UniformLogSNR(eps)
    level = times(process, keys(4000), jnp.asarray(u))
    np.testing.assert_allclose(integral(np.asarray(level.t)) / integral(1.0), u, atol=1e-9)
    np.testing.assert_allclose(times.inverse_density(process, level), integral(1.0), rtol=1e-9)
    for other in PROCESSES.values():
        drawn = UniformLogSNR()(other, keys(4000))
        top, bottom = UniformLogSNR().ends(other)
        assert kstest((np.asarray(drawn.log_snr) - bottom) / (top - bottom), "uniform").pvalue > 1e-3
        np.testing.assert_allclose(other(drawn.t).log_snr, drawn.log_snr, atol=1e-6)


def test_shards_of_a_batch_draw_what_the_whole_does():
    """A train step gives each device its part of the strata; the losses are those of the batch on one."""
    model = exact_model(PROCESSES["vp_sde"], prediction.EPS)
    x0, strata = DATA.sample(jax.random.key(1), 8), spread(jax.random.key(2), jnp.arange(8), 8)
    for objective in (Denoising(Stratified()), ContinuousELBO()):
        whole, _ = objective(model, None, {"x0": x0, "strata": strata}, keys(8))
        for part in (slice(0, 4), slice(4, 8)):
            shard, _ = objective(model, None, {"x0": x0[part], "strata": strata[part]}, keys(8)[part])
            np.testing.assert_allclose(shard, whole[part], rtol=1e-5, atol=1e-7)


def test_each_example_depends_on_its_own_key_only():
    model = exact_model(PROCESSES["vp_sde"], prediction.EPS)
    x0 = DATA.sample(jax.random.key(1), 8)
    for times in (Uniform(), LogNormal(), UniformLogSNR(), LogitNormal(), Mode()):
        whole, _ = Denoising(times)(model, None, {"x0": x0}, keys(8))
        part, _ = Denoising(times)(model, None, {"x0": x0[3:5]}, keys(8)[3:5])
        np.testing.assert_allclose(part, whole[3:5], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["eps", "v"])
def test_the_bound_is_finite_at_every_row_of_a_network_that_knows_nothing(name):
    """Values and gradients in float32 over all of 4000 rows, the first and the last too."""

    def network(params, x, t, cond, *, train=False, rngs=None):
        return jnp.concatenate([params * x, 0 * x + params], axis=-1)

    process = processes.ddpm_cosine(4000)
    model = Model(network, process, prediction.make(name, process), learned_variance=True)
    x0 = jnp.sign(DATA.sample(jax.random.key(1), 4000))
    batch = {"x0": x0, "strata": (jnp.arange(4000) + 0.5) / 4000}

    def total(params):
        losses = VLB(Stratified())(model, params, batch, keys(4000))[0]
        return losses.mean(), losses

    (_, losses), slope = jax.value_and_grad(total, has_aux=True)(jnp.float32(0.0))
    assert np.isfinite(losses).all()
    assert float(losses[1:].min()) >= 0
    assert np.isfinite(slope)


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
        (lambda: UniformLogSNR(1.0), "t_min=1"),
        (lambda: LogitNormal(std=0.0), "std=0"),
        (lambda: Mode(1.8), "scale=1.8"),
        (lambda: Mode(-1.1), "scale=-1.1"),
        (lambda: SoftMinSNR(0.0), "gamma=0"),
        (lambda: Stratified(2.0), "t_min=2"),
        (lambda: LogNormal(std=0.0), "std=0"),
        (lambda: ConditionDropout(Denoising(), 1.5, ()), "rate=1.5"),
    ]:
        with pytest.raises(UsageError, match=words):
            make()
