r"""Optimisers and learning rates by name, and parameters that stay as they are.

After n updates, and n >= warmup, the learning rate is

    constant        lr                                                                  (1)
    cosine          lr (1 + cos(pi min((n - warmup) / (steps - warmup), 1))) / 2        (2)
    inverse_sqrt    lr / sqrt(max(n / decay_after, 1))                                  (3)

and before that lr n / warmup. What the optimisers read, beside the learning rate:

    adam            b1, b2
    adamw           b1, b2, weight_decay
    adafactor       weight_decay; its learning rate is relative to the size of each parameter
    lion            b1, b2 (0.9 and 0.99 in the paper), weight_decay; its learning rate is 3 to 10 times lower than
                    AdamW's, its decay higher by as much
    schedule_free   b1 (of the interpolation), b2, weight_decay; its schedule is "constant"
    muon            on matrices: momentum 0.95, weight_decay; on the rest AdamW: b1, b2, weight_decay.
                    An update of a matrix has the root mean square 0.2 of an Adam update, so one rate serves both
    sgd             b1 (momentum), weight_decay

Weight decay is decoupled: a step subtracts the learning rate times weight_decay times the weight. It touches weights
alone (`paths.is_weight`): no bias, no gain of a norm, no frozen frequency.

Reference: Kingma, Ba, 2014, arXiv:1412.6980. Loshchilov, Hutter, 2017, arXiv:1711.05101 (AdamW). Shazeer, Stern, 2018,
arXiv:1804.04235 (Adafactor). Chen et al., 2023, arXiv:2302.06675 (Lion). Defazio et al., 2024, arXiv:2405.15682
(schedule-free). Jordan et al., Muon, 2024; Liu et al., 2025, arXiv:2502.16982 (its scale and decay). Karras et al.,
2023, arXiv:2312.02696 (3).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.magnitude import force_normalize
from jaxdiff.train.paths import is_weight, map_named, matrix_shape, select
from jaxdiff.types import PyTree

Number = int | float

_MUON_MOMENTUM, _MUON_RMS = 0.95, 0.2


def make(
    name: str,
    schedule: str = "constant",
    *,
    learning_rate: Number,
    steps: int,
    warmup: int = 0,
    clip: Number = 0.0,
    b1: Number = 0.9,
    b2: Number = 0.999,
    weight_decay: Number = 0.0,
    decay_after: int = 70_000,
) -> optax.GradientTransformation:
    """An optimiser by name. This module says which arguments each reads.

    Args:
        name: a key of `REGISTRY`.
        schedule: a key of `SCHEDULES`.
        learning_rate: the largest; "lr" of equations (1) to (3).
        steps: of the whole run; where "cosine" reaches 0.
        warmup: steps from 0 to the learning rate.
        clip: largest global norm of the gradient, in front of everything else; 0 for none.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        weight_decay: 0 or more.
        decay_after: steps after which "inverse_sqrt" falls, `warmup` or more.

    Raises:
        UsageError: an unknown name, a value out of range, or values that do not go together.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = make("sgd", learning_rate=0.5, steps=10, b1=0)
        >>> updates, _ = tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.zeros(1)}), {"w": jnp.zeros(1)})
        >>> updates["w"].tolist()
        [-0.5]
    """
    if name not in REGISTRY:
        raise unknown("optimizer", name, REGISTRY)
    if schedule not in SCHEDULES:
        raise unknown("optimizer.schedule", schedule, SCHEDULES)
    least = {"learning_rate": learning_rate, "warmup": warmup, "clip": clip, "weight_decay": weight_decay}
    for key, value in least.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"optimizer.{key}={value}: allowed is 0 or more")
    for key, value in {"b1": b1, "b2": b2}.items():
        if not 0 <= value < 1:
            raise UsageError(f"optimizer.{key}={value}: allowed is 0 <= {key} < 1")
    if name == "adam" and weight_decay:
        raise UsageError(f"optimizer.weight_decay={weight_decay:g}: adam has none, use adamw")
    if name == "schedule_free" and (schedule != "constant" or not b1):
        raise UsageError(f"optimizer schedule_free: schedule={schedule}, b1={b1:g}: allowed are constant, with b1 > 0")
    rate = SCHEDULES[schedule](learning_rate, steps, warmup, decay_after)
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), rate], [warmup])
    rule = REGISTRY[name](rate, b1, b2, weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule


def freeze(tx: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
    """`tx` on all parameters but those that match: they stay as they are, and no state is kept for them.

    Args:
        tx: the optimiser; a global norm that it clips is that of the other parameters alone.
        patterns: of paths, such as "time/*", as in `paths.select`.

    Raises:
        UsageError: at `init`, for a pattern that matches nothing.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones(1), "b": jnp.ones(1)}
        >>> tx = freeze(make("sgd", learning_rate=1, steps=1, b1=0), ["a"])
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> updates["a"].tolist(), updates["b"].tolist()
        ([0.0], [-1.0])
    """

    def labels(params: PyTree) -> PyTree:
        frozen = select(params, patterns)
        return map_named(lambda path, _: "frozen" if path in frozen else "trained", params)

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def normalize_kernels(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, after which every kernel has unit magnitude: the forced weight normalisation of EDM2's networks.

    Args:
        tx: the optimiser.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.full((4, 1), 7.0)}
        >>> tx = normalize_kernels(make("sgd", learning_rate=0, steps=1, b1=0))
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"].round(3).ravel().tolist()
        [1.0, 1.0, 1.0, 1.0]

    Reference: Karras et al. 2023. arXiv:2312.02696, section 2.3.
    """

    def update(gradients: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        updates, state = tx.update(gradients, state, params)
        moved = force_normalize(optax.apply_updates(params, updates))
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformation(tx.init, update)


def eval_params(name: str, opt_state: Any, params: PyTree) -> PyTree:
    """The parameters to evaluate, sample with and average: those of the state, but for "schedule_free".

    Schedule-free training steps from y, the parameters in the state, and what its paper evaluates is another point,

        x = (y - (1 - b1) z) / b1,

    with z in the optimiser's state. x is an average already. An `EMA` goes on top of it like on any parameters,
    `rule.update(average, eval_params(...), step)`: at decay 0 the average is x itself. An average of y is neither.

    Args:
        name: of the optimiser, as given to `make`.
        opt_state: its state, on one device or inside the step.
        params: the parameters that go with it.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = make("schedule_free", learning_rate=0.1, steps=9)
        >>> eval_params("schedule_free", tx.init({"w": jnp.ones(2)}), {"w": jnp.ones(2)})["w"].round(6).tolist()
        [1.0, 1.0]

    Reference: Defazio et al., The Road Less Scheduled, 2024, arXiv:2405.15682.
    """
    if name not in REGISTRY:
        raise unknown("optimizer", name, REGISTRY)
    if name != "schedule_free":
        return params

    def found(node: Any) -> bool:
        return isinstance(node, contrib.ScheduleFreeState)

    def frozen(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    state = next(node for node in jax.tree.leaves(opt_state, is_leaf=found) if found(node))
    b1 = state.b1
    return jax.tree.map(lambda z, y: y if frozen(z) else (y - (1 - b1) * z) / b1, state.z, params, is_leaf=frozen)


_weights = partial(map_named, is_weight)


def _decayed(weight_decay: Number, rate: optax.Schedule) -> optax.GradientTransformation:
    """What ends a rule: decay, and the learning rate with its sign."""
    decay = optax.add_decayed_weights(weight_decay, mask=_weights)
    return optax.chain(decay, optax.scale_by_learning_rate(rate))


def _adafactor(rate: optax.Schedule, b1: Number, b2: Number, weight_decay: Number) -> optax.GradientTransformation:
    # Optax adds its decay after the learning rate.
    decay = (lambda n: weight_decay * rate(n)) if weight_decay else None
    return optax.adafactor(rate, weight_decay_rate=decay, weight_decay_mask=_weights)


def _schedule_free(rate: optax.Schedule, b1: Number, b2: Number, weight_decay: Number) -> optax.GradientTransformation:
    # AdamW without its first moment, whose place the interpolation takes.
    second = optax.scale_by_rms(b2, 1e-8, eps_in_sqrt=False, bias_correction=True)
    return contrib.schedule_free(optax.chain(second, _decayed(weight_decay, rate)), rate, b1)


def _muon(rate: optax.Schedule, b1: Number, b2: Number, weight_decay: Number) -> optax.GradientTransformation:
    def dimensions(path: str, leaf: Any) -> contrib.MuonDimensionNumbers:
        stack, _, _ = matrix_shape(path, leaf)  # type: ignore[misc]
        return contrib.MuonDimensionNumbers(tuple(range(len(stack), leaf.ndim - 1)), (leaf.ndim - 1,))

    def scaled(path: str, update: Any) -> Any:
        _, rows, columns = matrix_shape(path, update)  # type: ignore[misc]
        return _MUON_RMS * math.sqrt(max(rows, columns)) * update

    turn = contrib.scale_by_muon(beta=_MUON_MOMENTUM, weight_dimension_numbers=partial(map_named, dimensions))
    scale = optax.stateless(lambda updates, params: map_named(scaled, updates))
    rules = {
        "matrix": optax.chain(turn, scale, _decayed(weight_decay, rate)),
        "rest": optax.adamw(rate, b1, b2, weight_decay=weight_decay, mask=_weights),
    }
    return optax.partition(rules, partial(map_named, lambda *leaf: "matrix" if matrix_shape(*leaf) else "rest"))


def _sgd(rate: optax.Schedule, b1: Number, b2: Number, weight_decay: Number) -> optax.GradientTransformation:
    momentum = optax.trace(b1) if b1 else optax.identity()
    return optax.chain(momentum, _decayed(weight_decay, rate))


Rule = Callable[[optax.Schedule, Number, Number, Number], optax.GradientTransformation]
REGISTRY: dict[str, Rule] = {
    "adam": lambda rate, b1, b2, decay: optax.adam(rate, b1, b2),
    "adamw": lambda rate, b1, b2, decay: optax.adamw(rate, b1, b2, weight_decay=decay, mask=_weights),
    "adafactor": _adafactor,
    "lion": lambda rate, b1, b2, decay: optax.lion(rate, b1, b2, weight_decay=decay, mask=_weights),
    "schedule_free": _schedule_free,
    "muon": _muon,
    "sgd": _sgd,
}


def _inverse_sqrt(lr: Number, steps: int, warmup: int, decay_after: int) -> optax.Schedule:
    if decay_after < max(warmup, 1):
        raise UsageError(f"optimizer.decay_after={decay_after}: allowed is {max(warmup, 1)} or more")
    return lambda n: lr / jnp.sqrt(jnp.maximum((n + warmup) / decay_after, 1.0))


# Schedules of the steps after the warm-up.
SCHEDULES: dict[str, Callable[[Number, int, int, int], optax.Schedule]] = {
    "constant": lambda lr, steps, warmup, decay_after: optax.constant_schedule(lr),
    "cosine": lambda lr, steps, warmup, decay_after: optax.cosine_decay_schedule(lr, max(steps - warmup, 1)),
    "inverse_sqrt": _inverse_sqrt,
}
