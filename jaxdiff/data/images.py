"""One image brought to the shape a source promises.

Scaling follows the usual preparation of ImageNet for diffusion models: the shorter side is halved by exact 2x2 means
while it is at least twice the target, then brought to the target bicubically, and the centre square is cut out. The
means come first because one large bicubic step needs the same low-pass filter at a much larger support.
"""

import numpy as np
from PIL import Image

from jaxdiff.errors import UsageError

_MODES = {1: "L", 3: "RGB"}
GRAY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"})
# Beyond this ratio the long side is cut before scaling, so that a 1 x 60,000,000 strip cannot ask for terabytes.
_MAX_ASPECT = 4


def check_shape(image_size: int | None, channels: int | None) -> None:
    """Refuse sizes and channel counts that no source can give.

    Args:
        image_size: side of the square in pixels, or None.
        channels: 1, 3 or None.

    Raises:
        UsageError: for anything else.
    """
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise UsageError(f"image_size={image_size!r}: give a number of pixels, 1 or more, or None to keep the size")
    if channels is not None and channels not in _MODES:
        raise UsageError(f"channels={channels!r}: allowed: 1 (gray), 3 (RGB), or None to keep what the images have")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` with antialiasing and cut out the centre square.

    Args:
        image: a PIL image of mode L or RGB.
        size: side of the result in pixels.

    Returns:
        A PIL image of `size` x `size`.

    Examples:
        >>> from PIL import Image
        >>> centre_crop(Image.new("L", (100, 70)), 32).size
        (32, 32)

    Reference: Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233.
    """
    limit = _MAX_ASPECT * min(image.size)
    if max(image.size) > limit:
        image = _cut(image, min(image.width, limit), min(image.height, limit))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _cut(image, size, size)


def fit(image: Image.Image, channels: int, image_size: int | None) -> np.ndarray:
    """Bring a PIL image to the number of channels and the size asked for.

    Args:
        image: any PIL image. Deep gray images (16 bits) keep their 8 high bits; an alpha channel is dropped.
        channels: 1 or 3.
        image_size: side of the centre square in pixels; None keeps the size.

    Returns:
        uint8 [H, W, channels].

    Examples:
        >>> from PIL import Image
        >>> fit(Image.new("RGB", (9, 5)), 1, None).shape
        (5, 9, 1)
    """
    if image.mode.startswith("I"):  # convert("L") would clip 16-bit values at 255, not scale them
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    if image_size is not None and image.size != (image_size, image_size):
        image = centre_crop(image, image_size)
    pixels = np.array(image, dtype=np.uint8)  # np.array: asarray would be a read-only view
    return pixels.reshape(image.height, image.width, channels)


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
