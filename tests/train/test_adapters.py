"""Adapters: the sum they are, what is trained and what is not, and that merging gives the same network."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes
from jaxdiff.errors import UsageError
from jaxdiff.model import Model, ScaledTime
from jaxdiff.models import DiT, Network, UNet
from jaxdiff.objectives import Denoising, Stratified
from jaxdiff.prediction import EPS
from jaxdiff.train import EMA, TrainState, make_train_step
from jaxdiff.train.adapters import LoRA, lora_init, lora_merge
from jaxdiff.train.optimizers import freeze, make
from jaxdiff.train.paths import named

SHAPES = {
    "conv": {"kernel": (3, 2, 6), "bias": (6,)},
    "blocks": {"dense": {"kernel": (2, 6, 6), "bias": (2, 6)}},
    "out": {"kernel": (6, 2)},
}
PATTERNS = ("conv/*", "blocks/*", "out/kernel")
SCALE = 0.7


def network(params, x, t, cond, *, train=False, rngs=None):
    """A convolution along one axis, two dense layers in a stack, and one more: x [B, L, 2]."""
    numbers = ("NWC", "WIO", "NWC")
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    h = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers) + bias[None, None]
    for i in range(2):
        block = jax.tree.map(lambda a, i=i: a[i], params["blocks"]["dense"])
        h = jnp.tanh(h @ block["kernel"] + block["bias"][None, None] + t[:, None, None])
    return h @ params["out"]["kernel"]


def filled(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def parts(patterns=PATTERNS, rank=2):
    base = filled(SHAPES)
    return base, lora_init(base, patterns, rank, jax.random.key(0))


def moved(adapters):
    """Adapters whose B is not zero any more."""
    return filled(jax.tree.map(jnp.shape, adapters), 1)


X, T = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5, 2)), jnp.float32), jnp.linspace(0.0, 1.0, 4)


def test_the_start_is_the_identity_bit_for_bit():
    base, adapters = parts()
    params = {"base": base, "lora": adapters}
    np.testing.assert_array_equal(LoRA(network, SCALE)(params, X, T, None), network(base, X, T, None))
    for path, leaf in named(LoRA(network, SCALE).merge(params)).items():
        np.testing.assert_array_equal(leaf, named(base)[path])


def test_merged_weights_are_the_sum():
    base, adapters = parts()
    adapters = moved(adapters)
    merged = named(lora_merge(base, adapters, SCALE))
    wanted = {path: np.float64(leaf) for path, leaf in named(base).items()}
    ab = {path: np.float64(leaf) for path, leaf in named(adapters).items()}
    a, b = ab["conv/kernel/a"].reshape(3, 2, 2), ab["conv/kernel/b"]
    wanted["conv/kernel"] += SCALE * np.einsum("kir,ro->kio", a, b)
    a, b = ab["blocks/dense/kernel/a"], ab["blocks/dense/kernel/b"]
    wanted["blocks/dense/kernel"] += SCALE * np.einsum("dir,dro->dio", a, b)
    wanted["out/kernel"] += SCALE * ab["out/kernel/a"] @ ab["out/kernel/b"]
    assert merged.keys() == wanted.keys()
    for path, leaf in merged.items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=1e-6, atol=1e-6, err_msg=path)
        assert leaf.dtype == jnp.float32


def test_gradients_are_in_the_adapters_alone_and_follow_the_chain_rule():
    """For W + s A B: dA = s G B^T and dB = s A^T G, with G the gradient in the merged weights."""
    base, adapters = parts()
    adapters = moved(adapters)

    def loss(net, params):
        return jnp.sum(jnp.sin(net(params, X, T, None)))

    found = named(jax.grad(partial(loss, LoRA(network, SCALE)))({"base": base, "lora": adapters}))
    merged = named(jax.grad(partial(loss, network))(lora_merge(base, adapters, SCALE)))
    for path, leaf in found.items():
        if path.startswith("base/"):
            assert not leaf.any(), path
    for kernel, rows in (("conv/kernel", 6), ("blocks/dense/kernel", 6), ("out/kernel", 6)):
        a, b = (named(adapters)[f"{kernel}/{one}"] for one in "ab")
        g = merged[kernel].reshape(*a.shape[:-2], rows, -1)
        np.testing.assert_allclose(found[f"lora/{kernel}/a"], SCALE * g @ b.mT, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"lora/{kernel}/b"], SCALE * a.mT @ g, rtol=1e-4, atol=1e-5)


def test_training_moves_the_adapters_and_nothing_else():
    base, adapters = parts()
    net = LoRA(network, SCALE)
    model = Model(net, processes.vp_sde(), EPS, time_input=ScaledTime(1.0))
    tx = freeze(make("adamw", learning_rate=0.05, steps=30, clip=1.0, weight_decay=0.1), LoRA.FROZEN)
    state = TrainState.create({"base": base, "lora": adapters}, tx)
    step = jax.jit(make_train_step(partial(Denoising(Stratified()), model), tx, {"ema": EMA(0.5)}))
    losses = []
    for _ in range(30):
        state, metrics = step(state, {"x0": X, "cond": {}})
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    for path, leaf in named(base).items():
        np.testing.assert_array_equal(named(state.params["base"])[path], leaf)
        np.testing.assert_array_equal(named(state.ema["ema"]["base"])[path], leaf)
    for path, leaf in named(adapters).items():
        assert not np.array_equal(named(state.params["lora"])[path], leaf), path
    size = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert kept == 2 * size  # Adam's two moments, of the adapters
    # Exported, it is a network like any other.
    merged = replace(model, apply=network)
    one = model.output(state.params, X, model.process(0.5))[0]
    np.testing.assert_array_equal(merged.output(net.merge(state.params), X, model.process(0.5))[0], one)


@pytest.mark.parametrize(
    ("net", "patterns", "wanted"),
    [
        (
            UNet(channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4),
            ("conv_in/*", "down_0_block_0/conv1/kernel"),
            {"conv_in/kernel": ((), 27, 8), "down_0_block_0/conv1/kernel": ((), 72, 8)},
        ),
        (
            DiT(channels=16, depth=3, num_heads=2, patch_size=4, num_classes=5),
            ("blocks/mlp/*", "patch/*", "label/*"),  # the table of labels is no kernel
            {
                "blocks/mlp/dense0/kernel": ((3,), 16, 64),
                "blocks/mlp/dense1/kernel": ((3,), 64, 16),
                "patch/kernel": ((), 48, 16),
            },
        ),
    ],
)
def test_the_networks_of_the_library_have_the_matrices_that_they_compute_with(net, patterns, wanted):
    params = jax.eval_shape(Network(net).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    found = {path: leaf.shape for path, leaf in named(lora_init(params, patterns, 2, jax.random.key(0))).items()}
    expected = {}
    for path, (stack, rows, columns) in wanted.items():
        expected[f"{path}/a"], expected[f"{path}/b"] = (*stack, rows, 2), (*stack, 2, columns)
    assert found == expected


def test_a_is_normal_of_unit_gain_and_each_its_own():
    base = {name: {"kernel": jnp.zeros((400, 3))} for name in "pq"}
    made = lora_init(base, ("*",), 50, jax.random.key(0))
    for one in made.values():
        assert float(one["kernel"]["a"].std()) == pytest.approx(400**-0.5, rel=0.03)
        assert not one["kernel"]["b"].any()
    assert not np.array_equal(made["p"]["kernel"]["a"], made["q"]["kernel"]["a"])


@pytest.mark.parametrize(
    ("patterns", "rank", "words"),
    [
        (("conv/kernels",), 2, "unknown parameter 'conv/kernels': did you mean 'conv/kernel'"),
        (("*/bias",), 2, r"lora patterns \['\*/bias'\] match no kernel"),
        (("conv/*",), 0, "lora rank=0: allowed is 1 or more"),
    ],
)
def test_what_cannot_work_is_one_line(patterns, rank, words):
    with pytest.raises(UsageError, match=words):
        parts(patterns, rank)


def test_adapters_of_another_network_are_one_line():
    base, adapters = parts()
    with pytest.raises(UsageError, match="lora adapter of 'out/kernel': the network has no such parameter"):
        lora_merge({name: base[name] for name in ("conv", "blocks")}, adapters, 1)
