"""What is computed in which precision: float32 state around bfloat16 arithmetic, and products that say theirs."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids, likelihood, processes, samplers
from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.models import MLP, Network, UNet
from jaxdiff.objectives import Denoising, Stratified
from jaxdiff.prediction import EPS
from jaxdiff.train import EMA, TrainState, make_train_step
from jaxdiff.train.optimizers import make
from jaxdiff.train.precision import EXACT, Policy

NET = Network(UNet(channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4))
SHAPE = (4, 4, 4, 1)
pytestmark = pytest.mark.usefixtures("quick_compile")
HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


@pytest.fixture(scope="module")
def params(quick_compile):
    return NET.init(jax.random.key(0), jnp.zeros(SHAPE))


def model(policy):
    return Model(policy.network(NET), processes.vp_sde(), EPS)


def products(jaxpr):
    """(precision, operand's dtype) of every product and convolution in a program, inner programs too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield eqn.params["precision"], eqn.invars[0].aval.dtype
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


def traced(policy, what):
    made = model(policy)
    x, key, levels = jnp.ones(SHAPE), jax.random.key(0), grids.uniform(made.process, 3)

    def loss(params):
        keys = jax.random.split(key, 4)
        return Denoising(Stratified())(made, params, {"x0": x, "cond": {}}, keys)[0].mean()

    programs = {
        "train": jax.grad(loss),
        "sample": lambda p: samplers.generate(made, p, key, SHAPE, sampler=samplers.make("ddim"), levels=levels),
        "likelihood": lambda p: likelihood.log_prob(made.denoiser(p), x, key, levels=levels, trace="hutchinson").value,
    }
    return lambda params: list(products(jax.make_jaxpr(programs[what])(params).jaxpr))


@pytest.mark.parametrize("what", ["train", "sample", "likelihood"])
def test_the_precision_of_products_is_written_into_the_program(what, params):
    exact = traced(EXACT, what)(params)
    assert len(exact) > 10
    assert {precision for precision, _ in exact} == {HIGHEST}
    unsaid = traced(Policy(), what)(params)
    assert len(unsaid) == len(exact)
    assert sum(precision is None for precision, _ in unsaid) > 10
    # It holds against the process's own setting, which without it is what counts.
    with jax.default_matmul_precision("bfloat16"):
        assert {precision for precision, _ in traced(EXACT, what)(params)} == {HIGHEST}
        assert HIGHEST not in {precision for precision, _ in traced(Policy(), what)(params)[:3]}


def test_bfloat16_is_in_the_arithmetic_and_nowhere_else(params):
    rng = np.random.default_rng(0)
    data = {"x0": jnp.asarray(rng.normal(size=(16, *SHAPE[1:])), jnp.float32), "cond": {}}
    tx = make("adamw", learning_rate=1e-2, steps=9, clip=1.0, weight_decay=0.01)

    def train(policy):
        loss = partial(Denoising(Stratified()), model(policy))
        step = make_train_step(loss, tx, {"ema": EMA(0.9)})
        dtypes = {dtype for _, dtype in products(jax.make_jaxpr(step)(TrainState.create(params, tx), data).jaxpr)}
        state, losses, step = TrainState.create(params, tx), [], jax.jit(step)
        for _ in range(5):
            state, metrics = step(state, data)
            losses.append(float(metrics["loss"]))
        return state, np.array(losses), dtypes

    state, losses, dtypes = train(Policy(compute="bfloat16"))
    assert jnp.dtype("bfloat16") in dtypes
    for name, part in (("params", state.params), ("opt_state", state.opt_state), ("ema", state.ema)):
        found = {leaf.dtype for leaf in jax.tree.leaves(part) if jnp.issubdtype(leaf.dtype, jnp.floating)}
        assert found == {jnp.dtype("float32")}, name
    _, exact, dtypes = train(Policy())
    assert dtypes == {jnp.dtype("float32")}
    assert exact[-1] < 0.95 * exact[0]
    assert (losses[1:] != exact[1:]).all()
    np.testing.assert_allclose(losses, exact, rtol=0.01)


def test_a_policy_changes_no_parameter_and_says_its_output():
    base, x = Network(MLP(features=8, num_blocks=1)), jnp.ones((4, 3))
    params = base.init(jax.random.key(0), x)
    for policy in (Policy(), Policy(compute="bfloat16", output="bfloat16"), EXACT):
        net = policy.network(base)
        for a, b in zip(jax.tree.leaves(net.init(jax.random.key(0), x)), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(a, b)
        assert jax.eval_shape(net, params, x, x[:, 0]).dtype == policy.output
        assert net == policy.network(base)
        assert hash(net) == hash(policy.network(base))
        # The last policy counts, whole.
        assert EXACT.network(net) == EXACT.network(base)
    assert Policy().network(base) != EXACT.network(base)


@pytest.mark.parametrize(
    ("field", "value"), [("params", "bfloat16"), ("compute", "float16"), ("output", "int8"), ("matmul", "best")]
)
def test_what_cannot_work_is_one_line(field, value):
    with pytest.raises(UsageError, match=f"precision.{field}='{value}': allowed is"):
        replace(Policy(), **{field: value})
