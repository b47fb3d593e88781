"""What every sampler in the registry must do."""

import itertools
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, grids, process, processes, samplers
from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand
from jaxdiff.samplers import prior_sample, sample
from jaxdiff.types import Level, Prediction

pytestmark = pytest.mark.usefixtures("quick_compile")
DDPM_1000 = processes.ddpm_linear()
KEY = jax.random.key(0)
NAMES = list(samplers.REGISTRY)


def gaussian(dtype=jnp.float32):
    cov = jnp.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.02], [0.0, -0.02, 0.02]], dtype)
    return analytic.Gaussian(jnp.array([1.0, -0.5, 0.2], dtype), cov)


def slow_start(process, n, first=1.0, last=0.01):
    """n steps in log-SNR whose sizes grow from almost nothing, so that the low-order start of a multistep sampler
    does not hide its order: the first step is 1 / n of the average one."""
    noisy, clean = process(np.array([first, last])).log_snr
    return rescaled(process, noisy + (clean - noisy) * np.linspace(0, 1, n + 1) ** 2)


def rescaled(target, log_snr):
    """Levels of another process at the same log-SNR."""
    return process.stack(target.at(np.asarray(log_snr, np.float64)))


def run(name, levels, *, x=None, key=0, process=DDPM_1000):
    """At most 20 steps, padded: one compilation per process and shape, shared by the tests below."""
    key = jax.random.key(key) if isinstance(key, int) else key
    x = prior_sample(process, key, (7, 3)) if x is None else x
    denoise = gaussian().denoiser(process)
    return sample(denoise, samplers.make(name), levels, x, key, max_steps=20)[0]


def measured_order(errors):
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


def settings(*, stochastic):
    """Every sampler with its default arguments, and its settings that have an order of their own."""
    return [
        pytest.param(name, dict(kwargs), id="-".join([name, *(f"{k}={v}" for k, v in kwargs)]))
        for name in NAMES
        for kwargs in ((), *samplers.REGISTRY[name].variants)
        if samplers.REGISTRY[name].stochastic == stochastic
        # Order 0 keeps a bias that steps alone do not take away; its size is held by the sampler's own test.
        if samplers.make(name, **dict(kwargs)).order > 0
    ]


@pytest.mark.parametrize(("name", "kwargs"), settings(stochastic=False))
def test_measured_order(name, kwargs, x64):
    """Distance to the exact probability flow against the number of steps."""
    process, data, sampler = processes.vp_sde(), gaussian(jnp.float64), samplers.make(name, **kwargs)
    x = prior_sample(process, jax.random.key(0), (64, 3))
    errors = []
    for n in (160, 320, 640):
        levels = slow_start(process, n)
        ends = [jax.tree.map(lambda a, i=i: a[i], levels) for i in (0, -1)]
        got, _ = sample(data.denoiser(process), sampler, levels, x, jax.random.key(1), max_steps=640)
        errors.append(float(jnp.sqrt(jnp.mean((got - data.flow(x, *ends)) ** 2))))
    assert np.all(np.abs(measured_order(errors) - sampler.order) < 0.15), (errors, measured_order(errors))


MEAN, VAR = jnp.array([0.7, -0.3]), jnp.array([0.09, 0.5])


def end_of(sampler, process, n, monkeypatch):
    """The exact mean and variances that a sampler gives to Gaussian data, and the true ones at the last level.

    With the exact denoiser of a Gaussian a step is affine in x and in its noise, axis by axis, so that
    x_end = a x_start + b + sum c_k z_k. One batch finds them all: nothing (b), a unit start (a), and a unit in each
    draw of noise alone (c_k).
    """
    levels = slow_start(process, n, first=0.6, last=0.1)
    denoise = analytic.Gaussian(MEAN.astype(jnp.float64), jnp.diag(VAR.astype(jnp.float64))).denoiser(process)
    draw, per_step, k = 0, 0, jnp.uint32(0)

    def unit(key, x):
        nonlocal draw
        draw += 1
        return jnp.broadcast_to((jnp.arange(x.shape[0]) == 1 + k * per_step + draw).astype(x.dtype)[:, None], x.shape)

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("jaxdiff.samplers."):
            monkeypatch.setattr(module, "normal_like", unit, raising=False)

    def step(state, row):
        nonlocal draw, k
        cur, nxt, k = row
        draw = 0
        keys = jax.random.split(jax.random.key(0), state.x.shape[0])
        return sampler.step(denoise, state, cur, nxt, keys, None), None

    def start(batch):
        return sampler.init(jnp.zeros((batch, 2)).at[1].set(1.0))

    cur, nxt = (jax.tree.map(lambda a, i=i: a[i : n + i], levels) for i in (0, 1))
    rows = (cur, nxt, jnp.arange(n))
    jax.eval_shape(step, start(2), jax.tree.map(lambda a: a[0], rows))
    per_step = draw
    end = jax.jit(lambda state: jax.lax.scan(step, state, rows)[0].x)(start(2 + n * per_step))
    coef, noise = end[1] - end[0], end[2:] - end[:1]
    ends = [jax.tree.map(lambda a, i=i: a[i], levels) for i in (0, -1)]
    (mean, var), true = ((r.alpha * MEAN, r.alpha**2 * VAR + r.sigma**2) for r in ends)
    return (coef * mean + end[0], coef**2 * var + jnp.sum(noise**2, axis=0)), true


def sliced_wasserstein(a, b):
    """Between two Gaussians of independent axes, in closed form: the root mean square over directions of the
    Wasserstein-2 distance of their projections."""
    angle = jnp.linspace(0, jnp.pi, 64, endpoint=False)
    v = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    (mean_a, std_a), (mean_b, std_b) = ((mean @ v, jnp.sqrt(var @ v**2)) for mean, var in (a, b))
    return jnp.sqrt(jnp.mean((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2))


@pytest.mark.parametrize(("name", "kwargs"), settings(stochastic=True))
def test_weak_order(name, kwargs, x64, monkeypatch):
    """Mean and covariance, and the sliced Wasserstein distance, against the number of steps; no sampling error."""
    sampler, moments, distances = samplers.make(name, **kwargs), [], []
    if (
        sampler.order == 0
    ):  # keeps a bias that levels alone do not take away; its size is held by the sampler's own test
        return
    for n in (512, 1024, 2048):
        got, true = end_of(sampler, processes.vp_sde(), n, monkeypatch)
        moments.append(max(float(jnp.abs(g - t).max()) for g, t in zip(got, true, strict=True)))
        distances.append(float(sliced_wasserstein(got, true)))
    for errors in (moments, distances):
        assert np.all(np.abs(measured_order(errors) - sampler.order) < 0.15), (errors, measured_order(errors))


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
def test_finite_to_clean_data_with_few_steps(name):
    for p in (DDPM_1000, processes.edm()):
        for steps in (1, 2, 3):
            assert np.isfinite(run(name, grids.karras(p, steps), process=p)).all()


@pytest.mark.parametrize("name", NAMES)
def test_finite_from_zero_terminal_snr(name):
    process = processes.from_betas([0.1, 0.2, 0.4, 0.8, 1.0])
    data, x = gaussian(), jnp.ones((7, 3))

    def end(x):
        return sample(data.denoiser(process), samplers.make(name), grids.uniform(process, 5), x, jax.random.key(0))[0]

    value, gradient = jax.jvp(end, (x,), (x,))
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_another_transform_does_to_x_stays(name):
    """For `Sampler -> Sampler`: a step must not put x back where the sampler left it."""

    def denoise(x, level, cond):
        x0 = jnp.full_like(x, 0.5)
        return Prediction(x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x))

    sampler, process = samplers.make(name), processes.edm()
    levels = rescaled(process, [-4.0, -3.6, -3.2, -2.8])
    rows, keys = [jax.tree.map(lambda a, i=i: a[i], levels) for i in range(4)], jax.random.split(KEY, 5)

    @jax.jit
    def end(shift):
        state = sampler.init(jnp.ones((5, 3)))
        for cur, nxt in itertools.pairwise(rows):
            state = sampler.step(Denoiser(denoise, process), state, cur, nxt, keys, None)
            state = state._replace(x=state.x + (shift if cur is rows[1] else 0.0))
        return state.x

    # x0 being one for all, a shift shrinks with sigma (0.82 a step here), and more with noise.
    assert jnp.abs(end(0.1) - end(0.0)).min() > 0.02


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_by_the_levels_are_finite(name):
    levels = grids.karras(processes.vp_sde(), 3)

    def end(levels):
        return sample(gaussian().denoiser(processes.vp_sde()), samplers.make(name), levels, jnp.ones((2, 3)), KEY)[0]

    noisy = Level(*(jnp.ones(4).at[-1].set(0.0) for _ in levels))  # an infinite log-SNR stays where it is
    assert np.isfinite(jax.jvp(end, (levels,), (noisy,))[1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_same_key_same_sample_in_any_batch(name):
    levels = grids.uniform(DDPM_1000, 20)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(7))
    seven = run(name, levels)
    one = run(name, levels, x=prior_sample(DDPM_1000, keys[5:6], (1, 3)), key=keys[5:6])
    np.testing.assert_allclose(seven[5:6], one, atol=1e-5)
    np.testing.assert_allclose(run(name, levels, key=jax.random.key_data(keys)), seven, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_in_bf16_out(name):
    levels = grids.uniform(DDPM_1000, 20)
    x = prior_sample(DDPM_1000, jax.random.key(0), (7, 3))
    got, exact = run(name, levels, x=x.astype(jnp.bfloat16)), run(name, levels, x=x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.15)


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
        x0 = 0.5 * x
        return Prediction(x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x))

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
    nfe = samplers.REGISTRY[name].nfe
    if nfe is None:  # as many as the tolerance takes: counted by the sampler's own test
        assert counter.traces <= 8
        return
    assert counter.runs == 3 * ((steps - 1) * nfe + 1)  # the step to clean data costs one
    assert counter.traces == nfe


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    levels = grids.uniform(DDPM_1000, 7)
    x, key = prior_sample(DDPM_1000, jax.random.key(0), (7, 3)), jax.random.key(1)
    plain, _ = sample(gaussian().denoiser(DDPM_1000), samplers.make(name), levels, x, key)
    np.testing.assert_allclose(run(name, levels, x=x, key=key), plain, atol=1e-5)
