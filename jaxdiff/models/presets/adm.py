"""ADM: the published networks of guided diffusion, by the flags in its repository's README.

U-Nets with and without labels, upsamplers that are given the small image as cond["low_res"], and the classifiers of
noisy images that guide them, with the network "classifier". The file's name is in `reference`; lsun_cat.pt and
lsun_horse.pt are of adm_lsun_bedroom's network. The sizes in the paper's tables of hyperparameters:

    ImageNet 64, 128, 256, 512     296, 422, 554, 559 million      (LSUN: 552)
    classifiers of the same         65,  43,  54,  54 million
    upsamplers to 256, 512         312, 309 million
"""

from typing import Any

from jaxdiff.models.presets.spec import Spec

_PAPER = "Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233"
_MULT = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
_COMMON = {
    "num_res_blocks": 2, "attention_resolutions": (32, 16, 8), "head_dim": 64, "dropout": 0.0,
    "conditioning": "scale_shift", "downsample": "block", "norm_epsilon": 1e-5, "freq_shift": 0.0,
}  # fmt: skip
_PLAIN: dict[str, str] = {}
_CLASSES = {"num_classes": 1000, "null_label": False}
_LOW_RES = {"channels": 192, "channel_mult": _MULT[256], "concat": ("low_res",)}


def _spec(network: str, size: int, parameters: int, published: str, variant: dict[str, str], **fields: Any) -> Spec:
    made = {**_COMMON, "channel_mult": _MULT[size], **fields}
    if made["channel_mult"][0] != 1:
        made["first_channels"] = round(made["channels"] * made["channel_mult"][0])
    return Spec(
        network,
        made,
        (size, size, 3),
        process={"name": variant.get("process", "ddpm_linear")},
        layout={"family": "openai", "attention_order": variant.get("order", "legacy")},
        parameters=parameters,
        reference=f"{_PAPER}: {published}.pt",
    )


def _unet(size: int, parameters: int, published: str, variant: Any = _PLAIN, **fields: Any) -> Spec:
    common = {"channels": 256, "upsample": "block", "learned_variance": True}
    return _spec("unet", size, parameters, published, variant, **{**common, **fields})


def _classifier(size: int, parameters: int, published: str, variant: Any = _PLAIN, **fields: Any) -> Spec:
    common = {"channels": 128, "num_labels": 1000, "pool": "attention"}
    return _spec("classifier", size, parameters, published, variant, **{**common, **fields})


PRESETS: dict[str, Spec] = {
    "adm_64": _unet(
        64, 295_904_454, "296 million, 64x64_diffusion", {"process": "ddpm_cosine", "order": "new"},
        channels=192, num_res_blocks=3, dropout=0.1, **_CLASSES,
    ),
    "adm_128": _unet(128, 421_529_606, "422 million, 128x128_diffusion", num_heads=4, head_dim=None, **_CLASSES),
    "adm_256": _unet(256, 553_838_086, "554 million, 256x256_diffusion", **_CLASSES),
    "adm_512": _unet(512, 558_997_638, "559 million, 512x512_diffusion", **_CLASSES),
    "adm_256_uncond": _unet(256, 552_814_086, "256x256_diffusion_uncond"),
    # OpenAI published none of 512 x 512 without labels; this file began as theirs, the table of labels taken out.
    "adm_512_uncond": _unet(512, 557_973_638, "tuned by K. Crowson, 512x512_diffusion_uncond_finetune_008100"),
    "adm_lsun_bedroom": _unet(256, 552_814_086, "552 million, lsun_bedroom", dropout=0.1),
    "adm_upsampler_64_256": _unet(
        256, 311_795_910, "312 million, 64_256_upsampler", num_heads=4, head_dim=None, **_LOW_RES, **_CLASSES
    ),
    "adm_upsampler_128_512": _unet(
        512, 308_835_270, "309 million, 128_512_upsampler", attention_resolutions=(32, 16), **_LOW_RES, **_CLASSES
    ),
    "adm_classifier_64": _classifier(
        64, 65_438_568, "65 million, 64x64_classifier", {"process": "ddpm_cosine"}, num_res_blocks=4
    ),
    "adm_classifier_128": _classifier(128, 42_568_040, "43 million, 128x128_classifier"),
    "adm_classifier_256": _classifier(256, 54_096_360, "54 million, 256x256_classifier"),
    "adm_classifier_512": _classifier(512, 54_448_360, "54 million, 512x512_classifier"),
}  # fmt: skip
