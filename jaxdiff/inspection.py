"""Look at a config without training: its forward process as pictures, its network in numbers."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, pictures, processes
from jaxdiff.errors import UsageError
from jaxdiff.files import write_whole
from jaxdiff.numerics import batch_keys, normal_like
from jaxdiff.process import q_sample
from jaxdiff.sampling import visible
from jaxdiff.train import make_train_step
from jaxdiff.train.state import TrainState

_COLUMNS, _FRAMES = 11, 40


def forward(config: ConfigDict, out: Path, *, num: int = 8) -> int:
    """Write `out`.png (images by row, time by column), `out`.gif, and `out`_schedules.png (linear against cosine).

    Args:
        config: a whole config.
        out: path without ending.
        num: number of images.

    Raises:
        UsageError: for a config or a data set that does not fit.
    """
    build.check(config)
    if num < 1:
        raise UsageError(f"num={num}: allowed is 1 or more")
    process, source = build.process(config), build.source(config, config.data.split)
    num = min(num, len(source))
    images = np.stack([source[i]["image"] for i in range(num)])
    x0 = jnp.asarray(images, jnp.float32) / 127.5 - 1
    eps = normal_like(batch_keys(jax.random.key(config.seed), num), x0)

    def moment(t: float) -> np.ndarray:
        return np.asarray(visible(q_sample(process, x0, jnp.float32(t), eps), process(jnp.float32(t))))

    table = np.stack([moment(t) for t in np.linspace(0, 1, _COLUMNS)], axis=1)
    frames = [pictures.grid(moment(t)) for t in np.linspace(0, 1, _FRAMES)]
    compared = {"linear": processes.ddpm_linear(), "cosine": processes.ddpm_cosine()}
    if process not in compared.values():
        compared[config.process.name] = process
    written = [
        write_whole(f"{out}.png", pictures.png(pictures.grid(table.reshape(-1, *images.shape[1:]), _COLUMNS))),
        write_whole(f"{out}.gif", pictures.gif(frames)),
        write_whole(f"{out}_schedules.png", pictures.schedules(compared)),
    ]
    print(f"{config.process.name}, {num} images: " + ", ".join(str(path) for path in written))
    return 0


def count_flops(function: object, *args: object) -> float:
    """Floating-point operations of one call, counted by XLA before optimisation; a multiply-add is two."""
    return float(jax.jit(function).lower(*args).cost_analysis()["flops"])  # type: ignore[arg-type]


def info(config: ConfigDict) -> int:
    """Print parameters, FLOPs and memory of a config. Nothing is trained or allocated; no data set is needed.

    Raises:
        UsageError: for a config that does not fit.
    """
    build.check(config)
    model, tx, rules = build.model(config), build.optimizer(config), build.ema(config)
    state = jax.eval_shape(lambda: TrainState.create(build.init(config, model), tx, tuple(rules)))
    batch_size = config.train.batch_size
    one, whole = build.example(config, 1), build.example(config, batch_size)
    level = jax.eval_shape(model.process, jax.ShapeDtypeStruct((), jnp.float32))
    passed = count_flops(lambda p, x, lv, c: model.output(p, x, lv, c)[0], state.params, one["x0"], level, one["cond"])
    step = make_train_step(partial(build.objective(config), model), tx, rules, seed=config.seed, accum=config.train.accum)
    lowered = jax.jit(step, donate_argnums=0).lower(state, whole)
    memory = lowered.compile().memory_analysis()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    height, width, channels = build.shape(config)
    rows = {
        "image": f"{height} x {width} x {channels}, {config.data.num_classes or 'no'} classes",
        "process": f"{config.process.name}, prediction {config.prediction}",
        "parameters": f"{count:,} ({count / 1e6:.2f} M)",
        "forward pass": f"{passed / 1e9:.3f} GFLOPs per image",
        "training step": f"{float(lowered.cost_analysis()['flops']) / 1e9:.1f} GFLOPs per batch of {batch_size}",
        f"{config.sample.steps}-step sample": f"{passed * config.sample.steps / 1e9:.2f} GFLOPs per image, without guidance",
        "training state": f"{nbytes / 1e6:.1f} MB (parameters, optimiser, average; per device)",
        "step temporaries": f"{memory.temp_size_in_bytes / 1e6:.1f} MB for the batch on one device",
    }
    for name, value in rows.items():
        print(f"{name:18} {value}")
    return 0
