"""Self-attention between all positions of a feature map."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.layers import GroupNorm, dense


class SelfAttention(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over all positions, with q, k, v linear in norm(x); proj is zero at first.

    Args:
        num_heads: the channels are cut into so many heads.
        head_dim: channels per head; where given it decides, and `num_heads` is ignored.
        norm_groups: of the group normalisation.
        dtype: compute type; the softmax is taken in float32.

    Calling it takes x [B, ..spatial.., C] and returns the same shape.

    Raises:
        UsageError: a channel count that the heads do not divide.

    Examples:
        >>> import jax
        >>> y, _ = SelfAttention(num_heads=2).init_with_output(jax.random.key(0), jax.numpy.ones((1, 4, 4, 8)))
        >>> y.shape
        (1, 4, 4, 8)

    Reference: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, equation 1; Ho, Jain, Abbeel, 2020,
    arXiv:2006.11239, appendix B.
    """

    num_heads: int = 1
    head_dim: int | None = None
    norm_groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, channels = x.shape[0], x.shape[-1]
        name, given = ("num_heads", self.num_heads) if self.head_dim is None else ("head_dim", self.head_dim)
        if given < 1 or channels % given:
            raise UsageError(f"{name} is {given}: allowed is a divisor of the {channels} channels where it attends")
        dim = channels // given if self.head_dim is None else given
        h = GroupNorm(self.norm_groups, dtype=self.dtype, name="norm")(x)
        # Scale 2 because the fan of the three maps in one is twice that of each: their variance stays 1 / C.
        qkv = dense(3 * channels, scale=2.0, dtype=self.dtype, name="qkv")(h)
        qkv = qkv.reshape(batch, -1, 3, channels // dim, dim)
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = dense(channels, scale=0.0, dtype=self.dtype, name="proj")(h.reshape(x.shape))
        return x.astype(self.dtype) + h
