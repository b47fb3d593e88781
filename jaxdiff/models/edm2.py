"""EDM2's U-Net (configuration G): every layer keeps magnitudes, so no normalisation layers and no biases.

Sizes differ in `channels` alone: 64 XXS, 128 XS, 192 S, 256 M, 320 L, 384 XL, 448 XXL.

A block takes the main path x and the embedding e of time and label, with the parts of `jaxdiff.models.magnitude`:

    x <- resample(x);  on the way down also  x <- normalize(shortcut(x))                              (1)
    y  = conv2(dropout(mp_silu(conv1(mp_silu(x)) (1 + gain W e))))                                    (2)
    x <- mp_sum(x, y, 0.3)         (on the way up: of shortcut(x))                                    (3)
    x <- mp_sum(x, proj(softmax(q k^T / sqrt(d)) v), 0.3),  q, k, v normalised per head               (4)
    x <- clip(x, -256, 256)                                                                           (5)

with (4) where it attends. `gain` and the gain of the output start at 0, so a fresh network answers 0 and does not see
time. q and k of unit magnitude bound the logits of (4) by sqrt(d) ("cosine attention").

Kernels are normalised where they are used; train with `jaxdiff.models.magnitude.force_normalize` applied to the
parameters at init and after every step, as the paper does. The uncertainty u(sigma) by which the paper weighs the loss
is no part of the denoiser and is not here (128 weights and 256 constants beside the millions).

The network is one of `prediction="edm"`, `input_scale="unit_variance"`, `time_input="log_sigma"` and sigma_data 0.5:
equations 6 and 7 of the paper are the `Model`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import unknown
from jaxdiff.models.dropout import Dropout
from jaxdiff.models.layers import over_space
from jaxdiff.models.magnitude import (
    MPConv,
    MPDense,
    MPFourier,
    MPLabel,
    label_of,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
)
from jaxdiff.models.unet_fields import bad

REMAT = ("none", "blocks")


class Part(NamedTuple):
    """One block of the network.

    Attributes:
        name: of the submodule.
        level: 0 is full size.
        features: output channels.
        encoder: on the way down.
        resample: "keep", "down" or "up", at its input.
        attention: with equation (4).
        skip: takes the last map of the way down that is left.
    """

    name: str
    level: int
    features: int
    encoder: bool
    resample: str = "keep"
    attention: bool = False
    skip: bool = False


class MPAttention(nn.Module):
    """Equation (4) of this module.

    Args:
        head_dim: channels per head, a divisor of the channels.
        balance: of the sum.
        dtype: compute type; the softmax and the norms are taken in float32.

    Calling it takes x [B, ..spatial.., C] and returns the same shape.

    Raises:
        UsageError: a channel count that the heads do not divide.

    Examples:
        >>> import jax
        >>> y, _ = MPAttention(4).init_with_output(jax.random.key(0), jax.numpy.ones((1, 4, 4, 8)))
        >>> y.shape
        (1, 4, 4, 8)

    Reference: Karras et al., 2023, arXiv:2312.02696, appendix B.3 and figure 21.
    """

    head_dim: int = 64
    balance: float = 0.3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.head_dim:
            raise bad("head_dim", self.head_dim, f"a divisor of the {channels} channels where it attends")
        qkv = MPDense(3 * channels, self.dtype, name="qkv")(x)
        qkv = normalize(qkv.reshape(batch, -1, 3, channels // self.head_dim, self.head_dim))
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return mp_sum(x, MPDense(channels, self.dtype, name="proj")(y.reshape(x.shape)), self.balance)


class MPBlock(nn.Module):
    """A block of EDM2, equations (1) to (5) of this module.

    Args:
        features: output channels.
        encoder: with the normalisation of (1) and the shortcut before the branches part.
        resample: "keep", "down" (the mean of each pair of neighbours) or "up" (repetition), along every spatial axis.
        attention: with (4).
        head_dim: channels per head.
        dropout: rate in [0, 1).
        residual_balance: of (3).
        attention_balance: of (4).
        clip: of (5); None for no limit.
        dtype: compute type; the path of the embedding stays float32.

    Calling it takes x [B, ..spatial.., C], emb [B, E], `train` and `rngs` (see `Dropout`), and returns
    [B, ..spatial.., features].

    Raises:
        UsageError: a head size that does not divide the channels; `train` with dropout but without keys.

    Examples:
        >>> import jax
        >>> args = jax.numpy.ones((1, 8, 8, 3)), jax.numpy.ones((1, 16))
        >>> y, _ = MPBlock(8, encoder=True, resample="down").init_with_output(jax.random.key(0), *args)
        >>> y.shape
        (1, 4, 4, 8)

    Reference: Karras et al., 2023, arXiv:2312.02696, figure 21.
    """

    features: int
    encoder: bool = False
    resample: str = "keep"
    attention: bool = False
    head_dim: int = 64
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float | None = 256.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool = False, rngs: Mapping[str, Any] | None = None) -> Array:
        x = _resampled(x.astype(self.dtype), self.resample)

        def shortcut(x: Array) -> Array:
            return x if x.shape[-1] == self.features else MPDense(self.features, self.dtype, name="shortcut")(x)

        if self.encoder:
            x = normalize(shortcut(x))
        y = MPConv(self.features, self.dtype, name="conv1")(mp_silu(x))
        gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
        scale = 1 + MPDense(self.features, name="time")(emb, gain)
        y = mp_silu(y * over_space(scale, y.ndim).astype(self.dtype))
        y = Dropout(self.dropout, name="dropout")(y, train=train, rngs=rngs)
        y = MPConv(self.features, self.dtype, name="conv2")(y)
        x = mp_sum(x if self.encoder else shortcut(x), y, self.residual_balance)
        if self.attention:
            x = MPAttention(self.head_dim, self.attention_balance, self.dtype, name="attn")(x)
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)


def _resampled(x: Array, resample: str) -> Array:
    if resample == "down":
        return nn.avg_pool(x, (2,) * (x.ndim - 2), strides=(2,) * (x.ndim - 2))
    for axis in range(1, x.ndim - 1) if resample == "up" else ():
        x = jnp.repeat(x, 2, axis=axis)
    return x


class EDM2UNet(nn.Module):
    """The magnitude-preserving U-Net; defaults are those of size S.

    Args:
        out_channels: of the prediction; None for those of the input.
        channels: the unit of width.
        channel_mult: the channels of each level as multiples of `channels`; each further level halves the size.
        num_res_blocks: blocks per level on the way down; the way up has one more.
        attention_resolutions: the sizes (largest spatial axis of the feature map) at which blocks attend, but for those
            that change the size. The first block of the middle always does.
        head_dim: channels per head.
        dropout: rate in [0, 1), used with train=True.
        num_classes: number of labels; 0 for none. The null label is `num_classes`, a zero vector.
        label_balance: the part of the label in the embedding, in [0, 1].
        concat_balance: the part of the way down in what the way up takes, in [0, 1].
        residual_balance: the part of the residual branch in a block's output, in [0, 1].
        attention_balance: the part of the attention, in [0, 1].
        clip: limit of the size of activations, or None.
        remat: "blocks" keeps only what is between blocks for the gradient, and computes the rest again; or "none".
        dtype: what to compute in. Parameters, norms, the path of time and the output are float32.

    Calling it takes
        x: [B, ..spatial.., C] of unit variance, every spatial size divisible by 2^(levels - 1).
        t: float [B], log(sigma) / 4.
        cond: {"label": int32 [B]} in 0..num_classes, or None: all null. Other entries are not used, nor is a label
            if num_classes is 0. A label out of range gives NaN.
        train: with dropout.
        rngs: {"dropout": one typed key per example, [B]}; call through `Network`, because Linen's own `apply` keeps
            an argument of this name to itself.
    and returns float32 [B, ..spatial.., out_channels].

    Raises:
        UsageError: a field out of range (when built); a size, time, label or key that does not fit (when traced).

    Examples:
        >>> import jax
        >>> net = EDM2UNet(channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), head_dim=8)
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 8, 8, 3)

    Reference: Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the Training Dynamics of
    Diffusion Models, 2023, arXiv:2312.02696, figure 21 and table 6 (configuration G).
    """

    out_channels: int | None = None
    channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: Sequence[int] = (16, 8)
    head_dim: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    label_balance: float = 0.5
    concat_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float | None = 256.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        try:
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        except TypeError:
            raise bad("dtype", self.dtype, "a floating-point type") from None
        _check_fields(self)
        super().__post_init__()

    def plan(self, size: int) -> list[Part]:
        """The blocks in the order of execution.

        Args:
            size: of the largest spatial axis of the input.

        Returns:
            One `Part` per block, between "conv_in" and "conv_out".
        """
        parts, levels = [], len(self.channel_mult)
        widths = [self.channels * mult for mult in self.channel_mult]
        attends = [size >> level in self.attention_resolutions for level in range(levels)]
        for level in range(levels):
            if level:
                parts.append(Part(f"down_{level - 1}_downsample", level, widths[level - 1], True, "down"))
            for i in range(self.num_res_blocks):
                parts.append(Part(f"down_{level}_block_{i}", level, widths[level], True, attention=attends[level]))
        parts.append(Part("mid_block_0", levels - 1, widths[-1], False, attention=True))
        parts.append(Part("mid_block_1", levels - 1, widths[-1], False))
        for level in range(levels - 1, -1, -1):
            if level < levels - 1:
                parts.append(Part(f"up_{level + 1}_upsample", level, widths[level + 1], False, "up"))
            for i in range(self.num_res_blocks + 1):
                name = f"up_{level}_block_{i}"
                parts.append(Part(name, level, widths[level], False, attention=attends[level], skip=True))
        return parts

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
        x, t = jnp.asarray(x), jnp.asarray(t)
        _check_shapes(x, t, len(self.channel_mult))
        first, width = self.channels * self.channel_mult[0], self.channels * max(self.channel_mult)
        emb = MPDense(width, name="time")(MPFourier(first, name="fourier")(t))
        if self.num_classes:
            label = label_of(cond, x.shape[0], self.num_classes)
            emb = mp_sum(emb, MPLabel(self.num_classes, width, name="label")(label), self.label_balance)
        emb = mp_silu(emb)

        # A channel of ones stands in for the biases that no layer has.
        h = jnp.concatenate([x.astype(self.dtype), jnp.ones((*x.shape[:-1], 1), self.dtype)], axis=-1)
        h = MPConv(first, self.dtype, name="conv_in")(h)
        skips = [h]
        block_class = nn.remat(MPBlock, static_argnums=(3,)) if self.remat == "blocks" else MPBlock
        for part in self.plan(max(x.shape[1:-1])):
            if part.skip:
                h = mp_cat(h, skips.pop(), self.concat_balance)
            block = block_class(
                part.features, part.encoder, part.resample, part.attention, self.head_dim, self.dropout,
                self.residual_balance, self.attention_balance, self.clip, self.dtype, name=part.name,
            )  # fmt: skip
            h = block(h, emb, train, rngs)
            if part.encoder:
                skips.append(h)

        gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
        out = self.out_channels or x.shape[-1]
        return MPConv(out, self.dtype, name="conv_out")(h, gain).astype(jnp.float32)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_fields(net: EDM2UNet) -> None:
    for name, least in {"channels": 1, "num_res_blocks": 1, "head_dim": 1, "num_classes": 0}.items():
        if not _whole(getattr(net, name), least):
            raise bad(name, getattr(net, name), f"a whole number, {least} or more")
    if net.out_channels is not None and not _whole(net.out_channels, 1):
        raise bad("out_channels", net.out_channels, "None or a whole number, 1 or more")
    for name in ("channel_mult", "attention_resolutions"):
        if not all(_whole(v, 1) for v in getattr(net, name)):
            raise bad(name, getattr(net, name), "whole numbers, each 1 or more")
    if not net.channel_mult:
        raise bad("channel_mult", net.channel_mult, "one whole number for each level, at least one")
    if not 0 <= net.dropout < 1:
        raise bad("dropout", net.dropout, "a rate in [0, 1)")
    for name in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
        if not 0 <= getattr(net, name) <= 1:
            raise bad(name, getattr(net, name), "a part in [0, 1]")
    if net.clip is not None and not net.clip > 0:
        raise bad("clip", net.clip, "None or a number above 0")
    if net.remat not in REMAT:
        raise unknown("remat", net.remat, REMAT)
    if not jnp.issubdtype(net.dtype, jnp.floating):
        raise bad("dtype", net.dtype, "a floating-point type")


def _check_shapes(x: Array, t: Array, levels: int) -> None:
    if x.ndim < 3:
        raise bad("the shape of x", x.shape, "[B, ..spatial.., C] with one spatial axis or more")
    if t.shape != x.shape[:1]:
        raise bad("the shape of t", t.shape, f"one time per example, {x.shape[:1]}")
    divisor = 2 ** (levels - 1)
    if any(size % divisor or not size for size in x.shape[1:-1]):
        raise bad("the spatial size of x", x.shape[1:-1], f"multiples of {divisor} (channel_mult has {levels} levels)")
