"""Every parametrisation with every process: the round trip and the invariant, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import prediction, processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Index, LogSNR, Model, QuarterLogSigma, ScaledTime, UnitVariance, time_input

PROCESSES = {
    "ddpm_linear": processes.ddpm_linear(),
    "ddpm_cosine": processes.ddpm_cosine(),
    "vp_sde": processes.vp_sde(),
    "edm": processes.edm(),
    "rectified_flow": processes.rectified_flow(),
    "shifted_flow": processes.rectified_flow(3.0),
}
PAIRS = [(p, r) for p in PROCESSES for r in prediction.REGISTRY]


@pytest.mark.parametrize(("process", "name"), PAIRS)
def test_round_trip_and_invariant(process, name, x64):
    process = PROCESSES[process]
    p = prediction.make(name, process, sigma_data=0.7)
    level = process(jnp.array([0.005, 0.1, 0.4, 0.8, 0.98]))
    x0, eps, other = jax.random.normal(jax.random.key(0), (3, 5, 4, 2))
    alpha, sigma = level.alpha[:, None, None], level.sigma[:, None, None]
    x = alpha * x0 + sigma * eps
    back = prediction.to_prediction(p, prediction.target(p, x0, eps, level), x, level)
    # The condition of the 2 x 2 system is alpha/sigma one way and sigma/alpha the other.
    condition = np.maximum(1, np.maximum(alpha / sigma, sigma / alpha))
    assert np.max(np.abs(back.x0 - x0) / condition) < 1e-12
    assert np.max(np.abs(back.eps - eps) / condition) < 1e-12
    wrong = prediction.to_prediction(p, other, x, level)
    residual = alpha * wrong.x0 + sigma * wrong.eps - x
    assert np.max(np.abs(residual) / (np.abs(alpha * wrong.x0) + np.abs(sigma * wrong.eps) + np.abs(x))) < 1e-12


def test_rows_are_the_papers(x64):
    process = processes.ddpm_linear()
    level = process(jnp.array([0.05, 0.5]))
    a, s = level.alpha, level.sigma
    for p, row in [
        (prediction.EPS, (0 * a, 0 * a + 1)),
        (prediction.X0, (0 * a + 1, 0 * a)),
        (prediction.V, (-s, a)),
        (prediction.SCORE, (0 * a, -1 / s)),
        (prediction.FLOW, (0 * a - 1, 0 * a + 1)),
    ]:
        for got, expected in zip(p.row(level), row, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_edm_is_its_preconditioning(x64):
    level, sd = processes.edm()(jnp.array([0.1, 0.5, 0.9])), 0.5
    x, output = jax.random.normal(jax.random.key(0), (2, 3, 4))
    sigma = level.sigma[:, None]
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / jnp.sqrt(sigma**2 + sd**2)
    expected = c_skip * x + c_out * output
    np.testing.assert_allclose(prediction.to_prediction(prediction.EDM(sd), output, x, level).x0, expected, rtol=1e-10)
    np.testing.assert_allclose(UnitVariance(sd)(level), 1 / jnp.sqrt(level.sigma**2 + sd**2), rtol=1e-12)
    np.testing.assert_allclose(QuarterLogSigma()(level), jnp.log(level.sigma) / 4, rtol=1e-10)


@pytest.mark.parametrize(("process", "name"), PAIRS)
def test_error_scale_is_the_ratio_of_errors(process, name, x64):
    process = PROCESSES[process]
    p = prediction.make(name, process)
    level = process(jnp.array([0.1, 0.5, 0.9]))
    x, one, two = jax.random.normal(jax.random.key(0), (3, 3, 4))
    first, second = (prediction.to_prediction(p, y, x, level).x0 for y in (one, two))
    scale = prediction.error_scale(p, level)[:, None]
    np.testing.assert_allclose(jnp.abs(one - two), scale * jnp.abs(first - second), rtol=1e-8)


def test_finite_at_clean_data():
    level = processes.vp_sde().at(jnp.inf)
    for name in ("eps", "x0", "v", "edm"):
        p = prediction.make(name, processes.vp_sde())
        assert np.isfinite(prediction.to_prediction(p, jnp.ones((1, 2)), jnp.ones((1, 2)), level).x0).all()


def network(params, x, t, cond, *, train=False, rngs=None):
    return params * x + t[:, None]


def test_zero_terminal_snr_refuses_eps_and_score():
    for p in (prediction.EPS, prediction.SCORE):
        with pytest.raises(UsageError, match="zero signal"):
            Model(network, processes.rectified_flow(), p)
    for p in (prediction.V, prediction.X0, prediction.FLOW, prediction.EDM()):
        Model(network, processes.rectified_flow(), p)


def test_time_inputs():
    process = processes.ddpm_linear()
    level = process(jnp.array([0.001, 1.0]))
    np.testing.assert_allclose(Index(1000)(level), [0, 999], atol=1e-3)
    np.testing.assert_allclose(ScaledTime(1000.0)(level), [1, 1000], rtol=1e-6)
    np.testing.assert_allclose(LogSNR()(level), level.log_snr)
    assert time_input("index", process) == Index(1000)
    for make, words in [
        (lambda: time_input("index", processes.edm()), "needs a process with steps"),
        (lambda: time_input("indx", process), "did you mean 'index'"),
        (lambda: Model(network, process, prediction.EPS, time_input=Index(10)), "does not fit"),
        (lambda: prediction.make("epsilon", process), "unknown prediction"),
    ]:
        with pytest.raises(UsageError, match=words):
            make()


def test_time_defaults_to_what_the_process_has():
    assert Model(network, processes.ddpm_linear(50), prediction.EPS).time_input == Index(50)
    assert Model(network, processes.vp_sde(), prediction.EPS).time_input == ScaledTime(1000.0)


def test_model_gives_the_network_scaled_input_and_its_time():
    process = processes.edm()
    model = Model(network, process, prediction.EDM(0.5), UnitVariance(0.5), QuarterLogSigma())
    x = jnp.ones((2, 3))
    level = process(jnp.array([0.3, 0.8]))
    output, variance = model.output(jnp.float32(2.0), x, level)
    expected = 2 / jnp.sqrt(level.sigma**2 + 0.25) + jnp.log(level.sigma) / 4
    np.testing.assert_allclose(output, jnp.broadcast_to(expected[:, None], (2, 3)), rtol=1e-5)
    assert variance is None


def test_learned_variance_is_split_and_scaled():
    def wide(params, x, t, cond, *, train=False, rngs=None):
        return jnp.concatenate([x, params * jnp.ones_like(x)], axis=-1)

    model = Model(wide, processes.ddpm_linear(), prediction.EPS, learned_variance=True)
    answer = model.denoiser(jnp.float32(-1.0))(jnp.ones((2, 3)), model.process(0.5))
    np.testing.assert_allclose(answer.eps, 1.0)
    np.testing.assert_allclose(answer.var_frac, 0.0)
    with pytest.raises(UsageError, match="network answers shape"):
        Model(wide, processes.ddpm_linear(), prediction.EPS).denoiser(1.0)(jnp.ones((2, 3)), model.process(0.5))
