"""The layers that halve or double a feature map, learned and not, and NCSN++'s way down for the image itself."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import unknown
from jaxdiff.models.fir import double, halve, smooth
from jaxdiff.models.layers import conv

DOWNSAMPLE = ("conv", "pool", "block")
UPSAMPLE = ("conv", "repeat", "block")
PADDING = ("same", "symmetric")


class Downsample(nn.Module):
    """Halves every spatial axis: a learned convolution of stride 2, or the filter of `jaxdiff.models.fir`.

    Args:
        kind: "conv" or "pool".
        padding: of the convolution at even sizes: "same" has one zero at the far end (DDPM, TensorFlow), "symmetric"
            one at either end, of which the near one is used (PyTorch's padding=1).
        fir: taps of "pool"; () for the mean of neighbours.
        dtype: compute type.

    Raises:
        UsageError: an unknown `padding`.

    Examples:
        >>> import jax
        >>> y, _ = Downsample("pool").init_with_output(jax.random.key(0), jax.numpy.ones((1, 8, 6, 3)))
        >>> y.shape
        (1, 4, 3, 3)
    """

    kind: str = "conv"
    padding: str = "same"
    fir: tuple[int | float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind == "pool":
            return halve(x, self.fir)
        if self.padding not in PADDING:
            raise unknown("downsample_padding", self.padding, PADDING)
        padding: str | int = "SAME" if self.padding == "same" else 1
        return conv(x.shape[-1], x.ndim - 2, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles every spatial axis: by the filter of `jaxdiff.models.fir`, and then, if learned, a convolution.

    Args:
        kind: "conv" or "repeat".
        fir: taps; () to repeat each value.
        dtype: compute type.

    Examples:
        >>> import jax
        >>> y, _ = Upsample("repeat").init_with_output(jax.random.key(0), jax.numpy.ones((1, 4, 3, 3)))
        >>> y.shape
        (1, 8, 6, 3)
    """

    kind: str = "conv"
    fir: tuple[int | float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind == "conv" and not self.fir:
            return conv(x.shape[-1], x.ndim - 2, dtype=self.dtype, general=conv_of_repeated, name="conv")(x)
        x = double(x, self.fir)
        return conv(x.shape[-1], x.ndim - 2, dtype=self.dtype, name="conv")(x) if self.kind == "conv" else x


def mean_pool(x: Array) -> Array:
    """x [B, ..spatial.., C] with every spatial axis halved, by the mean over windows of 2 along all of them at once."""
    spatial = x.ndim - 2
    return nn.avg_pool(x, (2,) * spatial, strides=(2,) * spatial)


def conv_of_repeated(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """Every value of x twice along every spatial axis, then a "SAME" convolution of kernel 3, without the repetition.

    An output at an even place sees two values of x through the taps (a, b + c), one at an odd place through
    (a + b, c): 2^n convolutions of kernel 2, with (2/3)^n of the multiplications. For `nn.Conv(conv_general_dilated=)`.

    Args:
        x: [B, ..spatial.., C].
        kernel: [3, .., 3, C, O].
        strides: ones.
        padding: not used: it is "SAME".
        options: of `jax.lax.conv_general_dilated`.

    Returns:
        [B, ..2 spatial.., O].

    Examples:
        >>> conv_of_repeated(jnp.ones((1, 4, 1)), jnp.ones((3, 1, 1)), (1,), "SAME",
        ...     dimension_numbers=("NWC", "WIO", "NWC"))[0, :, 0].tolist()
        [2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0]

    Reference: Shi et al., Is the deconvolution layer the same as a convolutional layer?, 2016, arXiv:1609.07009.
    """
    parts = []
    for odd in itertools.product((0, 1), repeat=x.ndim - 2):
        taps = kernel
        for axis, p in enumerate(odd):
            a, b, c = jnp.split(taps, 3, axis)
            taps = jnp.concatenate([a + b, c] if p else [a, b + c], axis)
        pads = [(1 - p, p) for p in odd]
        parts.append(jax.lax.conv_general_dilated(x, taps, strides, pads, **options))
    for axis in range(x.ndim - 2, 0, -1):  # the last axis varies fastest
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [_interleaved(even, odd, axis) for even, odd in pairs]
    return parts[0]


def _interleaved(even: Array, odd: Array, axis: int) -> Array:
    shape = even.shape
    return jnp.stack([even, odd], axis + 1).reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])


class SmoothDownsample(nn.Module):
    """The filter of `jaxdiff.models.fir`, then a convolution of stride 2; x is continued by zeros for both at once.

    Args:
        features: output channels.
        fir: taps; () for the mean of neighbours.
        dtype: compute type.

    Examples:
        >>> import jax
        >>> y, _ = SmoothDownsample(5, (1, 3, 3, 1)).init_with_output(jax.random.key(0), jax.numpy.ones((1, 8, 6, 3)))
        >>> y.shape
        (1, 4, 3, 5)

    Reference: Song et al., Score-Based Generative Modeling through SDEs, 2021, arXiv:2011.13456, appendix H.
    """

    features: int
    fir: tuple[int | float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = smooth(x.astype(self.dtype), self.fir, margin=1)
        return conv(self.features, x.ndim - 2, stride=2, padding=0, dtype=self.dtype, name="conv")(x)
