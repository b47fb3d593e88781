"""NCSNv2's network: dilated residual stages on the way down, RefineNet's multi-path refinement on the way up.

Stage l has channels * channel_mult[l] channels. Its first block changes size: with dilation 1 it halves every spatial
axis (not at l = 0), with a larger one it keeps the size and looks further instead, as networks for segmentation do.
A stage's output s_l is refined together with what came from the deeper one, r_{l+1}:

    u(h)  = h + conv(elu(conv(elu(h))))                    a residual unit, without normalisation         (1)
    m     = sum_i stretch(conv(u(u(h_i)))),                h = (s_l, r_{l+1})                             (2)
    p_0   = a_0 = elu(m),    p_i = conv(max(p_{i-1})),     a_i = a_{i-1} + p_i                            (3)
    r_l   = u(a_2), three times u at l = 0                                                                (4)

`max` is over windows of 5 positions; `stretch` interpolates linearly between positions, the corners staying where they
are. The deepest stage has one input and no (2). The output is conv(elu(norm(r_0))).

Instance normalisation loses a channel's mean; NCSN gives back where it stands among the channels. With m_c, v_c the
moments of channel c of one example over space,

    y_c = gamma_c ((x_c - m_c) / sqrt(v_c + epsilon) + alpha_c (m_c - m) / sqrt(v + epsilon)) + beta_c    (5)

m the mean and v the unbiased variance of the m_c over the channels.

The network is not told the noise level: a score network f(x) / sigma is one whose noise prediction -f(x) is a function
of x alone, because how noisy an image is can be seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.layers import over_space

_WINDOW, _POOLINGS = 5, 2  # of equation (3)


class Stage(NamedTuple):
    """A stage of a `RefineNet`.

    Attributes:
        features: its channels.
        dilation: of its convolutions.
        halves: whether its first block halves the size.
        refined: the channels of what is refined from it.
    """

    features: int
    dilation: int
    halves: bool
    refined: int


def _near_one(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def _conv(features: int, spatial: int, dtype: Any, name: str, *, dilation: int = 1, bias: bool = True) -> nn.Conv:
    """Kernel 3, PyTorch's initial kernel: uniform within 1 / sqrt(fan_in)."""
    return nn.Conv(
        features, (3,) * spatial, kernel_dilation=dilation, padding="SAME", use_bias=bias, dtype=dtype, name=name,
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    )  # fmt: skip


def _mean_pool(x: Array) -> Array:
    spatial = x.ndim - 2
    return nn.avg_pool(x, (2,) * spatial, strides=(2,) * spatial)


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
            return _conv(features, spatial, self.dtype, name, dilation=self.dilation)

        x = x.astype(self.dtype)
        h = nn.elu(InstanceNormPlus(dtype=self.dtype, name="norm1")(x))
        h = conv(width if self.first else self.features, "conv1")(h)
        h = nn.elu(InstanceNormPlus(dtype=self.dtype, name="norm2")(h))
        h = conv(self.features, "conv2")(h)
        if halves:
            # A kernel of 1 and a mean may change places; this way round it costs a quarter.
            h, x = _mean_pool(h), _mean_pool(x)
        if self.first and not halves:
            x = conv(self.features, "shortcut")(x)
        elif halves or width != self.features:
            init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            x = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="shortcut")(x)
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
                h = _conv(x.shape[-1], x.ndim - 2, self.dtype, f"conv_{unit}_{i}", bias=False)(nn.elu(h))
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
            fused = [_conv(self.features, spatial, self.dtype, f"fuse_{i}")(h) for i, h in enumerate(maps)]
            h = sum((_stretch(h, sizes) for h in fused[1:]), start=fused[0])
        h = path = nn.elu(h)
        for i in range(_POOLINGS):
            path = nn.max_pool(path, (_WINDOW,) * spatial, padding="SAME")
            path = _conv(self.features, spatial, self.dtype, f"pool_{i}", bias=False)(path)
            h = h + path
        return ResidualUnits(self.units, self.dtype, name="output")(h)


class RefineNet(nn.Module):
    """NCSNv2's network. With prediction "eps" its output is the predicted noise: score = -output / sigma.

    Defaults are those for 32x32 and 64x64 images. For 128x128 the original has channel_mult (1, 2, 2, 4, 4) and
    dilations (1, 1, 1, 2, 4), for 256x256 (1, 2, 2, 2, 4, 4) and (1, 1, 1, 1, 2, 4).

    Args:
        out_channels: of the output; None for as many as x has.
        channels: of the first stage, 2 or more.
        channel_mult: the channels of each stage as multiples of `channels`.
        dilations: of each stage; after the first, 1 halves the size and more keeps it.
        num_res_blocks: residual blocks per stage.
        num_classes: 0; it takes no labels.
        dtype: what to compute in. Parameters, statistics and the output are float32.

    Calling it takes
        x: [B, ..spatial.., C], every spatial size divisible by 2 for each stage that halves.
        t: not used, nor is `cond`, `train` or `rngs`: the network sees noise, and has no dropout.
    and returns float32 [B, ..spatial.., out_channels].

    Raises:
        UsageError: a field out of range (when built); a size that does not fit (when traced).

    Examples:
        >>> import jax
        >>> net = RefineNet(channels=4)
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 8, 8, 3)

    Reference: Song, Ermon, Improved Techniques for Training Score-Based Generative Models, 2020, arXiv:2006.09011,
    appendix B.
    """

    out_channels: int | None = None
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    dilations: Sequence[int] = (1, 1, 2, 4)
    num_res_blocks: int = 2
    num_classes: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("channel_mult", "dilations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        try:
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        except TypeError:
            raise UsageError(f"dtype is {self.dtype!r}: allowed is a floating-point type") from None
        self._check()
        super().__post_init__()

    def _check(self) -> None:
        def whole(value: Any, least: int) -> bool:
            return isinstance(value, int) and value >= least

        stages = len(self.channel_mult)
        rules = [
            ("channels", whole(self.channels, 2), "2 or more"),
            ("out_channels", self.out_channels is None or whole(self.out_channels, 1), "1 or more, or None"),
            ("channel_mult", stages and all(whole(m, 1) for m in self.channel_mult), "one whole number per stage"),
            (
                "dilations",
                len(self.dilations) == stages and all(whole(d, 1) for d in self.dilations),
                f"one whole number for each of the {stages} stages",
            ),
            ("num_res_blocks", whole(self.num_res_blocks, 1), "1 or more"),
            ("num_classes", self.num_classes == 0, "0, because it takes no labels"),
            ("dtype", jnp.issubdtype(self.dtype, jnp.floating), "a floating-point type"),
        ]
        for name, good, allowed in rules:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)}: allowed is {allowed}")

    def plan(self) -> tuple[Stage, ...]:
        """The stages, the largest first.

        Returns:
            One `Stage` per entry of `channel_mult`.
        """
        widths = [self.channels * m for m in self.channel_mult]
        refined = [widths[0], *widths[:-1]][:-1] + widths[-1:]  # the deepest has one input, and keeps its width
        halves = [level > 0 and dilation == 1 for level, dilation in enumerate(self.dilations)]
        return tuple(map(Stage, widths, self.dilations, halves, refined))

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Any] | None = None,
    ) -> Array:
        del t, cond, train, rngs
        x = jnp.asarray(x)
        stages = self.plan()
        unit = 2 ** sum(stage.halves for stage in stages)
        if x.ndim < 3 or any(size < 1 or size % unit for size in x.shape[1:-1]):
            raise UsageError(f"x has shape {x.shape}: allowed is [B, ..spatial.., C] with sizes divisible by {unit}")
        spatial = x.ndim - 2

        h = _conv(self.channels, spatial, self.dtype, "conv_in")(x.astype(self.dtype))
        maps = []
        for s, stage in enumerate(stages):
            for i in range(self.num_res_blocks):
                first = s > 0 and i == 0
                h = DilatedBlock(stage.features, stage.dilation, first, self.dtype, name=f"stage_{s}_block_{i}")(h)
            maps.append(h)
        refined: list[Array] = []
        for s in reversed(range(len(stages))):
            refine = Refine(stages[s].refined, 1 if s else 3, self.dtype, name=f"refine_{s}")
            refined = [refine([maps[s], *refined])]
        h = nn.elu(InstanceNormPlus(dtype=self.dtype, name="norm_out")(refined[0]))
        out = self.out_channels or x.shape[-1]
        return _conv(out, spatial, self.dtype, "conv_out")(h).astype(jnp.float32)
