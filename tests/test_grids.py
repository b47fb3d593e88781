"""Grids against the papers' lists of timesteps and noise levels."""

import numpy as np
import pytest
import scipy.stats

from jaxdiff import grids, processes
from jaxdiff.errors import UsageError

DDPM = processes.ddpm_linear()
FLOW = processes.rectified_flow()
PROCESSES = {
    "table": DDPM,
    "zero_terminal": processes.zero_terminal_snr(DDPM),
    "ncsn": processes.ncsn(),
    "vp": processes.vp_sde(),
    "sub_vp": processes.sub_vp_sde(),
    "edm": processes.edm(),
    "flow": FLOW,
    "cosine": processes.cosine(),
    "cosine_log_snr": processes.cosine_log_snr(image_size=128),
}


def indices(levels):
    """Row indices of a table grid, without the clean end."""
    return np.asarray(levels.t[:-1] * 1000 - 1).round(3)


def test_published_timesteps():
    # Lin et al. 2024, table 2, T = 1000 and 10 steps (their numbers count from 1, ours from 0).
    np.testing.assert_array_equal(
        indices(grids.leading(DDPM, 10)) + 1, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    )
    np.testing.assert_array_equal(
        indices(grids.uniform(DDPM, 10)) + 1, [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    )
    np.testing.assert_array_equal(
        indices(grids.trailing(DDPM, 10)) + 1, [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    )
    np.testing.assert_array_equal(indices(grids.leading(DDPM, 2, offset=1)), [501, 1])
    # DDIM, appendix D: tau_i = floor(c i^2), c = T / n^2.
    np.testing.assert_array_equal(indices(grids.quadratic(DDPM, 10)) + 1, 10 * np.arange(10, 0, -1) ** 2)
    np.testing.assert_allclose(grids.quadratic(FLOW, 4).t, np.array([16, 9, 4, 1, 0]) / 16, rtol=1e-6)


def test_beta_grid_is_the_quantiles():
    left = 1 - np.arange(20) / 20
    quantiles = scipy.stats.beta.ppf(left, 0.6, 0.6)
    np.testing.assert_allclose(grids.beta(FLOW, 20).t, np.append(quantiles, 0), rtol=1e-6)
    np.testing.assert_array_equal(indices(grids.beta(DDPM, 20)) + 1, np.round(1000 * quantiles))
    np.testing.assert_allclose(
        grids.beta(FLOW, 20, a=1.0, b=1.0).t, np.append(left, 0), rtol=1e-6
    )  # Beta(1, 1): uniform
    probability = np.linspace(0, 1, 301)
    for a, b in ((0.6, 0.6), (0.5, 0.7), (2.0, 3.0), (0.2, 1.5)):
        quantiles = scipy.stats.beta.ppf(probability, a, b)
        np.testing.assert_allclose(grids._beta_quantile(probability, a, b), quantiles, rtol=1e-12)


def test_no_row_is_taken_twice():
    # 300 quadratic steps over 1000 rows: 1000 i^2 / 300^2 moves by less than a row until i = 45.
    for name in ("quadratic", "beta"):
        rows = indices(grids.make(name, DDPM, 300)) + 1
        assert (np.diff(rows) <= -1).all()
        assert rows[0] == 1000
        assert rows[-1] == 1
        np.testing.assert_array_equal(grids.make(name, DDPM, 1000).t, grids.uniform(DDPM, 1000).t)
    rows = indices(grids.quadratic(DDPM, 300)) + 1
    assert abs(rows[:200] - 1000 * (np.arange(300, 100, -1) / 300) ** 2).max() < 0.5 + 1e-9


def test_edm_noise_levels():
    # Karras et al. 2022, equation 5, 18 steps: sigma_i = (80^(1/7) + i/17 (0.002^(1/7) - 80^(1/7)))^7.
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    levels = grids.karras(processes.edm(), 18)
    np.testing.assert_allclose(levels.sigma, np.append(expected, 0), rtol=1e-6)
    # k-diffusion's "exponential": equal ratios.
    levels = grids.exponential(processes.edm(), 18)
    np.testing.assert_allclose(levels.sigma, np.append(80 * (0.002 / 80) ** (i / 17), 0), rtol=1e-6)
    np.testing.assert_array_equal(levels.t, grids.log_snr(processes.edm(), 18).t)


def test_log_snr_is_equally_spaced():
    levels = grids.log_snr(DDPM, 20)
    gaps = np.diff(np.asarray(levels.log_snr[:-1]))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(levels.sigma)[[0, -2]], DDPM(np.array([1.0, 0.001])).sigma, rtol=1e-6)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", grids.REGISTRY)
def test_shape_order_and_clean_end(process, name):
    if name == "leading" and process.num_steps is None:
        with pytest.raises(UsageError, match="needs a process with steps"):
            grids.make(name, process, 5)
        return
    for n in (1, 2, 7, 50, process.num_steps or 1000):
        levels = grids.make(name, process, n)
        assert not any(np.isnan(field).any() for field in levels)
        assert all(field.shape == (n + 1,) for field in levels)
        assert (np.diff(levels.log_snr) > 0).all()
        assert (float(levels.sigma[-1]), float(levels.alpha[-1]), float(levels.t[-1])) == (0.0, 1.0, 0.0)
        truth = process(np.asarray(levels.t[:-1], np.float64))
        np.testing.assert_allclose(levels.sigma[:-1], truth.sigma, rtol=1e-4)


def test_steps_and_explicit():
    np.testing.assert_array_equal(indices(grids.steps(DDPM, [999, 500, 3])), [999, 500, 3])
    np.testing.assert_allclose(grids.explicit(DDPM, [0.9, 0.5]).t, [0.9, 0.5])
    np.testing.assert_array_equal(grids.uniform(DDPM, 1000).t, grids.steps(DDPM, range(999, -1, -1)).t)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: grids.uniform(DDPM, 0), "steps=0"),
        (lambda: grids.karras(DDPM, -3), "steps=-3"),
        (lambda: grids.uniform(DDPM, 1001), "this process has 1000 steps"),
        (lambda: grids.steps(DDPM, [3, 500]), "decrease within"),
        (lambda: grids.steps(DDPM, [1000]), "0..999"),
        (lambda: grids.steps(processes.edm(), [1]), "needs a process with steps"),
        (lambda: grids.explicit(DDPM, [0.2, 0.5]), "decrease"),
        (lambda: grids.explicit(DDPM, [1.5, 0.5]), r"\[0, 1\]"),
        (lambda: grids.karras(DDPM, 5, rho=0.0), "rho=0"),
        (lambda: grids.beta(DDPM, 5, a=0.0), "a=0"),
        (lambda: grids.quadratic(DDPM, 1001), "this process has 1000 steps"),
        (lambda: grids.make("karas", DDPM, 5), "did you mean 'karras'"),
    ],
)
def test_bad_input_is_one_line(make, words):
    with pytest.raises(UsageError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
