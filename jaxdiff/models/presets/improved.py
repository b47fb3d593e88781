"""Improved diffusion's published networks, by the flags in its repository's README; the file's name is in `reference`.

The two smaller ImageNet-64 and CIFAR-10 files also exist as trained on the bound alone (imagenet64_uncond_vlb_100M_
1500K.pt, cifar10_uncond_vlb_50M_500K.pt), and the LSUN one with another learning rate, of the same networks.

T = 4000 with timesteps "rescaled" gives the network i / 4 for row i: `time_input` has factor 0.25.
"""

from typing import Any

from jaxdiff.models.presets.spec import Spec

_PAPER = "Nichol, Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672"
_COSINE = {"name": "ddpm_cosine", "num_steps": 4000}
# Betas that add up to the same at T = 4000 as from 1e-4 to 0.02 at T = 1000.
_LINEAR = {"name": "ddpm_linear", "num_steps": 4000, "beta_start": 0.25e-4, "beta_end": 0.005}
_RESCALED = {"name": "index", "factor": 0.25}
_INDEX = {"name": "index"}
_CLASSES = {"num_classes": 1000, "null_label": False}


def _improved(
    size: int, parameters: int, published: str, process: dict[str, Any], time_input: dict[str, Any], **fields: Any
) -> Spec:
    common = {
        "channels": 128, "attention_resolutions": (16, 8), "num_heads": 4, "dropout": 0.0,
        "conditioning": "scale_shift", "downsample_padding": "symmetric", "norm_epsilon": 1e-5, "freq_shift": 0.0,
        "learned_variance": True,
    }  # fmt: skip
    return Spec(
        "unet",
        {**common, **fields},
        (size, size, 3),
        process=process,
        time_input=time_input,
        layout={"family": "openai", "attention_order": "legacy"},
        parameters=parameters,
        reference=f"{_PAPER}: {published}.pt",
    )


PRESETS: dict[str, Spec] = {
    "iddpm_cifar10": _improved(
        32, 52_546_438, "cifar10_uncond_50M_500K", _COSINE, _RESCALED,
        channel_mult=(1, 2, 2, 2), num_res_blocks=3, dropout=0.3,
    ),
    "iddpm_imagenet64": _improved(
        64, 121_063_942, "120 million, imagenet64_uncond_100M_1500K", _COSINE, _RESCALED,
        channel_mult=(1, 2, 3, 4), num_res_blocks=3,
    ),
    "iddpm_imagenet64_cond": _improved(
        64, 273_049_350, "270 million, imagenet64_cond_270M_250K", _COSINE, _INDEX,
        channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3, **_CLASSES,
    ),
    "iddpm_lsun_bedroom": _improved(
        256, 113_676_678, "lsun_uncond_100M_1200K_bs128", {"name": "ddpm_linear"}, _INDEX,
        channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_resolutions=(16,), num_heads=1, conditioning="add",
    ),
    "iddpm_upsampler_64_256": _improved(
        256, 279_792_390, "280 million, upsample_cond_500K", _LINEAR, _INDEX,
        channels=192, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, concat=("low_res",), **_CLASSES,
    ),
}  # fmt: skip
