"""Layers on tokens [B, L, C] that transformers on patches share: features of time, attention, the MLP.

Features of time, with h = F // 2 and s = `freq_shift` (0 in the papers' code, 1 in diffusers):

    [cos(t v_0), .., cos(t v_{h-1}), sin(t v_0), .., sin(t v_{h-1})]     v_k = 10000^(-k / (h - s))       (1)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.embedding import angles


def time_features(t: Array, features: int, freq_shift: float = 0.0) -> Array:
    """Equation (1): cosines, then sines; an odd width ends with a 0.

    Args:
        t: times as the network gets them, shape [B].
        features: width, at least 4.
        freq_shift: s of equation (1), less than features // 2.

    Returns:
        float32 [B, features].

    Examples:
        >>> time_features(jnp.zeros(1), 5).tolist()
        [[1.0, 1.0, 0.0, 0.0, 0.0]]

    Reference: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, section 3.5; Peebles, Xie, 2022,
    arXiv:2212.09748, section 3.2.
    """
    angle = angles(t, features // 2, freq_shift)
    return jnp.pad(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1), ((0, 0), (0, features % 2)))


class TokenAttention(nn.Module):
    """proj(softmax(q k^T / sqrt(d)) v) between all tokens, with q, k, v linear in the input.

    Args:
        num_heads: the channels are cut into so many heads.
        qkv_bias: whether q, k and v have a bias.
        init: of both kernels.
        dtype: compute type; the softmax is taken in float32.

    Calling it takes tokens [B, L, C] and returns the same shape.

    Examples:
        >>> y, _ = TokenAttention(2).init_with_output(jax.random.key(0), jnp.ones((1, 5, 8)))
        >>> y.shape
        (1, 5, 8)

    Reference: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, equation 1.
    """

    num_heads: int
    qkv_bias: bool = True
    init: Any = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array) -> Array:
        batch, length, channels = h.shape
        qkv = nn.Dense(3 * channels, use_bias=self.qkv_bias, kernel_init=self.init, dtype=self.dtype, name="qkv")(h)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, channels // self.num_heads)
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return nn.Dense(channels, kernel_init=self.init, dtype=self.dtype, name="proj")(h.reshape(batch, length, -1))


class FeedForward(nn.Module):
    """Dense, GELU, Dense back to the width of the input.

    Args:
        ratio: of the hidden width to the input's.
        tanh: GELU by its tanh approximation (DiT), or exact (U-ViT).
        init: of both kernels.
        dtype: compute type.

    Calling it takes [.., C] and returns the same shape.

    Examples:
        >>> y, _ = FeedForward(4.0).init_with_output(jax.random.key(0), jnp.ones((1, 5, 8)))
        >>> y.shape
        (1, 5, 8)

    Reference: Hendrycks, Gimpel, Gaussian Error Linear Units, 2016, arXiv:1606.08415, section 2.
    """

    ratio: float = 4.0
    tanh: bool = True
    init: Any = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array) -> Array:
        hidden = int(h.shape[-1] * self.ratio)
        y = nn.Dense(hidden, kernel_init=self.init, dtype=self.dtype, name="dense0")(h)
        y = nn.gelu(y, approximate=self.tanh)
        return nn.Dense(h.shape[-1], kernel_init=self.init, dtype=self.dtype, name="dense1")(y)


class TimeMLP(nn.Module):
    """Features of time, equation (1) of this module, through Dense, SiLU, Dense, all in float32.

    Args:
        features: of time.
        hidden: width between the two.
        channels: width of the result.
        freq_shift: of the features.

    Calling it takes t [B] and returns float32 [B, channels].

    Examples:
        >>> y, _ = TimeMLP(256, 8, 8).init_with_output(jax.random.key(0), jnp.zeros(3))
        >>> y.shape
        (3, 8)

    Reference: Peebles, Xie, 2022, arXiv:2212.09748, section 3.2.
    """

    features: int
    hidden: int
    channels: int
    freq_shift: float = 0.0

    @nn.compact
    def __call__(self, t: Array) -> Array:
        init = nn.initializers.normal(0.02)
        h = nn.Dense(self.hidden, kernel_init=init, name="dense0")(time_features(t, self.features, self.freq_shift))
        return nn.Dense(self.channels, kernel_init=init, name="dense1")(nn.silu(h))


def rematerialised(block: Any, net: Any) -> Any:
    """The class of a block, as a network's fields `remat` and `scan` want it."""
    return nn.remat(block, prevent_cse=not net.scan) if net.remat == "blocks" else block
