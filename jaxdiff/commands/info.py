"""Look at a config without training: its network in numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxdiff import build
from jaxdiff.config import check
from jaxdiff.train import make_train_step
from jaxdiff.train.state import TrainState


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of one call, counted by XLA before optimisation; a multiply-add is two."""
    return _flops(jax.jit(function).lower(*args))


def _flops(lowered: Any) -> float:
    return float(lowered.cost_analysis()["flops"])


def info(config: ConfigDict) -> int:
    """Print parameters, FLOPs and memory of a config. Nothing is trained or allocated; no data set is needed.

    Raises:
        UsageError: for a config that does not fit.
    """
    check(config)
    model, tx, rules = build.model(config), build.optimizer(config), build.ema(config)
    state = jax.eval_shape(lambda: TrainState.create(build.init(config, model), tx, tuple(rules)))
    batch_size = config.train.batch_size
    one, whole = build.example(config, 1), build.example(config, batch_size)
    level = jax.eval_shape(model.process, jax.ShapeDtypeStruct((), jnp.float32))
    passed = count_flops(lambda p, x, lv, c: model.output(p, x, lv, c)[0], state.params, one["x0"], level, one["cond"])
    step = make_train_step(
        partial(build.objective(config), model), tx, rules, seed=config.seed, accum=config.train.accum
    )
    lowered = jax.jit(step, donate_argnums=0).lower(state, whole)
    memory: Any = lowered.compile().memory_analysis()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / config.train.fsdp
    height, width, channels = build.shape(config)
    rows = {
        "image": f"{height} x {width} x {channels}, {config.data.num_classes or 'no'} classes",
        "process": f"{config.process.name}, prediction {config.prediction}",
        "parameters": f"{count:,} ({count / 1e6:.2f} M)",
        "forward pass": f"{passed / 1e9:.3f} GFLOPs per image",
        "training step": f"{_flops(lowered) / 1e9:.1f} GFLOPs per batch of {batch_size}",
        "sample": f"{passed * config.sample.steps / 1e9:.2f} GFLOPs per image ({config.sample.steps} steps, unguided)",
        "training state": f"{nbytes / 1e6:.1f} MB (parameters, optimiser, average; per device)",
        "step temporaries": f"{memory.temp_size_in_bytes / 1e6:.1f} MB for the batch on one device",
    }
    for name, value in rows.items():
        print(f"{name:18} {value}")
    return 0
