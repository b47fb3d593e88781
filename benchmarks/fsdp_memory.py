"""The training step of a DiT of a billion parameters on many devices, compiled and not run:
python -m benchmarks.fsdp_memory

Lowers and compiles the step that `jaxdiff train` runs with `train.executor="mesh"` for simulated devices, and prints
what XLA says each of them would hold. Nothing is allocated: the state exists as shapes alone. The compiler is that of
a CPU, which does not overlap or fuse as an accelerator's does, so temporaries are an upper estimate.
"""

import argparse
import os
import resource
import time
from functools import partial


def main() -> None:
    """Print a table of the layouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--fsdp", type=int, nargs="*", default=[64], help="devices that share one copy of the state")
    parser.add_argument("--batch", type=int, default=256, help="examples of all devices together")
    parser.add_argument("--channels", type=int, default=1408)
    parser.add_argument("--depth", type=int, default=28)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    for fsdp in args.fsdp:
        report(args.channels, args.depth, args.batch, fsdp)


def report(channels: int, depth: int, batch: int, fsdp: int) -> None:
    """Compile one layout and print its figures.

    Args:
        channels: width of the transformer, a multiple of 16.
        depth: its blocks.
        batch: examples of all devices together.
        fsdp: devices that share one copy of the state.
    """
    import jax  # once the devices are set
    import jax.numpy as jnp
    import optax

    from jaxdiff.build import model_of
    from jaxdiff.models.presets.spec import Spec
    from jaxdiff.objectives import Denoising
    from jaxdiff.train import EMA, TrainState, make_train_step, parallel

    fields = {"channels": channels, "depth": depth, "num_heads": 16, "num_classes": 1000, "remat": "blocks"}
    model = model_of(Spec("dit", {**fields, "dtype": "bfloat16"}, (32, 32, 4)))
    tx = optax.adamw(1e-4)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def create() -> TrainState:
        zeros = {"label": jnp.zeros(1, jnp.int32)}
        return TrainState.create(model.apply.init(jax.random.key(0), jnp.zeros((1, 32, 32, 4)), cond=zeros), tx)

    like = jax.eval_shape(create)
    made = parallel.executor(
        lambda axis: make_train_step(partial(Denoising(), model), tx, {"ema": EMA()}, axis_name=axis),
        like,
        kind="mesh",
        fsdp=fsdp,
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(like.params))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    begin = time.monotonic()
    shapes = {"x0": jax.ShapeDtypeStruct((batch, 32, 32, 4), jnp.float32), "cond": {"label": label}}
    lowered = made.step.lower(like, shapes)
    middle = time.monotonic()
    compiled = lowered.compile()
    end = time.monotonic()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    rows = {
        "model": f"DiT {channels} x {depth}, {count / 1e6:.0f} M parameters, bfloat16, blocks recomputed",
        "devices": f"{jax.device_count()} as {jax.device_count() // fsdp} data x {fsdp} fsdp, batch {batch}",
        "lower, compile": f"{middle - begin:.0f} s, {end - middle:.0f} s",
        "state": f"{whole / 1e9:.2f} GB whole (parameters, two moments, average: float32)",
        "state per device": f"{memory.argument_size_in_bytes / 1e9:.3f} GB with the batch's share; "
        f"1/{fsdp} of it is {whole / fsdp / 1e9:.3f}",
        "temporaries": f"{memory.temp_size_in_bytes / 1e9:.2f} GB per device",
        "collectives": ", ".join(f"{text.count(f' {kind}(') + text.count(f' {kind}-start(')} {kind}" for kind in kinds),
        "live arrays": f"{sum(a.nbytes for a in jax.live_arrays()) / 1e6:.1f} MB; "
        f"this process at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB, the compiler's own",
    }
    for name, value in rows.items():
        print(f"{name:17} {value}", flush=True)


if __name__ == "__main__":
    main()
