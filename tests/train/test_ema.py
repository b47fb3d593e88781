"""The power function's average: its recursion against the closed form, its width against the profile's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.train import EMA
from jaxdiff.train.ema import PowerEMA, exponent


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25, 12**-0.5])
def test_the_exponent_gives_a_profile_of_that_width(sigma_rel):
    """Mean and variance of the density (g + 1) t^g on [0, 1], integrated by Gauss-Legendre."""
    g = exponent(sigma_rel)
    node, mass = np.polynomial.legendre.leggauss(200)
    t, density = (node + 1) / 2, mass / 2 * (g + 1) * ((node + 1) / 2) ** g
    mean = (density * t).sum()
    assert density.sum() == pytest.approx(1, rel=1e-7)
    assert np.sqrt((density * (t - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-7)
    assert g > -1e-9


def test_the_papers_exponents():
    """Karras et al. 2023, section 3.1: 16.97 and 6.94 are widths of 5 and 10 %."""
    assert (round(exponent(0.05), 2), round(exponent(0.10), 2)) == (16.97, 6.94)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 12**-0.5])
def test_the_recursion_weighs_every_step_by_the_closed_form(sigma_rel):
    steps, width = 400, 5
    path = np.random.default_rng(0).normal(size=(steps, width)).astype(np.float32)
    rule = PowerEMA(sigma_rel)

    def body(average, row):
        n, params = row
        return rule.update(average, params, n), None

    n = jnp.arange(1, steps + 1)
    average, _ = jax.lax.scan(body, jnp.full(width, 1e3), (n, jnp.asarray(path)))
    edge = (np.arange(steps + 1) / steps) ** (exponent(sigma_rel) + 1)
    # 1e3, the initial parameters, leaves its rounding at the first step and then nothing.
    np.testing.assert_allclose(average, np.diff(edge) @ np.float64(path), atol=2e-6, rtol=2e-6)


def test_late_steps_still_count():
    """At step 10^6 the share of a step is 1 - (1 - 1/n)^(gamma + 1), which 1 - d in float32 gets wrong by percents."""
    n = 1_000_003
    moved = float(PowerEMA(0.05).update(jnp.float32(0), jnp.float32(1), jnp.int32(n)))
    assert moved == pytest.approx(-np.expm1((exponent(0.05) + 1) * np.log1p(-1 / n)), rel=1e-6)


def test_an_average_in_bfloat16_never_moves():
    """Why all averages are float32: at a decay of 0.9999 a step is below bfloat16's last digit."""
    rule, steps = EMA(0.9999, warmup=False), 3000

    def follow(dtype):
        def body(n, average):
            return rule.update(average, jnp.ones((), dtype), n).astype(dtype)

        return float(jax.lax.fori_loop(1, steps + 1, body, jnp.asarray(0.5, dtype)))

    assert follow(jnp.bfloat16) == 0.5
    assert follow(jnp.float32) == pytest.approx(1 - 0.5 * 0.9999**steps, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_a_width_out_of_range_is_one_line(sigma_rel):
    with pytest.raises(UsageError, match=r"ema sigma_rel=.*: allowed is 0 < sigma_rel <= 0.2887"):
        PowerEMA(sigma_rel)
