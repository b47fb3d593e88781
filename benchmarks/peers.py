"""Both sides of every row: `python -m benchmarks.peers jax|torch [one-core]`, spoken to by `benchmarks.timing`.

A job is a dict: `net` (a key of `NETS`), `what` (forward, train, sample, input, matmul), `batch`, `dtype`, `steps` (of
a sampling run), `dispatch` (training steps in one call), `calls` (in one timed repetition), `compiled` (torch.compile).
Both sides compute the same thing: the network in evaluation mode; or one step of training, noise and times drawn, the
mean squared error of eps, its gradient and the gradient's norm, Adam, a moving average; or DDIM. No dropout.
Parameters are float32, drawn N(0, 0.02); bfloat16 is autocast in PyTorch, the network's `dtype` here.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import serve

Prepared = tuple[dict[str, Any], Callable[[], float]]

# Preset of jaxdiff, (height, width, channels), classes.
NETS: dict[str, tuple[str, tuple[int, int, int], int]] = {
    "ddpm_cifar10": ("ddpm_cifar10", (32, 32, 3), 0),
    "adm_64": ("adm_64", (64, 64, 3), 1000),
    "adm_256": ("adm_256", (256, 256, 3), 1000),
    "dit_b_2": ("dit_b_2", (32, 32, 4), 1000),
}
RATE, DECAY = 2e-4, 0.9999
ONE_CORE = "one-core" in sys.argv


def timed(call: Callable[[], Any], calls: int, wait: Callable[[Any], Any]) -> Callable[[], float]:
    """One repetition: seconds per call of `calls` of them, waited for together.

    On one core they are the process's own seconds, which others on the machine do not lengthen.
    """
    clock = time.process_time if ONE_CORE else time.perf_counter

    def run() -> float:
        start = clock()
        for _ in range(calls):
            result = call()
        wait(result)
        return (clock() - start) / calls

    return run


def arrays(batch: int, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of images in [-1, 1] and of labels."""
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (batch, *shape)).astype(np.float32), rng.integers(0, max(classes, 1), batch)


# jaxdiff


def jax_about() -> dict:
    """Versions and device."""
    from importlib.metadata import version

    import jax

    device = jax.devices()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax"))
    return {"versions": versions, "platform": device.platform, "device": device.device_kind}


def jax_model(net: str, dtype: str) -> Any:
    """The preset without dropout."""
    import dataclasses

    from jaxdiff import Model, build, models, prediction, processes

    if net == "ddpm_cifar10":  # what UNet() is
        return Model(models.make("unet", dropout=0.0, dtype=dtype), processes.ddpm_linear(), prediction.EPS)
    from jaxdiff.models import presets

    spec = presets.get(NETS[net][0])
    off = {"dropout": 0.0} if "dropout" in spec.fields or spec.network == "unet" else {}
    return build.model_of(dataclasses.replace(spec, fields={**spec.fields, **off, "dtype": dtype}))


def jax_prepare(job: dict) -> Prepared:
    """A compiled job of jaxdiff."""
    import jax
    import jax.numpy as jnp

    if job["what"] == "matmul":
        a = jnp.ones((job["batch"],) * 2, job["dtype"])
        product = jax.jit(lambda a: a @ a).lower(a).compile()
        return {"flops": 2 * job["batch"] ** 3}, timed(lambda: product(a), job["calls"], jax.block_until_ready)
    if job["what"] == "input":
        return jax_input(job)
    _, shape, classes = NETS[job["net"]]
    model = jax_model(job["net"], job["dtype"])
    images, ids = arrays(job["batch"], shape, classes)
    x = jnp.asarray(images)
    cond = {"label": jnp.asarray(ids, jnp.int32)} if classes else {}
    rng = np.random.default_rng(1)
    like = jax.eval_shape(lambda: model.apply.init(jax.random.key(0), x, cond=cond))
    params = jax.tree.map(lambda a: jnp.asarray(0.02 * rng.standard_normal(a.shape, np.float32)), like)
    count = sum(a.size for a in jax.tree.leaves(params))
    call, lowered = {"forward": _jax_forward, "train": _jax_train, "sample": _jax_sample}[job["what"]](
        job, model, params, x, cond
    )
    start = time.perf_counter()
    compiled = lowered.compile()
    took = time.perf_counter() - start
    info = {
        "parameters": count,
        "compile_s": took,
        "flops": (lowered.cost_analysis() or {}).get("flops"),
    }
    return info, timed(lambda: call(compiled), job["calls"], jax.block_until_ready)


def jax_peak() -> int | None:
    """The most memory held on the device; a CPU does not count it."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _jax_forward(job: dict, model: Any, params: Any, x: Any, cond: dict) -> tuple[Callable, Any]:
    import jax
    import jax.numpy as jnp

    t = jnp.full(x.shape[:1], 500.0, jnp.float32)
    return lambda run: run(params, x, t, cond), jax.jit(model.apply).lower(params, x, t, cond)


def _jax_train(job: dict, model: Any, params: Any, x: Any, cond: dict) -> tuple[Callable, Any]:
    import jax
    import jax.numpy as jnp
    import optax

    from jaxdiff import objectives
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


def _jax_sample(job: dict, model: Any, params: Any, x: Any, cond: dict) -> tuple[Callable, Any]:
    import jax

    from jaxdiff import grids, samplers

    levels, ddim = grids.leading(model.process, job["steps"]), samplers.make("ddim")

    def draw(params: Any, key: Any, cond: dict) -> Any:
        return samplers.generate(model, params, key, x.shape, sampler=ddim, levels=levels, cond=cond or None)

    key = jax.random.key(0)
    return lambda run: run(params, key, cond), jax.jit(draw).lower(params, key, cond)


def jax_input(job: dict) -> Prepared:
    """The training input pipeline alone, on a set of CIFAR-10's size in memory: seconds per batch."""
    from jaxdiff.data import Batches, InMemory, iterate, transforms

    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    batches = Batches(InMemory(images), batch_size=job["batch"], seed=0, transforms=transforms.make(("flip",)))
    stream = iterate(batches)
    next(stream)
    return {}, timed(lambda: next(stream), job["calls"], lambda _: None)


# PyTorch


def torch_about() -> dict:
    """Versions and device."""
    import diffusers
    import torch

    gpu = torch.cuda.is_available()
    return {
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}",
        "platform": "gpu" if gpu else "cpu",
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }


def torch_net(net: str) -> Any:
    """The peer of a preset in diffusers."""
    from diffusers import DiTTransformer2DModel, UNet2DModel

    _, (size, _, channels), classes = NETS[net]
    if net == "ddpm_cifar10":  # google/ddpm-cifar10-32, config.json
        levels = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
        return UNet2DModel(
            sample_size=size, in_channels=3, out_channels=3, layers_per_block=2, norm_eps=1e-6, norm_num_groups=32,
            block_out_channels=(128, 256, 256, 256), down_block_types=levels, downsample_padding=0,
            up_block_types=[name.replace("Down", "Up") for name in reversed(levels)],
            attention_head_dim=None, flip_sin_to_cos=False, freq_shift=1,
        )  # fmt: skip
    if net == "dit_b_2":
        made = DiTTransformer2DModel(
            num_attention_heads=12, attention_head_dim=64, num_layers=12, patch_size=2, sample_size=size,
            in_channels=channels, out_channels=2 * channels, num_embeds_ada_norm=classes,
        )  # fmt: skip
        # The paper's blocks share one embedding of time and label; diffusers gives each its own.
        for block in made.transformer_blocks:
            block.norm1.emb = made.transformer_blocks[0].norm1.emb
        return made
    width, multiples, layers = {"adm_64": (192, (1, 2, 3, 4), 3), "adm_256": (256, (1, 1, 2, 2, 4, 4), 2)}[net]
    attends = [size >> level in (32, 16, 8) for level in range(len(multiples))]
    return UNet2DModel(
        sample_size=size, in_channels=3, out_channels=6, layers_per_block=layers, norm_eps=1e-5,
        block_out_channels=[width * m for m in multiples], attention_head_dim=64, num_class_embeds=classes,
        down_block_types=["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)],
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift",
        flip_sin_to_cos=True, freq_shift=0,
    )  # fmt: skip


def torch_prepare(job: dict) -> Prepared:
    """A job of PyTorch; compiled ones compile at a first call that is made here."""
    import torch

    gpu = torch.cuda.is_available()
    place = torch.device("cuda" if gpu else "cpu")

    def wait(_: Any) -> None:
        if gpu:
            torch.cuda.synchronize()

    if job["what"] == "matmul":
        a = torch.ones((job["batch"],) * 2, dtype=getattr(torch, job["dtype"]), device=place)
        return {"flops": 2 * job["batch"] ** 3}, timed(lambda: a @ a, job["calls"], wait)
    if job["what"] == "input":
        raise ValueError("the input pipeline has no peer")
    _, shape, classes = NETS[job["net"]]
    torch.manual_seed(0)
    net = torch_net(job["net"]).to(place, memory_format=torch.channels_last)
    images, ids = arrays(job["batch"], shape, classes)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(place)  # a channels-last tensor in PyTorch's order of axes
    labels = torch.from_numpy(ids).to(place) if classes else None
    forward = torch.compile(net) if job["compiled"] else net
    bfloat16 = torch.autocast(place.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16")

    def network(x: Any, t: Any) -> Any:
        with bfloat16:
            return forward(x, t, class_labels=labels).sample[:, : shape[-1]].float()

    make = {"forward": _torch_forward, "train": _torch_train, "sample": _torch_sample}[job["what"]]
    call = make(job, network, net, x)
    info: dict[str, Any] = {"parameters": sum(p.numel() for p in net.parameters())}
    if job["compiled"]:
        start = time.perf_counter()
        wait(call())
        info["compile_s"] = time.perf_counter() - start
    elif job["flops"]:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            call()
        info["flops"] = counter.get_total_flops()
    return info, timed(call, job["calls"], wait)


def torch_peak() -> int | None:
    """The most memory held on the device; a CPU does not count it."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _torch_forward(job: dict, network: Any, net: Any, x: Any) -> Callable:
    import torch

    net.eval()
    t = torch.full(x.shape[:1], 500, device=x.device)
    return torch.inference_mode()(lambda: network(x, t))


def _torch_train(job: dict, network: Any, net: Any, x: Any) -> Callable:
    import torch

    params = [p for p in net.parameters() if p.requires_grad]
    net.train()
    # The fastest Adam there is on either device.
    adam = torch.optim.Adam(params, lr=RATE, fused=True)
    average = [p.detach().clone() for p in params]
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(x.device)
    kept: list[Any] = []

    def step() -> Any:
        t = torch.randint(0, 1000, x.shape[:1], device=x.device)
        eps = torch.randn_like(x)
        power = signal[t][:, None, None, None]
        noisy = power.sqrt() * x + (1 - power).sqrt() * eps
        loss = torch.nn.functional.mse_loss(network(noisy, t), eps)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        adam.step()
        torch._foreach_lerp_(average, params, 1 - DECAY)
        kept[:] = [loss.detach(), norm]
        return loss

    def steps() -> Any:
        for _ in range(job["dispatch"]):
            loss = step()
        return loss

    return steps


def _torch_sample(job: dict, network: Any, net: Any, x: Any) -> Callable:
    import torch
    from diffusers import DDIMScheduler

    net.eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)

    @torch.inference_mode()
    def draw() -> Any:
        scheduler.set_timesteps(job["steps"])
        y = torch.randn_like(x)
        for t in scheduler.timesteps:
            y = scheduler.step(network(y, t.to(x.device).expand(x.shape[0])), t, y).prev_sample
        return y

    return draw


if __name__ == "__main__":
    if ONE_CORE:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    if sys.argv[1] == "jax":
        serve(jax_prepare, jax_about, jax_peak)
    else:
        serve(torch_prepare, torch_about, torch_peak)
