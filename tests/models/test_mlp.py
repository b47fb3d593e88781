"""The vector MLP: it learns a denoiser whose risk is known, conditioning, magnitudes, dtypes, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import analytic, objectives, prediction, processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, QuarterLogSigma, UnitVariance
from jaxdiff.models import Network
from jaxdiff.models.magnitude import force_normalize
from jaxdiff.models.mlp import MLP
from jaxdiff.models.presets.mlp import PRESETS

KEY = jax.random.key(0)
STEPS, BATCH = 400, 256
pytestmark = pytest.mark.usefixtures("quick_compile")
OBJECTIVE = objectives.Denoising(objectives.LogNormal(-0.8, 0.7), objectives.EDM(0.5))


def model_of(apply):
    return Model(apply, processes.edm(), prediction.EDM(0.5), UnitVariance(0.5), QuarterLogSigma())


def answers_of(data):
    """The exact denoiser of a distribution as a network."""
    process, row = processes.edm(), prediction.EDM(0.5)

    def apply(params, x, t, cond, *, train=False, rngs=None):
        level = process.at(-8 * t)
        exact = data.denoiser(process)(x / UnitVariance(0.5)(level)[:, None], level)
        return prediction.target(row, exact.x0, exact.eps, level)

    return apply


@pytest.fixture(scope="module")
def mixture():
    """(x0 to train on, risk of (network, params) on other data, the Bayes risk, that of the best linear denoiser)."""
    means = 0.65 * jnp.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    data = analytic.Mixture(jnp.ones(4), means, jnp.broadcast_to(0.01 * jnp.eye(2), (4, 2, 2)))
    linear = analytic.Gaussian(jnp.zeros(2), (0.65**2 / 2 + 0.01) * jnp.eye(2))  # the mixture's moments
    x0 = data.sample(KEY, 2 * 4096)
    keys = jax.random.split(jax.random.key(6), 4096)

    def risk(apply, params):
        batch = {"x0": x0[4096:]}
        return float(jax.jit(lambda p: OBJECTIVE(model_of(apply), p, batch, keys)[0].mean())(params))

    return x0[:4096], risk, risk(answers_of(data), {}), risk(answers_of(linear), {})


@pytest.mark.parametrize(("preserving", "rate"), [(True, 0.02), (False, 0.01)])
def test_it_learns_a_mixture(mixture, preserving, rate):
    """After 400 quick steps it is ten times nearer to the Bayes risk than to that of the best linear denoiser."""
    x0, risk, bayes, best_linear = mixture
    net = Network(MLP(features=64, num_blocks=2, magnitude_preserving=preserving))
    model, rule = model_of(net), optax.adam(optax.cosine_decay_schedule(rate, STEPS), b2=0.99)

    def step(carry, key):
        params, state = carry
        batch = {"x0": x0[jax.random.randint(key, (BATCH,), 0, len(x0))]}
        keys = jax.random.split(key, BATCH)
        grad = jax.grad(lambda p: OBJECTIVE(model, p, batch, keys)[0].mean())(params)
        update, state = rule.update(grad, state, params)
        params = optax.apply_updates(params, update)
        return (force_normalize(params) if preserving else params, state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, rule.init(params)), jax.random.split(KEY, STEPS))[0][0]

    trained = risk(net, train(net.init(KEY, jnp.zeros((1, 2)))))
    assert best_linear > 1.2 * bayes
    assert bayes < trained < bayes + (best_linear - bayes) / 11, (bayes, trained, best_linear)


def ready(net, shape=(4, 3)):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    shapes = jax.eval_shape(net.init, KEY, x)
    rng = np.random.default_rng(1)

    def draw(leaf):
        size = leaf.shape[0] ** -0.5 if leaf.ndim == 2 else 0.7
        return jnp.asarray(rng.normal(0, size, leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes), x, jnp.linspace(-1.5, 1.0, shape[0])


@pytest.mark.parametrize("preserving", [True, False])
def test_fresh_parameters_answer_zero_and_labels_and_time_matter(preserving):
    net = Network(MLP(features=16, num_blocks=1, num_classes=3, magnitude_preserving=preserving, dtype="bfloat16"))
    params, x, t = ready(net)
    apply = jax.jit(net)
    fresh = net.init(KEY, x)
    y = apply(fresh, x, t, {"label": jnp.arange(4)})
    assert y.dtype == jnp.float32
    assert not y.any()
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    null = apply(params, x, t)
    np.testing.assert_array_equal(apply(params, x, t, {"label": jnp.full(4, 3)}), null)
    labelled = apply(params, x, t, {"label": jnp.array([0, 1, 2, 3])})
    assert (np.abs(labelled - null).max(1) > 1e-2).tolist() == [True, True, True, False]
    assert np.abs(apply(params, x, t + 0.1) - null).max() > 1e-2
    exact = Network(MLP(features=16, num_blocks=1, num_classes=3, magnitude_preserving=preserving))
    assert np.abs(jax.jit(exact)(params, x, t) - null).max() < 0.1 * jnp.std(null) + 0.05


def test_magnitudes_stay_one():
    net = Network(MLP(features=128, num_blocks=4, magnitude_preserving=True))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 2)), jnp.float32)
    params = net.init(KEY, x)
    params = {**params, "gain": jnp.float32(1.0)}
    y = jax.jit(net)(params, x, jnp.linspace(-1.5, 1, 256))
    assert 0.7 < float(jnp.sqrt(jnp.mean(y**2))) < 1.3
    forced = jax.jit(net)(force_normalize(params), x, jnp.linspace(-1.5, 1, 256))
    np.testing.assert_allclose(forced, y, atol=1e-3)


def test_dropout_sinusoidal_times_and_variance_channels():
    net = Network(MLP(features=16, num_blocks=1, dropout=0.5, time_embedding="sinusoidal", learned_variance=True))
    params, x, t = ready(net)
    keys = jax.random.split(KEY, 4)
    apply = jax.jit(lambda x, keys: net(params, x, 100 * t, train=True, rngs={"dropout": keys}))
    whole = apply(x, keys)
    assert whole.shape == (4, 6)
    np.testing.assert_allclose(apply(x.at[0].set(9.0), keys)[1:], whole[1:], atol=1e-5)
    assert np.abs(whole - jax.jit(net)(params, x, 100 * t)).max() > 1e-2
    grad = jax.jit(jax.grad(lambda p: (net(p, x, t) ** 2).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))
    with pytest.raises(UsageError, match="rngs"):
        net(params, x, t, train=True)


def test_the_preset():
    spec = PRESETS["mlp_toy"]
    net = Network(MLP(**spec.fields))
    like = jax.eval_shape(net.init, KEY, jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
    wide, blocks = 64, 3
    want = 3 * wide + 2 * wide + wide**2 + blocks * (3 * wide**2 + 1) + 2 * wide + 1
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like)) == spec.parameters == want


@pytest.mark.parametrize(("fields", "message"), [
    ({"features": 3}, "features is 3"),
    ({"num_blocks": -1}, "num_blocks is -1"),
    ({"bandwidth": 0.0}, "bandwidth is 0.0"),
    ({"time_embedding": "forier"}, "did you mean 'fourier'"),
])  # fmt: skip
def test_fields_out_of_range(fields, message):
    with pytest.raises(UsageError, match=message) as e:
        MLP(**fields)
    assert "allowed" in str(e.value)


@pytest.mark.parametrize(("x", "t", "cond", "message"), [
    ((2, 8, 3), (2,), None, "shape of x"),
    ((2, 3), (3,), None, "shape of t"),
    ((2, 3), (2,), {"label": jnp.zeros(2)}, "label"),
])  # fmt: skip
def test_arguments_that_do_not_fit(x, t, cond, message):
    with pytest.raises(UsageError, match=message):
        Network(MLP(num_classes=2)).init(KEY, jax.ShapeDtypeStruct(x, jnp.float32), jnp.zeros(t), cond)
