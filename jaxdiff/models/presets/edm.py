"""EDM's networks: DDPM++ and NCSN++ as it trained them on CIFAR-10, FFHQ and AFHQv2, and ADM on ImageNet.

Named as there: vp is the network DDPM++, ve is NCSN++; both are preconditioned and trained in the same way, EDM's. A
vector of 9 in cond["augment"] says how an image was augmented; leave it out, and it was not. `parameters` is counted
in the original code, with NCSN++'s 128 fixed frequencies, which are parameters here and were not there.
"""

from typing import Any

from jaxdiff.models.presets.spec import Spec

_PAPER = "Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364"
_SONG = {
    "channels": 128, "channel_mult": (2, 2, 2), "num_res_blocks": 4, "attention_resolutions": (16,),
    "attention_last": True, "norm_group_size": 4, "downsample": "block", "upsample": "block",
    "resample_shortcut": True, "skip_scale": 0.5**0.5, "augment_dim": 9, "dropout": 0.13,
}  # fmt: skip
_NCSNPP = {"time_embedding": "fourier", "fir": (1.0, 3.0, 3.0, 1.0), "progressive_input": "residual"}
_LABELS = {"num_classes": 10, "label_into": "features"}
_FACES = {"channel_mult": (1, 2, 2, 2), "dropout": 0.05}
_ANIMALS = {**_FACES, "dropout": 0.25}
_DHARIWAL = {
    "channels": 192, "first_channels": 192, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3,
    "attention_resolutions": (32, 16, 8), "head_dim": 64, "norm_group_size": 4, "norm_epsilon": 1e-5,
    "conditioning": "scale_shift", "downsample": "block", "upsample": "block", "freq_shift": 0.0, "dropout": 0.1,
    "num_classes": 1000, "null_label": False,
}  # fmt: skip


def _edm(file: str, size: int, parameters: int, network: str = "song", **fields: Any) -> Spec:
    return Spec(
        "unet",
        fields,
        (size, size, 3),
        process={"name": "edm"},
        prediction="edm",
        input_scale="unit_variance",
        time_input={"name": "log_sigma"},
        layout={"family": "edm", "network": network},
        parameters=parameters,
        reference=f"{_PAPER}; edm-{file}.pkl",
    )


def _song(file: str, size: int, parameters: int, **fields: Any) -> Spec:
    return _edm(file, size, parameters, **{**_SONG, **fields})


PRESETS: dict[str, Spec] = {
    "edm_cifar10_ddpmpp": _song("cifar10-32x32-uncond-vp", 32, 55_733_891),
    "edm_cifar10_ddpmpp_cond": _song("cifar10-32x32-cond-vp", 32, 55_735_299, **_LABELS),
    "edm_cifar10_ncsnpp": _song("cifar10-32x32-uncond-ve", 32, 56_397_955, **_NCSNPP),
    "edm_cifar10_ncsnpp_cond": _song("cifar10-32x32-cond-ve", 32, 56_400_771, **_NCSNPP, **_LABELS),
    "edm_ffhq64_ddpmpp": _song("ffhq-64x64-uncond-vp", 64, 61_805_571, **_FACES),
    "edm_ffhq64_ncsnpp": _song("ffhq-64x64-uncond-ve", 64, 62_761_219, **_FACES, **_NCSNPP),
    "edm_afhqv2_64_ddpmpp": _song("afhqv2-64x64-uncond-vp", 64, 61_805_571, **_ANIMALS),
    "edm_afhqv2_64_ncsnpp": _song("afhqv2-64x64-uncond-ve", 64, 62_761_219, **_ANIMALS, **_NCSNPP),
    "edm_imagenet64": _edm("imagenet-64x64-cond-adm", 64, 295_899_267, "dhariwal", **_DHARIWAL),
}
