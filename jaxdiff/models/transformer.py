"""Stable Diffusion's transformer on a feature map: self-attention, attention to a context, gated linear unit.

Each of `depth` blocks, with LN the layer normalisation of the channels:

    h <- h + self-attention(LN h);   h <- h + attention(LN h, context);   h <- h + W2 (a * gelu(b)),  [a, b] = W1 LN h

between a linear map in, after a group normalisation, and a linear map out, which is zero at first.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.attention import attend, heads_of
from jaxdiff.models.layers import Norm, dense


class _Attention(nn.Module):
    heads: int
    flash: bool
    dtype: Any

    @nn.compact
    def __call__(self, h: Array, context: Array | None, mask: Array | None = None) -> Array:
        batch, _, channels = h.shape

        def split(x: Array | None, name: str) -> Array:
            x = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x)
            return x.reshape(batch, -1, self.heads, channels // self.heads)

        out = attend(split(h, "q"), split(context, "k"), split(context, "v"), mask, flash=self.flash)
        return dense(channels, dtype=self.dtype, name="proj")(out.reshape(h.shape))


class _Block(nn.Module):
    heads: int
    cross: bool
    flash: bool
    dtype: Any

    @nn.compact
    def __call__(self, h: Array, context: Array | None, mask: Array | None) -> Array:
        def norm(name: str) -> Array:
            return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)(h)

        own = norm("norm1")
        h = h + _Attention(self.heads, self.flash, self.dtype, name="self")(own, own)
        if self.cross:
            h = h + _Attention(self.heads, self.flash, self.dtype, name="cross")(norm("norm2"), context, mask)
        value, gate = jnp.split(dense(8 * h.shape[-1], dtype=self.dtype, name="dense1")(norm("norm3")), 2, axis=-1)
        return h + dense(h.shape[-1], dtype=self.dtype, name="dense2")(value * nn.gelu(gate, approximate=False))


class SpatialTransformer(nn.Module):
    """Transformer blocks on the positions of a feature map, with attention to a context; the last map is zero at first.

    Args:
        num_heads: the channels are cut into so many heads.
        head_dim: channels per head; where given it decides, and `num_heads` is ignored.
        depth: number of blocks.
        norm: of the group normalisation; its epsilon is 1e-6 whatever the rest of the network has.
        flash: see `jaxdiff.models.attention.attend`.
        dtype: compute type; the softmax is taken in float32.

    Calling it takes x [B, ..spatial.., C], and perhaps `context` [B, L, D] with `mask` bool [B, L] (without a context
    there is no attention to one), and returns the shape of x.

    Raises:
        UsageError: a channel count that the heads do not divide.

    Examples:
        >>> import jax
        >>> args = jax.numpy.ones((1, 4, 4, 8)), jax.numpy.ones((1, 3, 5))
        >>> y, _ = SpatialTransformer(num_heads=2).init_with_output(jax.random.key(0), *args)
        >>> y.shape
        (1, 4, 4, 8)

    Reference: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, arXiv:2112.10752,
    appendix E.2.1; the gated unit: Shazeer, GLU Variants Improve Transformer, 2020, arXiv:2002.05202.
    """

    num_heads: int = 8
    head_dim: int | None = None
    depth: int = 1
    norm: Norm = Norm()
    flash: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        batch, channels = x.shape[0], x.shape[-1]
        heads = heads_of(channels, self.num_heads, self.head_dim)
        x = x.astype(self.dtype)
        h = Norm(self.norm.num_groups, 1e-6, self.norm.group_size)(self.dtype, name="norm")(x)
        h = dense(channels, dtype=self.dtype, name="proj_in")(h.reshape(batch, -1, channels))
        for i in range(self.depth):
            h = _Block(heads, context is not None, self.flash, self.dtype, name=f"block_{i}")(h, context, mask)
        return x + dense(channels, scale=0.0, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)
