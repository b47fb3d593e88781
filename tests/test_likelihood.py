"""Likelihoods against closed form, quadrature, SciPy's flow map, and DDPM's own formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.integrate import solve_ivp
from scipy.special import ndtr
from scipy.stats import multivariate_normal, norm

from jaxdiff import Denoiser, Prediction, analytic, grids, processes
from jaxdiff.data.transforms import Dequantize, ToUnitRange
from jaxdiff.errors import UsageError
from jaxdiff.guidance import classifier_free
from jaxdiff.likelihood import angular, bits_per_dim, bound, dequantized_log_prob, log_prob, uniform_noise
from jaxdiff.numerics import expand

KEY = jax.random.key(0)
PROCESSES = {
    "vp_sde": processes.vp_sde(),
    "sub_vp_sde": processes.sub_vp_sde(),
    "ve_sde": processes.ve_sde(),
    "edm": processes.edm(),
    "rectified_flow": processes.rectified_flow(),
    "ddpm_linear": processes.ddpm_linear(),
}
TURN = np.array([[0.8, -0.6], [0.6, 0.8]])
MEANS = np.array([[0.8, 0.4], [-0.8, -0.4]])  # centred, as the prior is
COVS = np.array([TURN @ np.diag([0.5, 0.1]) @ TURN.T, np.diag([0.08, 0.4])])
VARIANCES = np.array([0.25, 0.6, 1.5])


def mixture():
    return analytic.Mixture(jnp.ones(2), jnp.asarray(MEANS, jnp.float32), jnp.asarray(COVS, jnp.float32))


def mixture_density(x):
    parts = [multivariate_normal(m, s).pdf(x) for m, s in zip(MEANS, COVS, strict=True)]
    return np.log(np.mean(parts, axis=0))


def gaussian(variances=VARIANCES):
    return analytic.Gaussian(jnp.zeros(len(variances)), jnp.diag(jnp.asarray(variances, jnp.float32)))


def round_data(variance, x, level, cond):
    """The exact denoiser of N(0, variance I), of any shape."""
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    x = x / (alpha**2 * variance + sigma**2)
    return Prediction(alpha * variance * x, sigma * x)


# The density by the probability flow


@pytest.mark.parametrize("name", PROCESSES)
def test_density_of_a_mixture(name):
    """125 evaluations: within 2e-3 nats per dimension of SciPy's density, for every kind of process."""
    data, process = mixture(), PROCESSES[name]
    x0 = data.sample(KEY, 200)
    result = log_prob(data.denoiser(process), x0, KEY, levels=angular(process, 32), order=4)
    assert result.nfe == 125
    assert np.abs(result.value - mixture_density(x0)).max() / 2 < 2e-3
    assert (result.stderr == 0).all()


@pytest.mark.parametrize("order", [2, 4])
def test_order_of_the_steps(order, x64):
    """Halving the steps of a grid from alpha = 0 to clean data: the first step costs no order, and no end a bias."""
    data = analytic.Gaussian(jnp.zeros(2), jnp.asarray(COVS[0]))
    process = processes.rectified_flow()
    x0 = data.sample(KEY, 16)
    truth = multivariate_normal(np.zeros(2), COVS[0]).logpdf(x0)
    errors = [
        np.abs(log_prob(data.denoiser(process), x0, KEY, levels=grids.uniform(process, n), order=order).value - truth)
        for n in (32, 64)
    ]
    assert math.log2(errors[0].mean() / errors[1].mean()) == pytest.approx(order, abs=0.15)
    assert errors[1].max() < {2: 5e-3, 4: 5e-5}[order]


@pytest.mark.parametrize(("order", "probes", "n"), [(2, 1, 64), (4, 3, 32)])
def test_the_error_bar_covers_the_truth(order, probes, n):
    """95 % of 200 trials within 1.96 standard errors (91 to 99 % is three binomial deviations)."""
    data, process = mixture(), PROCESSES["vp_sde"]
    x0 = data.sample(jax.random.key(1), 200)
    levels = angular(process, n)
    result = log_prob(
        data.denoiser(process), x0, jax.random.key(2), levels=levels, trace="hutchinson", probes=probes, order=order
    )
    error = result.value - mixture_density(x0)
    assert 0.91 <= np.mean(np.abs(error) < 1.96 * result.stderr) <= 0.99
    # The bars are no wider than need be, either.
    assert np.sqrt(np.mean(result.stderr**2)) == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.2)


class TestGuided:
    """Two Gaussian classes; label 2 is their mixture. In u = x / alpha and s = sigma / alpha, du/ds = eps."""

    scale = 1.7

    @staticmethod
    def predict(shares, x, level, cond):
        data = mixture()
        return jax.vmap(
            lambda x, w: jax.tree.map(
                lambda a: a[0],
                analytic.Mixture(w, data.means, data.covs).denoiser(PROCESSES["edm"])(x[None], level),
            )
        )(x, shares[cond["label"]])

    def denoiser(self):
        shares = jnp.array([[1.0, 1e-30], [1e-30, 1.0], [0.5, 0.5]])
        return Denoiser(Partial(self.predict, shares), PROCESSES["edm"])

    def guided(self, x, label):
        """The guided flow's density at x: SciPy's map to the prior and a Jacobian by differences."""

        def noise(s, u):
            covs, away = COVS + s**2 * np.eye(2), u - MEANS
            each = np.linalg.solve(covs, away[..., None])[..., 0]
            likely = np.exp(-0.5 * (away * each).sum(1)) / np.linalg.det(covs) ** 0.5
            free = (likely / likely.sum()) @ each
            return s * (free + self.scale * (each[label] - free))

        def push(u):
            return solve_ivp(noise, (0, 80), u, rtol=1e-8, atol=1e-8, method="DOP853").y[:, -1]

        h = 1e-4 * np.eye(2)
        jacobian = np.stack([(push(x + d) - push(x - d)) / 2e-4 for d in h], axis=1)
        return norm(scale=80).logpdf(push(x)).sum() + np.log(np.abs(np.linalg.det(jacobian)))

    @staticmethod
    def conditional(x, label):
        """A class's own density, and what the prior of scale 80 makes of its mean: the flow keeps the quantiles."""
        values, vectors = np.linalg.eigh(COVS[label])
        z = (x - MEANS[label]) @ vectors / values**0.5
        wide = (values + 80**2) ** 0.5
        end = MEANS[label] @ vectors + wide * z
        prior = norm(scale=80).logpdf(end).sum() - norm(MEANS[label] @ vectors, wide).logpdf(end).sum()
        return multivariate_normal(MEANS[label], COVS[label]).logpdf(x) + prior

    def test_conditional_and_guided(self):
        x0 = jnp.array([[0.5, 0.2], [-1.0, 0.1], [-0.9, -0.6]])
        label = jnp.array([0, 1, 1])
        levels = angular(PROCESSES["edm"], 32)
        for scale, truth in ((1.0, self.conditional), (self.scale, self.guided)):
            denoise = classifier_free(scale, {"label": 2})(self.denoiser())  # one compilation: the scale is a leaf
            value = log_prob(denoise, x0, KEY, levels=levels, order=4, cond={"label": label}).value
            want = [truth(np.asarray(x, np.float64), int(c)) for x, c in zip(x0, label, strict=True)]
            np.testing.assert_allclose(value, want, atol=2e-3)


def test_a_key_gives_its_value_in_any_batch_with_one_trace_and_a_true_count():
    calls, traces = [], []

    def predict(scale, x, level, cond):
        traces.append(1)
        jax.debug.callback(lambda: calls.append(1))
        return round_data(scale, x, level, cond)

    process = PROCESSES["ddpm_linear"]
    x0, levels = jnp.linspace(-1, 1, 12).reshape(4, 3), grids.uniform(process, 8)
    denoise = Denoiser(Partial(predict, jnp.float32(1)), process)
    result = log_prob(denoise, x0, KEY, levels=levels, trace="hutchinson", probes=2)
    jax.effects_barrier()
    assert len(calls) == result.nfe == 15
    traced = len(traces)
    again = log_prob(
        Denoiser(Partial(predict, jnp.float32(0.9)), process), x0, KEY, levels=levels, trace="hutchinson", probes=2
    )
    assert len(traces) == traced
    assert (again.value != result.value).all()
    few = log_prob(denoise, x0[:2], KEY, levels=levels, trace="hutchinson", probes=2)
    np.testing.assert_allclose(few.value, result.value[:2], rtol=1e-5)
    np.testing.assert_allclose(few.stderr, result.stderr[:2], rtol=1e-4)


def test_images_are_vectors_and_the_gradient_is_the_score():
    process = PROCESSES["rectified_flow"]
    x0 = jnp.linspace(-1, 1, 24).reshape(2, 2, 2, 3)
    denoise, levels = Denoiser(Partial(round_data, 0.3), process), angular(process, 24)

    def total(x0):
        value = log_prob(denoise, x0, KEY, levels=levels).value
        return value.sum(), value

    score, value = jax.grad(total, has_aux=True)(x0)
    np.testing.assert_allclose(value / 12, norm(scale=0.3**0.5).logpdf(x0).mean((1, 2, 3)), atol=2e-3)
    np.testing.assert_allclose(score, -x0 / 0.3, rtol=5e-3)


# The variational bound


def ddpm_terms(betas, x0, kind):
    """The expected terms for N(0, diag(VARIANCES)) and its exact denoiser, from Ho et al.'s equations 5 to 8."""
    kept = np.cumprod(1 - betas)
    before = np.append(1, kept[:-1])
    posterior = betas * (1 - before) / (1 - kept)

    def error(k):  # E (x0 - x0_hat)^2
        total = kept[k] * VARIANCES + 1 - kept[k]
        return ((1 - kept[k]) / total * x0) ** 2 + kept[k] * (1 - kept[k]) * (VARIANCES / total) ** 2

    diffusion = 0
    for k in range(1, len(betas)):
        var = {"posterior": posterior, "beta": betas}[kind][k]
        slope = np.sqrt(before[k]) * betas[k] / (1 - kept[k])
        ratio = posterior[k] / var
        diffusion = diffusion + 0.5 * (ratio - 1 - np.log(ratio) + slope**2 * error(k) / var)
    s2 = (1 - kept[0]) / kept[0]
    decoded = 0.5 * (error(0) / s2 + np.log(2 * np.pi * s2))
    prior = 0.5 * (kept[-1] * x0**2 + (1 - kept[-1]) - 1 - np.log(1 - kept[-1]))
    return [a.sum(1) for a in (prior, diffusion, decoded)]


def agree(estimate, stderr, truth, width=4.0):
    """The mean of independent estimates within `width` of its standard errors."""
    assert abs(np.mean(estimate - truth)) < width * np.sqrt(np.mean(stderr**2) / len(stderr))


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_bound_of_a_thousand_steps(variance):
    """Each term is DDPM's; the sum is above -log p, and with the larger variance within 0.02 bits per dimension."""
    process, data = PROCESSES["ddpm_linear"], gaussian()
    x0 = data.sample(jax.random.key(1), 1024)
    levels = grids.uniform(process, 1000)
    draws = 500 if variance == "beta" else 300
    terms = bound(
        data.denoiser(process), x0, KEY, levels=levels, variance=variance, decoder="gaussian", draws=draws, decodes=32
    )
    assert terms.nfe == draws + 32
    prior, diffusion, decoded = ddpm_terms(np.asarray(process.schedule.betas), np.float64(x0), variance)
    np.testing.assert_allclose(terms.prior, prior, rtol=1e-4, atol=1e-7)
    agree(terms.diffusion, terms.stderr, diffusion)
    agree(terms.reconstruction, terms.stderr, decoded)
    spread = (terms.total - prior - diffusion - decoded) / terms.stderr
    assert np.std(spread) == pytest.approx(1, abs=0.15)
    nll = -norm(scale=VARIANCES**0.5).logpdf(x0).sum(1)
    exact = np.mean(prior + diffusion + decoded - nll)
    gap, error = np.mean(terms.total - nll), np.sqrt(np.mean(terms.stderr**2) / 1024)
    assert exact > 0
    assert gap > -3 * error
    if variance == "beta":
        assert bits_per_dim(gap, x0.shape, width=1) < 0.02
        assert bits_per_dim(exact, x0.shape, width=1) < 0.002


def test_the_whole_sum_by_hand():
    """A prediction off by 0.01 leaves nothing to chance: every step's KL, and the 8-bit decoder, in closed form.

    log var lies between the posterior's and beta (Nichol & Dhariwal's equation 15), in row 0 with row 1's posterior.
    """
    process, off = PROCESSES["ddpm_linear"], 0.01
    x0, levels = jnp.full((2, 3), 2 * 140 / 255 - 1), grids.uniform(process, 1000)
    betas = np.asarray(process.schedule.betas)
    kept = np.cumprod(1 - betas)
    before = np.append(1, kept[:-1])
    posterior = betas * (1 - before) / (1 - kept)
    slope = np.sqrt(before) * betas / (1 - kept)

    def predict(fraction, x, level, cond):
        return Prediction(jnp.full_like(x, 2 * 140 / 255 - 1 - off), x, jnp.full_like(x, fraction))

    for variance, fraction in (("learned", 0.0), ("learned", 0.3), ("learned", 1.0), ("posterior", 0.0)):
        denoise = Denoiser(Partial(predict, jnp.float32(fraction)), process)
        terms = bound(denoise, x0, KEY, levels=levels, variance=variance, decodes=2)
        assert terms.nfe == 999 + 2
        var = betas**fraction * np.append(posterior[1], posterior[1:]) ** (1 - fraction)
        ratio = posterior[1:] / var[1:]
        want = 3 * 0.5 * np.sum(ratio - 1 - np.log(ratio) + (slope[1:] * off) ** 2 / var[1:])
        np.testing.assert_allclose(terms.diffusion, want, rtol=1e-4)
        low, high = ((off + side / 255) / var[0] ** 0.5 for side in (-1, 1))
        np.testing.assert_allclose(terms.reconstruction, -3 * np.log(ndtr(-low) - ndtr(-high)), rtol=1e-4)


@pytest.mark.parametrize(("name", "draws"), [("vp_sde", None), ("rectified_flow", 150)])
def test_bound_in_continuous_time(name, draws):
    """VDM's integral for Gaussian data: sum_i log(1 + SNR l_i) / 2 between its ends; and no gap is left."""
    process, data = PROCESSES[name], gaussian()
    x0 = data.sample(jax.random.key(1), 2048)
    levels = grids.uniform(process, 100)  # of rectified flow: from alpha = 0
    terms = bound(data.denoiser(process), x0, KEY, levels=levels, kind="continuous", decoder="gaussian", draws=draws)
    ends = np.exp(np.float64(levels.log_snr))[[0, -2]]
    low, high = (0.5 * np.log1p(snr * VARIANCES).sum() for snr in ends)
    agree(terms.diffusion, terms.stderr, high - low)
    agree(terms.total, terms.stderr, -norm(scale=VARIANCES**0.5).logpdf(x0).sum(1))
    assert np.isfinite(terms.total).all()


def test_continuous_integrand_by_hand():
    """A prediction of x0 that is off by c integrates to c^2 (SNR_1 - SNR_0) / 2; here from SNR 0 to 1."""
    process = PROCESSES["rectified_flow"]
    levels = grids.explicit(process, np.append(np.linspace(1.0, 0.5, 60), 0.0))

    def predict(x, level, cond):
        x0 = jnp.full_like(x, -0.1)
        return Prediction(x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x))

    for draws in (None, 60):
        terms = bound(
            Denoiser(predict, process), jnp.zeros((64, 3)), KEY, levels=levels, kind="continuous", draws=draws
        )
        np.testing.assert_allclose(terms.diffusion.mean(), 3 * 0.01 / 2, rtol=1e-3)


def test_softmax_decoder_by_quadrature():
    """E -log p(x0 | x_1) of one 8-bit number, integrated over the noise of x_1, as VDM has it."""
    process = PROCESSES["vp_sde"]
    levels = grids.explicit(process, [1.0, 0.5, 0.1, 4e-5, 0.0])
    s = math.sqrt(math.expm1(0.1 * 4e-5 + 0.5 * 19.9 * 4e-5**2))  # a quarter of a bin
    value, eps = 2 * 140 / 255 - 1, np.linspace(-8, 8, 4001)
    logits = -0.5 * ((value + s * eps[:, None] - np.linspace(-1, 1, 256)) / s) ** 2
    truth = np.average(np.log(np.exp(logits).sum(1)) - logits[:, 140], weights=norm.pdf(eps))
    denoise = Denoiser(Partial(round_data, 0.3), process)
    terms = bound(denoise, jnp.full((512, 1), value), KEY, levels=levels, decoder="softmax", draws=2, decodes=32)
    assert np.mean(terms.reconstruction) == pytest.approx(truth, abs=0.02)
    assert terms.nfe == 2


# Dequantisation and units


def test_bits_follow_the_pipeline():
    """The pipeline's images v + u, and a density that is uniform over [-1, 1]: 8 bits, whatever the size."""
    values = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)
    u = np.float32(0.25)
    piped = ToUnitRange()(Dequantize()(values, lambda *shape: np.full((2, *shape), u, np.float32)))

    def density(x, key):
        """Uniform over [-1, 1], less how far x is from the pipeline's."""
        return -jnp.abs(x - piped).sum((1, 2, 3)) - 48 * math.log(2)

    def quarter(key, v):
        return jnp.full(v.shape, u), jnp.zeros(v.shape[0])

    nats = -jax.jit(lambda k: dequantized_log_prob(density, jnp.asarray(values), k, noise=quarter))(KEY)
    np.testing.assert_allclose(bits_per_dim(nats, values.shape, width=1), 8, rtol=1e-6)
    assert bits_per_dim(48 * math.log(2), values.shape) == pytest.approx(8)


def test_dequantisation_of_a_gaussian():
    """Uniform noise is below log P(v), more samples close in on it, and p's own noise meets it."""
    mean, std, bins = 0.1, 0.2, 8
    values = jnp.array([[2, 3], [4, 5], [6, 1]])
    edges = 2 * np.arange(bins + 1) / bins - 1
    cell = ndtr((edges[1:] - mean) / std) - ndtr((edges[:-1] - mean) / std)
    truth = np.log(cell[np.asarray(values)]).sum(1)

    def density(x, key):
        return jax.scipy.stats.norm.logpdf(x, mean, std).sum(1)

    def own(key, v):
        u, _ = uniform_noise(key, v)
        below, above = (jax.scipy.special.ndtr((2 * (v + i) / bins - 1 - mean) / std) for i in (0, 1))
        x = mean + std * jax.scipy.special.ndtri(below + u * (above - below))
        log_q = density(x, None) - jnp.log(above - below).sum(1) + v.shape[1] * math.log(2 / bins)
        return (x + 1) * bins / 2 - v, log_q

    def estimate(key, noise=uniform_noise, samples=1):
        return dequantized_log_prob(density, values, key, noise=noise, samples=samples, bins=bins)

    tight = jax.jit(lambda k: estimate(k, own))(KEY)
    np.testing.assert_allclose(tight, truth, atol=2e-5)

    copies = jnp.repeat(values[None], 4000, axis=0).reshape(-1, 2)
    many = dequantized_log_prob(density, copies, KEY, bins=bins).reshape(4000, 3)
    grid = (np.arange(2000) + 0.5) / 2000 * 2 / bins
    inside = norm(mean, std).logpdf(edges[:-1, None] + grid).mean(1) + np.log(2 / bins)
    want = inside[np.asarray(values)].sum(1)
    np.testing.assert_allclose(many.mean(0), want, atol=4 * np.std(many, axis=0).max() / 4000**0.5)
    assert (want < truth).all()
    np.testing.assert_allclose(jax.jit(lambda k: estimate(k, samples=4000))(KEY), truth, atol=0.1)


def test_dequantisation_with_the_flows_density():
    process = PROCESSES["rectified_flow"]
    denoise = Denoiser(Partial(round_data, 0.3), process)
    values, levels = jnp.array([[100, 120], [200, 60]]), angular(process, 24)

    def flow(x, key):
        return log_prob(denoise, x, key, levels=levels, order=4).value

    def exact(x, key):
        return jax.scipy.stats.norm.logpdf(x, 0.0, 0.3**0.5).sum(1)

    by_flow, by_hand = (dequantized_log_prob(f, values, KEY, samples=3) for f in (flow, exact))
    np.testing.assert_allclose(by_flow, by_hand, atol=2e-3)


# What cannot work is said in one line


def _log_prob(**changes):
    process = PROCESSES["vp_sde"]
    given = {"x0": jnp.zeros((2, 3)), "key": KEY, "levels": grids.uniform(process, 4), **changes}
    return log_prob(gaussian().denoiser(process), given.pop("x0"), given.pop("key"), **given)


def _bound(**changes):
    process = PROCESSES["vp_sde"]
    given = {"levels": grids.uniform(process, 4), **changes}
    return bound(gaussian().denoiser(process), jnp.zeros((2, 3)), KEY, **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _log_prob(trace="exakt"), "unknown trace 'exakt': did you mean 'exact'?"),
        (lambda: _log_prob(order=3), "order=3: allowed are 2 and 4"),
        (lambda: _log_prob(probes=0), "probes=0: allowed is 1 or more"),
        (lambda: _log_prob(levels=grids.explicit(processes.vp_sde(), [1.0, 0.5, 0.1])), "levels must end at clean"),
        (lambda: _log_prob(levels=processes.vp_sde()(0.5)), "levels must be 3 or more stacked levels"),
        (lambda: _log_prob(cond={"label": jnp.zeros(3)}), "cond must have the batch size 2"),
        (lambda: angular(processes.vp_sde(), 0), "steps=0"),
        (lambda: _bound(kind="discreet"), "unknown kind 'discreet': did you mean 'discrete'?"),
        (lambda: _bound(variance="small"), "unknown variance 'small'"),
        (lambda: _bound(decoder="gauss"), "unknown decoder 'gauss': did you mean 'gaussian'?"),
        (lambda: _bound(variance="learned"), "needs a model with learned_variance"),
        (lambda: _bound(draws=1), "draws=1: allowed is 2 or more"),
        (lambda: _bound(decodes=1), "decodes=1: allowed is 2 or more"),
        (lambda: _bound(levels=grids.uniform(processes.vp_sde(), 2)), "levels must be 4 or more"),
        (lambda: bits_per_dim(1.0, (1, 2), width=0), "width=0: need width > 0"),
        (lambda: dequantized_log_prob(lambda x, k: x[:, 0], jnp.zeros((1, 1)), KEY, samples=0), "samples=0"),
        (lambda: dequantized_log_prob(lambda x, k: x[:, 0], jnp.zeros((1, 1)), KEY, bins=1), "bins=1"),
    ],
)
def test_refused(call, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?").replace("(", r"\(")) as caught:
        call()
    assert "\n" not in str(caught.value)
