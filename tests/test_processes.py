"""Every process against its paper's formula in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes
from jaxdiff.errors import UsageError
from jaxdiff.process import q_posterior, q_sample, q_transition
from jaxdiff.types import Level

ALL = {
    "ddpm_linear": processes.ddpm_linear(),
    "ddpm_cosine": processes.ddpm_cosine(),
    "ddpm_scaled_linear": processes.ddpm_scaled_linear(),
    "from_betas": processes.from_betas([0.1, 0.2, 0.5]),
    "vp_sde": processes.vp_sde(),
    "edm": processes.edm(),
    "rectified_flow": processes.rectified_flow(),
    "shifted_flow": processes.rectified_flow(3.0),
}
TIMES = np.array([1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999])


def table_formula(betas):
    alpha2 = np.cumprod(1 - np.asarray(betas))
    return np.sqrt(alpha2), np.sqrt(1 - alpha2)


def cosine_betas(steps=1000):
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


TABLES = {
    "ddpm_linear": np.linspace(1e-4, 0.02, 1000),
    "ddpm_cosine": cosine_betas(),
    "ddpm_scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "from_betas": np.array([0.1, 0.2, 0.5]),
}
CONTINUOUS = {
    "vp_sde": lambda t: (
        np.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1),
        np.sqrt(-np.expm1(-0.5 * t**2 * 19.9 - t * 0.1)),
    ),
    "edm": lambda t: (np.ones_like(t), 0.002 ** (1 - t) * 80**t),
    "rectified_flow": lambda t: (1 - t, t),
    "shifted_flow": lambda t: ((1 - t) / (1 + 2 * t), 3 * t / (1 + 2 * t)),
}


@pytest.mark.parametrize("name", TABLES)
def test_table_rows_are_the_papers_products(name):
    betas = TABLES[name]
    t = np.arange(1, len(betas) + 1) / len(betas)
    alpha, sigma = table_formula(betas)
    for level, tolerance in ((ALL[name](t), 1e-9), (ALL[name](jnp.asarray(t, jnp.float32)), 1e-6)):
        np.testing.assert_allclose(level.alpha, alpha, rtol=tolerance)
        np.testing.assert_allclose(level.sigma, sigma, rtol=tolerance)


def test_published_values():
    # DDPM: alpha-bar_1000 = 4.04e-5; its L_T is about 1e-5 bits/dim, section 4.
    assert float(ALL["ddpm_linear"](1.0).alpha ** 2) == pytest.approx(4.0358e-5, rel=1e-4)
    assert float(ALL["ddpm_linear"](1e-3).sigma ** 2) == pytest.approx(1e-4, rel=1e-6)
    # Improved DDPM: betas clipped at 0.999, so the last step keeps a thousandth of the signal's variance.
    rows = ALL["ddpm_cosine"](np.array([0.999, 1.0]))
    assert rows.alpha[1] ** 2 / rows.alpha[0] ** 2 == pytest.approx(1e-3, rel=1e-6)
    # Stable Diffusion: sigma/alpha from 0.0292 to 14.6146 (its k-diffusion sigma range).
    rows = ALL["ddpm_scaled_linear"](np.array([0.001, 1.0]))
    np.testing.assert_allclose(rows.sigma / rows.alpha, [0.0291672, 14.614647], rtol=1e-5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_formula(name):
    alpha, sigma = CONTINUOUS[name](TIMES)
    exact = ALL[name](TIMES)
    assert exact.alpha.dtype == np.float64
    np.testing.assert_allclose(exact.alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(exact.sigma, sigma, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_float32_keeps_alpha_and_sigma(name):
    times = np.arange(1, 1001) / 1000
    # The same real numbers t in both precisions, so that only our arithmetic is measured.
    single = jnp.asarray(times, jnp.float32)
    exact = ALL[name](times if name in TABLES else np.asarray(single, np.float64))
    level = ALL[name](single)
    np.testing.assert_allclose(level.alpha, exact.alpha, rtol=1e-6)
    np.testing.assert_allclose(level.sigma, exact.sigma, rtol=1e-6)
    if name != "edm":  # a log-SNR of 12 is known to 5e-7 in float32, whatever we do
        np.testing.assert_allclose(level.alpha, exact.alpha, rtol=0, atol=3e-7)
        np.testing.assert_allclose(level.sigma, exact.sigma, rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", ALL)
def test_at_inverts_the_schedule(name, x64):
    t = jnp.asarray(TIMES) if name not in TABLES else jnp.linspace(1 / 3000, 1.0, 777)
    np.testing.assert_allclose(ALL[name].at(ALL[name](t).log_snr).t, t, rtol=1e-9)
    with jax.enable_x64(False):
        t = t.astype(jnp.float32)
        np.testing.assert_allclose(ALL[name].at(ALL[name](t).log_snr).t, t, atol=2e-6)


@pytest.mark.parametrize("name", ALL)
def test_ends(name):
    process = ALL[name]
    clean = process.at(jnp.inf)
    assert (float(clean.alpha), float(clean.sigma), float(clean.t)) == (1.0, 0.0, 0.0)
    if name != "edm":
        assert float(process(0.0).sigma) == 0.0
        assert float(process(0.0).log_snr) == np.inf
    assert float(process.at(process(1.0).log_snr).t) == pytest.approx(1.0, abs=1e-6)
    assert np.all(np.diff(process(np.linspace(0, 1, 5001)).log_snr) < 0)


def test_zero_terminal_snr_table():
    process = processes.from_betas([0.1, 0.2, 1.0])
    level = process(jnp.array([1 / 3, 2 / 3, 1.0]))
    np.testing.assert_allclose(level.alpha**2, [0.9, 0.72, 0.0], rtol=1e-6)
    assert process.schedule.span == (1 / 3, 2 / 3)


@pytest.mark.parametrize("name", ALL)
def test_velocity_is_the_derivative(name, x64):
    process, t, h = ALL[name], jnp.array([0.0505, 0.3003, 0.7707]), 1e-6
    up, down = process(t + h), process(t - h)
    alpha, sigma = process.velocity(t)
    np.testing.assert_allclose(alpha, (up.alpha - down.alpha) / (2 * h), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(sigma, (up.sigma - down.sigma) / (2 * h), rtol=1e-5, atol=1e-7)


def test_velocity_of_the_straight_path_is_finite_at_its_ends():
    alpha, sigma = ALL["rectified_flow"].velocity(jnp.array([0.0, 1e-6, 0.5, 1.0]))
    np.testing.assert_allclose(alpha, -1.0, rtol=1e-6)
    np.testing.assert_allclose(sigma, 1.0, rtol=1e-6)


def test_q_sample_scalar_and_per_example(x64):
    process = ALL["ddpm_linear"]
    x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 1))
    t = jnp.array([0.001, 0.2, 0.5, 0.7, 1.0])
    alpha, sigma = (c[[0, 199, 499, 699, 999]][:, None, None, None] for c in table_formula(TABLES["ddpm_linear"]))
    np.testing.assert_allclose(q_sample(process, x0, t, eps), alpha * x0 + sigma * eps, rtol=1e-9)
    np.testing.assert_allclose(q_sample(process, x0, 0.5, eps)[2], q_sample(process, x0, t, eps)[2], rtol=1e-12)
    assert isinstance(q_sample, jax.stages.Wrapped)
    assert q_sample(process, x0.astype(jnp.bfloat16), t, eps.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_q_sample_compiles_once_for_equal_processes():
    before = q_sample._cache_size()
    for beta_end in (0.02, 0.02, 0.02):
        q_sample(processes.ddpm_linear(7, beta_end=beta_end), jnp.ones((2, 3)), jnp.ones(2), jnp.ones((2, 3)))
    assert q_sample._cache_size() == before + 1


def test_posterior_is_ddpm_equation_7(x64):
    betas = TABLES["ddpm_linear"]
    alpha_bar = np.cumprod(1 - betas)
    t = 400
    cur, nxt = (Level(*(jnp.asarray(f) for f in ALL["ddpm_linear"](np.float64((i + 1) / 1000)))) for i in (t, t - 1))
    x, x0 = jax.random.normal(jax.random.key(1), (2, 3, 2))
    mean, var = q_posterior(cur, nxt, x, x0)
    denominator = 1 - alpha_bar[t]
    expected = (
        np.sqrt(alpha_bar[t - 1]) * betas[t] / denominator * x0
        + np.sqrt(1 - betas[t]) * (1 - alpha_bar[t - 1]) / denominator * x
    )
    np.testing.assert_allclose(mean, expected, rtol=1e-9)
    np.testing.assert_allclose(var, (1 - alpha_bar[t - 1]) / denominator * betas[t], rtol=1e-9)
    coef, std = q_transition(cur, nxt)
    np.testing.assert_allclose([coef, std], [np.sqrt(1 - betas[t]), np.sqrt(betas[t])], rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_posterior_to_clean_data_is_x0(name):
    process = ALL[name]
    x, x0 = jax.random.normal(jax.random.key(1), (2, 3, 2))
    mean, var = q_posterior(process(0.3), process.at(jnp.inf), x, x0)
    np.testing.assert_allclose(mean, x0, rtol=1e-6)
    assert float(var) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: processes.from_betas([0.1, 1.5]), "betas[1] = 1.5"),
        (lambda: processes.from_betas([1.0, 0.1]), "betas[0] = 1"),
        (lambda: processes.from_betas([]), "non-empty"),
        (lambda: processes.ddpm_linear(0), "num_steps=0"),
        (lambda: processes.edm(1.0, 0.5), "sigma_min"),
        (lambda: processes.vp_sde(-1.0), "beta_min"),
        (lambda: processes.rectified_flow(0.0), "shift"),
        (lambda: processes.make("dpm_linear"), "did you mean 'ddpm_linear'"),
        (lambda: q_sample(processes.vp_sde(), jnp.ones((2, 3)), 0.5, jnp.ones((3, 3))), "eps must have the shape"),
        (lambda: q_sample(processes.vp_sde(), jnp.ones((2, 3)), jnp.ones(3), jnp.ones((2, 3))), "one per example"),
    ],
)
def test_bad_input_is_one_line(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
