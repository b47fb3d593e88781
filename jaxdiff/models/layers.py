"""The layers that every network here is made of: convolution, normalisation, the residual block.

Layouts are channels-last, [B, ..spatial.., C], for any number of spatial dimensions; parameters are float32,
`dtype` is what a layer computes in.

Group normalisation of one example, with g(c) the group of channel c:

    y_c = gamma_c (x_c - m_g(c)) / sqrt(v_g(c) + epsilon) + beta_c                             (1)

The moments take one pass over the activations: a sum of d and of d^2 for every channel, where d = x - x_ref and
x_ref is the channel's first position. Shifting by a value of the data itself leaves the variance as it is and
keeps E[d^2] - E[d]^2 from cancelling when a channel's mean is large beside its spread. The channels of a group
are then joined exactly, on arrays without spatial axes:

    m_g = mean_c m_c        v_g = mean_c v_c + mean_c (m_c - m_g)^2                            (2)
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.dropout import Dropout
from jaxdiff.models.fir import double, halve

CONDITIONING = ("add", "scale_shift")
RESAMPLE = ("", "down", "up")
TORCH_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's: within 1 / sqrt(fan_in)


def ddpm_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """DDPM's initialiser: uniform with variance scale / ((fan_in + fan_out) / 2), or zeros for scale 0.

    Args:
        scale: the numerator; 0 gives exact zeros (the original has 1e-10 there).

    Returns:
        An initialiser (key, shape, dtype) -> array.

    Examples:
        >>> import jax
        >>> float(ddpm_init(0.0)(jax.random.key(0), (2, 3)).sum())
        0.0

    Reference: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239, appendix B and code.
    """
    if scale == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def conv(
    features: int,
    spatial: int,
    *,
    stride: int = 1,
    padding: str | int = "SAME",
    scale: float = 1.0,
    dtype: Any = jnp.float32,
    general: Any = None,
    name: str | None = None,
) -> nn.Conv:
    """A convolution of kernel 3 along every spatial axis, with DDPM's initialiser.

    Args:
        features: output channels.
        spatial: the number of spatial axes (1 audio, 2 images, 3 video).
        stride: along every spatial axis.
        padding: "SAME", or so many zeros at either end of every spatial axis.
        scale: of `ddpm_init`; 0 for the last convolution of a residual branch.
        dtype: compute type.
        general: in place of `jax.lax.conv_general_dilated`.
        name: of the submodule.

    Returns:
        The Linen module.

    Examples:
        >>> import jax
        >>> y, _ = conv(4, 1, stride=2).init_with_output(jax.random.key(0), jax.numpy.ones((2, 8, 3)))
        >>> y.shape
        (2, 4, 4)
    """
    return nn.Conv(
        features, (3,) * spatial, strides=(stride,) * spatial, padding=padding, kernel_init=ddpm_init(scale),
        dtype=dtype, conv_general_dilated=general, name=name,
    )  # fmt: skip


def dense(features: int, *, scale: float = 1.0, dtype: Any = jnp.float32, name: str | None = None) -> nn.Dense:
    """A linear map of the last axis with DDPM's initialiser; it is also every 1x1 convolution, faster on a CPU.

    Args:
        features: output channels.
        scale: of `ddpm_init`.
        dtype: compute type.
        name: of the submodule.

    Returns:
        The Linen module.

    Examples:
        >>> import jax
        >>> y, _ = dense(4).init_with_output(jax.random.key(0), jax.numpy.ones((2, 8, 8, 3)))
        >>> y.shape
        (2, 8, 8, 4)
    """
    return nn.Dense(features, kernel_init=ddpm_init(scale), dtype=dtype, dot_general=flat_dot, name=name)


def flat_dot(x: Array, kernel: Array, dims: Any, precision: Any = None, **options: Any) -> Array:
    """x [..., C] times kernel [C, O] on two axes: XLA's CPU transposes the factors of the kernel's gradient, element by
    element, where they have more axes. For `nn.Dense(dot_general=)`; `dims` is what it always gives.
    """
    y = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), precision, **options)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def over_space(v: Array, ndim: int) -> Array:
    """[B, C] as [B, 1, .., 1, C] with `ndim` axes, so that nothing is broadcast by rank."""
    return v.reshape(v.shape[0], *(1,) * (ndim - 2), v.shape[-1])


def scaled(x: Array, factor: int | float) -> Array:
    """x times a constant, in x's own type; nothing at 1."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation, equations (1) and (2) of this module, statistics in float32.

    Args:
        num_groups: at most so many groups; the largest divisor of the channel count that does not exceed it is used.
        epsilon: added to the variance. DDPM has 1e-6 (the default of tf.contrib), improved diffusion 1e-5.
        group_size: at least so many channels in a group (4 in NCSN++ and EDM).
        dtype: of the output.

    Calling it takes x [B, ..spatial.., C] and optionally `scale`, `shift` [B, C], and returns
    norm(x) (1 + scale) + shift, of the shape of x (adaptive group normalisation, for the price of the plain one).

    Examples:
        >>> import jax
        >>> y, _ = GroupNorm().init_with_output(jax.random.key(0), jax.numpy.arange(48.0).reshape(1, 4, 4, 3))
        >>> y.shape
        (1, 4, 4, 3)

    Reference: Wu, He, Group Normalization, 2018, arXiv:1803.08494, section 3.1; Dhariwal, Nichol, Diffusion Models
    Beat GANs, 2021, arXiv:2105.05233, section 3.1.
    """

    num_groups: int = 32
    epsilon: float = 1e-6
    group_size: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
        channels = x.shape[-1]
        gamma = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        beta = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        most = max(1, min(self.num_groups, channels // self.group_size))
        groups = next(g for g in range(most, 0, -1) if channels % g == 0)
        mean, var = _group_moments(x, groups)
        gain = gamma[None, :] * jax.lax.rsqrt(var + self.epsilon)
        offset = jnp.broadcast_to(beta[None, :], gain.shape)
        if scale is not None:
            gain, offset = gain * (1 + scale), offset * (1 + scale)
        if shift is not None:
            offset = offset + shift
        # The mean is subtracted first, not folded into the offset: the gradient would cancel for a large mean.
        y = (x - over_space(mean, x.ndim)) * over_space(gain, x.ndim) + over_space(offset, x.ndim)
        return y.astype(self.dtype)


def _group_moments(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and variance of x [B, .., C] over space and group, given to each channel: two arrays [B, C]."""
    batch, channels = x.shape[0], x.shape[-1]
    space = tuple(range(1, x.ndim - 1))
    first = jax.lax.stop_gradient(x[(slice(None), *(slice(0, 1),) * len(space))])
    d = x - first  # any constant gives the same moments, so it carries no gradient
    m = d.mean(space)
    v = jnp.maximum((d * d).mean(space) - m * m, 0.0)
    grouped = (batch, groups, channels // groups)
    m = (m + first.reshape(batch, channels)).reshape(grouped)
    mean = m.mean(2, keepdims=True)
    var = v.reshape(grouped).mean(2, keepdims=True) + jnp.square(m - mean).mean(2, keepdims=True)
    return (
        jnp.broadcast_to(mean, grouped).reshape(batch, channels),
        jnp.broadcast_to(var, grouped).reshape(batch, channels),
    )


@dataclass(frozen=True)
class Norm:
    """The group normalisation of a network, as a value; calling it makes the layer.

    Args:
        num_groups: see `GroupNorm`, as the next two.
        epsilon: in the root.
        group_size: least channels in a group.

    Examples:
        >>> Norm(8, 1e-5)().num_groups
        8
    """

    num_groups: int = 32
    epsilon: float = 1e-6
    group_size: int = 1

    def __call__(self, dtype: Any = jnp.float32, name: str | None = None) -> GroupNorm:
        """The layer."""
        return GroupNorm(self.num_groups, self.epsilon, self.group_size, dtype, name=name)


class ResBlock(nn.Module):
    """The residual block of the U-Nets: norm, SiLU, conv; time; norm, SiLU, dropout, conv (zero at first); plus x.

    With `resample` both the branch, after its first SiLU, and x change size (BigGAN's block, as in NCSN++ and ADM).

    Args:
        features: output channels; a linear map carries the input over where they differ from its own.
        dropout: rate in [0, 1).
        norm: of both group normalisations.
        conditioning: "add" adds the projected embedding before the second normalisation; "scale_shift" scales and
            shifts by it after.
        resample: "", "down" or "up": every spatial axis is halved or doubled.
        fir: taps of the resampling filter, see `jaxdiff.models.resample`; () for the box.
        resample_shortcut: a resampling block has the linear map whatever its channels (NCSN++).
        skip_scale: the factor on the sum, sqrt(1/2) in NCSN++.
        dtype: compute type; the path of the embedding stays float32.

    Calling it takes x [B, ..spatial.., C], emb [B, E], `train` and `rngs` (see `Dropout`), and perhaps `skip`
    [B, ..spatial.., C'], further channels of x; it returns [B, ..spatial.., features].

    Raises:
        UsageError: an unknown `conditioning` or `resample`; `train` with dropout but without keys.

    Examples:
        >>> import jax
        >>> args = jax.numpy.ones((1, 8, 8, 3)), jax.numpy.ones((1, 16))
        >>> y, _ = ResBlock(8, resample="down").init_with_output(jax.random.key(0), *args)
        >>> y.shape
        (1, 4, 4, 8)

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, appendix B; scale-shift: Nichol, Dhariwal, Improved Denoising
    Diffusion Probabilistic Models, 2021, arXiv:2102.09672, appendix A; resampling and skip_scale: Song et al.,
    Score-Based Generative Modeling through SDEs, 2021, arXiv:2011.13456, appendix H.
    """

    features: int
    dropout: float = 0.0
    norm: Norm = Norm()
    conditioning: str = "add"
    resample: str = ""
    fir: tuple[int | float, ...] = ()
    resample_shortcut: bool = False
    skip_scale: int | float = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool = False, rngs: Any = None, skip: Array | None = None) -> Array:
        if self.conditioning not in CONDITIONING:
            raise unknown("conditioning", self.conditioning, CONDITIONING)
        if self.resample not in RESAMPLE:
            raise unknown("resample", self.resample, RESAMPLE)
        if x.ndim < 3:
            raise UsageError(f"x has shape {x.shape}: allowed is [B, ..spatial.., C] with one spatial axis or more")
        spatial, out = x.ndim - 2, self.features
        adaptive = self.conditioning == "scale_shift"
        # Joined here, so that recomputing the block keeps no copy.
        x = x.astype(self.dtype) if skip is None else jnp.concatenate([x, skip], axis=-1).astype(self.dtype)
        h = nn.silu(self.norm(self.dtype, name="norm1")(x))
        if self.resample:
            resize = halve if self.resample == "down" else double
            h, x = resize(h, self.fir), resize(x, self.fir)
        h = conv(out, spatial, dtype=self.dtype, name="conv1")(h)
        time = dense(2 * out if adaptive else out, name="time")(nn.silu(emb.astype(jnp.float32)))
        norm2 = self.norm(self.dtype, name="norm2")
        if adaptive:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm2(h, scale, shift)
        else:
            h = norm2(h + over_space(time, h.ndim).astype(self.dtype))
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), train=train, rngs=rngs)
        h = conv(out, spatial, scale=0.0, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != out or (self.resample and self.resample_shortcut):
            x = dense(out, dtype=self.dtype, name="shortcut")(x)
        return scaled(x + h, self.skip_scale)
