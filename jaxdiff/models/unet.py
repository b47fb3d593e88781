"""The U-Net of DDPM, with the choices of its successors as fields.

Defaults are DDPM's for CIFAR-10: UNet() on [B, 32, 32, 3] has 35,746,307 parameters. The others' are presets
(`jaxdiff.models.presets`): improved diffusion, ADM, DDPM++, NCSN++, EDM.

Each level has `num_res_blocks` residual blocks on the way down and one more on the way up, which takes the feature
maps of the way down as additional channels, the last first. Between the two: block, attention, block. What follows
what is `UNet.plan`; the converters of other projects' weights walk the same plan.

NCSN++ has the image itself pass beside the feature maps, I_0 = x and l the level:

    in, "skip":      I_l = halve(I_{l-1}),      h_l <- h_l + W I_l                                        (1)
    in, "residual":  I_l = h_l <- skip_scale (h_l + conv(halve(I_{l-1})))                                 (2)
    out, "skip":     O_l = conv(silu(norm(h_l))) + double(O_{l+1}),   the output is O_0                   (3)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.attention import SelfAttention, context_of
from jaxdiff.models.conditioning import embedding, inputs
from jaxdiff.models.fir import double, halve
from jaxdiff.models.layers import Norm, ResBlock, conv, dense, scaled
from jaxdiff.models.resample import Downsample, SmoothDownsample, Upsample
from jaxdiff.models.transformer import SpatialTransformer
from jaxdiff.models.unet_fields import bad, check, per_level


class Part(NamedTuple):
    """A step of the way through a U-Net: a "block", "downsample" or "upsample", its name, level, output channels, and
    the name of the attention that follows it, or ""."""

    kind: str
    name: str
    level: int
    features: int
    attention: str = ""


class Plan(NamedTuple):
    """The parts of a U-Net in the order of execution."""

    down: tuple[Part, ...]
    mid: tuple[Part, ...]
    up: tuple[Part, ...]


class Encoder(nn.Module):
    """The way down and the middle, which U-Nets and classifiers of noisy images share. See `UNet` for the arguments."""

    channels: int = 128
    first_channels: int | None = None
    channel_mult: Sequence[int | float] = (1, 2, 2, 2)
    num_res_blocks: int | Sequence[int] = 2
    attention_resolutions: Sequence[int] = (16,)
    attention_levels: Sequence[Sequence[int]] | None = None
    mid: str = "attention"
    dropout: float = 0.1
    num_heads: int = 1
    head_dim: int | None = None
    attention: str = "self"
    depth: int | Sequence[int] = 1
    context_dim: int = 0
    flash: bool = False
    norm_groups: int = 32
    norm_epsilon: int | float = 1e-6
    norm_group_size: int = 1
    conditioning: str = "add"
    downsample: str | Sequence[str] = "conv"
    downsample_padding: str = "same"
    fir: Sequence[int | float] = ()
    resample_shortcut: bool = False
    skip_scale: int | float = 1
    mid_skip_scale: int | float | None = None
    progressive_input: str = "none"
    time_embedding: str = "sinusoidal"
    freq_shift: int | float = 1
    num_positions: int = 1000
    num_classes: int = 0
    null_label: bool = True
    label_into: str = "embedding"
    augment_dim: int = 0
    aug_level: bool = False
    pooled: str = "none"
    concat: Sequence[str] = ()
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check(self)
        super().__post_init__()

    def width(self, level: int) -> int:
        """The channels of a level."""
        return round(self.channels * self.channel_mult[level])

    def attends(self, size: int, level: int, way: int = 0) -> bool:
        """Whether attention follows the blocks of a level on the way down (0) or up (1), at this largest size of x."""
        if self.attention_levels is not None:
            return level in self.attention_levels[way]
        return size >> level in self.attention_resolutions

    def plan(self, size: int) -> Plan:
        """What follows what, for an input whose largest spatial axis has this size."""
        last, down = len(self.channel_mult) - 1, []
        for level in range(last + 1):
            for i in range(per_level(self.num_res_blocks, level)):
                attention = f"down_{level}_attn_{i}" if self.attends(size, level) else ""
                down.append(Part("block", f"down_{level}_block_{i}", level, self.width(level), attention))
            if level < last:
                down.append(Part("downsample", f"down_{level}_downsample", level, self.width(level)))
        middle = [("mid_block_0", "mid_attn" if self.mid == "attention" else ""), ("mid_block_1", "")]
        mid = [Part("block", name, last, self.width(last), attention) for name, attention in middle]
        return Plan(tuple(down), tuple(mid) if self.mid != "none" else (), ())

    def block(self, part: Part, context: Any, resample: str = "", skip_scale: int | float | None = None) -> Any:
        """A residual block with the attention that follows it, as a function of (h, emb, train, rngs, skip)."""
        scale = self.skip_scale if skip_scale is None else skip_scale
        norm = Norm(self.norm_groups, self.norm_epsilon, self.norm_group_size)
        block = _remat(ResBlock, self.remat)(
            part.features, self.dropout, norm, self.conditioning, resample, tuple(self.fir), self.resample_shortcut,
            scale, self.dtype, name=part.name,
        )  # fmt: skip
        attention = None
        if part.attention and self.attention == "transformer":
            depth = per_level(self.depth, part.level)
            attention = _remat(SpatialTransformer, self.remat)(
                self.num_heads, self.head_dim, depth, norm, self.flash, self.dtype, name=part.attention
            )
        elif part.attention:
            attention = _remat(SelfAttention, self.remat)(
                self.num_heads, self.head_dim, norm, scale, self.flash, self.dtype, name=part.attention
            )

        def run(h: Array, emb: Array, train: bool, rngs: Any, skip: Array | None = None) -> Array:
            h = block(h, emb, train, rngs, skip)
            return h if attention is None else attention(h, *context)

        return run

    def encode(
        self, x: Array, t: Array, cond: Mapping[str, Any] | None, plan: Plan, train: bool, rngs: Any
    ) -> tuple[Array, Array, list[Array], Any]:
        """The way down and the middle: (feature map, embedding, maps for the way up, (context, mask) or ())."""
        _check_shapes(x, t, levels=len(self.channel_mult))
        spatial = x.ndim - 2
        emb = embedding(self, x.shape[0], t, cond)
        context = context_of(cond, self.context_dim, x.shape[0]) if self.context_dim else ()
        image = inputs(tuple(self.concat), x, cond)
        h = conv(self.first_channels or self.channels, spatial, dtype=self.dtype, name="conv_in")(image)
        skips = [h]
        for part in plan.down:
            if part.kind == "block":
                h = self.block(part, context)(h, emb, train, rngs)
            else:
                kind = per_level(self.downsample, part.level)
                if kind == "block":
                    h = self.block(part, context, "down")(h, emb, train, rngs)
                else:
                    h = Downsample(kind, self.downsample_padding, tuple(self.fir), self.dtype, name=part.name)(h)
                h, image = self._image_in(h, image, part.level)
            skips.append(h)
        for part in plan.mid:
            h = self.block(part, context, skip_scale=self.mid_skip_scale)(h, emb, train, rngs)
        return h, emb, skips, context

    def _image_in(self, h: Array, image: Array, level: int) -> tuple[Array, Array]:
        """Equations (1) and (2) after the downsampling of a level: the feature map and the image beside it."""
        name, fir = f"down_{level}_pyramid", tuple(self.fir)
        if self.progressive_input == "skip":
            image = halve(image, fir)
            h = h + dense(h.shape[-1], dtype=self.dtype, name=name)(image)
        elif self.progressive_input == "residual":
            image = SmoothDownsample(h.shape[-1], fir, self.dtype, name=name)(image)
            image = h = scaled(h + image, self.skip_scale)
        return h, image


class UNet(Encoder):
    """A convolutional network from noisy data to a prediction of the same spatial shape, given the time.

    Args:
        channels: the unit of width, at least 4.
        first_channels: of the first convolution; None for `channels`.
        channel_mult: the channels of each level as multiples of `channels`; each further level halves the size.
        num_res_blocks: residual blocks per level on the way down, one number or one for each level.
        attention_resolutions: the sizes (largest spatial axis of the feature map) at which attention follows a block.
        attention_levels: instead of them, the levels: ((on the way down), (on the way up)).
        mid: "attention" (block, attention, block), "plain" (two blocks) or "none".
        dropout: rate in [0, 1), used with train=True.
        num_heads: of the attention.
        head_dim: channels per head; where given it decides, and `num_heads` is ignored.
        attention: "self" (DDPM; with a context GLIDE's, keys and values of both) or "transformer" (Stable Diffusion's).
        depth: blocks of a transformer, one number or one for each level.
        context_dim: channels of cond["context"]; 0 for none.
        flash: cuDNN's attention where there is one, see `jaxdiff.models.attention.attend`.
        norm_groups: most groups of a group normalisation.
        norm_epsilon: of the group normalisations; 1e-6 in DDPM, 1e-5 in PyTorch.
        norm_group_size: least channels in a group.
        conditioning: how the embedding enters a block: "add" (DDPM) or "scale_shift" (improved diffusion).
        downsample: "conv" (of stride 2), "pool" (a fixed filter) or "block" (a residual block that resamples, ADM); one
            for all levels or one for each.
        downsample_padding: of "conv": "same" (DDPM) or "symmetric" (PyTorch).
        fir: taps of the fixed filters ("pool", "repeat", "block" and the image beside), (1, 3, 3, 1) in NCSN++; () for
            means and repetition.
        resample_shortcut: a resampling block has a linear shortcut whatever its channels (NCSN++).
        skip_scale: the factor on the sum of a residual branch and its input.
        mid_skip_scale: the same in the middle; None for `skip_scale`.
        progressive_input: "none", "skip" or "residual": the image beside the way down, equations (1) and (2).
        time_embedding: "sinusoidal" (DDPM), "fourier" (random frequencies) or "learned" (a table).
        freq_shift: of the sinusoidal features: 1 in DDPM, 0 in improved diffusion.
        num_positions: rows of the "learned" table.
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        null_label: whether the table has a row for it; a network without one always needs labels (ADM).
        label_into: "embedding", or "features" (before the maps of the time embedding; EDM).
        augment_dim: length of cond["augment"]; 0 for none. It may be missing (EDM: no augmentation).
        aug_level: whether cond["aug_level"], a noise level of the conditioning, is embedded by sinusoids.
        pooled: cond["pooled"]: "none", "add" ([B, 4 channels] into the embedding) or "project" (any length).
        concat: names of entries of cond which are further input channels: "self_cond" (may be missing: zeros),
            "low_res" (resized to x), or others.
        remat: "none"; "convs" (gradients recompute all but the convolutions and products); "blocks" (all of a block).
        dtype: what to compute in. Parameters, statistics, the path of time and the output are float32.
        out_channels: of the prediction; None for those of the input.
        upsample: "conv" (repetition, then a convolution), "repeat" or "block"; one for all levels or one for each.
        attention_last: on the way up attention follows only the last block of a level (NCSN++).
        progressive_output: "none" or "skip": the image beside the way up, equation (3).
        learned_variance: doubles the output channels: [prediction, variance].

    Calling it takes
        x: [B, ..spatial.., C], every spatial size divisible by 2^(levels - 1).
        t: float [B], in the unit of the model's time input.
        cond: {"label": int32 [B]} in 0..num_classes, or None: all null (an error without a null row). Other entries as
            the fields above say; what no field asks for is not used. A label out of range gives NaN.
        train: with dropout.
        rngs: {"dropout": one typed key per example, [B]}; call through `Network`, because Linen's own `apply` keeps
            an argument of this name to itself.
    and returns float32 [B, ..spatial.., out_channels] (twice the channels with `learned_variance`).

    Raises:
        UsageError: a field out of range (when built); a size, time, label or key that does not fit (when traced).

    Examples:
        >>> import jax
        >>> net = UNet(channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=())
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 8, 8, 3)

    Reference: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239, appendix B; Nichol,
    Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672, appendix A; Dhariwal, Nichol,
    Diffusion Models Beat GANs, 2021, arXiv:2105.05233, section 3; Song et al., Score-Based Generative Modeling through
    SDEs, 2021, arXiv:2011.13456, appendix H.
    """

    out_channels: int | None = None
    upsample: str | Sequence[str] = "conv"
    attention_last: bool = False
    progressive_output: str = "none"
    learned_variance: bool = False

    def plan(self, size: int) -> Plan:
        """What follows what, for an input whose largest spatial axis has this size."""
        last, up = len(self.channel_mult) - 1, []
        for level in range(last, -1, -1):
            blocks = per_level(self.num_res_blocks, level)
            for i in range(blocks + 1):
                attends = self.attends(size, level, 1) and (i == blocks or not self.attention_last)
                name = f"up_{level}_attn_{i}" if attends else ""
                up.append(Part("block", f"up_{level}_block_{i}", level, self.width(level), name))
            if level > 0:
                up.append(Part("upsample", f"up_{level}_upsample", level, self.width(level)))
        return super().plan(size)._replace(up=tuple(up))

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
        plan = self.plan(max(x.shape[1:-1], default=0))
        h, emb, skips, context = self.encode(x, t, cond, plan, train, rngs)
        channels = (self.out_channels or x.shape[-1]) * (2 if self.learned_variance else 1)
        out = None
        for part, after in zip(plan.up, (*plan.up[1:], None), strict=True):
            if part.kind == "block":
                h = self.block(part, context)(h, emb, train, rngs, skips.pop())
                if (after is None or after.kind != "block") and (part.level == 0 or self.progressive_output == "skip"):
                    out = self._image_out(h, out, part.level, channels)
                continue
            kind = per_level(self.upsample, part.level)
            if kind == "block":
                h = self.block(part, context, "up")(h, emb, train, rngs)
            else:
                h = Upsample(kind, tuple(self.fir) if kind == "repeat" else (), self.dtype, name=part.name)(h)
        assert out is not None
        return out

    def _image_out(self, h: Array, out: Array | None, level: int, channels: int) -> Array:
        """Equation (3); at level 0 what every U-Net ends with."""
        norm, last = ("norm_out", "conv_out") if level == 0 else (f"up_{level}_skip_norm", f"up_{level}_skip_conv")
        h = nn.silu(Norm(self.norm_groups, self.norm_epsilon, self.norm_group_size)(self.dtype, name=norm)(h))
        image = conv(channels, h.ndim - 2, scale=0.0, dtype=self.dtype, name=last)(h).astype(jnp.float32)
        return image if out is None else image + double(out, tuple(self.fir))


def _remat(module: Any, remat: str) -> Any:
    """A block whose activations are recomputed for the gradient."""
    if remat == "none":
        return module
    policy = _keep_products if remat == "convs" else None
    static = (3,) if module is ResBlock else ()
    return nn.remat(module, static_argnums=static, policy=policy)


def _keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")


def _check_shapes(x: Array, t: Array, levels: int) -> None:
    if x.ndim < 3:
        raise bad("the shape of x", x.shape, "[B, ..spatial.., C] with one spatial axis or more")
    if t.shape != x.shape[:1]:
        raise bad("the shape of t", t.shape, f"one time per example, {x.shape[:1]}")
    divisor = 2 ** (levels - 1)
    if any(size % divisor or not size for size in x.shape[1:-1]):
        raise bad("the spatial size of x", x.shape[1:-1], f"multiples of {divisor} (channel_mult has {levels} levels)")
