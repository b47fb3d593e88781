"""Euler-Maruyama, reverse diffusion, Langevin corrections, annealed Langevin dynamics and SA-Solver."""

import sys
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, grids, process, processes, samplers
from jaxdiff.errors import UsageError
from jaxdiff.numerics import normal_like
from jaxdiff.samplers import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    Corrected,
    EulerMaruyama,
    ReverseDiffusion,
    SASolver,
    SDEDPMpp3M,
    langevin,
    prior_sample,
    sample,
)
from jaxdiff.samplers.langevin import norm_ratio
from jaxdiff.types import Array

MEAN, VAR = 0.7, 0.09
SCALAR = ([MEAN], [[VAR]])
VP, VE = processes.vp_sde(), processes.edm()


def gaussian(mean=(1.0, -0.5, 0.2), cov=((0.5, 0.3, 0.0), (0.3, 0.4, -0.02), (0.0, -0.02, 0.02))):
    return analytic.Gaussian(jnp.array(mean, float), jnp.array(cov, float))


def one_step(sampler, p, times, num=4, data=None):
    """(x, z, the step's result, the levels, the prediction), with z the first draw of the sampler's key."""
    cur, nxt = p(jnp.array(times[0], float)), p(jnp.array(times[1], float))
    data = data or gaussian()
    keys = jax.random.split(jax.random.key(1), num)
    x = cur.sigma * jax.random.normal(jax.random.key(0), (num, 3))
    got = sampler.step(data.denoiser(p), sampler.init(x), cur, nxt, keys, None).x
    return x, normal_like(keys, x), got, cur, nxt, data.denoiser(p)(x, cur)


@dataclass(frozen=True)
class Stay:
    """A predictor that does nothing: x as it is."""

    order = 1
    nfe = 0

    def init(self, x):
        class State(NamedTuple):
            x: Array

        return State(x)

    def step(self, denoise, state, cur, nxt, key, cond):
        return state


@cache
def affine(sampler, p):
    """A step of a sampler whose state is x alone, on scalar Gaussian data: x -> a x + b + sum c_k z_k for 500 pairs of
    levels at a time, from nothing, a unit of x, and a unit of each draw."""
    denoise = gaussian(*SCALAR).denoiser(p)
    keys = jax.random.split(jax.random.key(0), 6)
    start = jnp.zeros((6, 1)).at[1].set(1.0)

    def ends(cur, nxt):
        draws = 0

        def unit(key, x):
            nonlocal draws
            draws += 1
            return jnp.zeros_like(x).at[1 + draws].set(1.0)

        with pytest.MonkeyPatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.startswith("jaxdiff.samplers."):
                    patch.setattr(module, "normal_like", unit, raising=False)
            return sampler.step(denoise, sampler.init(start), cur, nxt, keys, None).x[:, 0]

    return jax.jit(jax.vmap(ends))


def moments(sampler, levels, p, mean=None, var=None):
    """The exact mean and variance after all steps, from the true ones at the first level or those given."""
    n = len(levels.t) - 1
    at = np.minimum(np.arange(-(-n // 500) * 500), n - 1).reshape(-1, 500)
    end = [affine(sampler, p)(*(jax.tree.map(lambda f, r=r: f[r], levels) for r in (row, row + 1))) for row in at]
    end = np.concatenate(end)[:n]
    a, b, c = end[:, 1] - end[:, 0], end[:, 0], end[:, 2:] - end[:, :1]
    if mean is None:
        mean, var = (np.asarray(f[0]) for f in truth(levels))
    for k in range(n):
        mean, var = a[k] * mean + b[k], a[k] ** 2 * var + np.sum(c[k] ** 2)
    return np.array([mean, var])


def truth(levels):
    return levels.alpha * MEAN, levels.alpha**2 * VAR + levels.sigma**2


def even(p, n, first=-3.6, last=2.2):
    """n even steps in log-SNR between two noisy levels."""
    return process.stack(p.at(np.linspace(first, last, n + 1)))


# Predictors


def test_reverse_diffusion_is_algorithm_2_and_ddpm_with_beta_for_a_ve_process(x64):
    """Song et al. 2021, algorithm 2, predictor: x + (s'^2 - s^2) score + sqrt(s'^2 - s^2) z."""
    x, z, got, cur, nxt, prediction = one_step(ReverseDiffusion(), VE, (0.6, 0.5))
    gap = cur.sigma**2 - nxt.sigma**2
    np.testing.assert_allclose(got, x - gap * prediction.eps / cur.sigma + jnp.sqrt(gap) * z, rtol=1e-12)
    np.testing.assert_allclose(got, one_step(DDPM("beta"), VE, (0.6, 0.5))[2], rtol=1e-12)


def test_reverse_diffusion_of_a_vp_process_is_near_algorithm_3(x64):
    """(x + beta score) / sqrt(1 - beta) + sqrt(beta / (1 - beta)) z; algorithm 3's mean differs by O(beta^2), its
    noise by O(beta) of itself."""
    gaps = []
    for width in (0.02, 0.01, 0.005):
        x, z, got, cur, nxt, prediction = one_step(ReverseDiffusion(), VP, (0.3 + width, 0.3))
        beta, score = 1 - (cur.alpha / nxt.alpha) ** 2, -prediction.eps / cur.sigma
        ours = (x + beta * score) / jnp.sqrt(1 - beta)
        np.testing.assert_allclose(got, ours + jnp.sqrt(beta / (1 - beta)) * z, rtol=1e-9)
        gaps.append(jnp.abs((2 - jnp.sqrt(1 - beta)) * x + beta * score - ours).max() / beta**2)
    np.testing.assert_allclose(gaps, gaps[0], rtol=0.1)
    assert gaps[0] > 0.1


@pytest.mark.parametrize(("betas", "order"), [((6.0, 6.0), None), ((0.1, 20.0), 2)])
def test_euler_maruyama_is_the_published_predictor(betas, order, x64):
    """Song et al.'s code: x + (beta x / 2 + beta score) dt + sqrt(beta dt) z with beta at the step's start: the same
    for a constant beta, and for any other up to the second order (here without z, whose share is of order 3/2)."""
    p, errors = processes.vp_sde(*betas), []
    for dt in (0.02, 0.01):
        x, z, got, cur, nxt, prediction = one_step(EulerMaruyama(), p, (0.4, 0.4 - dt))
        beta = betas[0] + 0.4 * (betas[1] - betas[0])
        mean = x + (x / 2 - prediction.eps / cur.sigma) * beta * dt
        if order is None:
            np.testing.assert_allclose(got, mean + np.sqrt(beta * dt) * z, rtol=1e-9)
        whole = nxt.log_snr - cur.log_snr
        noise = jnp.sqrt(jnp.log((1 + jnp.exp(-cur.log_snr)) / (1 + jnp.exp(-cur.log_snr - whole))))
        errors.append(float(jnp.abs(got - noise * z - mean).max()))
    if order:
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("sampler", [EulerMaruyama(), ReverseDiffusion()])
def test_predictors_have_weak_order_1_and_plain_ends(sampler, x64):
    _, _, clean, _, _, prediction = one_step(sampler, VP, (0.5, 0.0))
    np.testing.assert_allclose(clean, prediction.x0, rtol=1e-12)
    table = processes.from_betas([0.1, 0.4, 1.0])
    _, z, got, _, nxt, prediction = one_step(sampler, table, (1.0, 2 / 3))
    np.testing.assert_allclose(got, nxt.alpha * prediction.x0 + nxt.sigma * z, rtol=1e-12)
    errors = [np.abs(moments(sampler, even(VP, n), VP) - [f[-1] for f in truth(even(VP, n))])[1] for n in (500, 1000)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.03)


# Langevin corrections


@pytest.mark.parametrize("p", [VP, VE])
def test_corrector_is_the_papers_step(p, x64):
    """Song et al. 2021, algorithms 4 and 5 (each norm that of the example), and their code's fixed step."""
    for norm in ("expected", "example"):
        sampler = Corrected(Stay(), snr=0.2, norm=norm)
        x, _, got, _, nxt, _ = one_step(sampler, p, (0.5, 0.5))
        z = normal_like(jax.vmap(jax.random.split)(jax.random.split(jax.random.key(1), 4))[:, 1], x)
        score = np.asarray(gaussian().score(x, nxt))
        for i in range(4):
            ratio = {"expected": nxt.sigma, "example": np.linalg.norm(z[i]) / np.linalg.norm(score[i])}[norm]
            step = 2 * (0.2 * ratio) ** 2
            np.testing.assert_allclose(got[i], x[i] + step * score[i] + np.sqrt(2 * step) * z[i], rtol=1e-9)


@pytest.mark.parametrize("snr", [0.01, 0.16, 0.5])
def test_stationary_variance_of_the_corrector(snr, x64):
    """V / (1 - snr^2 sigma^2 / V) at a level of variance V: too much by snr^2 sigma^2 / V in the limit."""
    levels = jax.tree.map(lambda a: jnp.full(2, a), VP(jnp.array(0.3)))
    target, noise = float(truth(levels)[1][0]), float(levels.sigma[0] ** 2)
    expected = target / (1 - snr**2 * noise / target)
    mean, var = moments(langevin(Stay(), snr=snr), levels, VP, mean=0.3, var=expected)
    assert var == pytest.approx(expected, rel=1e-12)
    shrink = 1 - 2 * snr**2 * noise / target  # and the mean is drawn to the true one
    centre = float(truth(levels)[0][0])
    assert mean - centre == pytest.approx(shrink * (0.3 - centre), rel=1e-9)
    if snr < 0.1:
        assert (var / target - 1) / snr**2 == pytest.approx(noise / target, rel=1e-3)


def test_more_levels_leave_the_bias_of_the_corrector(x64):
    """Order 0: the error does not fall to 0 but to the closed-form share, whatever the predictor."""
    levels = even(VP, 4000)
    true = float(truth(levels)[1][-1])
    bias = true / (1 - 0.16**2 * float(levels.sigma[-1]) ** 2 / true) - true
    for predictor in (ReverseDiffusion(), DDIM()):
        _, var = moments(Corrected(predictor), levels, VP)
        assert var - true == pytest.approx(bias, rel=0.05)
    assert moments(DDIM(), levels, VP)[1] - true == pytest.approx(0, abs=0.1 * bias)
    assert Corrected().order == 0


def test_corrections_go_with_any_sampler(x64):
    data, levels = gaussian(), grids.uniform(VP, 6)
    x, key = prior_sample(VP, jax.random.key(0), (3, 3)), jax.random.key(1)
    sampler = SASolver(2, 2, tau=0.0)
    plain, _ = sample(data.denoiser(VP), sampler, levels, x, key)
    still, _ = sample(data.denoiser(VP), langevin(sampler, steps=2, snr=1e-9), levels, x, key)
    np.testing.assert_allclose(still, plain, atol=1e-7)
    assert langevin(sampler, steps=3).nfe == 4
    # Predictor and corrector draw apart: the one's step, and then the other's with its own key.
    keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(1), 4))
    both = one_step(langevin(DDPM()), VP, (0.5, 0.4))
    first = DDPM().step(data.denoiser(VP), DDPM().init(both[0]), both[3], both[4], keys[:, 0], None).x
    shift = 2 * 0.16**2 * both[4].sigma ** 2 * data.score(first, both[4])
    noise = 2 * 0.16 * both[4].sigma * normal_like(keys[:, 1], first)
    np.testing.assert_allclose(both[2], first + shift + noise, rtol=1e-9)
    # At clean data there is nothing to correct.
    _, _, clean, _, _, prediction = one_step(langevin(DDIM()), VP, (0.5, 0.0))
    np.testing.assert_allclose(clean, prediction.x0, rtol=1e-12)


def test_the_ratio_of_norms_has_a_derivative_at_zero():
    noise = jnp.ones((4, 3))
    np.testing.assert_array_equal(norm_ratio(noise, jnp.zeros_like(noise)), 0)
    np.testing.assert_array_equal(jax.grad(lambda eps: norm_ratio(noise, eps).sum())(jnp.zeros_like(noise)), 0)


# Annealed Langevin dynamics


def test_annealed_langevin_is_the_papers_step(x64):
    """NCSNv2's rule with epsilon = 6.2e-6 and sigma_L = 0.01, at the level it steps to."""
    x, _, got, _, nxt, _ = one_step(AnnealedLangevin(step_size=0.062), VE, (0.5, 0.45))
    z = normal_like(jax.vmap(jax.random.split)(jax.random.split(jax.random.key(1), 4))[:, 0], x)
    a = 6.2e-6 * nxt.sigma**2 / 0.01**2
    np.testing.assert_allclose(got, x + a * gaussian().score(x, nxt) + jnp.sqrt(2 * a) * z, rtol=1e-9)


def test_annealed_langevin_follows_ncsnv2s_equation():
    """Technique 4: a level's variance after T steps for data at a point, from gamma^2 sigma^2 at its start."""
    num, times, h, gamma = 20_000, 5, 0.062, 1.5
    levels = process.stack(VE.at(np.log(np.array([gamma, 1.0]) ** -2)))
    data, key = analytic.Gaussian(jnp.zeros(1), jnp.zeros((1, 1))), jax.random.key(0)
    x = gamma * jax.random.normal(jax.random.key(1), (num, 1))
    got, _ = sample(data.denoiser(VE), AnnealedLangevin(times, h), levels, x, key)
    v = 2 * h / (1 - (1 - h) ** 2)
    expected = (1 - h) ** (2 * times) * (gamma**2 - v) + v
    assert float(got.var()) == pytest.approx(expected, rel=4 * np.sqrt(2 / num))


def test_annealed_langevin_reaches_the_gaussian(x64):
    """To clean data with k = h (levels per unit of log sigma). The excess E over V + u, u = sigma^2 falling, obeys
    dE/du = k E / (V + u) - 1 - k h u / 2V, so that E = V (1 + h / 2) / k at u = 0, up to a share of 1 / k."""
    levels = process.stack(VE.at(np.append(np.linspace(-9, 14, 4000), np.inf)))
    for h in (0.5, 0.25):
        mean, var = moments(AnnealedLangevin(step_size=h), levels, VE)
        assert mean == pytest.approx(MEAN, abs=1e-6)
        k = h * 4000 / 11.5
        assert var / VAR - 1 == pytest.approx((1 + h / 2) / k, rel=2 / k)
    table = processes.from_betas([0.1, 0.4, 1.0])
    _, _, got, _, nxt, prediction = one_step(AnnealedLangevin(), table, (1.0, 2 / 3))
    np.testing.assert_allclose(got, nxt.alpha * prediction.x0 + nxt.sigma * prediction.eps, rtol=1e-12)


# SA-Solver


def adams(lam, ends, nodes, tau):
    """Equations 15 and 18 of the paper over alpha_end: (1 + tau^2) e^(-k lam_end) int e^(k lam) l_j(lam) dlam."""
    k, (points, weights) = 1 + tau**2, np.polynomial.legendre.leggauss(24)
    half = (ends[1] - ends[0]) / 2
    at = ends[0] + half * (points + 1)
    basis = [np.prod([(at - m) / (n - m) for m in nodes if m != n], axis=0) for n in nodes]
    return [float(np.sum(half * weights * k * np.exp(k * (at - ends[1])) * b)) for b in basis]


def sa_solver(p, c, tau, alpha, sigma, x, noises, predict):
    """Algorithm 1 in float64 NumPy: predictor p, corrector through c predictions, x at every level."""
    lam, past, kept, path = np.log(alpha / sigma), [], None, []
    for i in range(len(alpha) - 1):
        past = [predict(x, i), *past]
        if c and i > 0:
            nodes = lam[i::-1][:c]
            b = adams(lam, (lam[i - 1], lam[i]), nodes, tau)
            x = kept + alpha[i] * sum(w * m for w, m in zip(b, past, strict=False))
        h = lam[i + 1] - lam[i]
        kept = sigma[i + 1] / sigma[i] * np.exp(-(tau**2) * h) * x
        kept = kept + sigma[i + 1] * np.sqrt(1 - np.exp(-2 * tau**2 * h)) * noises[i]
        b = adams(lam, (lam[i], lam[i + 1]), lam[i::-1][:p], tau)
        x = kept + alpha[i + 1] * sum(w * m for w, m in zip(b, past, strict=False))
        path.append(x)
    return path


@pytest.mark.parametrize(("p", "c", "tau"), [(2, 2, 1.0), (3, 3, 0.5), (2, 3, 0.0)])
def test_sa_solver_is_the_papers_algorithm(p, c, tau, x64):
    data, n, sampler = gaussian(), 6, SASolver(p, c, tau)
    levels = process.stack(VP.at(np.array([-5.0, -4.2, -2.5, -1.9, 0.0, 1.0, 2.5])))
    keys = jax.random.split(jax.random.key(3), (n, 4))
    x = jax.random.normal(jax.random.key(0), (4, 3))
    noises = [np.asarray(normal_like(k, x)) for k in keys]
    cov, mean = np.asarray(data.cov), np.asarray(data.mean)
    alpha, sigma = np.asarray(levels.alpha), np.asarray(levels.sigma)

    def predict(x, i):
        gain = alpha[i] * cov @ np.linalg.inv(alpha[i] ** 2 * cov + sigma[i] ** 2 * np.eye(3))
        return mean + (x - alpha[i] * mean) @ gain.T

    expected = sa_solver(p, c, tau, alpha, sigma, np.asarray(x), noises, predict)
    state, step = sampler.init(x), jax.jit(lambda s, a, b, k: sampler.step(data.denoiser(VP), s, a, b, k, None))
    for i in range(n):
        cur, nxt = (jax.tree.map(lambda a, j=j: a[j], levels) for j in (i, i + 1))
        state = step(state, cur, nxt, keys[i])
        np.testing.assert_allclose(state.x, expected[i], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("p", "c", "tau", "order"),
    [(1, 0, 1, 1), (2, 0, 1, 2), (1, 2, 1, 2), (2, 2, 1, 2), (2, 3, 1, 2), (2, 2, 0, 2), (3, 0, 0, 3), (2, 3, 0, 3)],
)
def test_sa_solvers_order_is_that_of_the_variance(p, c, tau, order):
    """By the transcription above, on scalar Gaussian data, with one column per draw: what was stated is measured."""
    assert SASolver(p, c, float(tau)).order == order

    def error(n):
        lam = -1.8 + 2.9 * np.linspace(0, 1, n + 1) ** 2
        alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
        sigma = alpha * np.exp(-lam)
        var = alpha**2 * VAR + sigma**2
        x, noises = np.eye(n + 1)[0] * np.sqrt(var[0]), np.eye(n + 1)[1:]
        end = sa_solver(p, c, tau, alpha, sigma, x, noises, lambda x, i: alpha[i] * VAR / var[i] * x)[-1]
        return abs(np.sum(end**2) - var[-1])

    assert np.log2(error(150) / error(300)) == pytest.approx(order, abs=0.35)


def test_sa_solver_meets_the_other_samplers(x64):
    """First order: DDIM, with an eta for each tau. Third, without corrector: SDE-DPM-Solver++ with exact weights."""
    data, key = gaussian(), jax.random.key(2)
    x = prior_sample(VP, jax.random.key(0), (4, 3))
    levels = process.stack(VP.at(np.append(np.linspace(-6, 6, 9), np.inf)))

    def run(sampler):
        return sample(data.denoiser(VP), sampler, levels, x, key)[0]

    tau, h = 0.6, 0.75
    eta = np.sqrt(np.expm1(-2 * tau**2 * h) / np.expm1(-2 * h))
    for ours, other in (
        (SASolver(1, 0, tau), DDIM(float(eta))),
        (SASolver(3, 0, tau), SDEDPMpp3M(eta=tau**2, exact=True)),
    ):
        np.testing.assert_allclose(run(ours), run(other), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SASolver(predictor=4), "predictor=4: allowed is 1, 2 or 3"),
        (lambda: SASolver(corrector=4), "corrector=4: allowed is 0 (none), 1, 2 or 3"),
        (lambda: SASolver(tau=1.5), "tau=1.5"),
        (lambda: Corrected(steps=0), "steps=0"),
        (lambda: langevin(DDIM(), snr=1.0), "snr=1"),
        (lambda: samplers.make("predictor_corrector", norm="exampel"), "did you mean 'example'"),
        (lambda: AnnealedLangevin(steps=0), "steps=0"),
        (lambda: AnnealedLangevin(step_size=2.0), "step_size=2"),
    ],
)
def test_bad_arguments_are_one_line(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
