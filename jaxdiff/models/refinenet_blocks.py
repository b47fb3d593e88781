"""The blocks of NCSNv2's network: normalisation, residual units, dilated blocks, refinement.

A stage's output s_l is refined together with what came from the deeper one, r_{l+1}:

    u(h)  = h + conv(elu(conv(elu(h))))                    a residual unit, without normalisation         (1)
    m     = sum_i stretch(conv(u(u(h_i)))),                h = (s_l, r_{l+1})                             (2)
    p_0   = a_0 = elu(m),    p_i = conv(max(p_{i-1})),     a_i = a_{i-1} + p_i                            (3)
    r_l   = u(a_2), three times u at l = 0                                                                (4)

`max` is over windows of 5 positions; `stretch` interpolates linearly between positions, the corners staying where they
are. The deepest stage has one input and no (2).

Instance normalisation loses a channel's mean; NCSN gives back where it stands among the channels. With m_c, v_c the
moments of channel c of one example over space,

    y_c = gamma_c ((x_c - m_c) / sqrt(v_c + epsilon) + alpha_c (m_c - m) / sqrt(v + epsilon)) + beta_c    (5)

m the mean and v the unbiased variance of the m_c over the channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.layers import TORCH_INIT, over_space
from jaxdiff.models.resample import mean_pool

_WINDOW, _POOLINGS = 5, 2  # of equation (3)


def _near_one(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def torch_conv(features: int, spatial: int, dtype: Any, name: str, *, dilation: int = 1, bias: bool = True) -> nn.Conv:
    """A convolution of kernel 3 as PyTorch begins one."""
    return nn.Conv(
        features, (3,) * spatial, kernel_dilation=dilation, padding="SAME", use_bias=bias, dtype=dtype, name=name,
        kernel_init=TORCH_INIT,
    )  # fmt: skip


def _stretch(x: Array, sizes: Sequence[int]) -> Array:
    """Linear interpolation of each spatial axis to a size; the first and last position keep their values."""
    for axis, size in enumerate(sizes, 1):
        have = x.shape[axis]
        if have != size:
            at = np.linspace(0, have - 1, size)[:, None]
            weights = np.maximum(0, 1 - np.abs(at - np.arange(have)[None, :]))
            y = jnp.tensordot(x, jnp.asarray(weights, x.dtype), (axis, 1), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(y, -1, axis)
    return x


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps the channels' means beside each other, equation (5); statistics in float32.

    Args:
        epsilon: added to the variances.
        dtype: of the output.

    Calling it takes x [B, ..spatial.., C] with two channels or more and returns the same shape.

    Raises:
        UsageError: a single channel, whose mean has nothing to stand beside.

    Examples:
        >>> import jax
        >>> y, _ = InstanceNormPlus().init_with_output(jax.random.key(0), jax.numpy.arange(48.0).reshape(1, 4, 4, 3))
        >>> y.shape
        (1, 4, 4, 3)

    Reference: Song, Ermon, Generative Modeling by Estimating Gradients of the Data Distribution, 2019,
    arXiv:1907.05600, appendix A.1.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        if channels < 2:
            raise UsageError(f"x has {channels} channel: allowed are 2 or more, whose means are compared")
        alpha, gamma = (self.param(name, _near_one, (channels,)) for name in ("alpha", "gamma"))
        beta = self.param("beta", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        mean = x.mean(space)
        d = x - over_space(mean, x.ndim)
        gain = gamma[None, :] * jax.lax.rsqrt((d * d).mean(space) + self.epsilon)
        apart = mean - mean.mean(-1, keepdims=True)
        place = apart * jax.lax.rsqrt(mean.var(-1, keepdims=True, ddof=1) + self.epsilon)
        offset = gamma[None, :] * alpha[None, :] * place + beta[None, :]
        return (d * over_space(gain, x.ndim) + over_space(offset, x.ndim)).astype(self.dtype)


class DilatedBlock(nn.Module):
    """Norm, ELU, conv, norm, ELU, conv, plus the input.

    A block that changes size or width carries the input over by a convolution: of kernel 1, averaged over pairs of
    neighbours, where it halves; dilated, of kernel 3, where it only could have.

    Args:
        features: output channels.
        dilation: of its convolutions.
        first: whether it is the first of a stage after the top: halves, or with dilation convolves, the input.
        dtype: compute type.

    Calling it takes x [B, ..spatial.., C] and returns [B, ..spatial.., features], halved if `first` and dilation is 1.

    Examples:
        >>> import jax
        >>> y, _ = DilatedBlock(4, first=True).init_with_output(jax.random.key(0), jax.numpy.ones((1, 8, 8, 2)))
        >>> y.shape
        (1, 4, 4, 4)

    Reference: Song, Ermon, Improved Techniques for Training Score-Based Generative Models, 2020, arXiv:2006.09011,
    appendix B; Yu, Koltun, Funkhouser, Dilated Residual Networks, 2017, arXiv:1705.09914.
    """

    features: int
    dilation: int = 1
    first: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        spatial, width = x.ndim - 2, x.shape[-1]
        halves = self.first and self.dilation == 1

        def conv(features: int, name: str) -> nn.Conv:
            return torch_conv(features, spatial, self.dtype, name, dilation=self.dilation)

        x = x.astype(self.dtype)
        h = nn.elu(InstanceNormPlus(dtype=self.dtype, name="norm1")(x))
        h = conv(width if self.first else self.features, "conv1")(h)
        h = nn.elu(InstanceNormPlus(dtype=self.dtype, name="norm2")(h))
        h = conv(self.features, "conv2")(h)
        if halves:
            # A kernel of 1 and a mean may change places; this way round it costs a quarter.
            h, x = mean_pool(h), mean_pool(x)
        if self.first and not halves:
            x = conv(self.features, "shortcut")(x)
        elif halves or width != self.features:
            x = nn.Dense(self.features, kernel_init=TORCH_INIT, dtype=self.dtype, name="shortcut")(x)
        return x + h


class ResidualUnits(nn.Module):
    """Equation (1), so many times.

    Args:
        num: how many units.
        dtype: compute type.

    Calling it takes x [B, ..spatial.., C] and returns the same shape.

    Examples:
        >>> import jax
        >>> y, _ = ResidualUnits(2).init_with_output(jax.random.key(0), jax.numpy.ones((1, 8, 3)))
        >>> y.shape
        (1, 8, 3)
    """

    num: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for unit in range(self.num):
            h = x
            for i in range(2):
                h = torch_conv(x.shape[-1], x.ndim - 2, self.dtype, f"conv_{unit}_{i}", bias=False)(nn.elu(h))
            x = x + h
        return x


class Refine(nn.Module):
    """Equations (2) to (4): feature maps of any sizes become one of the first's size.

    Args:
        features: output channels; with a single input, its own.
        units: u's at the end, equation (4).
        dtype: compute type.

    Calling it takes a sequence of [B, ..spatial.., C_i] and returns [B, ..first's spatial.., features].

    Examples:
        >>> import jax
        >>> maps = [jax.numpy.ones((1, 8, 8, 2)), jax.numpy.ones((1, 4, 4, 6))]
        >>> y, _ = Refine(4).init_with_output(jax.random.key(0), maps)
        >>> y.shape
        (1, 8, 8, 4)

    Reference: Lin, Milan, Shen, Reid, RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic
    Segmentation, 2017, arXiv:1611.06612, section 3.2.
    """

    features: int
    units: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> Array:
        spatial, sizes = maps[0].ndim - 2, maps[0].shape[1:-1]
        maps = [ResidualUnits(2, self.dtype, name=f"adapt_{i}")(h) for i, h in enumerate(maps)]
        h = maps[0]
        if len(maps) > 1:
            fused = [torch_conv(self.features, spatial, self.dtype, f"fuse_{i}")(h) for i, h in enumerate(maps)]
            h = sum((_stretch(h, sizes) for h in fused[1:]), start=fused[0])
        h = path = nn.elu(h)
        for i in range(_POOLINGS):
            path = nn.max_pool(path, (_WINDOW,) * spatial, padding="SAME")
            path = torch_conv(self.features, spatial, self.dtype, f"pool_{i}", bias=False)(path)
            h = h + path
        return ResidualUnits(self.units, self.dtype, name="output")(h)
