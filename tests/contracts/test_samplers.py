"""What every sampler in the registry must do, and what the two first ones must be."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, grids, process, processes, samplers
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.samplers import DDIM, DDPM, prior_sample, sample
from jaxdiff.types import Level, Prediction

DDPM_1000 = processes.ddpm_linear()
NAMES = list(samplers.REGISTRY)


def gaussian(dtype=jnp.float32):
    cov = jnp.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.02], [0.0, -0.02, 0.02]], dtype)
    return analytic.Gaussian(jnp.array([1.0, -0.5, 0.2], dtype), cov)


def rescaled(target, log_snr):
    """Levels of another process at the same log-SNR."""
    return process.stack(target.at(np.asarray(log_snr, np.float64)))


def run(name, *, levels=None, num=7, key=0, process=DDPM_1000, x=None, **kwargs):
    key = jax.random.key(key)
    x = prior_sample(process, key, (num, 3)) if x is None else x
    levels = grids.uniform(process, 20) if levels is None else levels
    return sample(gaussian(x.dtype).denoiser(process), samplers.make(name, **kwargs), levels, x, key)[0]


@pytest.mark.parametrize("name", [n for n in NAMES if not samplers.REGISTRY[n].stochastic])
def test_measured_order(name, x64):
    """Distance to the exact probability flow against the number of steps, on a grid uniform in log-SNR."""
    process, data = processes.vp_sde(), gaussian(jnp.float64)
    log_snrs = process(np.array([1.0, 0.01])).log_snr
    x = prior_sample(process, jax.random.key(0), (64, 3))
    errors = []
    for n in (40, 80, 160):
        levels = rescaled(process, np.linspace(*log_snrs, n + 1))
        ends = [jax.tree.map(lambda a, i=i: a[i], levels) for i in (0, -1)]
        got, _ = sample(data.denoiser(process), samplers.make(name), levels, x, jax.random.key(1))
        errors.append(float(jnp.sqrt(jnp.mean((got - data.flow(x, *ends)) ** 2))))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(orders - samplers.REGISTRY[name].order) < 0.15), orders


@pytest.mark.parametrize("name", NAMES)
def test_same_log_snr_grid_same_sample_in_every_scaling(name, x64):
    vp, ve, flow = processes.vp_sde(), processes.edm(), processes.rectified_flow()
    log_snr = np.append(np.linspace(-8, 9, 12), np.inf)
    start = jax.random.normal(jax.random.key(3), (5, 3))
    results = []
    for p in (vp, ve, flow):
        levels = rescaled(p, log_snr)
        # The same point in every scaling: x / alpha.
        x = start * levels.alpha[0] * np.exp(4)
        results.append(sample(gaussian(jnp.float64).denoiser(p), samplers.make(name), levels, x, jax.random.key(4))[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-8)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_finite_to_clean_data_with_few_steps(name, steps):
    for p in (DDPM_1000, processes.edm(), processes.vp_sde()):
        assert np.isfinite(run(name, levels=grids.karras(p, steps), process=p)).all()


@pytest.mark.parametrize("name", NAMES)
def test_same_key_same_sample_in_any_batch(name):
    one, seven, many = (run(name, num=n) for n in (1, 7, 64))
    np.testing.assert_allclose(seven[:1], one, atol=1e-5)
    np.testing.assert_allclose(many[:7], seven, atol=1e-5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(64))
    x = prior_sample(DDPM_1000, keys[5:8], (3, 3))
    sampler, levels = samplers.make(name), grids.uniform(DDPM_1000, 20)
    some, _ = sample(gaussian().denoiser(DDPM_1000), sampler, levels, x, keys[5:8])
    np.testing.assert_allclose(some, many[5:8], atol=1e-5)
    raw, _ = sample(gaussian().denoiser(DDPM_1000), sampler, levels, x, jax.random.key_data(keys[5:8]))
    np.testing.assert_array_equal(raw, some)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_in_bf16_out(name):
    x = prior_sample(DDPM_1000, jax.random.key(0), (7, 3)).astype(jnp.bfloat16)
    levels = grids.uniform(DDPM_1000, 20)
    got, _ = sample(gaussian().denoiser(DDPM_1000), samplers.make(name), levels, x, jax.random.key(0))
    assert got.dtype == jnp.bfloat16
    assert np.isfinite(got.astype(jnp.float32)).all()


@dataclass
class Counter:
    """A network that counts how often it is traced, and how often it runs."""

    traces: int = 0
    runs: int = 0

    def count(self, _):
        self.runs += 1

    def __call__(self, x, level, cond):
        self.traces += 1
        jax.debug.callback(self.count, x[0, 0])
        return Prediction(0.5 * x, (x - level.alpha * 0.5 * x) / level.sigma)

    __hash__ = object.__hash__


@pytest.mark.parametrize("name", NAMES)
def test_three_calls_one_trace_and_true_nfe(name):
    counter, steps = Counter(), 6
    for seed in range(3):
        denoise = Denoiser(counter, DDPM_1000)
        levels = grids.uniform(DDPM_1000, steps) if seed else grids.trailing(DDPM_1000, steps)
        x, _ = sample(denoise, samplers.make(name), levels, jnp.ones((2, 3)), jax.random.key(seed))
        x.block_until_ready()
    jax.effects_barrier()
    assert counter.runs == 3 * steps * samplers.REGISTRY[name].nfe
    assert counter.traces == samplers.REGISTRY[name].nfe


@pytest.mark.parametrize(("name", "kwargs"), [("ddpm", {}), ("ddpm", {"variance": "beta"}), ("ddim", {"eta": 1.0})])
def test_ddpm_1000_gives_the_gaussian(name, kwargs):
    num, data = 20_000, gaussian()
    x = run(name, levels=grids.uniform(DDPM_1000, 1000), num=num, **kwargs)
    mean_error = (x.mean(0) - data.mean) / jnp.sqrt(jnp.diag(data.cov) / num)
    assert np.max(np.abs(mean_error)) < 4
    cov = jnp.cov(x.T)
    std = jnp.sqrt((data.cov**2 + jnp.outer(jnp.diag(data.cov), jnp.diag(data.cov))) / num)
    # The discretisation's own bias is at most (largest step's variance) / (data variance): 1 % where that is 0.02.
    assert (
        np.max(np.abs(cov - data.cov) / (4 * std + 0.01 * jnp.sqrt(jnp.outer(jnp.diag(data.cov), jnp.diag(data.cov)))))
        < 1
    )


def test_ddim_eta_1_is_ddpm(x64):
    np.testing.assert_allclose(run("ddim", eta=1.0), run("ddpm"), rtol=1e-9)


def test_ddim_is_the_papers_equation_12(x64):
    """Song et al. 2021: x_prev from (x0, eps) with sigma(eta) of equation 16, on DDPM's own alpha-bars."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    here, prev, eta = alpha_bar[699], alpha_bar[499], 0.5
    cur, nxt = DDPM_1000(0.7), DDPM_1000(0.5)
    x, keys = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.split(jax.random.key(1), 4)
    x0, eps, _ = gaussian(jnp.float64).denoiser(DDPM_1000)(x, cur)
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    sigma = eta * np.sqrt((1 - prev) / (1 - here)) * np.sqrt(1 - here / prev)
    expected = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * eps + sigma * noise
    sampler = DDIM(eta)
    got = sampler.step(gaussian(jnp.float64).denoiser(DDPM_1000), sampler.init(x), cur, nxt, keys, None).x
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_posterior_variance_is_right_for_a_point_and_beta_for_unit_data():
    """Ho et al. 2020, section 3.2: each variance is exact for its own data, with any number of steps."""
    process, key, num = DDPM_1000, jax.random.key(0), 50_000
    levels = grids.trailing(process, 5)
    for data, variance, std in (
        (analytic.Gaussian(jnp.ones(1), jnp.zeros((1, 1))), "posterior", 0.0),
        (analytic.Gaussian(jnp.zeros(1), jnp.ones((1, 1))), "beta", 1.0),
    ):
        cut = jax.tree.map(lambda a: a[:-1], levels)  # stop at a noisy level, where the variance still shows
        x = prior_sample(process, key, (num, 1))
        x, _ = sample(data.denoiser(process), DDPM(variance), cut, x, key)
        level = jax.tree.map(lambda a: a[-1], cut)
        expected = float(level.alpha**2 * std**2 + level.sigma**2)
        assert float(x.var()) == pytest.approx(expected, rel=4 * np.sqrt(2 / num))


def test_learned_variance_spans_posterior_to_beta(x64):
    def answer(frac):
        inner = gaussian(jnp.float64).denoiser(DDPM_1000)
        return Denoiser(lambda x, level, cond: inner(x, level)._replace(var_frac=jnp.full_like(x, frac)), DDPM_1000)

    x, key = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.key(1)
    levels = grids.uniform(DDPM_1000, 20)
    for frac, variance in ((0.0, "posterior"), (1.0, "beta")):
        learned, _ = sample(answer(frac), DDPM("learned"), levels, x, key)
        fixed, _ = sample(answer(frac), DDPM(variance), levels, x, key)
        np.testing.assert_allclose(learned, fixed, rtol=1e-9)
    cur, nxt = DDPM_1000(0.5), DDPM_1000(0.4)
    keys = jax.random.split(key, 4)
    steps = [
        DDPM(v).step(answer(0.5), DDPM(v).init(x), cur, nxt, keys, None).x for v in ("posterior", "beta", "learned")
    ]
    noiseless = process.q_posterior(cur, nxt, x, answer(0.5)(x, cur).x0)[0]
    small, large, middle = (s - noiseless for s in steps)
    np.testing.assert_allclose(middle, jnp.sign(small) * jnp.sqrt(small * large), rtol=1e-9)


def test_collect_stacks_the_trajectory_and_nothing_by_default():
    denoise, levels = gaussian().denoiser(DDPM_1000), grids.uniform(DDPM_1000, 6)
    x = jnp.ones((2, 3))
    end, path = sample(denoise, DDIM(), levels, x, jax.random.key(0), collect=samplers.trajectory)
    assert path.shape == (6, 2, 3)
    np.testing.assert_array_equal(path[-1], end)
    assert sample(denoise, DDIM(), levels, x, jax.random.key(0))[1] is None


def test_prior_has_the_process_scale():
    for p, std in ((processes.edm(), 80.0), (processes.vp_sde(), 1.0), (processes.rectified_flow(), 1.0)):
        x = prior_sample(p, jax.random.key(0), (10_000, 2))
        assert float(x.std()) == pytest.approx(std, rel=0.02)


def test_gradient_through_the_scan_is_finite():
    def loss(x):
        levels = grids.uniform(DDPM_1000, 5)
        return sample(gaussian().denoiser(DDPM_1000), DDIM(), levels, x, jax.random.key(0))[0].sum()

    assert np.isfinite(jax.grad(loss)(jnp.ones((2, 3)))).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: samplers.make("ddimm"), "did you mean 'ddim'"),
        (lambda: samplers.make("ddim", et=1.0), "did you mean 'eta'"),
        (lambda: DDIM(eta=1.5), "eta=1.5"),
        (lambda: samplers.make("ddpm", variance="large"), "unknown variance 'large'"),
        (lambda: run("ddpm", variance="learned"), "needs a model with learned_variance"),
        (lambda: run("ddim", levels=Level(*(jnp.ones(1),) * 4)), "at least 1 step"),
        (
            lambda: sample(
                gaussian().denoiser(DDPM_1000),
                DDIM(),
                grids.uniform(DDPM_1000, 2),
                jnp.ones((2, 3)),
                jax.random.key(0),
                cond={"label": jnp.zeros(3, int)},
            ),
            "batch size 2",
        ),
        (
            lambda: sample(
                gaussian().denoiser(DDPM_1000),
                DDIM(),
                grids.uniform(DDPM_1000, 2),
                jnp.ones((2, 3)),
                jax.random.split(jax.random.key(0), 3),
            ),
            "one per example",
        ),
    ],
)
def test_bad_input_is_one_line(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
