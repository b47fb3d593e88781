"""The layers that halve or double a feature map, learned and not, and NCSN++'s way down for the image itself."""

from typing import Any

import flax.linen as nn
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
        x = double(x, self.fir)
        return conv(x.shape[-1], x.ndim - 2, dtype=self.dtype, name="conv")(x) if self.kind == "conv" else x


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
