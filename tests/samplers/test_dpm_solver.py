"""The DPM-Solver family: against numbers of its authors' code, diffusers and k-diffusion, and at its limits.

The stored numbers are of the exact denoiser of N(0.7, 0.09), float64 but for diffusers' (float32).
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, grids, processes
from jaxdiff.errors import UsageError
from jaxdiff.samplers import DDIM, DDPM, DPMpp2M, DPMpp2S, DPMpp3M, DPMSolver, SDEDPMpp2M, SDEDPMpp3M
from jaxdiff.samplers import sde_dpmpp as sde
from jaxdiff.samplers.phi import phi

pytestmark = pytest.mark.usefixtures("quick_compile")
START = np.array([[-1.5], [0.3], [2.0]])


def denoiser(process, dtype=jnp.float64):
    return analytic.Gaussian(jnp.array([0.7], dtype), jnp.array([[0.09]], dtype)).denoiser(process)


def row(levels, k):
    return jax.tree.map(lambda a: a[k], levels)


def walk(sampler, process, levels, x, keys=None):
    """Step by step, without compiling the whole."""
    state, keys = sampler.init(jnp.asarray(x)), jax.random.split(jax.random.key(0), len(x)) if keys is None else keys
    for k in range(levels.t.shape[0] - 1):
        state = sampler.step(denoiser(process), state, row(levels, k), row(levels, k + 1), keys, None)
    return np.asarray(state.x[:, 0])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_is_its_series_in_exact_arithmetic(k, x64):
    points = np.array([-8, -2, -1.0625, -1, -0.5, -(2.0**-12), 0, 2.0**-30, 0.25, 1, 1.0625, 6])
    exact = [float(sum(Fraction(z) ** j / math.factorial(j + k) for j in range(60))) for z in points]
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda z: phi(k, z))))(jnp.asarray(points))
    np.testing.assert_allclose(value, exact, rtol=3e-15)
    np.testing.assert_allclose(phi(k, jnp.asarray(points, jnp.float32)), exact, rtol=1e-6)
    exact = [float(sum(j * Fraction(z) ** (j - 1) / math.factorial(j + k) for j in range(1, 60))) for z in points]
    np.testing.assert_allclose(slope, exact, rtol=1e-13)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (DPMSolver(1), [-0.9517049525533929, 0.5253462810209129, 1.9203391127299798]),
        (DPMSolver(2), [-0.9717768537657155, 0.5265667098677523, 1.9416689644104723]),
        (DPMSolver(3), [-0.9678489869551615, 0.5263278843618157, 1.937494929494517]),
        (DPMpp2S(), [-0.9637750220965506, 0.5260801756778268, 1.9331656402425168]),
    ],
)
def test_one_step_of_the_authors_singlestep_code(sampler, expected, x64):
    """github.com/LuChengTHU/dpm-solver, singlestep_dpm_solver_update, VP-SDE, t = 0.5 to 0.3."""
    process = processes.vp_sde()
    np.testing.assert_allclose(walk(sampler, process, grids.explicit(process, (0.5, 0.3)), START), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (DPMpp2M(), [-0.7720109385742258, 0.6566913856061916, 2.006021358443252]),
        (DPMpp2M("heun"), [-0.7730012112882421, 0.6568677737861469, 2.007299593023069]),
        (DPMpp3M(), [-0.7753950923187222, 0.657294173819208, 2.010389591838364]),
    ],
)
def test_three_steps_of_the_authors_multistep_code(sampler, expected, x64):
    """multistep_dpm_solver_update of order 1, 2, 3 (2M: 1, 2, 2), at t = 0.8, 0.65, 0.5, 0.3."""
    process = processes.vp_sde()
    levels = grids.explicit(process, (0.8, 0.65, 0.5, 0.3))
    np.testing.assert_allclose(walk(sampler, process, levels, START), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (DPMSolver(1), [0.35979706048965454, 0.7668338418006897, 1.1512575149536133]),
        (DPMpp2M(), [0.2470218986272812, 0.7889889478683472, 1.3008466958999634]),
        (DPMpp2M("heun"), [0.21990525722503662, 0.7943161129951477, 1.3368151187896729]),
        (DPMpp3M(), [0.18008695542812347, 0.8021385669708252, 1.3896313905715942]),
    ],
)
def test_diffusers_on_the_same_grid_to_clean_data(sampler, expected, x64):
    """diffusers 0.42.1, DPMSolverMultistepScheduler("linear" betas, prediction_type="sample", lower_order_final=False,
    final_sigmas_type="zero"); at the noisiest rows its float32 1 - alpha^2 is exact, at the cleanest to 1e-4."""
    process = processes.ddpm_linear()
    levels = grids.steps(process, [999, 874, 699, 499, 299, 149, 49, 9])
    np.testing.assert_allclose(walk(sampler, process, levels, START), expected, rtol=3e-5)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (SDEDPMpp2M(), [0.9508629657222221, 0.6961814370688141, 1.0250904115434065]),
        (SDEDPMpp2M(rule="heun"), [0.9456760752143727, 0.7098072774072801, 1.0492513620310533]),
        (SDEDPMpp3M(), [0.9092690402645505, 0.7452153866861945, 1.129573309296099]),
        (SDEDPMpp2M(0.4), [0.8629475756191688, 0.7087419679864869, 1.1761830549504966]),
        (SDEDPMpp2M(0.4, "heun"), [0.8607936818606977, 0.7149027315643189, 1.1906280327320107]),
        (SDEDPMpp3M(0.4), [0.8445284308976175, 0.7374936058661518, 1.2405417801023937]),
    ],
)
def test_k_diffusion_with_the_same_noise(sampler, expected, x64, monkeypatch):
    """github.com/crowsonkb/k-diffusion at 4601bf0, sample_dpmpp_{2m,3m}_sde at sigma = 10, 5, 2, 0.9, 0.3."""
    noise = iter([[0.5, -1.0, 0.2], [1.1, 0.3, -0.7], [-0.4, 0.8, 1.5], [0.9, -0.6, 0.1]])
    monkeypatch.setattr(sde, "normal_like", lambda key, x: jnp.array(next(noise))[:, None])
    process = processes.edm()
    levels = jax.tree.map(jnp.asarray, process.at(-2 * np.log([10, 5, 2, 0.9, 0.3])))
    np.testing.assert_allclose(walk(sampler, process, levels, 10 * START), expected, rtol=1e-12)


def test_first_steps_and_limits_of_eta(x64):
    process = processes.vp_sde()
    one, two = grids.explicit(process, (0.8, 0.65)), grids.explicit(process, (0.8, 0.65, 0.5))
    for sampler in (DPMSolver(1), DPMpp2M(), DPMpp3M(), SDEDPMpp2M(eta=0.0), SDEDPMpp3M(eta=0.0)):
        np.testing.assert_allclose(walk(sampler, process, one, START), walk(DDIM(), process, one, START), rtol=1e-12)
    for sampler in (SDEDPMpp2M(), SDEDPMpp3M()):
        np.testing.assert_allclose(walk(sampler, process, one, START), walk(DDPM(), process, one, START), rtol=1e-12)
    for rule in ("midpoint", "heun"):
        ode, noiseless = DPMpp2M(rule), SDEDPMpp2M(0.0, rule)
        np.testing.assert_allclose(walk(noiseless, process, two, START), walk(ode, process, two, START), rtol=1e-12)


def test_steps_from_no_signal_of_no_length_and_to_clean_data_have_finite_derivatives():
    """By x and by the log-SNR of both levels: zero terminal SNR, two equal levels on the way, sigma = 0 at the end."""
    process = processes.zero_terminal_snr(processes.ddpm_linear())
    levels = grids.explicit(process, (1.0, 0.6, 0.4, 0.2, 0.0))
    levels = jax.tree.map(lambda a: a[jnp.array([0, 1, 2, 2, 3, 4])], levels)
    assert levels.log_snr[0] == -np.inf
    assert levels.log_snr[-1] == np.inf
    data, keys = denoiser(process, jnp.float32), jax.random.split(jax.random.key(0), 3)

    def total(x, cur_log_snr, nxt_log_snr, k):
        cur, nxt = row(levels, k)._replace(log_snr=cur_log_snr), row(levels, k + 1)._replace(log_snr=nxt_log_snr)
        end = 0.0
        for sampler in (DPMSolver(3), DPMpp2S(), DPMpp3M(), SDEDPMpp2M()):
            state = sampler.init(x)
            if hasattr(state, "past"):
                before = levels.log_snr[jnp.maximum(k - 1 - jnp.arange(state.history.log_snr.shape[0]), 0)]
                values = state.history.values + 0.3
                state = state._replace(history=state.history._replace(values=values, log_snr=before, filled=k))
            end += sampler.step(data, state, cur, nxt, keys, None).x.sum()
        return end

    every = jax.jit(jax.vmap(jax.value_and_grad(total, (0, 1, 2)), (None, 0, 0, 0)))
    found = every(jnp.asarray(START, jnp.float32), levels.log_snr[:-1], levels.log_snr[1:], jnp.arange(5))
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all(), found


@pytest.mark.parametrize(
    ("sampler", "first"),
    [(SDEDPMpp3M(), 512), pytest.param(SDEDPMpp3M(exact=True), 1024, marks=pytest.mark.slow)],
)
def test_3m_sde_is_of_weak_order_2_where_few_steps_do_not_show_it(sampler, first, x64, monkeypatch):
    """The variance of the end, exactly: x is affine in the start and in each step's noise, one row of a batch for each.

    The term of second order is so small that those of third order hide it below a thousand steps.
    """
    monkeypatch.setattr(sde, "normal_like", lambda k, x: (jnp.arange(x.shape[0]) == k + 2).astype(x.dtype)[:, None])
    process, errors = processes.vp_sde(), []
    data = denoiser(process)
    for n in (first, 2 * first, 4 * first):
        noisy, clean = process(np.array([0.6, 0.1])).log_snr
        levels = jax.tree.map(jnp.asarray, process.at(noisy + (clean - noisy) * np.linspace(0, 1, n + 1) ** 2))

        def body(state, k, levels=levels):
            return sampler.step(data, state, row(levels, k), row(levels, k + 1), k, None), None

        state, _ = jax.lax.scan(body, sampler.init(jnp.zeros((n + 2, 1)).at[1].set(1.0)), jnp.arange(n))
        coef, noise = state.x[1, 0] - state.x[0, 0], state.x[2:, 0] - state.x[0, 0]
        start, end = (levels.alpha[k] ** 2 * 0.09 + levels.sigma[k] ** 2 for k in (0, -1))
        errors.append(abs(float(coef**2 * start + jnp.sum(noise**2) - end)))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(orders - 2) < 0.15), (errors, orders)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DPMSolver(4), "order=4: allowed is 1, 2 or 3"),
        (lambda: DPMpp2M("middle"), "unknown rule 'middle'"),
        (lambda: SDEDPMpp2M(rule="hein"), "did you mean 'heun'"),
        (lambda: SDEDPMpp2M(eta=-0.5), "eta=-0.5: allowed is 0"),
        (lambda: SDEDPMpp3M(eta=math.inf), "eta=inf"),
    ],
)
def test_bad_arguments_are_one_line(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
