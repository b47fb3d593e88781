"""Attention over all positions of a feature map, alone or with a context beside it.

With q from the feature map and k, v from the feature map, from a context, or from both one after the other,

    softmax(q k^T / sqrt(d)) v.                                                                (1)
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.fields import bad
from jaxdiff.models.layers import Norm, dense, scaled

_FLASH = (jnp.bfloat16, jnp.float16)


def attend(q: Array, k: Array, v: Array, mask: Array | None = None, *, flash: bool = False) -> Array:
    """Equation (1), the softmax in float32.

    Args:
        q: queries, [B, L, heads, d].
        k: keys, [B, M, heads, d].
        v: values, the shape of k.
        mask: which keys an example has, bool [B, M]; None for all.
        flash: by cuDNN's kernel, in memory linear in the positions, where there is one: on an NVIDIA GPU of Ampere or
            later, in half precision, without a mask. It has no forward-mode derivative.

    Returns:
        The shape of q.

    Examples:
        >>> ones = jnp.ones((1, 4, 2, 8))
        >>> attend(ones, ones, ones).shape
        (1, 4, 2, 8)

    Reference: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, equation 1.
    """
    where = None if mask is None else mask[:, None, None, :]
    kernel = flash and mask is None and _has_kernel(q)
    return jax.nn.dot_product_attention(q, k, v, mask=where, implementation="cudnn" if kernel else None)


def _has_kernel(q: Array) -> bool:
    """cuDNN's are for up to 128 channels a head, in eights."""
    if q.dtype not in _FLASH or q.shape[-1] % 8 or q.shape[-1] > 128 or jax.default_backend() != "gpu":
        return False
    device = jax.devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def heads_of(channels: int, num_heads: int, head_dim: int | None) -> int:
    """The number of heads.

    Args:
        channels: where it attends.
        num_heads: used where `head_dim` is None.
        head_dim: channels per head, or None.

    Raises:
        UsageError: a channel count that the heads do not divide.

    Examples:
        >>> heads_of(64, 1, 16)
        4
    """
    name, given = ("num_heads", num_heads) if head_dim is None else ("head_dim", head_dim)
    if given < 1 or channels % given:
        raise bad(name, given, f"a divisor of the {channels} channels where it attends")
    return num_heads if head_dim is None else channels // head_dim


def context_of(cond: Mapping[str, Any] | None, dim: int, batch: int) -> tuple[Array, Array | None]:
    """What is attended to beside the feature map, and which of it counts.

    Args:
        cond: with "context" [B, L, C] and perhaps "context_mask" bool [B, L].
        dim: C.
        batch: B.

    Returns:
        (context, mask or None).

    Raises:
        UsageError: no context, or one of another shape.

    Examples:
        >>> context_of({"context": jnp.ones((2, 5, 8))}, 8, 2)[0].shape
        (2, 5, 8)
    """
    given = (cond or {}).get("context")
    if given is None:
        raise UsageError(f"cond['context'] is missing: this network needs one of shape ({batch}, L, {dim})")
    context = jnp.asarray(given)
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != dim:
        raise UsageError(f"cond['context'] has shape {context.shape}: allowed is ({batch}, L, {dim})")
    mask = (cond or {}).get("context_mask")
    if mask is None:
        return context, None
    mask = jnp.asarray(mask)
    if mask.shape != context.shape[:2]:
        raise UsageError(f"cond['context_mask'] has shape {mask.shape}: allowed is {context.shape[:2]}")
    return context, mask.astype(bool)


class SelfAttention(nn.Module):
    """x + proj(attention) over all positions, with q, k, v linear in norm(x); proj is zero at first.

    A context adds keys and values of its own before those of x, as in GLIDE.

    Args:
        num_heads: the channels are cut into so many heads.
        head_dim: channels per head; where given it decides, and `num_heads` is ignored.
        norm: of the group normalisation.
        skip_scale: the factor on the sum, sqrt(1/2) in NCSN++.
        flash: see `attend`.
        dtype: compute type; the softmax is taken in float32.

    Calling it takes x [B, ..spatial.., C], and perhaps `context` [B, L, D] with `mask` bool [B, L], and returns the
    shape of x.

    Raises:
        UsageError: a channel count that the heads do not divide.

    Examples:
        >>> import jax
        >>> y, _ = SelfAttention(num_heads=2).init_with_output(jax.random.key(0), jax.numpy.ones((1, 4, 4, 8)))
        >>> y.shape
        (1, 4, 4, 8)

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, appendix B; context: Nichol et al., GLIDE, 2022,
    arXiv:2112.10741, section 4.
    """

    num_heads: int = 1
    head_dim: int | None = None
    norm: Norm = Norm()
    skip_scale: int | float = 1
    flash: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        batch, channels = x.shape[0], x.shape[-1]
        heads = heads_of(channels, self.num_heads, self.head_dim)
        dim = channels // heads
        h = self.norm(self.dtype, name="norm")(x)
        # Scale 2 because the fan of the three maps in one is twice that of each: their variance stays 1 / C.
        qkv = dense(3 * channels, scale=2.0, dtype=self.dtype, name="qkv")(h).reshape(batch, -1, 3, heads, dim)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if context is not None:
            kv = dense(2 * channels, dtype=self.dtype, name="kv")(context).reshape(batch, -1, 2, heads, dim)
            k, v = jnp.concatenate([kv[:, :, 0], k], axis=1), jnp.concatenate([kv[:, :, 1], v], axis=1)
            if mask is not None:
                mask = jnp.concatenate([mask, jnp.ones(qkv.shape[:2], bool)], axis=1)
        h = attend(q, k, v, mask if context is not None else None, flash=self.flash)
        h = dense(channels, scale=0.0, dtype=self.dtype, name="proj")(h.reshape(x.shape))
        return scaled(x.astype(self.dtype) + h, self.skip_scale)
