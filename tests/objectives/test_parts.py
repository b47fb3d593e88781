"""Distances, offset noise, self-conditioning and the objectives that a config makes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import build, objectives, prediction, processes
from jaxdiff.config import default_config
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, ScaledTime
from jaxdiff.objectives import (
    VLB,
    ConditionDropout,
    Denoising,
    Hybrid,
    LogitNormal,
    MinSNR,
    PseudoHuber,
    SelfConditioning,
    Stratified,
)
from jaxdiff.objectives.base import noised

from .conftest import At, keys_of

VP = processes.vp_sde()
NUM = 2000

pytestmark = pytest.mark.usefixtures("quick_compile")


def scaled(params, x, t, cond, *, train=False, rngs=None):
    return params * x


def test_pseudo_huber(x64):
    """sqrt(d^2 + c^2) - c with c = 0.00054 sqrt(D), d the norm over all numbers: 0.03 for CIFAR-10's 3072."""
    y = (
        jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
        * jnp.array([1e-6, 1e-3, 1e-2, 1.0, 100.0])[:, None, None, None]
    )
    d = np.sqrt((np.asarray(y) ** 2).sum(axis=(1, 2, 3)))
    c = 0.00054 * math.sqrt(48)
    np.testing.assert_allclose(PseudoHuber()(y, 0 * y), np.sqrt(d**2 + c**2) - c, rtol=1e-6, atol=1e-15)
    assert 0.00054 * math.sqrt(3072) == pytest.approx(0.03, abs=1e-4)
    one = jnp.float32(1e-6) * jnp.ones((1, 4), jnp.float32)  # where sqrt(d^2 + c^2) - c has no digit in float32
    assert float(PseudoHuber()(one, 0 * one)[0]) == pytest.approx(4e-12 / (2 * 0.00108), rel=1e-5)
    slope = jax.grad(lambda z: PseudoHuber()(z, jnp.zeros_like(z)).sum())(jnp.zeros((1, 4)))
    np.testing.assert_array_equal(slope, 0.0)
    with pytest.raises(UsageError, match="factor=0"):
        PseudoHuber(0.0)


def test_pseudo_huber_takes_the_place_of_the_square():
    model = Model(scaled, VP, prediction.EPS)
    batch = {"x0": jnp.ones((NUM, 3))}
    drawn = noised(model, jnp.float32(0.5), batch, keys_of(NUM), At(0.5), train=False)
    loss, metrics = Denoising(At(0.5), distance=PseudoHuber(0.1))(model, jnp.float32(0.5), batch, keys_of(NUM))
    d2 = np.sum((np.asarray(drawn.output) - drawn.eps) ** 2, axis=1)
    np.testing.assert_allclose(loss, np.sqrt(d2 + 0.03) - math.sqrt(0.03), rtol=1e-4)
    np.testing.assert_allclose(metrics["mse"], d2 / 3, rtol=1e-5)


def test_offset_noise_has_its_covariance():
    """1 + s^2 at a position, s^2 between positions of one channel, 0 between channels; and unchanged without."""
    model = Model(scaled, VP, prediction.EPS)
    batch, strength = {"x0": jnp.zeros((NUM, 2, 2, 3))}, 0.5
    eps = noised(model, 1.0, batch, keys_of(NUM), At(0.5), train=False, offset=strength).eps
    cov = np.cov(np.asarray(eps).reshape(NUM, 4, 3).transpose(0, 2, 1).reshape(NUM, 12).T)
    expected = np.eye(12) + strength**2 * np.kron(np.eye(3), np.ones((4, 4)))
    np.testing.assert_allclose(cov, expected, atol=6 * 1.25 / math.sqrt(NUM))
    plain = noised(model, 1.0, batch, keys_of(NUM), At(0.5), train=False).eps
    np.testing.assert_allclose((eps - plain)[:, :1, :1], (eps - plain)[:, 1:, 1:], atol=1e-6)
    again = noised(model, 1.0, batch, keys_of(NUM)[::-1], At(0.5), train=False, offset=strength).eps
    np.testing.assert_array_equal(again[::-1], eps)
    with pytest.raises(UsageError, match=r"offset=0.1: offset noise needs examples with positions"):
        Denoising(offset=0.1)(model, 1.0, {"x0": jnp.zeros((NUM, 3))}, keys_of(NUM))


def test_self_conditioning_gives_the_networks_own_estimate():
    seen = []

    def network(params, x, t, cond, *, train=False, rngs=None):
        seen.append((x, cond))
        return params[0] * x + params[1] * cond["self_cond"]

    model = Model(network, VP, prediction.X0, time_input=ScaledTime(1.0))
    params = (jnp.float32(0.7), jnp.float32(0.4))
    batch = {"x0": jnp.ones((NUM, 3)), "cond": {"label": jnp.arange(NUM)}}
    loss, _ = SelfConditioning(Denoising(At(0.5)))(model, params, batch, keys_of(NUM))
    (x, first), (x_again, second) = seen
    np.testing.assert_array_equal(x, x_again)
    np.testing.assert_array_equal(first["self_cond"], 0.0)
    np.testing.assert_array_equal(second["label"], batch["cond"]["label"])
    used = np.asarray(second["self_cond"] != 0).all(axis=1)
    assert used.mean() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(NUM))
    np.testing.assert_allclose(second["self_cond"][used], 0.7 * x[used], rtol=1e-6)
    np.testing.assert_array_equal(second["self_cond"][~used], 0.0)
    turned = jax.tree.map(lambda a: a[::-1], batch)
    again, _ = SelfConditioning(Denoising(At(0.5)))(model, params, turned, keys_of(NUM)[::-1])
    np.testing.assert_allclose(again[::-1], loss, rtol=1e-6)

    # No gradient through the first answer: d loss / d params[0] is that of a constant self_cond.
    every = SelfConditioning(Denoising(At(0.5)), rate=1.0)
    slope = jax.grad(lambda p: every(model, (p, params[1]), batch, keys_of(NUM))[0].mean())(params[0])
    x = np.asarray(seen[-1][0].primal if hasattr(seen[-1][0], "primal") else seen[-1][0], np.float64)
    residual = 0.7 * x + 0.4 * (0.7 * x) - 1.0
    assert float(slope) == pytest.approx(float((2 * residual * x).mean()), rel=1e-4)
    never, _ = SelfConditioning(Denoising(At(0.5)), rate=0.0)(model, params, batch, keys_of(NUM))
    always, _ = every(model, params, batch, keys_of(NUM))
    np.testing.assert_allclose(np.where(used, always, never), loss, rtol=1e-6)
    with pytest.raises(UsageError, match=r"rate=1.5"):
        SelfConditioning(Denoising(), 1.5)


def with_objective(learned=False, process=None, **fields):
    config = default_config()
    if process:
        config.process = {"name": process}
    config.model.learned_variance = learned
    config.objective.update(fields)
    return build.objective(config)


def test_configs_make_every_objective():
    made = with_objective(times="logit_normal", times_args={"mean": -0.8}, weight="min_snr", weight_args={"gamma": 3.0})
    assert made == ConditionDropout(Denoising(LogitNormal(-0.8), MinSNR(3.0)), 0.1, (("label", 10),))
    made = with_objective(args={"offset": 0.1, "distance": "pseudo_huber"}).objective
    assert made == Denoising(offset=0.1, distance=PseudoHuber())
    assert with_objective(True, name="hybrid", times="stratified").objective == Hybrid(Stratified())
    assert with_objective(True, name="vlb").objective == VLB()
    assert with_objective(process="vp_sde", weight="likelihood").objective.weight.process == VP
    for name, process in (("elbo", "vp_sde"), ("discrete_elbo", "ddpm_linear"), ("sliced_score", "vp_sde")):
        assert type(with_objective(process=process, name=name).objective) is objectives.OBJECTIVES[name]
    config = default_config()
    config.model.learned_variance, config.objective.name = True, "hybrid"
    evaluated = build.objective(config, train=False)
    assert evaluated == dataclasses.replace(build.objective(config).objective, train=False) == Hybrid(train=False)


@pytest.mark.parametrize(
    ("learned", "process", "fields", "words"),
    [
        (False, None, {"name": "hybrid"}, "learned_variance=False does not go with objective.name='hybrid'"),
        (True, None, {}, "learned_variance=True does not go with objective.name='denoising'"),
        (True, "vp_sde", {"name": "vlb"}, "a process with 2 or more, got None"),
        (True, None, {"name": "hybrid", "times": "log_normal"}, "'uniform' or 'stratified'"),
        (False, None, {"name": "elbo"}, "needs a continuous process"),
        (False, "vp_sde", {"name": "discrete_elbo"}, "give steps for a continuous one only"),
        (False, None, {"times": "uniform_log_snr"}, "needs a continuous process"),
        (False, None, {"weight": "likelihood"}, "needs a continuous process"),
        (False, None, {"name": "elbo", "weight": "snr"}, "objective 'elbo' has no weight to choose, got 'snr'"),
        (False, None, {"name": "denoise"}, "did you mean 'denoising'"),
        (False, None, {"weight_args": {"gama": 1.0}, "weight": "min_snr"}, "did you mean 'gamma'"),
        (False, None, {"args": {"offsett": 0.1}}, "did you mean 'offset'"),
        (False, None, {"args": {"distance": "huber"}}, "did you mean 'pseudo_huber'"),
    ],
)
def test_what_cannot_work_is_refused_when_built(learned, process, fields, words):
    with pytest.raises(UsageError, match=words) as caught:
        with_objective(learned, process, **fields)
    assert "\n" not in str(caught.value)
