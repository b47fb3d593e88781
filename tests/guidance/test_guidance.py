"""Every transform keeps the invariant; classifier-free guidance against a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import analytic, grids, guidance, processes, sample, samplers
from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.types import Prediction

PROCESS = processes.vp_sde()
MEANS = jnp.array([[0.0], [2.0], [-3.0]])  # of labels 0 and 1, and of the null label 2


def conditional(x, level, cond):
    """The exact denoiser of N(mean of the label, 0.25)."""
    data = analytic.Gaussian(jnp.zeros(1), jnp.full((1, 1), 0.25))
    mean = MEANS[cond["label"]]
    inner = data.denoiser(PROCESS)(
        x - level.alpha[..., None] * mean if level.alpha.ndim else x - level.alpha * mean, level
    )
    return Prediction(inner.x0 + mean, inner.eps, jnp.full_like(x, 0.3))


DENOISE = Denoiser(conditional, PROCESS)
X = jax.random.normal(jax.random.key(0), (4, 1))
COND = {"label": jnp.array([0, 1, 0, 1])}
TRANSFORMS = {
    "classifier_free": lambda: guidance.classifier_free(3.0, {"label": 2}),
    "classifier_free_per_example": lambda: guidance.classifier_free(jnp.array([1.0, 2, 3, 4]), {"label": 2}),
    "static_threshold": lambda: guidance.static_threshold(0.1),
}
IDENTITIES = {
    "classifier_free": lambda: guidance.classifier_free(1.0, {"label": 2}),
    "static_threshold": lambda: guidance.static_threshold(1e9),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("t", [0.3, [0.2, 0.4, 0.6, 0.8]])
def test_invariant(name, t, x64):
    level, x = PROCESS(jnp.asarray(t)), X.astype(jnp.float64)
    answer = TRANSFORMS[name]()(DENOISE)(x, level, COND)
    alpha, sigma = (jnp.broadcast_to(c, (4,))[:, None] for c in (level.alpha, level.sigma))
    np.testing.assert_allclose(alpha * answer.x0 + sigma * answer.eps, x, rtol=1e-9, atol=1e-11)
    plain = DENOISE(x, level, COND)
    assert np.abs(answer.x0 - plain.x0).max() > 1e-3


@pytest.mark.parametrize("name", IDENTITIES)
def test_off_is_the_identity_bit_for_bit(name):
    level = PROCESS(0.4)
    plain, answer = DENOISE(X, level, COND), IDENTITIES[name]()(DENOISE)(X, level, COND)
    for a, b in zip(plain, answer, strict=True):
        np.testing.assert_array_equal(a, b)


def test_guided_mean_is_the_linear_combination(x64):
    """At one level the guided x0 is s E_c - (s - 1) E_null, both exact."""
    level, scale, x = PROCESS(0.5), 2.5, X.astype(jnp.float64)
    gain = level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)

    def mean(m):
        return m + gain * (x - level.alpha * m)

    answer = guidance.classifier_free(scale, {"label": 2})(DENOISE)(x, level, COND)
    expected = scale * mean(MEANS[COND["label"]]) - (scale - 1) * mean(-3.0)
    np.testing.assert_allclose(answer.x0, expected, rtol=1e-6)
    np.testing.assert_allclose(answer.var_frac, 0.3)


def test_one_batched_call():
    calls = []

    def counted(x, level, cond):
        calls.append(x.shape)
        return conditional(x, level, cond)

    guidance.classifier_free(2.0, {"label": 2})(Denoiser(counted, PROCESS))(X, PROCESS(0.5), COND)
    assert calls == [(8, 1)]


def test_untouched_conditions_are_repeated():
    seen = {}

    def look(x, level, cond):
        seen.update(cond)
        return Prediction(x, x)

    cond = {**COND, "low_res": jnp.arange(4.0)[:, None]}
    guidance.classifier_free(2.0, {"label": 2})(Denoiser(look, PROCESS))(X, PROCESS(0.5), cond)
    np.testing.assert_array_equal(seen["label"], [0, 1, 0, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(seen["low_res"][:, 0], [0, 1, 2, 3, 0, 1, 2, 3])


def test_a_new_scale_does_not_compile_again():
    traces = []

    def traced(x, level, cond):
        traces.append(0)
        return conditional(x, level, cond)

    denoise, levels = Denoiser(traced, PROCESS), grids.uniform(PROCESS, 4)
    ends = []
    for scale in (1.0, 2.0, 5.0):
        guided = guidance.classifier_free(scale, {"label": 2})(denoise)
        ends.append(sample(guided, samplers.DDIM(), levels, X, jax.random.key(0), cond=COND)[0])
    assert len(traces) == 1
    assert np.abs(ends[0] - ends[1]).min() > 1e-3


def test_needs_its_condition():
    with pytest.raises(UsageError, match=r"needs cond\['label'\]"):
        guidance.classifier_free(2.0, {"label": 2})(DENOISE)(X, PROCESS(0.5), None)


def test_threshold_clips_x0():
    answer = guidance.static_threshold(0.1)(DENOISE)(X, PROCESS(0.5), COND)
    assert np.abs(answer.x0).max() <= 0.1
