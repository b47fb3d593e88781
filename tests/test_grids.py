"""Grids against the papers' lists of timesteps and noise levels."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids, processes
from jaxdiff.errors import UsageError

DDPM = processes.ddpm_linear()
CONTINUOUS = [processes.vp_sde(), processes.edm(), processes.rectified_flow()]


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


def test_edm_noise_levels():
    # Karras et al. 2022, equation 5, 18 steps: sigma_i = (80^(1/7) + i/17 (0.002^(1/7) - 80^(1/7)))^7.
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    levels = grids.karras(processes.edm(), 18)
    np.testing.assert_allclose(levels.sigma, np.append(expected, 0), rtol=1e-6)


def test_log_snr_is_equally_spaced():
    levels = grids.log_snr(DDPM, 20)
    gaps = np.diff(np.asarray(levels.log_snr[:-1]))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(levels.sigma)[[0, -2]], DDPM(jnp.array([1.0, 0.001])).sigma, rtol=1e-6)


@pytest.mark.parametrize("process", [DDPM, *CONTINUOUS], ids=lambda p: type(p.schedule).__name__)
@pytest.mark.parametrize("name", grids.REGISTRY)
@pytest.mark.parametrize("n", [1, 2, 7, 50, 1000])
def test_shape_order_and_clean_end(process, name, n):
    if name == "leading" and process.num_steps is None:
        with pytest.raises(UsageError, match="needs a process with steps"):
            grids.make(name, process, n)
        return
    levels = grids.make(name, process, n)
    assert all(field.shape == (n + 1,) for field in levels)
    assert np.all(np.diff(levels.log_snr) > 0)
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
        (lambda: grids.steps(DDPM, [3, 500]), "must decrease"),
        (lambda: grids.steps(DDPM, [1000]), "0..999"),
        (lambda: grids.steps(processes.edm(), [1]), "needs a process with steps"),
        (lambda: grids.explicit(DDPM, [0.2, 0.5]), "decrease"),
        (lambda: grids.explicit(DDPM, [1.5, 0.5]), r"\[0, 1\]"),
        (lambda: grids.karras(DDPM, 5, rho=0.0), "rho=0"),
        (lambda: grids.make("karas", DDPM, 5), "did you mean 'karras'"),
    ],
)
def test_bad_input_is_one_line(make, words):
    with pytest.raises(UsageError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
