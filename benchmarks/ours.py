"""jaxdiff's side: `python -m benchmarks.ours [one-core]`, see `benchmarks.peers`."""

import dataclasses
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import DECAY, NETS, RATE, Prepared, arrays, one_core, timed
from benchmarks.timing import serve
from jaxdiff import Model, grids, models, objectives, prediction, processes, samplers
from jaxdiff.data import Batches, InMemory, iterate, transforms
from jaxdiff.models import presets


def about() -> dict:
    """Versions and device."""

    device = jax.devices()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax"))
    return {"versions": versions, "platform": device.platform, "device": device.device_kind}


def model(net: str, dtype: str, **fields: Any) -> Any:
    """The preset without dropout, with some fields of its network changed."""
    from jaxdiff import build

    if net == "ddpm_cifar10":  # what UNet() is
        return Model(models.make("unet", dropout=0.0, dtype=dtype, **fields), processes.ddpm_linear(), prediction.EPS)
    spec = presets.get(NETS[net][0])
    off = {"dropout": 0.0} if "dropout" in spec.fields or spec.network == "unet" else {}
    return build.model_of(dataclasses.replace(spec, fields={**spec.fields, **off, "dtype": dtype, **fields}))


def prepare(job: dict) -> Prepared:
    """A compiled job of jaxdiff."""

    if job["what"] == "matmul":
        a = jnp.ones((job["batch"],) * 2, job["dtype"])
        product = jax.jit(lambda a: a @ a).lower(a).compile()
        return {"flops": 2 * job["batch"] ** 3}, timed(lambda: product(a), job["calls"], jax.block_until_ready)
    if job["what"] == "input":
        return input_pipeline(job)
    if job["what"] == "memory":
        from benchmarks import memory

        return memory.prepare(job)
    _, shape, classes = NETS[job["net"]]
    made = model(job["net"], job["dtype"])
    images, ids = arrays(job["batch"], shape, classes)
    x = jnp.asarray(images)
    cond = {"label": jnp.asarray(ids, jnp.int32)} if classes else {}
    rng = np.random.default_rng(1)
    like = jax.eval_shape(lambda: made.apply.init(jax.random.key(0), x, cond=cond))
    params = jax.tree.map(lambda a: jnp.asarray(0.02 * rng.standard_normal(a.shape, np.float32)), like)
    count = sum(a.size for a in jax.tree.leaves(params))
    call, lowered = {"forward": _forward, "train": _train, "sample": _sample}[job["what"]](job, made, params, x, cond)
    start = time.perf_counter()
    compiled = lowered.compile()
    took = time.perf_counter() - start
    info = {
        "parameters": count,
        "compile_s": took,
        "flops": (lowered.cost_analysis() or {}).get("flops"),
    }
    return info, timed(lambda: call(compiled), job["calls"], jax.block_until_ready)


def peak() -> int | None:
    """The most memory held on the device; a CPU does not count it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _forward(job: dict, model: Any, params: Any, x: Any, cond: dict) -> tuple[Callable, Any]:

    t = jnp.full(x.shape[:1], 500.0, jnp.float32)
    return lambda run: run(params, x, t, cond), jax.jit(model.apply).lower(params, x, t, cond)


def _train(job: dict, model: Any, params: Any, x: Any, cond: dict) -> tuple[Callable, Any]:
    import optax

    from jaxdiff.train.ema import EMA
    from jaxdiff.train.state import TrainState
    from jaxdiff.train.step import make_train_step

    objective, tx = objectives.make("uniform", "simple", train=False), optax.adam(RATE)
    one = make_train_step(lambda p, b, keys: objective(model, p, b, keys), tx, {"ema": EMA(DECAY)})
    batch = {"x0": x, "cond": cond}
    if job["dispatch"] == 1:
        step = one
    else:
        batch = jax.tree.map(lambda a: jnp.stack([a] * job["dispatch"]), batch)

        def step(state: Any, batches: Any) -> Any:
            return jax.lax.scan(one, state, batches)

    state = TrainState.create(params, tx)
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)

    def call(run: Any) -> Any:
        nonlocal state
        state, metrics = run(state, batch)
        return metrics

    return call, lowered


def _sample(job: dict, model: Any, params: Any, x: Any, cond: dict) -> tuple[Callable, Any]:

    levels, ddim = grids.leading(model.process, job["steps"]), samplers.make("ddim")

    def draw(params: Any, key: Any, cond: dict) -> Any:
        return samplers.generate(model, params, key, x.shape, sampler=ddim, levels=levels, cond=cond or None)

    key = jax.random.key(0)
    return lambda run: run(params, key, cond), jax.jit(draw).lower(params, key, cond)


def input_pipeline(job: dict) -> Prepared:
    """The training input pipeline alone, on a set of CIFAR-10's size in memory: seconds per batch."""
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    batches = Batches(InMemory(images), batch_size=job["batch"], seed=0, transforms=transforms.make(("flip",)))
    stream = iterate(batches)
    next(stream)
    return {}, timed(lambda: next(stream), job["calls"], lambda _: None)


if __name__ == "__main__":
    one_core()
    serve(prepare, about, peak)
