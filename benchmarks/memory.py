"""What a large network's training step needs, by the compiler's plan: memory, FLOPs, compilation. Nothing runs."""

import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.sides import JAX, Sides, number, table
from benchmarks.timing import NotMeasuredError

NET, BATCH = "adm_256", 4
REMAT = ("none", "convs", "blocks")


def prepare(job: dict) -> tuple[dict[str, Any], Callable[[], float]]:
    """The far side: lowers and compiles the step of `job["net"]` with `job["remat"]` from shapes alone."""
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks import ours, peers
    from jaxdiff import objectives
    from jaxdiff.train.ema import EMA
    from jaxdiff.train.state import TrainState
    from jaxdiff.train.step import make_train_step

    _, shape, _ = peers.NETS[job["net"]]
    model = ours.model(job["net"], "float32", remat=job["remat"])
    batch = {
        "x0": jax.ShapeDtypeStruct((job["batch"], *shape), jnp.float32),
        "cond": {"label": jax.ShapeDtypeStruct((job["batch"],), jnp.int32)},
    }
    objective, tx = objectives.make("uniform", "simple", train=False), optax.adam(peers.RATE)

    def state() -> TrainState:
        x, cond = (jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), batch[part]) for part in ("x0", "cond"))
        return TrainState.create(model.apply.init(jax.random.key(0), x, cond=cond), tx)  # type: ignore[attr-defined]

    step = make_train_step(lambda p, b, keys: objective(model, p, b, keys), tx, {"ema": EMA(peers.DECAY)})
    like = jax.eval_shape(state)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(like, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    plan = compiled.memory_analysis()
    info = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(like.params)),
        "trace_s": traced - start,
        "compile_s": time.perf_counter() - traced,
        "temporaries": getattr(plan, "temp_size_in_bytes", None),
        "flops": (compiled.cost_analysis() or {}).get("flops"),
    }
    return info, lambda: 0.0


def rows(sides: Sides, say: Callable[[str], None]) -> list[str]:
    """The table: without and with recomputation, the cache of compiled programs empty; then once more from it."""
    cache = tempfile.mkdtemp(dir=sides.scratch)
    env = {
        "JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip
    lines, first = [], None
    for remat, programs in [*((remat, "none") for remat in REMAT), (REMAT[0], "on disk")]:
        say(f"memory, {NET}, remat={remat}, programs {programs}")
        try:
            with sides.start(JAX, **env) as worker:
                job = {"what": "memory", "net": NET, "batch": BATCH, "remat": remat}
                info = worker.ask("prepare", job=job)
        except NotMeasuredError as error:
            lines.append([remat, programs, f"not measured: {error}", "-", "-", "-", "-"])
            continue
        first = first or info
        less = first["temporaries"] / info["temporaries"] if info["temporaries"] and first["temporaries"] else None
        more = info["flops"] / first["flops"] if info["flops"] and first["flops"] else None
        lines.append(
            [remat, programs, number(info["temporaries"], 1e9), number(less, 1, ".2f"), number(more, 1, ".2f"),
             number(info["trace_s"], 1, ".1f"), number(info["compile_s"], 1, ".1f")]
        )  # fmt: skip
        say("    " + " | ".join(lines[-1][2:]))
    size = f"{NET} ({number(first['parameters'], 1e6, '.1f')} M), " if first else ""
    head = ["remat", "programs", "temporaries, GB", "times less", "FLOPs", "tracing, s", "compilation, s"]
    about = (
        f"{size}training step with Adam and EMA, float32, B={BATCH}, by `compiled.memory_analysis()`; nothing was run:"
    )
    return [about, "", *table(head, lines)]
