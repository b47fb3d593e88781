"""Losses on Gaussian data against closed forms: values at the exact denoiser, gradients in a linear model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxdiff import analytic, prediction, processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, ScaledTime
from jaxdiff.objectives import (
    EDM,
    P2,
    SNR,
    VLB,
    ContinuousELBO,
    Denoising,
    DiscreteELBO,
    Hybrid,
    Likelihood,
    LogNormal,
    MinSNR,
    Sigmoid,
    Simple,
    SlicedScoreMatching,
    SoftMinSNR,
    Stratified,
    Uniform,
    UniformLogSNR,
)
from jaxdiff.objectives.base import noised

from .conftest import COV, MEAN, NUM, At, exact, keys_of

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

VALUES = np.linalg.eigvalsh(COV)
VP, FLOW, VE = processes.vp_sde(), processes.rectified_flow(), processes.edm()
WEIGHTS = [Simple(), SNR(), MinSNR(), P2(), EDM(0.5), SoftMinSNR(), Sigmoid()]


def risk(snr):
    """Sum of the posterior variances of x0 given x, from the SNR alone: l / (1 + SNR l)."""
    return (VALUES / (1 + snr * VALUES)).sum()


def vp_alpha2(t, low=0.1, high=20.0):
    return np.exp(-(low * t + 0.5 * t**2 * (high - low)))


def linear(process, p, learned=False):
    """y_hat = W x + c, and with `learned` a variance channel v for each number."""

    def network(params, x, t, cond, *, train=False, rngs=None):
        output = x @ params["w"].T + params["c"][None]
        return jnp.concatenate([output, params["v"] + 0 * output], axis=-1) if learned else output

    return Model(network, process, p, time_input=ScaledTime(1.0), learned_variance=learned)


def strata(count):
    """Each of `count` equal parts of [0, 1], by its middle, for all of the eight points."""
    return jnp.asarray(np.resize(np.repeat((np.arange(count) + 0.5) / count, 8), NUM))


W, C = np.array([[0.7, -0.2], [0.1, 0.4]]), np.array([0.3, -0.1])


@pytest.mark.parametrize("process", [VP, FLOW, VE], ids=["vp", "flow", "ve"])
def test_denoising_at_the_exact_denoiser_is_the_bayes_risk(points, process):
    """To rounding, for every weight, and the same whatever the network's target."""
    x0, t = points(), 0.4
    level = process(jnp.asarray(t))
    snr = float((level.alpha / level.sigma) ** 2)
    for name in ("x0", "v", "edm", "flow", "eps", "score"):
        if process is FLOW and name in ("eps", "score"):
            continue  # refused by Model
        p = prediction.make(name, process)
        for weight in [*WEIGHTS, Likelihood(process)]:
            loss, _ = Denoising(At(t), weight)(exact(process, p), None, {"x0": x0}, keys_of())
            expected = float(weight(level, p)) * risk(snr) / 2
            assert float(loss.mean()) == pytest.approx(expected, rel=1e-9), (name, weight)


@pytest.mark.parametrize(("name", "weight"), [("eps", SNR()), ("x0", SoftMinSNR(2.0)), ("v", MinSNR(0.2))])
def test_the_gradient_in_a_linear_model_is_the_closed_form(points, name, weight):
    """d/dW E[k/2 |W x + c - y|^2] = k (W E[x x'] + c E[x]' - E[y x']), k = 2 w / (error_scale^2 D)."""
    x0, t = points(), 0.3
    alpha2 = vp_alpha2(t)
    alpha, sigma = math.sqrt(alpha2), math.sqrt(1 - alpha2)
    snr = alpha2 / (1 - alpha2)
    a, b, scale = {"eps": (0, 1, snr), "x0": (1, 0, 1), "v": (-sigma, alpha, 1 / (1 - alpha2))}[name]
    w = {"eps": snr, "x0": snr * 2 / (snr + 2), "v": min(snr, 0.2)}[name]
    second = COV + np.outer(MEAN, MEAN)
    xx, yx = alpha2 * second + sigma**2 * np.eye(2), a * alpha * second + b * sigma * np.eye(2)
    k = 2 * w / scale / 2
    expected = {
        "w": k * (W @ xx + np.outer(C, alpha * MEAN) - yx),
        "c": k * (W @ (alpha * MEAN) + C - a * MEAN),
    }
    model = linear(VP, prediction.make(name, VP))
    objective = Denoising(At(t), weight)
    params = {"w": jnp.asarray(W), "c": jnp.asarray(C)}
    got = jax.grad(lambda q: objective(model, q, {"x0": x0}, keys_of())[0].mean())(params)
    for part in expected:
        np.testing.assert_allclose(got[part], expected[part], rtol=1e-9)


def test_flow_matching_is_denoising_with_the_velocity(points):
    """|v - (eps - x0)|^2 at x = (1 - t) x0 + t eps: with FLOW, and with the process's own velocity."""
    x0, t = points(), np.linspace(0.1, 0.9, NUM)
    params = {"w": jnp.asarray(W), "c": jnp.asarray(C)}
    eps = noised(linear(FLOW, prediction.FLOW), params, {"x0": x0}, keys_of(), At(t), train=False).eps
    x = (1 - t)[:, None] * x0 + t[:, None] * eps
    expected = np.mean((np.asarray(x) @ W.T + C - (eps - x0)) ** 2, axis=1)
    for p in (prediction.FLOW, prediction.Flow(FLOW)):
        loss, _ = Denoising(At(t))(linear(FLOW, p), params, {"x0": x0}, keys_of())
        np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_ncsn_loss(points):
    """Song & Ermon 2019, equations 5 and 6: sigma^2 / 2 |s + (x - x0) / sigma^2|^2 is D / 2 times ours."""
    x0, t = points(), np.linspace(0.1, 0.9, NUM)
    params = {"w": jnp.asarray(W), "c": jnp.asarray(C)}
    model = linear(VE, prediction.SCORE)
    drawn = noised(model, params, {"x0": x0}, keys_of(), At(t), train=False)
    sigma = (0.002 ** (1 - t) * 80.0**t)[:, None]
    score = np.asarray(drawn.x) @ W.T + C
    expected = (0.5 * sigma**2 * (score + (drawn.x - x0) / sigma**2) ** 2).sum(axis=1)
    loss, _ = Denoising(At(t), SNR())(model, params, {"x0": x0}, keys_of())
    np.testing.assert_allclose(loss * 2 / 2, expected, rtol=1e-9)


BETAS = np.linspace(1e-3, 0.3, 6)
ALPHA2 = np.cumprod(1 - BETAS)
TABLE = processes.from_betas(BETAS)


def ddpm(i):
    """(posterior variance, beta, coefficient of x0, SNR) of DDPM's step i in 2..T, by its own formulas."""
    now, before, beta = ALPHA2[i - 1], ALPHA2[i - 2], BETAS[i - 1]
    return beta * (1 - before) / (1 - now), beta, math.sqrt(before) * beta / (1 - now), now / (1 - now)


@pytest.mark.parametrize("name", ["eps", "v"])
def test_vlb_at_the_exact_denoiser_is_the_gaussians_divergence(points, name):
    x0, p = points(), prediction.make(name, TABLE)
    for i, frac in ((2, 0.0), (2, 1.0), (4, 0.3), (6, 0.8)):
        small, large, coef, snr = ddpm(i)
        var = large**frac * small ** (1 - frac)
        kl = 0.5 * (small / var - 1 - math.log(small / var) + coef**2 * risk(snr) / 2 / var)
        objective = VLB(Stratified())
        batch = {"x0": x0, "strata": jnp.full(NUM, (i - 0.5) / 6)}
        loss, _ = objective(exact(TABLE, p, frac=frac), None, batch, keys_of())
        assert float(loss.mean()) == pytest.approx(6 * kl / math.log(2), rel=1e-9)
    # With the posterior's variance it is VDM's discrete term; two routes to one number.
    batch = {"x0": x0, "strata": jnp.full(NUM, 3.5 / 6)}
    bits, _ = VLB(Stratified())(exact(TABLE, p, frac=0.0), None, batch, keys_of())
    nats, _ = DiscreteELBO()(exact(TABLE, p), None, {"x0": x0, "strata": jnp.full(NUM, 2.5 / 5)}, keys_of())
    np.testing.assert_allclose(bits * math.log(2) * 2 / 6, nats / 5, rtol=1e-9)


def test_vlb_of_the_first_row_is_the_likelihood_of_8_bit_data():
    """DDPM's equation 13, with the variance range's lower end from the second row."""
    bins = np.resize([[0, 255], [100, 30], [17, 254]], (NUM, 2))
    x0 = jnp.asarray(bins / 127.5 - 1)
    frac = 0.4
    params = {"w": jnp.eye(2) * 0.9, "c": jnp.full(2, 0.01), "v": jnp.asarray(2 * frac - 1)}
    model = linear(TABLE, prediction.X0, learned=True)
    batch = {"x0": x0, "strata": jnp.full(NUM, 0.5 / 6)}
    loss, _ = VLB(Stratified())(model, params, batch, keys_of())
    drawn = noised(model, params, batch, keys_of(), Stratified(), train=False)
    std = math.sqrt(BETAS[0] ** frac * ddpm(2)[0] ** (1 - frac))
    upper = norm.cdf(np.where(bins == 255, np.inf, x0 + 1 / 255), drawn.output, std)
    lower = norm.cdf(np.where(bins == 0, -np.inf, x0 - 1 / 255), drawn.output, std)
    np.testing.assert_allclose(loss, 6 * -np.log2(upper - lower).mean(axis=1), rtol=1e-6)


def test_the_best_variance_is_the_true_one(points):
    """Isotropic data: the reverse step is Gaussian, the bound's minimum over v is its variance, its value known."""
    s = 0.4
    x0, i = points(cov=s * np.eye(2)), 4
    data = analytic.Gaussian(jnp.asarray(MEAN), s * jnp.eye(2))
    small, large, coef, snr = ddpm(i)
    true = small + coef**2 * s / (1 + snr * s)
    best = math.log(true / small) / math.log(large / small)
    batch = {"x0": x0, "strata": jnp.full(NUM, (i - 0.5) / 6)}

    def bound(frac):
        model = exact(TABLE, prediction.EPS, data, frac=frac)
        return VLB(Stratified())(model, None, batch, keys_of())[0].mean()

    value, slope = jax.value_and_grad(bound)(best)
    assert float(value) == pytest.approx(6 * 0.5 * math.log2(true / small), rel=1e-9)
    assert abs(float(slope)) < 1e-9 * float(value)


def test_hybrid_trains_the_mean_by_l_simple_and_the_variance_by_the_bound(points):
    """Gradients in a linear model: W's from L_simple alone, v's the closed form, times 0.001 in bits per dimension."""
    i, frac = 4, 0.4
    x0 = points()
    params = {"w": jnp.asarray(W), "c": jnp.asarray(C), "v": jnp.asarray(2 * frac - 1)}
    batch = {"x0": x0, "strata": jnp.full(NUM, (i - 0.5) / 6)}
    model = linear(TABLE, prediction.X0, learned=True)

    def gradient(objective):
        return jax.grad(lambda q: objective(model, q, batch, keys_of())[0].mean())(params)

    hybrid, bound = gradient(Hybrid(Stratified())), gradient(VLB(Stratified()))
    plain = linear(TABLE, prediction.X0)
    simple = jax.grad(lambda q: Denoising(Stratified())(plain, q, batch, keys_of())[0].mean())(params)
    np.testing.assert_allclose(hybrid["w"], simple["w"], rtol=1e-12)
    np.testing.assert_allclose(hybrid["v"], 0.001 * bound["v"], rtol=1e-12)

    small, large, coef, _ = ddpm(i)
    alpha2 = ALPHA2[i - 1]
    second = COV + np.outer(MEAN, MEAN)
    xx, x0x = alpha2 * second + (1 - alpha2) * np.eye(2), math.sqrt(alpha2) * second
    x_mean = math.sqrt(alpha2) * MEAN
    var = large**frac * small ** (1 - frac)
    to_bits = 6 / 2 / math.log(2)
    expected = to_bits * coef**2 / var * (W @ xx + np.outer(C, x_mean) - x0x)
    np.testing.assert_allclose(bound["w"], expected, rtol=1e-9)
    error = W @ xx @ W.T + np.outer(C, C) + second - 2 * W @ x0x + 2 * np.outer(W @ x_mean, C) - 2 * np.outer(C, MEAN)
    slope = 0.5 * (2 - (2 * small + coef**2 * np.trace(error)) / var) * math.log(large / small) / 2
    np.testing.assert_allclose(bound["v"], to_bits * slope, rtol=1e-9)
    loss, metrics = Hybrid(Stratified())(model, params, batch, keys_of())
    np.testing.assert_allclose(loss, metrics["mse"] + 0.001 * metrics["vlb"], rtol=1e-12)


@pytest.mark.parametrize("process", [VP, FLOW, VE], ids=["vp", "flow", "ve"])
def test_continuous_elbo_is_half_a_log_determinant(points, process):
    """Importance sampled and uniform in t: sum_i log((1 + SNR_max l) / (1 + SNR_min l)) / 2, in nats per example."""
    x0 = points()
    for times, t_max in ((UniformLogSNR(0.05), process.schedule.span[1]), (Stratified(0.05), 1.0)):
        high, low = (float((level.alpha / level.sigma) ** 2) for level in (process(0.05), process(t_max)))
        expected = 0.5 * (np.log1p(high * VALUES) - np.log1p(low * VALUES)).sum()
        batch = {"x0": x0, "strata": strata(120)}
        loss, _ = ContinuousELBO(times)(exact(process, prediction.V), None, batch, keys_of())
        assert float(loss.mean()) == pytest.approx(expected, rel=1e-3)  # the midpoint rule's error


def test_importance_sampling_has_the_same_mean_and_less_variance(points):
    """Random times, near the data where g^2 / sigma^2 grows without bound: Song et al. 2021, section 5.1."""
    x0, t_min = points(), 1e-3
    high, low = (vp_alpha2(t) / (1 - vp_alpha2(t)) for t in (t_min, 1.0))
    expected = 0.5 * (np.log1p(high * VALUES) - np.log1p(low * VALUES)).sum()
    spread = {}
    for times in (Uniform(t_min), UniformLogSNR(t_min)):
        loss, _ = ContinuousELBO(times)(exact(VP, prediction.EPS), None, {"x0": x0}, keys_of())
        spread[type(times)] = float(loss.std())
        assert float(loss.mean()) == pytest.approx(expected, abs=5 * float(loss.std()) / math.sqrt(NUM))
    assert spread[UniformLogSNR] < 0.3 * spread[Uniform]


def test_likelihood_weight_is_the_same_bound(points):
    """lambda = g^2 / 2 on the score, per dimension: the ELBO with the same uniform times is D (1 - t_min) of it."""
    x0 = points()
    for process, g2 in (
        (VP, lambda t: 0.1 + 19.9 * t),
        (VE, lambda t: 2 * math.log(80 / 0.002) * (0.002 * (80 / 0.002) ** t) ** 2),
        (FLOW, lambda t: 2 * t / (1 - t)),
    ):
        t = np.linspace(0.1, 0.9, 5)
        level = process(jnp.asarray(t))
        on_score = Likelihood(process)(level, prediction.V) / prediction.error_scale(prediction.SCORE, level) ** 2
        np.testing.assert_allclose(on_score, g2(t) / 2, rtol=1e-9)
    model, batch = exact(VP, prediction.V), {"x0": x0}
    elbo, _ = ContinuousELBO(Uniform(0.1))(model, None, batch, keys_of())
    weighted, _ = Denoising(Uniform(0.1), Likelihood(VP))(model, None, batch, keys_of())
    np.testing.assert_allclose(elbo, 2 * 0.9 * weighted, rtol=1e-9)


def test_discrete_elbo_is_the_sum_over_steps(points):
    """(1/2) sum (SNR(s) - SNR(t)) E|x0 - x0_hat|^2, over the rows of a table, and over T steps of [t_min, 1]."""

    def value(objective, process, count):
        batch = {"x0": points(), "strata": strata(count)}
        return float(objective(exact(process, prediction.V), None, batch, keys_of())[0].mean())

    snr = ALPHA2 / (1 - ALPHA2)
    expected = 0.5 * sum((snr[i - 1] - snr[i]) * risk(snr[i]) for i in range(1, 6))
    assert value(DiscreteELBO(), TABLE, 5) == pytest.approx(expected, rel=1e-9)

    excess = []
    for steps in (15, 60, 120):
        alpha2 = vp_alpha2(0.05 + 0.95 * np.arange(steps + 1) / steps)
        snr = alpha2 / (1 - alpha2)
        expected = 0.5 * sum((snr[i - 1] - snr[i]) * risk(snr[i]) for i in range(1, steps + 1))
        found = value(DiscreteELBO(steps, 0.05), VP, steps)
        assert found == pytest.approx(expected, rel=1e-9)
        excess.append(found - 0.5 * (np.log1p(snr[0] * VALUES) - np.log1p(snr[-1] * VALUES)).sum())
    assert excess[0] > excess[1] > 0
    assert excess[1] / excess[2] == pytest.approx(2, rel=0.1)  # above the continuous bound, and falling to it as 1 / T


def test_sliced_score_matching_at_the_exact_score(points):
    """-E|score|^2 / 2 = -tr((alpha^2 S + sigma^2 I)^-1) / 2, times sigma^2; less variance in the second form."""
    t = 0.3
    batch, alpha2 = {"x0": points()}, vp_alpha2(t)
    cov = alpha2 * COV + (1 - alpha2) * np.eye(2)
    expected = -0.5 * (1 - alpha2) * np.trace(np.linalg.inv(cov))
    spread = []
    for reduced in (True, False):
        objective = SlicedScoreMatching(At(t), variance_reduced=reduced)
        loss, _ = objective(exact(VP, prediction.EPS), None, batch, keys_of())
        spread.append(math.sqrt(float(loss.reshape(-1, 8).var(axis=0).mean())))  # over v, at the same x
        assert float(loss.mean()) == pytest.approx(expected, abs=5 * spread[-1] / math.sqrt(NUM))
    assert spread[0] < 0.8 * spread[1], spread
    many, _ = SlicedScoreMatching(At(t), projections=4)(exact(VP, prediction.EPS), None, batch, keys_of())
    assert float(many.mean()) == pytest.approx(expected, abs=5 * float(many.std()) / math.sqrt(NUM))


def test_sliced_score_matching_has_the_gradient_of_denoising_score_matching(points):
    """In a model with a diagonal Jacobian, where signs v give the trace exactly: D / 2 times Denoising's."""
    x0, t = points(), 0.3

    def network(params, x, t, cond, *, train=False, rngs=None):
        return x * params[0][None] + params[1][None]

    model = Model(network, VP, prediction.SCORE, time_input=ScaledTime(1.0))
    params = (jnp.array([0.3, -0.4]), jnp.asarray(C))

    def gradient(objective):
        return jax.grad(lambda q: objective(model, q, {"x0": x0}, keys_of())[0].mean())(params)

    sliced, denoising = gradient(SlicedScoreMatching(At(t))), gradient(Denoising(At(t), SNR()))
    for a, b in zip(sliced, denoising, strict=True):
        np.testing.assert_allclose(a, b * 2 / 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Hybrid(LogNormal()), "allowed for a sum over all steps"),
        (lambda: VLB()(exact(TABLE, prediction.EPS), None, {"x0": jnp.zeros((NUM, 2))}, keys_of()), "learned_variance"),
        (lambda: Hybrid().check(VP), "2 or more, got None"),
        (lambda: ContinuousELBO(LogNormal()), "tell no density"),
        (lambda: ContinuousELBO().check(TABLE), "needs a continuous process; this one has 6 steps"),
        (lambda: DiscreteELBO().check(VP), "give steps for a continuous one only"),
        (lambda: DiscreteELBO(10).check(TABLE), "steps=10 with a process of 6 steps"),
        (lambda: DiscreteELBO(0), "steps=0"),
        (lambda: UniformLogSNR()(TABLE, keys_of()), "needs a continuous process"),
        (lambda: Likelihood(TABLE), "discrete_elbo"),
        (lambda: SlicedScoreMatching(projections=0), "projections=0"),
    ],
)
def test_what_cannot_work_is_one_line(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
