"""DDPM's networks: CIFAR-10, and the 256 x 256 one of LSUN and CelebA-HQ.

The paper says 35.7 and 114 million parameters; a variance that is not learned, T = 1000, betas linear.
"""

from typing import Any

from jaxdiff.models.presets.spec import Spec

_PAPER = "Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239, appendix B"


def _ddpm(size: int, parameters: int, published: str, **fields: Any) -> Spec:
    common = {"channels": 128, "num_res_blocks": 2, "attention_resolutions": (16,)}
    return Spec(
        "unet", {**common, **fields}, (size, size, 3), parameters=parameters, reference=f"{_PAPER}: {published}"
    )


PRESETS: dict[str, Spec] = {
    "ddpm_cifar10": _ddpm(32, 35_746_307, "35.7 million", channel_mult=(1, 2, 2, 2), dropout=0.1),
    "ddpm_256": _ddpm(256, 113_673_219, "114 million", channel_mult=(1, 1, 2, 2, 4, 4), dropout=0.0),
}
