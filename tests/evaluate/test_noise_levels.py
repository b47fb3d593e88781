"""Errors by noise level of exact denoisers against the Bayes risk in closed form, and of a known bad one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, prediction, processes
from jaxdiff.errors import UsageError
from jaxdiff.evaluate import noise_levels
from jaxdiff.evaluate.noise_levels import Losses, logged, losses_by_level, spread
from jaxdiff.model import Index, Model, ScaledTime

pytestmark = pytest.mark.usefixtures("quick_compile")

MEAN, COV = np.array([0.5, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]])
VALUES = np.linalg.eigvalsh(COV)
KEY = jax.random.key(0)
VP, FLOW, VE = processes.vp_sde(), processes.rectified_flow(), processes.edm()


def exact(process, p):
    """The exact denoiser of the Gaussian as a network."""
    denoise = analytic.Gaussian(jnp.asarray(MEAN), jnp.asarray(COV)).denoiser(process)

    def network(params, x, t, cond, *, train=False, rngs=None):
        level = process(t)
        answer = denoise(x, level)
        return prediction.target(p, answer.x0, answer.eps, level)

    return Model(network, process, p, time_input=ScaledTime(1.0))


def draw(num, seed=1):
    return {"x0": jnp.asarray(np.random.default_rng(seed).multivariate_normal(MEAN, COV, num))}


def risk(log_snr):
    """The Bayes risk per number, of x0 and of eps: sum l / (1 + SNR l) / D, and SNR times it."""
    snr = np.exp(log_snr)[:, None]
    return (VALUES / (1 + snr * VALUES)).mean(axis=1), (snr * VALUES / (1 + snr * VALUES)).mean(axis=1)


@pytest.mark.parametrize(("process", "name"), [(VP, "eps"), (VP, "v"), (FLOW, "flow"), (VE, "edm")])
def test_the_exact_denoiser_has_the_bayes_risk_at_every_level(x64, monkeypatch, process, name):
    """To rounding: eight points of x0 and eps together have exactly their mean and covariance, and errors of a linear
    denoiser are quadratic in them."""
    z = 2 * np.concatenate([np.eye(4), -np.eye(4)])
    points = np.random.default_rng(0).permutation(8)
    z = z[points]
    monkeypatch.setattr(noise_levels, "normal_like", lambda keys, x: jnp.asarray(z[:, 2:]))
    batch = {"x0": jnp.asarray(MEAN + z[:, :2] @ np.linalg.cholesky(COV).T)}
    levels = spread(process, 9)
    got = losses_by_level(exact(process, prediction.make(name, process)), None, [batch], KEY, levels)
    x0, eps = risk(got.log_snr)
    np.testing.assert_allclose(got.x0, x0, rtol=1e-7)
    np.testing.assert_allclose(got.eps, eps, rtol=1e-7)


def test_by_sampling_it_is_the_bayes_risk_within_five_standard_errors():
    """A mean of N examples' squared Gaussian errors has at most the relative variance of one axis alone, 2 / N."""
    num = 8192
    got = losses_by_level(exact(VP, prediction.V), None, [draw(num)], KEY, spread(VP, 6))
    x0, eps = risk(got.log_snr)
    bound = 5 * np.sqrt(2 / num)
    np.testing.assert_allclose(got.x0, x0, rtol=bound)
    np.testing.assert_allclose(got.eps, eps, rtol=bound)


def test_half_the_area_under_the_errors_is_the_diffusion_term_of_the_bound(x64):
    """sum_i (1/2) log((1 + SNR_high l_i) / (1 + SNR_low l_i)) nats, by Simpson's rule over the closed form's levels."""
    levels = spread(VP, 33)
    got = losses_by_level(exact(VP, prediction.EPS), None, [draw(20_000)], KEY, levels)
    weights = np.ones(33)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    area = (weights * got.eps).sum() * abs(got.log_snr[0] - got.log_snr[1]) / 3
    high, low = np.exp(got.log_snr[0]), np.exp(got.log_snr[-1])
    expected = 0.5 * np.log((1 + high * VALUES) / (1 + low * VALUES)).sum()
    assert 0.5 * 2 * area == pytest.approx(expected, rel=5 * np.sqrt(2 / 20_000))


def test_a_denoiser_that_is_off_by_a_known_amount_is_off_by_its_square(x64):
    """eps_hat + d has the exact error plus d^2, and x0's that over the SNR."""
    good, d = exact(VP, prediction.EPS), 0.25

    def worse(params, x, t, cond, *, train=False, rngs=None):
        return good.apply(params, x, t, cond) + d * jnp.where(jnp.arange(x.shape[0]) % 2, 1, -1)[:, None]

    levels, batch = spread(VP, 5), draw(4000)
    a = losses_by_level(good, None, [batch], KEY, levels)
    b = losses_by_level(Model(worse, VP, prediction.EPS, time_input=ScaledTime(1.0)), None, [batch], KEY, levels)
    # The cross term: 2 d times a mean of N centred errors of variance at most 1.
    np.testing.assert_allclose(b.eps - a.eps, d**2, atol=2 * d * 5 / np.sqrt(8000))
    np.testing.assert_allclose(b.x0, b.eps / np.exp(b.log_snr), rtol=1e-6)


def test_the_noise_is_that_of_the_key_and_the_place_whatever_the_batches():
    model, levels, all_of = exact(VP, prediction.EPS), spread(VP, 4), draw(60)
    parts = [{"x0": all_of["x0"][:40]}, {"x0": all_of["x0"][40:]}]
    whole, cut, other = (
        losses_by_level(model, None, batches, key, levels)
        for batches, key in (([all_of], KEY), (iter(parts), KEY), ([all_of], jax.random.key(1)))
    )
    np.testing.assert_allclose(cut.eps, whole.eps, rtol=1e-5)
    np.testing.assert_allclose(cut.x0, whole.x0, rtol=1e-5)
    assert (np.abs(other.eps - whole.eps) > 1e-3 * whole.eps).all()
    twice = losses_by_level(model, None, [all_of, all_of], KEY, levels)
    assert (twice.eps != whole.eps).all()  # the second time with noise of its own


def test_conditions_and_parameters_reach_the_network():
    def network(params, x, t, cond, *, train=False, rngs=None):
        assert not train
        return params * cond["label"][:, None] + 0 * x

    model = Model(network, VP, prediction.EPS, time_input=ScaledTime(1.0))
    batch = {"x0": jnp.zeros((500, 2)), "cond": {"label": jnp.full(500, 3.0)}}
    got = losses_by_level(model, jnp.float32(2.0), [batch], KEY, spread(VP, 3))
    np.testing.assert_allclose(got.eps, 1 + 6**2, rtol=0.1)  # E (eps - 6)^2 over 1000 numbers


def test_levels_are_even_and_on_the_rows_of_a_table():
    got = spread(FLOW, 7)
    np.testing.assert_allclose(np.diff(got.log_snr), np.diff(got.log_snr)[0], rtol=1e-4)
    np.testing.assert_allclose(got.log_snr[::6], FLOW.schedule.log_snr(np.array(FLOW.schedule.span)), rtol=1e-5)
    table = processes.ddpm_linear()
    rows = np.asarray(spread(table, 16).t, np.float64) * 1000
    np.testing.assert_allclose(rows, np.round(rows), atol=1e-3)
    assert (rows[0], rows[-1]) == (pytest.approx(1), pytest.approx(1000))
    assert (np.diff(rows) > 0.5).all()
    few = spread(processes.ddpm_linear(4), 16)
    assert 2 <= few.t.shape[0] <= 4
    zero = spread(processes.zero_terminal_snr(table))
    assert np.isfinite(zero.log_snr).all()


def test_what_cannot_work_is_refused():
    table = processes.ddpm_linear(10)

    def network(params, x, t, cond, *, train=False, rngs=None):
        return x

    model = Model(network, table, prediction.EPS, time_input=Index(10))
    with pytest.raises(UsageError, match="between the rows"):
        losses_by_level(model, None, [draw(4)], KEY, jax.tree.map(lambda a: a[None], table(0.55)))
    with pytest.raises(UsageError, match="batches is empty"):
        losses_by_level(model, None, [], KEY, spread(table))
    with pytest.raises(UsageError, match="num=1"):
        spread(table, 1)


def test_what_is_logged_reads_back():
    losses = Losses(np.array([-4.5, 0.0, 10.25]), np.array([0.1, 0.2, 0.3]), np.array([3.0, 2.0, 1.0]))
    values = {f"noise_levels/{name}": value for name, value in losses.named().items()}
    assert len(values) == 6
    back = logged({"loss": 1.0, "noise_levels/eps/nothing": 0.0, "noise_levels/eps/99.00": 0.0, **values})
    for mine, theirs in zip(losses, back, strict=True):
        np.testing.assert_allclose(mine, theirs)
    assert logged({"loss": 1.0}) is None


def test_the_evaluation_answers_scalars_and_a_plot_of_them(monkeypatch):
    drawn, real = [], noise_levels.plot
    monkeypatch.setattr(noise_levels, "plot", lambda losses: drawn.append(real(losses)) or drawn[-1])
    model, levels = exact(VP, prediction.EPS), spread(VP, 4)
    evaluate = noise_levels.evaluation(model, lambda: [draw(64)], KEY, levels)
    answer = evaluate(None)
    assert all(np.array_equal(v, answer[name]) for name, v in evaluate(None).items())
    plot = answer.pop("plot")
    assert (plot.dtype, plot.shape[2]) == (np.uint8, 3)
    assert (plot < 100).any()
    expected = losses_by_level(model, None, [draw(64)], KEY, levels)
    assert answer == expected.named()
    for axis, row in zip(drawn[0].axes, (expected.eps, expected.x0), strict=True):
        (line,) = axis.get_lines()
        np.testing.assert_array_equal(line.get_xdata(), expected.log_snr)
        np.testing.assert_array_equal(line.get_ydata(), row)
