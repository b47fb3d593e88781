"""Store outputs of diffusers' UNet2DModel and of its schedules; see common.py.

    python tests/parity/make_diffusers.py

needs torch and diffusers (0.42.1 made what is stored). The published shapes are those of google/ddpm-cifar10-32,
google/ddpm-cat-256 (bedroom, celebahq and church alike), google/ncsnpp-ffhq-256 (celebahq, bedroom and church alike),
CompVis/ldm-celebahq-256 and openai/diffusers-cd_imagenet64_l2: their configurations written down, not downloaded. The
counts printed are the published 35.7, 114, 66, 274 and 296 million.
"""

import math
from typing import Any

import diffusers
import numpy as np
import torch
from common import save_cases, save_shapes, tensors

SIZE, LABELS = 8, 5
DOWN, ATTN_DOWN, SKIP_DOWN = "DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D"
UP, ATTN_UP, SKIP_UP = "UpBlock2D", "AttnUpBlock2D", "SkipUpBlock2D"

PLAIN: dict[str, Any] = {
    "sample_size": SIZE,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "down_block_types": [DOWN, DOWN],
    "up_block_types": [UP, UP],
}
ATTENTION = {**PLAIN, "down_block_types": [DOWN, ATTN_DOWN], "up_block_types": [ATTN_UP, UP]}
DDPM = {
    **ATTENTION,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
RESNET = {
    **PLAIN,
    "attn_norm_num_groups": 4,
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ["ResnetDownsampleBlock2D", ATTN_DOWN, ATTN_DOWN],
    "up_block_types": [ATTN_UP, ATTN_UP, "ResnetUpsampleBlock2D"],
    "block_out_channels": [8, 8, 16],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 4,
}
NCSNPP = {
    **PLAIN,
    "block_out_channels": [8, 16, 16],
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": math.sqrt(2.0),
    "time_embedding_type": "fourier",
    "down_block_types": [SKIP_DOWN] * 3,
    "up_block_types": [SKIP_UP] * 3,
}
# Attention of the Skip blocks has 32 groups whatever the width, the others' rule gives that from 128 channels on.
ATTENTION_SKIP = {
    **NCSNPP,
    "block_out_channels": [32, 128],
    "attention_head_dim": None,
    "down_block_types": [SKIP_DOWN, "AttnSkipDownBlock2D"],
    "up_block_types": ["AttnSkipUpBlock2D", SKIP_UP],
}

CASES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "ddpm": DDPM,
    "attention_heads": {**ATTENTION, "attention_head_dim": 4, "layers_per_block": 2, "out_channels": 6},
    "attention_down": {
        **ATTENTION,
        "up_block_types": [UP, UP],
        "downsample_padding": 0,
        "class_embed_type": "identity",
    },
    "attention_up": {**ATTENTION, "down_block_types": [DOWN, DOWN], "class_embed_type": "timestep"},
    "attention_everywhere": {
        **ATTENTION,
        "sample_size": [8, 16],
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [12, 8],
        "attention_head_dim": 4,
        "down_block_types": [ATTN_DOWN] * 2,
        "up_block_types": [ATTN_UP] * 2,
        "freq_shift": 1,
        "mid_block_scale_factor": 2.0,
    },
    "resnet": RESNET,
    "resnet_mixed": {
        **RESNET,
        "downsample_type": "conv",
        "resnet_time_scale_shift": "default",
        "add_attention": False,
        "attn_norm_num_groups": None,
    },
    "no_middle": {**PLAIN, "mid_block_type": None},
    "deep": {**PLAIN, "block_out_channels": [8, 24], "layers_per_block": 3, "norm_eps": 0.001},
    "tables": {**ATTENTION, "num_class_embeds": LABELS, "time_embedding_type": "learned", "num_train_timesteps": 20},
    "ncsnpp": NCSNPP,
    "ncsnpp_attention": ATTENTION_SKIP,
    "ncsnpp_positional": {
        **NCSNPP,
        "block_out_channels": [8, 16],
        "down_block_types": [SKIP_DOWN] * 2,
        "up_block_types": [SKIP_UP] * 2,
        "layers_per_block": 2,
        "time_embedding_type": "positional",
        "mid_block_scale_factor": 1,
    },
}

GOOGLE = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "ddpm_cifar10": {
        **GOOGLE,
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": [DOWN, ATTN_DOWN, DOWN, DOWN],
        "up_block_types": [UP, UP, ATTN_UP, UP],
    },
    "ddpm_256": {
        **GOOGLE,
        "sample_size": 256,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": [DOWN, DOWN, DOWN, DOWN, ATTN_DOWN, DOWN],
        "up_block_types": [UP, ATTN_UP, UP, UP, UP, UP],
    },
    "ncsnpp_256": {
        "sample_size": 256,
        "attention_head_dim": None,
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        "mid_block_scale_factor": math.sqrt(2.0),
        "norm_eps": 1e-6,
        "norm_num_groups": None,
        "time_embedding_type": "fourier",
        "down_block_types": [*[SKIP_DOWN] * 4, "AttnSkipDownBlock2D", *[SKIP_DOWN] * 2],
        "up_block_types": [*[SKIP_UP] * 2, "AttnSkipUpBlock2D", *[SKIP_UP] * 4],
    },
    "ldm_celebahq": {"sample_size": 64, "attention_head_dim": 32},
    "cd_imagenet64": {
        "sample_size": 64,
        "layers_per_block": 3,
        "num_class_embeds": 1000,
        "block_out_channels": [192, 384, 576, 768],
        "attention_head_dim": 64,
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "down_block_types": ["ResnetDownsampleBlock2D", ATTN_DOWN, ATTN_DOWN, ATTN_DOWN],
        "up_block_types": [ATTN_UP, ATTN_UP, ATTN_UP, "ResnetUpsampleBlock2D"],
    },
}

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("DDPMScheduler", {"clip_sample": False}),
    "linear_200": ("PNDMScheduler", {"num_train_timesteps": 200, "beta_start": 0.001, "beta_end": 0.05}),
    "scaled_linear": ("DDIMScheduler", {**SCALED, "prediction_type": "v_prediction"}),
    "cosine": ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}),
    "sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02}),
    "trained": ("UniPCMultistepScheduler", {"num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.3, 0.25]}),
    "zero_snr": ("DDIMScheduler", {**SCALED, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    "heun": ("HeunDiscreteScheduler", {"num_train_timesteps": 50}),
    "learned_range": ("DDPMScheduler", {"variance_type": "learned_range", "num_train_timesteps": 20}),
    "ve": ("ScoreSdeVeScheduler", {"sigma_max": 90.0, "num_train_timesteps": 100}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0}),
}


def plain(config: Any) -> dict[str, Any]:
    """What save_config writes, as JSON holds it, without the private keys."""
    kept = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def nchw(x: np.ndarray) -> torch.Tensor:
    """Channels first, float64."""
    return torch.from_numpy(x).double().permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Channels last, float32."""
    return x.permute(0, 2, 3, 1).float().numpy()


def network(number: int, given: dict[str, Any]) -> dict[str, Any]:
    """A case: configuration, shapes, inputs and the output."""
    net = diffusers.UNet2DModel(**given)
    config = plain(net.config)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(value) for name, value in tensors(shapes).items()}, strict=True)
    net = net.double().eval()
    draw = np.random.RandomState(number)
    size = config["sample_size"] if isinstance(config["sample_size"], list) else [config["sample_size"]] * 2
    case: dict[str, Any] = {"config": config, "shapes": shapes}
    case["x"] = draw.normal(size=(2, *size, config["in_channels"])).astype(np.float32)
    kind = config["time_embedding_type"]
    case["t"] = np.array({"fourier": [0.05, 7.0], "learned": [3, 17]}.get(kind, [7, 421]), np.float32)
    t = torch.from_numpy(case["t"])
    t = t.long() if kind == "learned" else t.double()
    label = None
    if config["num_class_embeds"] is not None:
        case["label"] = np.array([LABELS - 1, 0], np.int32)
        label = torch.from_numpy(case["label"]).long()
    elif config["class_embed_type"] == "timestep":
        case["label"] = np.array([2.5, 30.0], np.float32)
        label = torch.from_numpy(case["label"])
        net = net.float()  # its features of the label are float32 whatever the weights are
    elif config["class_embed_type"] == "identity":
        case["label"] = draw.normal(size=(2, 4 * config["block_out_channels"][0])).astype(np.float32)
        label = torch.from_numpy(case["label"]).double()
    out = net(nchw(case["x"]).to(net.dtype), t, label).sample
    case["out"] = nhwc(out)
    if given == DDPM:  # what the sampler makes of it, for the meaning of t and of the output
        scheduler = diffusers.DDPMScheduler(clip_sample=False)
        steps = [scheduler.step(o[None], int(s), x[None]) for o, s, x in zip(out, t, nchw(case["x"]), strict=True)]
        case["x0"] = nhwc(torch.cat([step.pred_original_sample for step in steps]))
    return case


def schedule(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """A case: the scheduler's configuration and its noise levels."""
    scheduler = getattr(diffusers, name)(**given)
    case: dict[str, Any] = {"config": {"_class_name": name, **plain(scheduler.config)}}
    if hasattr(scheduler, "alphas_cumprod"):
        case["alphas_cumprod"] = scheduler.alphas_cumprod.numpy()
    elif hasattr(scheduler, "discrete_sigmas"):
        case["sigmas"] = scheduler.discrete_sigmas.numpy()
    return case


@torch.no_grad()
def main() -> None:
    """Write fixtures/diffusers.npz, fixtures/diffusers_schedules.npz and fixtures/diffusers_shapes.json.gz."""
    save_cases("diffusers", {name: network(i, config) for i, (name, config) in enumerate(CASES.items())})
    save_cases("diffusers_schedules", {name: schedule(*given) for name, given in SCHEDULES.items()})
    published, configs = {}, {}
    with torch.device("meta"):
        for name, config in PUBLISHED.items():
            net = diffusers.UNet2DModel(**config)
            published[name] = {key: tuple(value.shape) for key, value in net.state_dict().items()}
            configs[name] = {"config": plain(net.config)}
            print(name, sum(value.numel() for value in net.parameters()))
    save_shapes("diffusers", published)
    save_cases("diffusers_published", configs)


if __name__ == "__main__":
    main()
