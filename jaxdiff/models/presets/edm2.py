"""EDM2 (Karras et al. 2023, arXiv:2312.02696), configuration G: ImageNet at 64 x 64, and at 512 x 512 in latents.

The latents are those of Stable Diffusion's autoencoder (ft-mse), 64 x 64 x 4, each channel shifted and scaled to mean 0
and standard deviation 0.5: the original takes (5.81, 3.25, 0.12, -2.15) and (4.17, 4.62, 3.71, 3.28) for the raw ones.
Pixels are in [-1, 1].

`parameters` counts the denoiser: all weights and the constants of its Fourier features. The paper's table 2 has 125,
280, 498, 777, 1119 and 1523 million. Size XXS is of Karras et al. 2024, arXiv:2406.02507.
"""

from typing import Any

from jaxdiff.models.presets.spec import Spec

# size: (channels, dropout, parameters on 3 channels, on 4)
_SIZES = {
    "xxs": (64, 0.0, 31_307_877, 31_309_029),
    "xs": (128, 0.0, 124_711_077, 124_713_381),
    "s": (192, 0.0, 280_209_637, 280_213_093),
    "m": (256, 0.1, 497_803_557, 497_808_165),
    "l": (320, 0.1, 777_492_837, 777_498_597),
    "xl": (384, 0.1, 1_119_277_477, 1_119_284_389),
    "xxl": (448, 0.1, 1_523_157_477, 1_523_165_541),
}
_PUBLISHED = {"64": ("xs", "s", "m", "l", "xl"), "512": ("xxs", "xs", "s", "m", "l", "xl", "xxl")}


def _spec(resolution: str, size: str) -> Spec:
    channels, dropout, *parameters = _SIZES[size]
    latent = resolution == "512"
    fields: dict[str, Any] = {"channels": channels, "dropout": dropout, "num_classes": 1000}
    return Spec(
        "edm2",
        fields,
        (64, 64, 4 if latent else 3),
        process={"name": "edm"},
        prediction="edm",
        input_scale="unit_variance",
        time_input={"name": "log_sigma"},
        sigma_data=0.5,
        layout={"family": "edm2", "prefix": "unet."},
        parameters=parameters[latent],
        reference=f"arXiv:2312.02696, table 2, config G, size {size.upper()}; github.com/NVlabs/edm2",
    )


PRESETS: dict[str, Spec] = {
    f"edm2_img{resolution}_{size}": _spec(resolution, size)
    for resolution, sizes in _PUBLISHED.items()
    for size in sizes
}
