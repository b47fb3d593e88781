"""What happens to a batch of images between the source and the network.

A transform takes float32 images in [0, 255], [B, H, W, C], and `draw`, which gives float32 numbers uniform in [0, 1)
of shape [B, *shape]; it returns images in [0, 255], in the array it was given if it likes: a batch in one array is made
several times as fast as with one array per transform, most of whose time goes into fresh memory. It never looks at
anything else, so a batch is a function of (seed, step). The scaling to [-1, 1] comes last, always, and is added by the
pipeline:

    x = v / 127.5 - 1                                                                                     (1)

For likelihoods the pixels are made continuous first, y = (v + u) 255/256 with u uniform in [0, 1), so that the density
of y bounds the probability of v. Then x = (v + u) / 128 - 1, and a density in x is one in v + u divided by 128.  (2)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from jaxdiff.errors import UsageError, unknown

Draw = Callable[..., np.ndarray]


@runtime_checkable
class Transform(Protocol):
    """A function of a batch of images and its random numbers."""

    def __call__(self, images: np.ndarray, draw: Draw) -> np.ndarray:
        """float32 [B, H, W, C] in [0, 255] to the same; may overwrite `images`, and what it returns is overwritten."""


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image with probability `rate`, in place.

    Args:
        axis: "horizontal" swaps left and right, "vertical" top and bottom.
        rate: probability in [0, 1].

    Raises:
        UsageError: for another axis or rate.

    Examples:
        >>> image = np.array([1.0, 2.0], np.float32).reshape(1, 1, 2, 1)
        >>> RandomFlip(rate=1.0)(image, lambda *shape: np.zeros((1, *shape), np.float32)).ravel().tolist()
        [2.0, 1.0]
    """

    axis: str = "horizontal"
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.axis not in ("horizontal", "vertical"):
            raise unknown("flip axis", self.axis, ("horizontal", "vertical"))
        if not 0 <= self.rate <= 1:
            raise UsageError(f"flip rate={self.rate!r}: allowed: 0 to 1")

    def __call__(self, images: np.ndarray, draw: Draw) -> np.ndarray:
        chosen, axis = draw() < self.rate, 2 if self.axis == "horizontal" else 1
        for channel in range(images.shape[-1]):  # long rows and little extra memory: twice as fast as all at once
            images[chosen, :, :, channel] = np.flip(images[chosen, :, :, channel], axis)
        return images


@dataclass(frozen=True)
class Dequantize:
    """Add uniform noise of one grey level and scale by 255/256: continuous values in [0, 255), equation (2).

    Examples:
        >>> half = lambda *shape: np.full((1, *shape), 0.5, np.float32)
        >>> float(Dequantize()(np.full((1, 1, 1, 1), 255, np.float32), half).item())
        254.501953125

    Reference: Uria, Murray and Larochelle, RNADE, 2013, arXiv 1306.0186, section 5.1; Theis, van den Oord and Bethge,
    A note on the evaluation of generative models, 2016, arXiv 1511.01844, section 3.1.
    """

    def __call__(self, images: np.ndarray, draw: Draw) -> np.ndarray:
        # 1 - 2^-16 is the most that 255 + u holds in float32 without rounding up to 256.
        noise = np.minimum(draw(*images.shape[1:]), np.float32(1 - 2**-16))
        noise += images
        noise *= np.float32(255 / 256)
        return noise


@dataclass(frozen=True)
class ToUnitRange:
    """Scale [0, 255] to [-1, 1], equation (1).

    Examples:
        >>> ToUnitRange()(np.array([0, 255], np.float32)).tolist()
        [-1.0, 1.0]
    """

    def __call__(self, images: np.ndarray, draw: Draw | None = None, *, out: np.ndarray | None = None) -> np.ndarray:
        scaled = np.divide(images, np.float32(127.5), out=out, dtype=np.float32)
        scaled -= np.float32(1)
        return scaled


def to_uint8(x: np.ndarray) -> np.ndarray:
    """The inverse of `ToUnitRange`: images to show or to store.

    Args:
        x: images in [-1, 1], any shape; values outside are clipped.

    Returns:
        uint8 of the same shape, rounded to the nearest level.

    Examples:
        >>> to_uint8(np.array([-1.0, 0.0, 1.2])).tolist()
        [0, 128, 255]
    """
    return np.clip(np.rint((np.asarray(x, np.float32) + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)


REGISTRY: dict[str, Callable[[], Transform]] = {
    "flip": RandomFlip,
    "flip_vertical": lambda: RandomFlip(axis="vertical"),
    "dequantize": Dequantize,
}


def make(names: Iterable[str]) -> tuple[Transform, ...]:
    """Transforms by name, in the order given; the scaling to [-1, 1] is not one of them.

    Args:
        names: keys of `REGISTRY`.

    Returns:
        One transform per name.

    Raises:
        UsageError: for a name that does not exist.

    Examples:
        >>> make(("flip", "dequantize"))
        (RandomFlip(axis='horizontal', rate=0.5), Dequantize())
    """
    if isinstance(names, str):
        raise UsageError(f"transforms={names!r}: give a sequence of names, such as ({names!r},)")
    made = []
    for name in names:
        if name not in REGISTRY:
            raise unknown("transform", name, REGISTRY)
        made.append(REGISTRY[name]())
    return tuple(made)
