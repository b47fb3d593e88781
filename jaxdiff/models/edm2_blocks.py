"""The block of EDM2's U-Net: it takes the main path x and the embedding e of time and label, with the parts of
`jaxdiff.models.magnitude`.

    x <- resample(x);  on the way down also  x <- normalize(shortcut(x))                              (1)
    y  = conv2(dropout(mp_silu(conv1(mp_silu(x)) (1 + gain W e))))                                    (2)
    x <- mp_sum(x, y, 0.3)         (on the way up: of shortcut(x))                                    (3)
    x <- mp_sum(x, proj(softmax(q k^T / sqrt(d)) v), 0.3),  q, k, v normalised per head               (4)
    x <- clip(x, -256, 256)                                                                           (5)

with (4) where it attends. `gain` starts at 0; q and k of unit magnitude bound the logits of (4) by sqrt(d) ("cosine
attention").
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.dropout import Dropout
from jaxdiff.models.fields import bad
from jaxdiff.models.fir import double
from jaxdiff.models.layers import over_space
from jaxdiff.models.magnitude import MPConv, MPDense, mp_silu, mp_sum, normalize
from jaxdiff.models.resample import mean_pool


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
    return mean_pool(x) if resample == "down" else double(x) if resample == "up" else x
