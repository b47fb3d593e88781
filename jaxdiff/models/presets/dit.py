"""DiT: transformers on the latents of a 256x256 image, by size (S, B, L, XL) and side of a patch (2, 4, 8).

The paper's table 1 has the sizes; table 4 their parameters, nearly the same for every patch:

    S 33    B 130 (131 with patches of 8)    L 458 (459 with 8)    XL 675 (676 with 8)    million

`parameters` is the original code's count of what it trains, without its fixed positions. The published weights are of
DiT-XL/2 at 256 ("dit_xl_2") and at 512 pixels ("dit_xl_2_512"). Latents are those of Stable Diffusion's autoencoder
times 0.18215; of the noise, log-variance is learned.
"""

from jaxdiff.models.presets.spec import Spec

_PAPER = "Peebles, Xie, Scalable Diffusion Models with Transformers, 2022, arXiv:2212.09748"
_SIZES = {
    "s": {"channels": 384, "depth": 12, "num_heads": 6},
    "b": {"channels": 768, "depth": 12, "num_heads": 12},
    "l": {"channels": 1024, "depth": 24, "num_heads": 16},
    "xl": {"channels": 1152, "depth": 28, "num_heads": 16},
}
_PARAMETERS = {
    ("s", 2): 32_865_056, ("s", 4): 32_920_448, ("s", 8): 33_142_016,
    ("b", 2): 130_315_808, ("b", 4): 130_426_496, ("b", 8): 130_869_248,
    ("l", 2): 457_840_672, ("l", 4): 457_988_224, ("l", 8): 458_578_432,
    ("xl", 2): 674_834_720, ("xl", 4): 675_000_704, ("xl", 8): 675_664_640,
}  # fmt: skip


def _spec(size: str, patch: int, side: int, published: str = "") -> Spec:
    return Spec(
        "dit",
        {**_SIZES[size], "patch_size": patch, "num_classes": 1000, "learned_variance": True},
        (side, side, 4),
        layout={"family": "dit"},
        parameters=_PARAMETERS[size, patch],
        reference=f"{_PAPER}, table 1, DiT-{size.upper()}/{patch}{published}",
    )


PRESETS: dict[str, Spec] = {
    **{f"dit_{size}_{patch}": _spec(size, patch, 32) for size, patch in _PARAMETERS if (size, patch) != ("xl", 2)},
    "dit_xl_2": _spec("xl", 2, 32, "; facebookresearch/DiT, DiT-XL-2-256x256.pt"),
    "dit_xl_2_512": _spec("xl", 2, 64, "; facebookresearch/DiT, DiT-XL-2-512x512.pt"),
}
