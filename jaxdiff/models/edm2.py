"""EDM2's U-Net (configuration G): every layer keeps magnitudes, so no normalisation layers and no biases.

Sizes differ in `channels` alone: 64 XXS, 128 XS, 192 S, 256 M, 320 L, 384 XL, 448 XXL. Its block is in
`jaxdiff.models.edm2_blocks`; the gains in it and that of the output start at 0, so a fresh network answers 0 and does
not see time.

Kernels are normalised where they are used; train with `jaxdiff.models.magnitude.force_normalize` applied to the
parameters at init and after every step, as the paper does. The uncertainty u(sigma) by which the paper weighs the loss
is no part of the denoiser and is not here (128 weights and 256 constants beside the millions).

The network is one of `prediction="edm"`, `input_scale="unit_variance"`, `time_input="log_sigma"` and sigma_data 0.5:
equations 6 and 7 of the paper are the `Model`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.edm2_blocks import MPBlock
from jaxdiff.models.fields import (
    PART,
    POSITIVE,
    REMAT,
    bad,
    channels_out,
    check_fields,
    each,
    input_of,
    label_of,
    optional,
    times_of,
    whole,
)
from jaxdiff.models.magnitude import MPConv, MPDense, MPFourier, MPLabel, mp_cat, mp_silu, mp_sum

_RULES = {
    "channels": whole(1), "channel_mult": each(whole(1)), "num_res_blocks": whole(1), "head_dim": whole(1),
    "attention_resolutions": each(whole(1)), "clip": optional(POSITIVE), "label_balance": PART, "concat_balance": PART,
    "residual_balance": PART, "attention_balance": PART,
}  # fmt: skip


class Part(NamedTuple):
    """One block of the network.

    Attributes:
        name: of the submodule.
        level: 0 is full size.
        features: output channels.
        encoder: on the way down.
        resample: "keep", "down" or "up", at its input.
        attention: whether it attends.
        skip: takes the last map of the way down that is left.
    """

    name: str
    level: int
    features: int
    encoder: bool
    resample: str = "keep"
    attention: bool = False
    skip: bool = False


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
        check_fields(self, _RULES, {"remat": REMAT})
        if not self.channel_mult:
            raise bad("channel_mult", self.channel_mult, "one whole number for each level, at least one")
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
        x = input_of(x, len(self.channel_mult) - 1)
        t = times_of(t, x)
        emb = self._embedding(t, cond)

        # A channel of ones stands in for the biases that no layer has.
        h = jnp.concatenate([x.astype(self.dtype), jnp.ones((*x.shape[:-1], 1), self.dtype)], axis=-1)
        h = MPConv(self.channels * self.channel_mult[0], self.dtype, name="conv_in")(h)
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
        return MPConv(channels_out(self, x), self.dtype, name="conv_out")(h, gain).astype(jnp.float32)

    def _embedding(self, t: Array, cond: Mapping[str, Any] | None) -> Array:
        """Time and label, float32 [B, the widest level's channels]."""
        first, width = self.channels * self.channel_mult[0], self.channels * max(self.channel_mult)
        emb = MPDense(width, name="time")(MPFourier(first, name="fourier")(t))
        if self.num_classes:
            label = label_of(cond, t.shape[0], self.num_classes)
            emb = mp_sum(emb, MPLabel(self.num_classes, width, name="label")(label), self.label_balance)
        return mp_silu(emb)
