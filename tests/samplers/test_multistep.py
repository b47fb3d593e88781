"""LMS, PNDM, iPNDM, DEIS and UniPC against the papers' equations and against diffusers' numbers."""

import itertools
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, process, processes
from jaxdiff.errors import UsageError
from jaxdiff.samplers import DDIM, DEIS, IPNDM, LMS, PNDM, UniPC, sample
from jaxdiff.samplers import unipc as unipc_module

VP = processes.vp_sde()
# sigma / alpha on the grids that diffusers makes (below).
LINSPACE = (157.4072723388672, 48.16684341430664, 17.24698257446289, 7.1861395835876465)
LINSPACE += (3.442967414855957, 1.8012357950210571, 0.9580338001251221, 0.429942786693573)
FULL = (157.4072723388672, 41.249507904052734, 13.257511138916016, 5.166965961456299)
FULL += (2.354255437850952, 1.1519297361373901, 0.4946376383304596, 0.010001329705119133)
LAST = 0.010001329705119133


def levels_at(rho):
    """Levels of sigma / alpha given; 0 is clean."""
    rho = np.array(rho)
    return process.stack(VP.at(np.where(rho > 0, -2 * np.log(np.where(rho > 0, rho, 1.0)), np.inf)))


def modes():
    """Half N(-1, 0.04), half N(1, 0.04)."""
    return analytic.Mixture(jnp.ones(2), jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.04))


def run(sampler, levels, x, data=None, state=None):
    """The states after each step, one step at a time, without compiling."""
    denoise = (data or modes()).denoiser(VP)
    rows = [jax.tree.map(lambda a, i=i: a[i], levels) for i in range(levels.t.shape[0])]
    states = [sampler.init(x) if state is None else state]
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    for cur, nxt in itertools.pairwise(rows):
        states.append(sampler.step(denoise, states[-1], cur, nxt, keys, None))
    return states


def end(sampler, rho, x=((-0.5,), (1.2,))):
    return run(sampler, levels_at(rho), jnp.array(x))[-1].x


# diffusers 0.42.1, CPU, torch.float64 samples over its float32 tables. num_train_timesteps=1000, beta_start=1e-4,
# beta_end=0.02, beta_schedule="linear", timestep_spacing="linspace", 8 steps, exact noise of `modes()`, x = (-0.5, 1.2)
# (LMS: times sqrt(1 + sigma^2)). lower_order_final=False, final_sigmas_type="sigma_min" where the grid ends at LAST,
# UniPCMultistepScheduler(solver_order, solver_type, predict_x0), DEISMultistepScheduler(solver_order),
# LMSDiscreteScheduler(order=4); the line that ends at 0 is UniPC's default with final_sigmas_type="zero".
DIFFUSERS = [
    (UniPC(1, "bh1"), (*LINSPACE, LAST), (-0.9445393775885889, 1.0640940387551607)),
    (UniPC(1, "bh2"), (*LINSPACE, LAST), (-0.9387228682009024, 1.059047482710908)),
    (UniPC(2, "bh1"), (*LINSPACE, LAST), (-3.7856915420408983, 2.0094700724238734)),
    (UniPC(2, "bh2"), (*LINSPACE, LAST), (-1.688297140287486, 1.306792643217964)),
    (UniPC(3, "bh1"), (*LINSPACE, LAST), (-0.8959578655729223, -1.470396901679324)),
    (UniPC(3, "bh2"), (*LINSPACE, LAST), (-0.8964181094442158, -1.4705113033226531)),
    (UniPC(1, "bh1", "eps"), (*LINSPACE, LAST), (-1.042077684717113, 1.0806584440648535)),
    (UniPC(2, "bh1", "eps"), (*LINSPACE, LAST), (-1.024877549718985, 1.0464488190096148)),
    (UniPC(3, "bh1", "eps"), (*LINSPACE, LAST), (-0.9502134854801146, 0.7920724160507686)),
    (UniPC(2, "bh2", "eps"), (*LINSPACE, LAST), (-1.2754173458741915, 1.0183343312269673)),
    (UniPC(3, "bh2", "eps"), (*LINSPACE, LAST), (-0.9616381800553818, 0.8457718067477383)),
    (UniPC(), (*LINSPACE, 0.0), (-0.9694076169409981, 1.0750551034105345)),
    (DEIS(2, "log_rho"), (*LINSPACE, LAST), (-1.2052137684328823, 1.0866787921443157)),
    (DEIS(3, "log_rho"), (*LINSPACE, LAST), (-1.1635897946191933, 0.804587166280785)),
    (LMS(4), (*FULL, 0.0), (-1.1515514100588014, 1.0826691228111969)),
]


@pytest.mark.parametrize(("sampler", "rho", "expected"), DIFFUSERS, ids=lambda v: str(v) if hasattr(v, "nfe") else "")
def test_the_numbers_of_diffusers(sampler, rho, expected, x64):
    # Extrapolating the noise over steps this long magnifies the rounding of float32 tables.
    rtol = 5e-4 if getattr(sampler, "predict", "") == "eps" else 1e-5
    np.testing.assert_allclose(np.ravel(end(sampler, rho)), expected, rtol=rtol)


def test_order_1_is_ddim(x64):
    expected = end(DDIM(), LINSPACE)
    for sampler in (LMS(1), IPNDM(1), DEIS(1), UniPC(1, corrector=False)):
        np.testing.assert_allclose(end(sampler, LINSPACE), expected, rtol=1e-12)


def test_four_names_of_the_same_method(x64):
    for p in (2, 4):
        for other in (DEIS(p, "rho"), IPNDM(p, variable=True)):
            np.testing.assert_allclose(end(other, (*FULL, 0.0)), end(LMS(p), (*FULL, 0.0)), rtol=1e-12)
    np.testing.assert_allclose(end(PNDM(), FULL), end(IPNDM(), FULL), rtol=1e-12)


def test_on_equal_steps_in_rho_variable_coefficients_are_adams_bashforths(x64):
    rho = np.linspace(3.0, 0.0, 9)
    for p in (3, 4):
        np.testing.assert_allclose(end(IPNDM(p), rho), end(LMS(p), rho), rtol=1e-10)


def history_of(sampler, rho, x):
    """The state before the last step, x0 and eps of the predictions so far, latest first."""
    levels = levels_at(rho)
    states = run(sampler, levels, x)[:-1]
    rows = [jax.tree.map(lambda a, i=i: a[i], levels) for i in range(len(rho) - 1)]
    made = [modes().denoiser(VP)(s.x, row) for s, row in zip(states, rows, strict=True)][::-1]
    return states[-1], [np.array(m.x0) for m in made], [np.array(m.eps) for m in made]


def test_deis_in_time_is_the_papers_integral(x64):
    """tAB: Lagrange polynomials in the VP-SDE's own t against d(sigma / alpha), by a fine trapezoidal rule."""
    times, x = np.array([0.3, 0.15, 0.06, 0.03, 0.012]), jnp.array([[-0.5], [1.2]])
    levels = VP(times)
    rho = levels.sigma / levels.alpha
    state, _, eps = history_of(DEIS(4), rho, x)
    fine = np.linspace(times[3], times[4], 20_001)
    at = VP(fine)
    slopes = np.gradient(at.sigma / at.alpha, fine, edge_order=2)
    nodes, total = times[3::-1], 0.0
    for j in range(4):
        basis = np.prod([(fine - nodes[k]) / (nodes[j] - nodes[k]) for k in range(4) if k != j], axis=0)
        total = total + np.trapezoid(basis * slopes, fine) * eps[j]
    expected = levels.alpha[4] * (np.array(state.x) / levels.alpha[3] + total)
    np.testing.assert_allclose(run(DEIS(4), levels_at(rho), x)[-1].x, expected, rtol=1e-7)


def test_pndm_starts_with_the_improved_euler_method(x64):
    rho, x = np.array([3.0, 2.0, 1.2]), jnp.array([[-0.5], [1.2]])
    state, _, eps = history_of(PNDM("improved_euler"), rho, x)
    alpha = 1 / np.sqrt(1 + rho**2)
    corrected = np.array(x) / alpha[0] + (rho[1] - rho[0]) * (eps[0] + eps[1]) / 2
    expected = alpha[2] * (corrected + (rho[2] - rho[1]) * (3 * eps[0] - eps[1]) / 2)
    np.testing.assert_allclose(run(PNDM("improved_euler"), levels_at(rho), x)[-1].x, expected, rtol=1e-12)
    np.testing.assert_allclose(state.x, alpha[1] * (np.array(x) / alpha[0] + (rho[1] - rho[0]) * eps[1]), rtol=1e-12)


def test_unipc_solves_the_papers_linear_system(x64):
    """A step predicted and one corrected, at three points each, by a dense solve instead of quadrature."""
    rho, x = np.array([3.0, 2.2, 1.5, 0.8, 0.5]), jnp.array([[-0.5], [1.2]])
    alpha = 1 / np.sqrt(1 + rho**2)
    sigma, lam = alpha * rho, -np.log(rho)

    def step(start, m, i, end=()):
        """From level i to i + 1 with three predictions, latest first, and, to correct, the one at the end."""
        h = lam[i + 1] - lam[i]
        r = [(lam[i - 1] - lam[i]) / h, (lam[i - 2] - lam[i]) / h, 1.0][: 2 + len(end)]
        # h int_0^1 e^{-(1 - u) h} u^k du, by its series
        moments = [h * sum((-h) ** n * factorial(k) / factorial(k + n + 1) for n in range(25)) for k in (1, 2, 3)]
        weights = np.linalg.solve([np.power(r, k) for k in range(1, len(r) + 1)], moments[: len(r)])
        change = sum(w * (value - m[0]) for w, value in zip(weights, [*m[1:3], *end], strict=True))
        return sigma[i + 1] / sigma[i] * start - alpha[i + 1] * np.expm1(-h) * m[0] + alpha[i + 1] * change

    state, x0, _ = history_of(UniPC(3), rho, x)
    # The corrected point at level 2, from which x without `change` is the first-order step.
    start = (np.array(state.x - state.change) + alpha[3] * np.expm1(lam[2] - lam[3]) * x0[1]) * sigma[2] / sigma[3]
    np.testing.assert_allclose(state.x, step(start, x0[1:], 2), rtol=1e-11)
    corrected = step(start, x0[1:], 2, [x0[0]])
    np.testing.assert_allclose(run(UniPC(3), levels_at(rho), x)[-1].x, step(corrected, x0, 3), rtol=1e-11)


def test_unip_3_of_the_noise_is_deis_in_log_rho(x64):
    rho, x = (3.0, 2.2, 1.5, 0.8), jnp.array([[-0.5], [1.2]])
    state = run(DEIS(3, "log_rho"), levels_at(rho[:3]), x)[-1]
    tail = levels_at(rho[2:])
    deis = run(DEIS(3, "log_rho"), tail, x, state=state)[-1].x
    unip = run(
        UniPC(3, predict="eps", corrector=False), tail, x, state=unipc_module.State(state.x, state.x, state.history)
    )[-1].x
    np.testing.assert_allclose(unip, deis, rtol=1e-11)


@pytest.mark.parametrize(("sampler", "order"), [(IPNDM(4), 1), (IPNDM(3, variable=True), 3)], ids=str)
def test_order_on_a_rough_grid(sampler, order, x64):
    """Steps in turn short and long, at any number of them: only coefficients made for the steps keep the order."""
    x, errors = jnp.linspace(-2, 2, 16)[:, None], []
    data = analytic.Gaussian(jnp.array([0.7]), jnp.array([[0.09]]))
    for n in (128, 256, 512):
        grow = np.cumsum(np.append(0.0, np.tile([0.5, 1.5], n // 2) * (np.arange(n) + 0.5)))
        levels = levels_at(2 * (1 - grow / grow[-1]) + 0.2)
        ends = [jax.tree.map(lambda a, i=i: a[i], levels) for i in (0, -1)]
        got, _ = sample(data.denoiser(VP), sampler, levels, x, jax.random.key(0), max_steps=512)
        errors.append(float(jnp.abs(got - data.flow(x, *ends)).max()))
    measured = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(measured - order) < 0.15), measured


SETTINGS = [LMS(), PNDM("improved_euler"), DEIS(), DEIS(variable="log_rho"), UniPC(), UniPC(predict="eps")]


@pytest.mark.parametrize("sampler", SETTINGS, ids=str)
def test_from_pure_noise_the_first_step_is_ddims_and_all_derivatives_are_finite(sampler, x64):
    levels = process.stack(VP.at(np.array([-np.inf, -4.0, -1.0, 2.0, np.inf])))
    x = jnp.array([[-0.5], [1.2]])
    data = analytic.Gaussian(jnp.array([0.7]), jnp.array([[0.09]]))
    states = run(sampler, levels, x, data)
    np.testing.assert_allclose(states[1].x, run(DDIM(), levels, x, data)[1].x, rtol=1e-12)
    # The level without signal takes no part later: the second step is again a first one.
    later = jax.tree.map(lambda a: a[1:], levels)
    np.testing.assert_allclose(states[2].x, run(DDIM(), later, states[1].x, data)[1].x, rtol=1e-12)
    gradient = jax.grad(lambda x: run(sampler, levels, x, data)[-1].x.sum())(x)
    assert np.isfinite(gradient).all()
    assert (gradient != 0).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LMS(5), "order=5: allowed is 1, 2, 3 or 4"),
        (lambda: IPNDM(0), "solver_order=0: allowed is 1, 2, 3 or 4"),
        (lambda: DEIS(0), "order=0: allowed is 1, 2, 3 or 4"),
        (lambda: DEIS(variable="logrho"), "did you mean 'log_rho'"),
        (lambda: PNDM("euler"), "did you mean 'improved_euler'"),
        (lambda: UniPC(4), "solver_order=4: allowed is 1, 2 or 3"),
        (lambda: UniPC(variant="bh3"), "unknown variant 'bh3'"),
        (lambda: UniPC(predict="v"), "unknown prediction 'v'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
