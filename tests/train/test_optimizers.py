"""Optimisers: each by its paper's formulas in NumPy, learning rates by theirs, and what is frozen stays."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.train import TrainState
from jaxdiff.train.optimizers import REGISTRY, SCHEDULES, eval_params, freeze, make, normalize_kernels
from jaxdiff.train.paths import is_weight, matrix_shape, named

LR, B1, B2, DECAY, EPS = 0.01, 0.9, 0.99, 0.1, 1e-8
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "blocks": {"kernel": (2, 5, 3), "bias": (2, 3), "scale": (2, 3)},
    "label": {"embedding": (5, 4)},
    "gain": (),
}
# What decay is for: no vector, though two of them are stacked to matrices.
DECAYED = {"conv/kernel", "blocks/kernel", "label/embedding"}


def tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: np.float32(rng.normal(size=s)), SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def run(tx, steps, params=None):
    """Parameters after each step on the gradients tree(1), tree(2), ..., and the last state."""
    params = jax.tree.map(jnp.asarray, tree(0) if params is None else params)
    state, seen = tx.init(params), []
    for n in range(1, steps + 1):
        updates, state = tx.update(jax.tree.map(jnp.asarray, tree(n)), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen, state


def expected(step, start, steps):
    """`step(path, p, g, memory, n) -> p` in float64, over all leaves."""
    params = {path: np.float64(leaf) for path, leaf in named(start).items()}
    memory = {path: {} for path in params}
    for n in range(1, steps + 1):
        for path, g in named(tree(n)).items():
            params[path] = step(path, params[path], np.float64(g), memory[path], n)
    return params


def assert_equal_to(found, wanted, tolerance=2e-6):
    found = named(found)
    assert found.keys() == wanted.keys()
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=tolerance, atol=tolerance, err_msg=path)


def moment(memory, name, value, beta):
    memory[name] = beta * memory.get(name, 0.0) + (1 - beta) * value
    return memory[name]


def decay(path, p):
    return DECAY * p if path in DECAYED else 0.0


def adam(path, p, g, memory, n):
    """Kingma & Ba, algorithm 1."""
    m, v = moment(memory, "m", g, B1), moment(memory, "v", g * g, B2)
    return p - LR * (m / (1 - B1**n)) / (np.sqrt(v / (1 - B2**n)) + EPS)


def adamw(path, p, g, memory, n):
    """Loshchilov & Hutter, algorithm 2."""
    return adam(path, p, g, memory, n) - LR * decay(path, p)


def lion(path, p, g, memory, n):
    """Chen et al., algorithm 2."""
    c = B1 * memory.get("m", 0.0) + (1 - B1) * g
    moment(memory, "m", g, B2)
    return p - LR * (np.sign(c) + decay(path, p))


def sgd(path, p, g, memory, n):
    memory["m"] = B1 * memory.get("m", 0.0) + g
    return p - LR * (memory["m"] + decay(path, p))


def adafactor(path, p, g, memory, n):
    """Shazeer & Stern, algorithm 5 (nothing here is large enough to be factored)."""
    v = moment(memory, "v", g * g + 1e-30, 1 - n**-0.8)
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt(np.mean(u * u)))
    return p - LR * (max(1e-3, np.sqrt(np.mean(p * p))) * u + decay(path, p))


@pytest.mark.parametrize(
    ("name", "rule"), [("adam", adam), ("adamw", adamw), ("lion", lion), ("sgd", sgd), ("adafactor", adafactor)]
)
def test_is_its_papers_formula(name, rule):
    tx = make(name, learning_rate=LR, steps=9, b1=B1, b2=B2, weight_decay=0 if name == "adam" else DECAY)
    assert_equal_to(run(tx, 3)[0][-1], expected(rule, tree(0), 3))


def test_adafactor_factors_large_matrices():
    """Shazeer & Stern, algorithm 4: the moment is the outer product of its row and column means, over the mean."""
    rng = np.random.default_rng(0)
    p, g = (rng.normal(size=(128, 130)).astype(np.float32) for _ in range(2))
    tx = make("adafactor", learning_rate=LR, steps=9)
    updates, state = tx.update({"w": jnp.asarray(g)}, tx.init({"w": jnp.asarray(p)}), {"w": jnp.asarray(p)})
    square = np.float64(g) ** 2
    u = g / np.sqrt(np.outer(square.mean(1), square.mean(0)) / square.mean())
    u /= max(1, np.sqrt((u * u).mean()))
    np.testing.assert_allclose(updates["w"], -LR * np.sqrt(np.mean(np.float64(p) ** 2)) * u, rtol=1e-5, atol=1e-8)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 500


def schedule_free(points):
    """Defazio et al., equations 3 to 5 and algorithm 1, with AdamW's second moment; `points` gets x."""

    def step(path, y, g, memory, n):
        z, x = memory.get("z", y), memory.get("x", y)
        v = moment(memory, "v", g * g, B2)
        z = z - LR * (g / (np.sqrt(v / (1 - B2**n)) + EPS) + decay(path, y))
        memory["z"], memory["x"] = z, (1 - 1 / n) * x + z / n
        points[path] = memory["x"]
        return (1 - B1) * z + B1 * memory["x"]

    return step


@pytest.mark.parametrize("clip", [0, 1e9])
def test_schedule_free_and_the_point_to_evaluate(clip):
    points = {}
    tx = make("schedule_free", learning_rate=LR, steps=9, b1=B1, b2=B2, weight_decay=DECAY, clip=clip)
    seen, state = run(tx, 4)
    assert_equal_to(seen[-1], expected(schedule_free(points), tree(0), 4))
    assert_equal_to(eval_params("schedule_free", state, seen[-1]), points, 1e-5)
    assert max(np.abs(points[path] - leaf).max() for path, leaf in named(seen[-1]).items()) > 1e-3
    assert eval_params("adam", state, seen[-1]) is seen[-1]


def test_schedule_free_evaluates_frozen_parameters_as_they_are():
    tx = freeze(make("schedule_free", learning_rate=LR, steps=9), ("label/*",))
    seen, state = run(tx, 3)
    found = eval_params("schedule_free", state, seen[-1])
    np.testing.assert_array_equal(found["label"]["embedding"], tree(0)["label"]["embedding"])
    assert np.abs(found["conv"]["kernel"] - seen[-1]["conv"]["kernel"]).max() > 1e-4


def turned(matrix):
    """Jordan's five quintic Newton-Schulz steps, which act on the singular values alone."""
    u, s, vt = np.linalg.svd(np.float64(matrix), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert (s > 0.3).all()
    return u * s @ vt


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw():
    tx = make("muon", learning_rate=LR, steps=9, b1=B1, b2=B2, weight_decay=DECAY)
    wanted = expected(adamw, tree(0), 1)
    p, g = tree(0), tree(1)
    change = 0.2 * math.sqrt(18) * turned(g["conv"]["kernel"].reshape(18, 4)).reshape(3, 3, 2, 4)
    wanted["conv/kernel"] = p["conv"]["kernel"] - LR * (change + DECAY * p["conv"]["kernel"])
    change = 0.2 * math.sqrt(5) * np.stack([turned(one) for one in g["blocks"]["kernel"]])
    wanted["blocks/kernel"] = p["blocks"]["kernel"] - LR * (change + DECAY * p["blocks"]["kernel"])
    assert_equal_to(run(tx, 1)[0][-1], wanted, 1e-5)


def before(name, schedule, learning_rate, steps, warmup, clip, weight_decay):
    """What `build.optimizer` was when it knew Adam and AdamW alone."""
    rate = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(steps - warmup, 1)),
    }[schedule]
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), rate], [warmup])
    rule = optax.adam(rate, B1, B2) if name == "adam" else optax.adamw(rate, B1, B2, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(("name", "weight_decay"), [("adam", 0.0), ("adamw", 0.0), ("adamw", DECAY)])
def test_adam_and_adamw_are_what_they_were_bit_for_bit(name, schedule, weight_decay):
    args = {"learning_rate": LR, "steps": 6, "warmup": 2, "clip": 1.0, "weight_decay": weight_decay}
    (old, old_state), (new, state) = (
        run(tx, 5) for tx in (before(name, schedule, **args), make(name, schedule, b1=B1, b2=B2, **args))
    )
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(old_state), strict=True):
        np.testing.assert_array_equal(a, b)
    for one, other in zip(new, old, strict=True):
        for path, leaf in named(one).items():
            if not weight_decay or path in DECAYED:
                np.testing.assert_array_equal(leaf, named(other)[path], err_msg=path)


FORMULAS = {
    "constant": lambda n: 1.0,
    "cosine": lambda n: (1 + math.cos(math.pi * min((n - 4) / 16, 1))) / 2,
    "inverse_sqrt": lambda n: 1 / math.sqrt(max(n / 7, 1)),
}


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_learning_rates_are_their_formulas(schedule):
    tx = make("sgd", schedule, learning_rate=0.5, steps=20, warmup=4, b1=0, decay_after=7)
    params = {"w": jnp.zeros(())}
    state = tx.init(params)
    for n in range(30):
        updates, state = tx.update({"w": jnp.ones(())}, state, params)
        wanted = 0.5 * (n / 4 if n < 4 else FORMULAS[schedule](n))
        assert float(-updates["w"]) == pytest.approx(wanted, rel=2e-6, abs=1e-7), n


def test_gradients_are_clipped_by_their_global_norm():
    (after,), _ = run(make("sgd", learning_rate=1, steps=1, b1=0, clip=0.5), 1)
    moved = [np.float64(a) - b for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(tree(0)), strict=True)]
    assert math.sqrt(sum((m**2).sum() for m in moved)) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_optimiser_minimises_under_jit_in_float32(name):
    rate = {"sgd": 0.02, "adafactor": 0.2}.get(name, 0.05)
    tx = make(name, learning_rate=rate, steps=100, clip=100.0)
    goal = jax.tree.map(jnp.asarray, tree(1))

    def loss(params):
        return sum(jnp.sum((p - q) ** 2) for p, q in zip(jax.tree.leaves(params), jax.tree.leaves(goal), strict=True))

    @jax.jit
    def step(state):
        updates, opt_state = tx.update(jax.grad(loss)(state.params), state.opt_state, state.params)
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)

    state = TrainState.create(jax.tree.map(jnp.asarray, tree(0)), tx)
    first = loss(state.params)
    for _ in range(100):
        state = step(state)
    assert loss(eval_params(name, state.opt_state, state.params)) < 0.2 * first
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_frozen_parameters_stay_bit_for_bit_and_have_no_state():
    inner = make("adamw", learning_rate=LR, steps=9, clip=0.1, weight_decay=DECAY)
    seen, state = run(freeze(inner, ("conv/*", "*/embedding")), 3)
    trained = {"blocks": None, "gain": None}
    for path, leaf in named(seen[-1]).items():
        same = np.array_equal(leaf, named(tree(0))[path])
        assert same == (path.split("/")[0] not in trained), path
    # As if the frozen ones were not there: also the norm that is clipped is not theirs.
    params = {name: jnp.asarray(v) if name == "gain" else v for name, v in tree(0).items() if name in trained}
    alone = inner.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [leaf.shape for leaf in jax.tree.leaves(alone)]
    for n in range(1, 4):
        grads = {name: jax.tree.map(jnp.asarray, tree(n)[name]) for name in trained}
        updates, alone = inner.update(grads, alone, params)
        params = optax.apply_updates(params, updates)
    for path, leaf in named(params).items():
        np.testing.assert_array_equal(leaf, named(seen[-1])[path])


def test_a_pattern_that_matches_nothing_is_one_line():
    tx = freeze(make("adam", learning_rate=LR, steps=9), ("conv/*", "blocks/kernels"))
    with pytest.raises(UsageError, match=r"unknown parameter 'blocks/kernels': did you mean 'blocks/kernel'\?"):
        TrainState.create(tree(0), tx)


def test_weights_and_matrices():
    leaves = named(tree(0))
    assert {path for path, leaf in leaves.items() if is_weight(path, leaf)} == DECAYED
    shapes = {path: matrix_shape(path, leaf) for path, leaf in leaves.items()}
    assert {path: shape for path, shape in shapes.items() if shape} == {
        "conv/kernel": ((), 18, 4),
        "blocks/kernel": ((2,), 5, 3),
    }
    assert matrix_shape("blocks/mlp/kernel", np.ones((3, 4))) == ((), 3, 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"name": "adan"}, r"unknown optimizer 'adan': did you mean 'adam'\? allowed: adafactor, adam, adamw"),
        ({"schedule": "cosin"}, "unknown optimizer.schedule 'cosin': did you mean 'cosine'"),
        ({"learning_rate": -1}, "optimizer.learning_rate=-1"),
        ({"learning_rate": math.nan}, "optimizer.learning_rate=nan"),
        ({"warmup": -1}, "optimizer.warmup=-1"),
        ({"b1": 1.0}, "optimizer.b1=1.0: allowed is 0 <= b1 < 1"),
        ({"weight_decay": 0.1}, "adam has none, use adamw"),
        ({"name": "schedule_free", "schedule": "cosine"}, "schedule_free: schedule=cosine"),
        ({"name": "schedule_free", "b1": 0}, "b1=0: allowed"),
        ({"schedule": "inverse_sqrt", "warmup": 10, "decay_after": 9}, "decay_after=9: allowed is 10 or more"),
    ],
)
def test_what_cannot_work_is_one_line(args, words):
    args = {"name": "adam", "learning_rate": 0.1, "steps": 10, **args}
    with pytest.raises(UsageError, match=words) as error:
        make(args.pop("name"), args.pop("schedule", "constant"), **args)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="unknown optimizer"):
        eval_params("adan", (), {})


def test_normalize_kernels_ends_every_step_at_unit_magnitude_and_leaves_the_rest():
    params = {"conv": {"kernel": jnp.arange(1.0, 9.0).reshape(4, 2)}, "gain": jnp.ones(())}
    plain = make("sgd", learning_rate=0.1, steps=9, b1=0)
    tx = normalize_kernels(plain)
    state, gradient = tx.init(params), jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = tx.update(gradient, state, params)
        before, params = params, optax.apply_updates(params, updates)
        kernel = np.asarray(before["conv"]["kernel"], np.float64) - 0.1
        expected = kernel / (np.sqrt((kernel**2).mean(0)) + 1e-4)
        np.testing.assert_allclose(params["conv"]["kernel"], expected, rtol=1e-6)
        np.testing.assert_allclose(params["gain"], before["gain"] - 0.1, rtol=1e-6)
