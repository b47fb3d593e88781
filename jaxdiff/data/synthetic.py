"""A made-up data set of CIFAR-10's size, for tests and benchmarks: no files, no network, nothing random.

Image i of class c = i mod 10 shows stripes whose normal is turned by the angle c pi / 10. Channel k has the value

    x(u, v) = sin(2 pi (f (u cos(c pi / 10) + v sin(c pi / 10)) + phi_k))                                 (1)

in [-1, 1] at the pixel (u, v) in [0, 1)^2, u to the right and v down, with 2 <= f < 3 stripes per side and phases
phi_k in [0, 1). f and the phases are the fractional parts of i times fixed irrational numbers, a sequence that fills
their cube evenly, so that any slice of the set looks like the whole. Over the set x has the mean 0 and the standard
deviation 1 / sqrt(2). Mirrored, class c looks like class 10 - c: where labels matter, flips are wrong.

Reference: Roberts, The unreasonable effectiveness of quasirandom sequences, 2018 (the choice of the numbers).
"""

from typing import Any

import numpy as np

from jaxdiff.data.splits import bounds

COUNT, CLASSES = 50_000, 10
# The powers of 1/g where g^5 = g + 1: the evenest in four dimensions.
_RATIOS = 1.1673039782614187 ** -np.arange(1.0, 5.0)


class Synthetic:
    """Stripes in ten directions, equation (1): 50,000 images, the same on every machine.

    Args:
        split: "train" or a slice of it.
        image_size: side in pixels.
        channels: 1 or 3.

    Raises:
        UsageError: for another split.

    Examples:
        >>> source = Synthetic("train[:90%]")
        >>> len(source), source.shape, source[12]["label"]
        (45000, (32, 32, 3), 2)
    """

    shape: tuple[int, int, int]
    num_classes: int

    def __init__(self, split: str = "train", image_size: int = 32, channels: int = 3) -> None:
        self.shape, self.num_classes = (image_size, image_size, channels), CLASSES
        self._numbers = bounds(split, COUNT)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self._numbers[index]
        label, side = number % CLASSES, self.shape[0]
        turns, *phases = (number * _RATIOS) % 1
        angle = np.pi * label / CLASSES
        steps = 2 * np.pi * (2 + turns) * np.arange(side) / side
        # sin(a + b) as products: 4 x side sines instead of one per pixel.
        across = steps * np.cos(angle) + 2 * np.pi * np.array(phases[: self.shape[2]])[:, None]
        down = (steps * np.sin(angle))[:, None, None]
        x = np.sin(across.T) * np.cos(down) + np.cos(across.T) * np.sin(down)
        return {"image": np.rint((x + 1) * 127.5).astype(np.uint8), "label": label}
