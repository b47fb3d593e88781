"""PyTorch's side: `python -m benchmarks.theirs [one-core]`, see `benchmarks.peers`."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers import DECAY, NETS, RATE, Prepared, arrays, one_core, timed
from benchmarks.timing import serve


def about() -> dict:
    """Versions and device."""
    import diffusers

    gpu = torch.cuda.is_available()
    return {
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}",
        "platform": "gpu" if gpu else "cpu",
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }


def network_of(net: str) -> Any:
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


def prepare(job: dict) -> Prepared:
    """A job of PyTorch; compiled ones compile at a first call that is made here."""
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
    net = network_of(job["net"]).to(place, memory_format=torch.channels_last)
    images, ids = arrays(job["batch"], shape, classes)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(place)  # a channels-last tensor in PyTorch's order of axes
    labels = torch.from_numpy(ids).to(place) if classes else None
    forward = torch.compile(net) if job["compiled"] else net
    bfloat16 = torch.autocast(place.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16")

    def network(x: Any, t: Any) -> Any:
        with bfloat16:
            return forward(x, t, class_labels=labels).sample[:, : shape[-1]].float()

    make = {"forward": _forward, "train": _train, "sample": _sample}[job["what"]]
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


def peak() -> int | None:
    """The most memory held on the device; a CPU does not count it."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _forward(job: dict, network: Any, net: Any, x: Any) -> Callable:
    net.eval()
    t = torch.full(x.shape[:1], 500, device=x.device)
    return torch.inference_mode()(lambda: network(x, t))


def _train(job: dict, network: Any, net: Any, x: Any) -> Callable:
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


def _sample(job: dict, network: Any, net: Any, x: Any) -> Callable:
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
    one_core()
    serve(prepare, about, peak)
