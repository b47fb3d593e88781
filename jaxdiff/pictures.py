"""Pictures of samples and schedules: grids, PNG, GIF and plots, as bytes."""

import io
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxdiff.errors import UsageError
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Level

# Small images are enlarged, without smoothing, to at least this many pixels a side.
_VISIBLE = 32


def visible(x: Array, level: Level) -> Array:
    """Noisy images as a person can see them: brought to unit scale, -1 to 1 on 0 to 255, uint8.

    Args:
        x: noisy images at `level`, shape [B, H, W, C].
        level: a scalar level; a variance-exploding one would show nothing but noise without the division.
    """
    x = x / jnp.sqrt(level.alpha**2 + level.sigma**2)
    return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255).astype(jnp.uint8)


def grid(images: np.ndarray, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """Tile images into one picture, row by row.

    Args:
        images: uint8, shape [N, H, W, C] with C = 1 or 3.
        columns: images per row; by default as square as it goes.
        pad: grey pixels between images, which are seen on black and on white.

    Returns:
        uint8, shape [rows * (h + pad) + pad, columns * (w + pad) + pad, C].
    """
    num, height, width, channels = images.shape
    if channels not in (1, 3):
        raise UsageError(f"a picture has 1 or 3 channels, got {channels}")
    zoom = max(1, -(-_VISIBLE // max(height, width)))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    columns = min(columns or int(np.ceil(np.sqrt(num))), num)
    rows = -(-num // columns)
    height, width = height * zoom + pad, width * zoom + pad
    canvas = np.full((rows * height + pad, columns * width + pad, channels), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * height + pad, (i % columns) * width + pad
        canvas[top : top + height - pad, left : left + width - pad] = image
    return canvas


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [H, W, C], as PNG."""
    buffer = io.BytesIO()
    _image(picture).save(buffer, "PNG")
    return buffer.getvalue()


def gif(frames: Sequence[np.ndarray], seconds: float = 4.0, hold: float = 1.5) -> bytes:
    """Pictures, each uint8 [H, W, C], as an endlessly looping GIF.

    Args:
        frames: the pictures in order.
        seconds: how long one round takes, without the hold.
        hold: seconds the last frame stays.
    """
    each = max(20, int(1000 * seconds / len(frames)))
    durations = [each] * (len(frames) - 1) + [int(1000 * hold)]
    buffer = io.BytesIO()
    images = [_image(frame) for frame in frames]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def schedules(processes: Mapping[str, ForwardProcess]) -> bytes:
    """A plot of alpha-bar and log-SNR over time, a line per process, as PNG.

    Args:
        processes: the processes by the name in the legend.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, process in processes.items():
        clean, noisy = process.schedule.span
        t = np.linspace(clean, noisy, 1000)
        level = process(t)
        left.plot(t, level.alpha**2, label=name)
        right.plot(t, level.log_snr, label=name)
    left.set(title=r"signal left, $\bar\alpha_t = \alpha_t^2$", xlabel="t", ylabel=r"$\alpha_t^2$")
    right.set(title=r"signal to noise, $\log\,\alpha_t^2/\sigma_t^2$", xlabel="t", ylabel="log-SNR")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
