"""U-ViT: the published networks without text, by their configuration files in the original code.

The paper's table 1 has the sizes: S 44, M 131, L 287, H 501 million parameters, which the original code's own counts
round to. Those on pixels and the L on latents were trained in continuous time, t in [0, 1], and are told 999 t; the H
on latents were trained on 1000 steps with Stable Diffusion's noise and are told 1 to 1000, which is 1000 t here.

The table of labels of those on latents has a null row, which the original counts among its 1001 classes.
"""

from typing import Any

from jaxdiff.models.presets.spec import Spec

_PAPER = "Bao et al., All are Worth Words: A ViT Backbone for Diffusion Models, 2022, arXiv:2209.12152"
_SIZES: dict[str, dict[str, Any]] = {
    "small": {"channels": 512, "depth": 12, "num_heads": 8},
    "mid": {"channels": 768, "depth": 16, "num_heads": 12},
    "large": {"channels": 1024, "depth": 20, "num_heads": 16},
    "huge": {"channels": 1152, "depth": 28, "num_heads": 16},
}


def _spec(size: str, patch: int, shape: tuple[int, ...], parameters: int, published: str, **fields: Any) -> Spec:
    steps = fields.get("conv") is False  # the H on latents
    return Spec(
        "uvit",
        {**_SIZES[size], "patch_size": patch, **fields},
        shape,
        process={"name": "ddpm_scaled_linear"} if steps else {"name": "vp_sde"},
        time_input={"name": "time", "factor": 1000.0 if steps else 999.0},
        layout={"family": "dit"},
        parameters=parameters,
        reference=f"{_PAPER}, table 1, U-ViT-{size[0].upper()}/{patch}; baofff/U-ViT, {published}.pth",
    )


_LABELS = {"num_classes": 1000, "null_label": False}
_NULL = {"num_classes": 1000}
_HUGE = {"num_classes": 1000, "conv": False}

PRESETS: dict[str, Spec] = {
    "uvit_cifar10": _spec("small", 2, (32, 32, 3), 44_255_328, "cifar10_uvit_small"),
    "uvit_celeba_64": _spec("small", 4, (64, 64, 3), 44_292_228, "celeba64_uvit_small"),
    "uvit_imagenet_64_mid": _spec("mid", 4, (64, 64, 3), 130_940_292, "imagenet64_uvit_mid", **_LABELS),
    "uvit_imagenet_64_large": _spec("large", 4, (64, 64, 3), 286_827_652, "imagenet64_uvit_large", **_LABELS),
    "uvit_imagenet_256_large": _spec("large", 2, (32, 32, 4), 286_763_172, "imagenet256_uvit_large", **_NULL),
    "uvit_imagenet_256_huge": _spec("huge", 2, (32, 32, 4), 500_832_016, "imagenet256_uvit_huge", **_HUGE),
    "uvit_imagenet_512_large": _spec("large", 4, (64, 64, 4), 286_861_524, "imagenet512_uvit_large", **_NULL),
    "uvit_imagenet_512_huge": _spec("huge", 4, (64, 64, 4), 500_942_656, "imagenet512_uvit_huge", **_HUGE),
}
