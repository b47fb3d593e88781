"""The way down and the middle of a U-Net, which classifiers of noisy images have as well."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.attention import SelfAttention, context_of
from jaxdiff.models.conditioning import embedding, inputs
from jaxdiff.models.fields import input_of, times_of
from jaxdiff.models.fir import halve
from jaxdiff.models.layers import Norm, ResBlock, conv, dense, scaled
from jaxdiff.models.resample import Downsample, SmoothDownsample
from jaxdiff.models.transformer import SpatialTransformer
from jaxdiff.models.unet_fields import check, per_level


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
        norm = self.norm()
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

    def norm(self) -> Norm:
        """Of every block and of what follows the last."""
        return Norm(self.norm_groups, self.norm_epsilon, self.norm_group_size)

    def start(self, x: Any, t: Any) -> tuple[Array, Array, Plan]:
        """x and t as arrays that fit, and what follows what for them."""
        x = input_of(x, len(self.channel_mult) - 1)
        t = times_of(t, x)
        return x, t, self.plan(max(x.shape[1:-1]))

    def encode(
        self, x: Array, t: Array, cond: Mapping[str, Any] | None, plan: Plan, train: bool, rngs: Any
    ) -> tuple[Array, Array, list[Array], Any]:
        """The way down and the middle: (feature map, embedding, maps for the way up, (context, mask) or ())."""
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
        """Equations (1) and (2) of `jaxdiff.models.unet` after a downsampling: the feature map, the image beside it."""
        name, fir = f"down_{level}_pyramid", tuple(self.fir)
        if self.progressive_input == "skip":
            image = halve(image, fir)
            h = h + dense(h.shape[-1], dtype=self.dtype, name=name)(image)
        elif self.progressive_input == "residual":
            image = SmoothDownsample(h.shape[-1], fir, self.dtype, name=name)(image)
            image = h = scaled(h + image, self.skip_scale)
        return h, image


def _remat(module: Any, remat: str) -> Any:
    """A block whose activations are recomputed for the gradient."""
    if remat == "none":
        return module
    policy = _keep_products if remat == "convs" else None
    static = (3,) if module is ResBlock else ()
    return nn.remat(module, static_argnums=static, policy=policy)


def _keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")
