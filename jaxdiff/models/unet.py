"""The U-Net of DDPM, with the choices of its successors as fields.

Defaults are DDPM's for CIFAR-10: UNet() on [B, 32, 32, 3] has 35,746,307 parameters. Improved diffusion's for CIFAR-10
is UNet(num_res_blocks=3, attention_resolutions=(16, 8), num_heads=4, conditioning="scale_shift",
learned_variance=True, dropout=0.3), with 52,546,438.

Each level has `num_res_blocks` residual blocks on the way down and one more on the way up, which takes the feature
maps of the way down as additional channels, the last first. Between the two: block, attention, block.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.attention import SelfAttention
from jaxdiff.models.embedding import TIME_EMBEDDINGS, TimeEmbedding
from jaxdiff.models.layers import CONDITIONING, Downsample, GroupNorm, ResBlock, Upsample, conv


class UNet(nn.Module):
    """A convolutional network from noisy data to a prediction of the same spatial shape, given the time.

    Args:
        out_channels: of the prediction; None for those of the input.
        channels: of the first level, at least 4.
        channel_mult: the channels of each level as multiples of `channels`; each further level halves the size.
        num_res_blocks: residual blocks per level on the way down.
        attention_resolutions: the sizes (largest spatial axis of the feature map) at which attention follows a block.
            The middle always has one.
        dropout: rate in [0, 1), used with train=True.
        num_heads: of the attention.
        head_dim: channels per head; where given it decides, and `num_heads` is ignored.
        norm_groups: most groups of a group normalisation.
        conditioning: how time enters a block: "add" (DDPM) or "scale_shift" (improved diffusion).
        learned_resample: convolutions at the changes of size; else means and repetition.
        time_embedding: "sinusoidal" (DDPM) or "fourier" (random frequencies).
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        learned_variance: doubles the output channels: [prediction, variance].
        dtype: what to compute in. Parameters, statistics, the path of time and the output are float32.

    Calling it takes
        x: [B, ..spatial.., C], every spatial size divisible by 2^(levels - 1).
        t: float [B], in the unit of the model's time input.
        cond: {"label": int32 [B]} in 0..num_classes, or None: all null. Other entries are not used, nor is a label
            if num_classes is 0. A label out of range gives NaN.
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
    Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672, appendix A.
    """

    out_channels: int | None = None
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    num_heads: int = 1
    head_dim: int | None = None
    norm_groups: int = 32
    conditioning: str = "add"
    learned_resample: bool = True
    time_embedding: str = "sinusoidal"
    num_classes: int = 0
    learned_variance: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        # One form for each value, so that a list from a config file or "bfloat16" hashes and compares like the rest.
        for name in ("channel_mult", "attention_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        try:
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        except TypeError:
            raise _bad("dtype", self.dtype, "a floating-point type") from None
        _check_fields(self)
        super().__post_init__()

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
        _check_shapes(x, t, levels=len(self.channel_mult))
        spatial, last = x.ndim - 2, len(self.channel_mult) - 1
        emb = TimeEmbedding(self.channels, self.time_embedding, name="time")(t)
        if self.num_classes:
            emb = emb + self._label(x.shape[0], cond)

        def block(h: Array, level: int, name: str) -> Array:
            width = self.channels * self.channel_mult[level]
            module = ResBlock(width, self.dropout, self.norm_groups, self.conditioning, self.dtype, name=name)
            return module(h, emb, train=train, rngs=rngs)

        def attention(h: Array, name: str) -> Array:
            return SelfAttention(self.num_heads, self.head_dim, self.norm_groups, self.dtype, name=name)(h)

        def attends(h: Array) -> bool:
            return max(h.shape[1:-1]) in self.attention_resolutions

        h = conv(self.channels, spatial, dtype=self.dtype, name="conv_in")(x)
        skips = [h]
        for level in range(last + 1):
            for i in range(self.num_res_blocks):
                h = block(h, level, f"down_{level}_block_{i}")
                if attends(h):
                    h = attention(h, f"down_{level}_attn_{i}")
                skips.append(h)
            if level < last:
                h = Downsample(self.learned_resample, self.dtype, name=f"down_{level}_downsample")(h)
                skips.append(h)

        h = block(h, last, "mid_block_0")
        h = attention(h, "mid_attn")
        h = block(h, last, "mid_block_1")

        for level in range(last, -1, -1):
            for i in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_block_{i}")
                if attends(h):
                    h = attention(h, f"up_{level}_attn_{i}")
            if level > 0:
                h = Upsample(self.learned_resample, self.dtype, name=f"up_{level}_upsample")(h)

        h = nn.silu(GroupNorm(self.norm_groups, dtype=self.dtype, name="norm_out")(h))
        out = (self.out_channels or x.shape[-1]) * (2 if self.learned_variance else 1)
        return conv(out, spatial, scale=0.0, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)

    def _label(self, batch: int, cond: Mapping[str, Any] | None) -> Array:
        """The embedding of the labels, [B, 4 channels]."""
        table = nn.Embed(
            self.num_classes + 1, 4 * self.channels, embedding_init=nn.initializers.normal(1.0), name="label"
        )
        label = (cond or {}).get("label")
        if label is None:
            return table(jnp.full((batch,), self.num_classes, jnp.int32))
        label = jnp.asarray(label)
        if label.shape != (batch,) or not jnp.issubdtype(label.dtype, jnp.integer):
            raise _bad("cond['label']", f"{label.dtype} {label.shape}", f"integers of shape {(batch,)}")
        return table(label)


def _bad(name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{name} is {value}: allowed is {allowed}")


def _check_fields(net: UNet) -> None:
    least_of = {"channels": 4, "num_res_blocks": 1, "num_heads": 1, "norm_groups": 1, "num_classes": 0}
    for name, least in least_of.items():
        if not _whole(getattr(net, name), least):
            raise _bad(name, getattr(net, name), f"a whole number, {least} or more")
    for name in ("out_channels", "head_dim"):
        if getattr(net, name) is not None and not _whole(getattr(net, name), 1):
            raise _bad(name, getattr(net, name), "None or a whole number, 1 or more")
    for name in ("channel_mult", "attention_resolutions"):
        if not all(_whole(v, 1) for v in getattr(net, name)):
            raise _bad(name, getattr(net, name), "whole numbers, each 1 or more")
    if not net.channel_mult:
        raise _bad("channel_mult", net.channel_mult, "one whole number for each level, at least one")
    if not 0 <= net.dropout < 1:
        raise _bad("dropout", net.dropout, "a rate in [0, 1)")
    if net.conditioning not in CONDITIONING:
        raise unknown("conditioning", net.conditioning, CONDITIONING)
    if net.time_embedding not in TIME_EMBEDDINGS:
        raise unknown("time_embedding", net.time_embedding, TIME_EMBEDDINGS)
    if not jnp.issubdtype(net.dtype, jnp.floating):
        raise _bad("dtype", net.dtype, "a floating-point type")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_shapes(x: Array, t: Array, levels: int) -> None:
    if x.ndim < 3:
        raise _bad("the shape of x", x.shape, "[B, ..spatial.., C] with one spatial axis or more")
    if t.shape != x.shape[:1]:
        raise _bad("the shape of t", t.shape, f"one time per example, {x.shape[:1]}")
    divisor = 2 ** (levels - 1)
    if any(size % divisor or not size for size in x.shape[1:-1]):
        raise _bad("the spatial size of x", x.shape[1:-1], f"multiples of {divisor} (channel_mult has {levels} levels)")
