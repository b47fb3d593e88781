"""Every process against its paper's formula in float64 NumPy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdiff import processes
from jaxdiff.errors import UsageError
from jaxdiff.process import (
    Straight,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    q_posterior,
    q_sample,
    q_transition,
)
from jaxdiff.types import Level

ALL = {
    "ddpm_linear": processes.ddpm_linear(),
    "ddpm_cosine": processes.ddpm_cosine(),
    "ddpm_scaled_linear": processes.ddpm_scaled_linear(),
    "zero_terminal": processes.zero_terminal_snr(processes.ddpm_scaled_linear()),
    "from_betas": processes.from_betas([0.1, 0.2, 0.5]),
    "ncsn": processes.ncsn(),
    "vp_sde": processes.vp_sde(),
    "sub_vp_sde": processes.sub_vp_sde(),
    "ve_sde": processes.ve_sde(),
    "edm": processes.edm(),
    "cosine": processes.cosine(),
    "cosine_log_snr": processes.cosine_log_snr(),
    "cosine_256": processes.cosine_log_snr(image_size=256),
    "sigmoid": processes.sigmoid(),
    "sigmoid_late": processes.sigmoid(0.0, 3.0, 0.7),
    "laplace": processes.laplace(),
    "geometric": processes.geometric(),
    "rectified_flow": processes.rectified_flow(),
    "shifted_flow": processes.rectified_flow(3.0),
    "shifted_vp": processes.shifted(processes.vp_sde(), -2.0),
}
# Those that keep some noise at t = 0, and those whose sigma is not at most 1.
NOISY_AT_0 = {"edm", "ve_sde", "geometric", "cosine_log_snr", "cosine_256"}
EXPLODING = {"edm", "ve_sde", "ncsn"}
TIMES = np.array([1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999])


def table_formula(betas):
    alpha2 = np.cumprod(1 - np.asarray(betas))
    return np.sqrt(alpha2), np.sqrt(1 - alpha2)


def cosine_betas(steps=1000):
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def vp_formula(t, sub=False):
    """Song et al. 2021, equation 29 with beta from 0.1 to 20: variance 1 - exp(-B), and its square for sub-VP."""
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    variance = -np.expm1(-integral)
    return np.exp(-0.5 * integral), variance if sub else np.sqrt(variance)


def variance_preserving(snr):
    return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))


def cosine_formula(t, shift=0.0):
    """Hoogeboom et al. 2023: the angle runs between the arctangents of the extreme noise-to-signal ratios."""
    low, high = np.arctan(np.exp(-7.5)), np.arctan(np.exp(7.5))
    return variance_preserving(np.exp(shift) / np.tan(low + t * (high - low)) ** 2)


def sigmoid_formula(t, start, end, tau):
    """Chen 2023, algorithm 1."""

    def logistic(x):
        return 1 / (1 + np.exp(-x))

    first, last = logistic(np.longdouble(start) / tau), logistic(np.longdouble(end) / tau)
    gamma = (last - logistic((t * (end - start) + start) / tau)) / (last - first)
    gamma = np.clip(gamma, 1e-9, 1.0)
    return np.sqrt(gamma), np.sqrt(1 - gamma)


def laplace_formula(t):
    """Hang et al. 2024, table 1, mu = 0 and b = 0.5."""
    return variance_preserving(np.exp(-0.5 * np.sign(0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t))))


def zero_terminal_formula():
    """Lin et al. 2024, algorithm 1, of Stable Diffusion's betas."""
    alpha, _ = table_formula(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha, np.sqrt(1 - alpha**2)


TABLES = {
    "ddpm_linear": table_formula(np.linspace(1e-4, 0.02, 1000)),
    "ddpm_cosine": table_formula(cosine_betas()),
    "ddpm_scaled_linear": table_formula(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    "zero_terminal": zero_terminal_formula(),
    "from_betas": table_formula([0.1, 0.2, 0.5]),
    "ncsn": (np.ones(232), np.exp(np.linspace(np.log(0.01), np.log(50), 232))),
}
CONTINUOUS = {
    "vp_sde": vp_formula,
    "sub_vp_sde": lambda t: vp_formula(t, sub=True),
    "ve_sde": lambda t: (np.ones_like(t), 0.01 * 5000**t),
    "edm": lambda t: (np.ones_like(t), 0.002 ** (1 - t) * 80**t),
    "cosine": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
    "cosine_log_snr": cosine_formula,
    "cosine_256": lambda t: cosine_formula(t, 2 * np.log(64 / 256)),
    "sigmoid": lambda t: sigmoid_formula(t, -3, 3, 1.0),
    "sigmoid_late": lambda t: sigmoid_formula(t, 0, 3, 0.7),
    "laplace": laplace_formula,
    "geometric": lambda t: variance_preserving(np.exp(13.3 - 18.3 * t)),
    "rectified_flow": lambda t: (1 - t, t),
    "shifted_flow": lambda t: ((1 - t) / (1 + 2 * t), 3 * t / (1 + 2 * t)),
    "shifted_vp": lambda t: variance_preserving(np.exp(-2.0) * vp_formula(t)[0] ** 2 / vp_formula(t)[1] ** 2),
}

HARD = np.array([1e-5, 1e-4, 1e-3, 0.5, 1.0])
ROWS = np.arange(1, 1001) / 1000


@cache
def computed(name):
    """What JAX makes of a process in float32, compiled once: times, level, their inverse, and the velocity at ends."""
    process = ALL[name]

    @jax.jit
    def run(t, ends):
        level = process(t)
        return level, process.at(level.log_snr).t, process.velocity(ends)

    single = np.concatenate([ROWS, HARD]).astype(np.float32)
    found = run(jnp.asarray(single), jnp.array([0.0, 1e-6, 0.5, 1.0], jnp.float32))
    return single, *jax.tree.map(np.asarray, found)


def test_every_name_is_tested():
    assert set(processes.REGISTRY) <= set(ALL)
    for name in set(processes.REGISTRY) - {"from_betas"}:
        assert processes.make(name) == ALL[name]


@pytest.mark.parametrize("name", TABLES)
def test_table_rows_are_the_papers(name):
    alpha, sigma = TABLES[name]
    t = np.arange(1, len(alpha) + 1) / len(alpha)
    level = ALL[name](t)
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-9)
    np.testing.assert_allclose(level.sigma, sigma, rtol=1e-9)
    if len(alpha) == 1000:  # and in float32, where t = (i + 1) / T is not exact
        _, level, _, _ = computed(name)
        np.testing.assert_allclose(level.alpha[:1000], alpha, rtol=1e-6)
        np.testing.assert_allclose(level.sigma[:1000], sigma, rtol=1e-6)


def test_float32_times_land_on_the_rows():
    # A few t = (i + 1) / 1000 times 1000 are no whole number in float32; put large betas on both sides of those rows.
    position = np.arange(1, 1001)
    off = np.flatnonzero((position / 1000).astype(np.float32) * np.float32(1000) != position)
    assert off.size > 5
    betas = np.full(1000, 1e-4)
    betas[np.concatenate([off, off + 1])] = 0.5
    level = jax.jit(processes.from_betas(betas))(jnp.asarray(position / 1000, jnp.float32))
    alpha, sigma = table_formula(betas)
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-6)
    np.testing.assert_allclose(level.sigma, sigma, rtol=1e-6)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_formula(name):
    alpha, sigma = CONTINUOUS[name](TIMES)
    exact = ALL[name](TIMES)
    assert exact.alpha.dtype == np.float64
    np.testing.assert_allclose(exact.alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(exact.sigma, sigma, rtol=1e-12)


def test_published_values():
    def row(name, *t):
        return ALL[name](np.array(t))

    # DDPM: alpha-bar_1000 = 4.04e-5; its L_T is about 1e-5 bits/dim, section 4.
    assert row("ddpm_linear", 1.0).alpha[0] ** 2 == pytest.approx(4.0358e-5, rel=1e-4)
    assert row("ddpm_linear", 1e-3).sigma[0] ** 2 == pytest.approx(1e-4, rel=1e-6)
    # Improved DDPM: betas clipped at 0.999, so the last step keeps a thousandth of the signal's variance.
    rows = row("ddpm_cosine", 0.999, 1.0)
    assert rows.alpha[1] ** 2 / rows.alpha[0] ** 2 == pytest.approx(1e-3, rel=1e-6)
    # Stable Diffusion: sigma/alpha from 0.0292 to 14.6146 (its k-diffusion sigma range).
    rows = row("ddpm_scaled_linear", 0.001, 1.0)
    np.testing.assert_allclose(rows.sigma / rows.alpha, [0.0291672, 14.614647], rtol=1e-5)
    # Lin et al. 2024, table 1: the terminal SNR and alpha of three schedules.
    for name, snr, alpha in (
        ("ddpm_linear", 4.035993e-05, 0.006353),
        ("ddpm_cosine", 2.428735e-09, 4.928220e-05),
        ("ddpm_scaled_linear", 0.004682, 0.068265),
    ):
        last = row(name, 1.0)
        assert np.exp(last.log_snr[0]) == pytest.approx(snr, rel=1e-4)
        assert last.alpha[0] == pytest.approx(alpha, rel=1e-4)
    # VDM's fixed gamma runs from -13.3 to 5; the cosine in log-SNR from 15 to -15; both pass the middle halfway.
    np.testing.assert_allclose(row("geometric", 0.0, 0.5, 1.0).log_snr, [13.3, 4.15, -5.0], rtol=1e-12)
    np.testing.assert_allclose(row("cosine_log_snr", 0.0, 0.5, 1.0).log_snr, [15, 0, -15], rtol=1e-12, atol=1e-12)
    # Hang et al.: a uniform t is a Laplace distributed log-SNR.
    np.testing.assert_allclose(scipy.stats.laplace(scale=0.5).sf(row("laplace", *TIMES).log_snr), TIMES, rtol=1e-12)


def test_resolution_shift_keeps_what_a_downsampled_image_shows():
    # Simple diffusion, section 3.1: averaging k x k pixels divides the noise by k, so at k times the base size the
    # ratio of signal to noise must be k times smaller: log-SNR shifts of -1.386, -2.773 and -4.159.
    base = processes.cosine_log_snr()(TIMES)
    for k, shift in ((2, -1.386294), (4, -2.772589), (8, -4.158883)):
        shifted = processes.cosine_log_snr(image_size=64 * k)(TIMES)
        np.testing.assert_allclose(shifted.sigma / shifted.alpha / k, base.sigma / base.alpha, rtol=1e-12)
        np.testing.assert_allclose(shifted.log_snr - base.log_snr, shift, rtol=1e-6)


def test_ncsnv2_levels_follow_its_technique_2():
    # Song & Ermon 2020: with d = 32 x 32 x 3 and ratio r of neighbours, Phi(sqrt(2 d) (r - 1) + 3 r)
    # - Phi(sqrt(2 d) (r - 1) - 3 r) should be about one half: 232 levels between 0.01 and 50.
    sigma = ALL["ncsn"](np.array([1 / 232, 2 / 232, 1.0])).sigma
    np.testing.assert_allclose(sigma[[0, 2]], [0.01, 50.0], rtol=1e-12)
    ratio, spread = sigma[1] / sigma[0], np.sqrt(2 * 3072)
    overlap = np.diff(scipy.stats.norm.cdf(spread * (ratio - 1) + np.array([-3, 3]) * ratio))
    assert 0.5 < overlap < 0.6
    assert processes.ncsn(np.geomspace(0.01, 1.0, 10))(np.float64(0.1)).sigma == pytest.approx(0.01)


@pytest.mark.parametrize("name", ALL)
def test_float32_keeps_alpha_and_sigma(name):
    single, level, _, _ = computed(name)
    # The same real numbers t in both precisions, so that only our arithmetic is measured. On the rows of a table of
    # 1000, t in float32 stands for the row.
    exact = np.asarray(single, np.float64)
    if ALL[name].num_steps == 1000:
        exact[:1000] = ROWS
    exact = ALL[name](exact)
    np.testing.assert_allclose(level.alpha, exact.alpha, rtol=1e-6)
    np.testing.assert_allclose(level.sigma, exact.sigma, rtol=1e-6)
    if name not in EXPLODING:  # a log-SNR of 12 is known to 5e-7 in float32, whatever we do
        np.testing.assert_allclose(level.alpha, exact.alpha, rtol=0, atol=3e-7)
        np.testing.assert_allclose(level.sigma, exact.sigma, rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", ALL)
def test_at_inverts_the_schedule(name):
    single, _, inverse, _ = computed(name)
    np.testing.assert_allclose(inverse, single, atol=2e-6)
    t = TIMES if name not in TABLES else np.linspace(1 / 3000, 1.0, 777)
    np.testing.assert_allclose(ALL[name].at(ALL[name](t).log_snr).t, t, rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_ends(name):
    process = ALL[name]
    clean = process.at(np.float64(np.inf))
    assert (float(clean.alpha), float(clean.sigma), float(clean.t)) == (1.0, 0.0, 0.0)
    first, last = process(np.float64(0.0)), process(np.float64(1.0))
    assert (float(first.sigma) == 0.0) == (name not in NOISY_AT_0)
    assert (float(first.log_snr) == np.inf) == (name not in NOISY_AT_0)
    assert float(process.at(last.log_snr).t) == pytest.approx(1.0, abs=1e-6)
    assert np.all(np.diff(process(np.linspace(0, 1, 5001)).log_snr) < 0)
    low, high = process.schedule.span
    assert np.isfinite(process(np.array([low, high])).log_snr).all()


def test_zero_terminal_snr_table():
    process = processes.from_betas([0.1, 0.2, 1.0])
    level = process(np.array([1 / 3, 2 / 3, 1.0]))
    np.testing.assert_allclose(level.alpha**2, [0.9, 0.72, 0.0], rtol=1e-12)
    assert process.schedule.span == (1 / 3, 2 / 3)
    # Down to the terminal row alpha / sigma falls linearly.
    level = process(1 - np.array([1.0, 0.5, 0.01]) / 3)
    np.testing.assert_allclose(level.alpha / level.sigma / np.sqrt(0.72 / 0.28), [1.0, 0.5, 0.01], rtol=1e-12)
    first, last = (ALL["zero_terminal"](t) for t in (np.float64(0.001), np.float64(1.0)))
    assert float(last.alpha) == 0.0
    assert float(first.alpha) == pytest.approx(np.sqrt(1 - 0.00085), rel=1e-12)


def test_sub_vp_scaling_is_one_minus_alpha_squared():
    log_snr = np.array([-np.inf, -200.0, -30.0, -1.0, 0.0, 1.0, 30.0, 200.0, np.inf])
    alpha, sigma = SubVariancePreserving()(log_snr)
    np.testing.assert_allclose(alpha[[0, -1]], [0.0, 1.0])
    np.testing.assert_allclose(sigma[[0, -1]], [1.0, 0.0])
    ratio = 2 * np.log(alpha[1:-1] / sigma[1:-1])
    np.testing.assert_allclose(ratio, log_snr[1:-1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sigma[3:6], 1 - alpha[3:6] ** 2, rtol=1e-12)
    # d alpha / d log_snr = alpha sigma / (2 (1 + alpha^2)), from alpha^2 + s alpha = 1; 0 and no NaN at both ends.
    slope = jax.jit(jax.vmap(jax.grad(lambda s: SubVariancePreserving()(s)[0])))(jnp.asarray(log_snr))
    np.testing.assert_allclose(slope, alpha * sigma / (2 * (1 + alpha**2)), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", ALL)
def test_velocity_is_the_derivative(name, x64):
    process, t, h = ALL[name], np.array([0.0505, 0.3003, 0.7707]), 1e-6
    alpha, sigma = jax.jit(process.velocity)(t)
    up, down = process(t + h), process(t - h)
    np.testing.assert_allclose(alpha, (up.alpha - down.alpha) / (2 * h), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(sigma, (up.sigma - down.sigma) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_velocity_is_finite_at_the_ends(name):
    assert np.isfinite(computed(name)[3]).all()


@pytest.mark.parametrize("scaling", [VariancePreserving(), VarianceExploding(), Straight(), SubVariancePreserving()])
def test_scalings_have_derivatives_where_a_coefficient_is_zero(scaling, x64):
    log_snr, one = jnp.array([-3.0, 2.0, jnp.inf, -jnp.inf]), jnp.ones(4)
    rates = jax.jvp(lambda a: jnp.stack(scaling(a)), (log_snr,), (one,))[1]
    up, down = (jnp.stack(scaling(log_snr[:2] + h)) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(rates[:, :2], (up - down) / 2e-6, rtol=1e-6, atol=1e-12)
    ends = slice(2, 3 if isinstance(scaling, VarianceExploding) else 4)  # sigma is infinite at pure noise
    np.testing.assert_allclose(rates[:, ends], 0.0, atol=1e-12)


def test_velocity_of_the_straight_path_at_its_ends():
    alpha, sigma = computed("rectified_flow")[3]
    np.testing.assert_allclose(alpha, -1.0, rtol=1e-6)
    np.testing.assert_allclose(sigma, 1.0, rtol=1e-6)


def test_q_sample_scalar_and_per_example(x64):
    process = ALL["ddpm_linear"]
    x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 1))
    t = jnp.array([0.001, 0.2, 0.5, 0.7, 1.0])
    alpha, sigma = (c[[0, 199, 499, 699, 999]][:, None, None, None] for c in TABLES["ddpm_linear"])
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
    betas = np.linspace(1e-4, 0.02, 1000)
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
    mean, var = q_posterior(process(np.float64(0.3)), process.at(np.float64(np.inf)), x, x0)
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
        (lambda: processes.from_betas([1.0]), "betas[0] = 1"),
        (lambda: processes.sub_vp_sde(2.0, 1.0), "beta_min=2, beta_max=1"),
        (lambda: processes.ncsn([50.0, 0.01]), "sigmas must increase"),
        (lambda: processes.ncsn([0.0, 0.1]), "sigmas must increase"),
        (lambda: processes.cosine_log_snr(15.0, -15.0), "log_snr_min=15"),
        (lambda: processes.cosine_log_snr(image_size=0), "image_size=0"),
        (lambda: processes.geometric(5.0, 5.0), "log_snr_min=5"),
        (lambda: processes.sigmoid(3.0, -3.0), "start=3"),
        (lambda: processes.sigmoid(tau=0.0), "tau=0"),
        (lambda: processes.sigmoid(clip_min=1.0), "clip_min=1"),
        (lambda: processes.laplace(b=0.0), "b=0"),
        (lambda: processes.shifted(processes.vp_sde(), np.inf), "log_snr_shift=inf"),
        (lambda: processes.zero_terminal_snr(processes.vp_sde()), "two or more betas, got schedule 'VP'"),
        (lambda: processes.zero_terminal_snr(processes.from_betas([0.5])), "two or more betas"),
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
