"""NCSNv2: score networks of 232 to 2311 noise levels, unconditional.

The original's images lie in [0, 1] and its network begins with x <- 2 x' - 1, x' being noisy. With x0 = 2 x0' - 1,

    2 (x0' + sigma' eps) - 1 = x0 + (2 sigma') eps,                                                     (1)

which is our x at sigma = 2 sigma': the same network on images in [-1, 1], with every noise level doubled and nothing
else. Its score f(x) / sigma' is of x'; since score' = -eps / sigma', the predicted noise is -f(x), and the converter
turns the sign of the last convolution. Annealed Langevin's step in units of the noise, epsilon / sigma_L^2 (0.062 for
CIFAR-10), is the same on either scale.

As the network does not see the noise level, it may be asked at any, so its time is "index_between".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff.models.presets.spec import Spec

_PAPER = "Song, Ermon, Improved Techniques for Training Score-Based Generative Models, 2020, arXiv:2006.09011"


def _spec(
    size: int, largest: float, levels: int, mult: Sequence[int], dilations: Sequence[int], parameters: int, note: str
) -> Spec:
    """`largest` is in the original's units, of images in [0, 1]; its smallest is 0.01 throughout."""
    fields: dict[str, Any] = {
        "channels": 128, "channel_mult": list(mult), "dilations": list(dilations), "out_channels": 3
    }  # fmt: skip
    sigmas = 2 * np.geomspace(0.01, largest, levels)
    return Spec(
        "refinenet", fields, (size, size, 3),
        process={"name": "ncsn", "sigmas": sigmas.tolist()},
        time_input={"name": "index_between"},
        layout={"family": "ncsnv2"},
        parameters=parameters,
        reference=f"{_PAPER}, appendix B and the original's {note}",
    )  # fmt: skip


_SMALL = (1, 2, 2, 2), (1, 1, 2, 4), 29_694_083
_MIDDLE = (1, 2, 2, 4, 4), (1, 1, 1, 2, 4), 83_445_379
_LARGE = (1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4), 94_132_611

PRESETS: dict[str, Spec] = {
    "ncsnv2_cifar10": _spec(32, 50.0, 232, *_SMALL, "configs/cifar10.yml"),
    "ncsnv2_celeba64": _spec(64, 90.0, 500, *_SMALL, "configs/celeba.yml"),
    "ncsnv2_lsun_church96": _spec(
        96, 140.0, 788, *_MIDDLE, "configs/church.yml (which has size 64 where paper and README have 96)"
    ),
    "ncsnv2_lsun_tower128": _spec(128, 190.0, 1086, *_MIDDLE, "configs/tower.yml"),
    "ncsnv2_lsun_bedroom128": _spec(128, 190.0, 1086, *_MIDDLE, "configs/bedroom.yml"),
    "ncsnv2_ffhq256": _spec(256, 348.0, 2311, *_LARGE, "configs/ffhq.yml"),
}
