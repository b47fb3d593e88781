"""A classifier of noisy images: the way down and the middle of a U-Net, told the time, with logits at the end.

The feature map of N positions, h_1 .. h_N, becomes one vector, by one of

    mean:       mean_n silu(norm(h_n))                                                         (1)
    attention:  the answer of the token mean_n u_n among (mean u, u_1, .., u_N), each with a learned vector of its
                place added, where u_n = silu(norm(h_n))                                       (2)
    spatial:    the means over space of every map that a U-Net would hand to its way up, and of the middle       (3)

and logits are linear in (1) and in the values of (2); (3) goes through one hidden layer.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.attention import attend, heads_of
from jaxdiff.models.encoder import Encoder
from jaxdiff.models.fields import check_fields, whole
from jaxdiff.models.layers import dense

POOL = ("attention", "mean", "spatial")
_HIDDEN = 2048


class AttentionPool(nn.Module):
    """Equation (2): attention with one query, the mean of all positions.

    Args:
        features: output channels.
        num_heads: of the attention.
        head_dim: channels per head; where given it decides, and `num_heads` is ignored.
        dtype: compute type; the softmax is taken in float32.

    Calling it takes x [B, ..spatial.., C], always of the spatial size of the first call, and returns [B, features].

    Raises:
        UsageError: a channel count that the heads do not divide; another number of positions than at the first call.

    Examples:
        >>> import jax
        >>> y, _ = AttentionPool(10, head_dim=4).init_with_output(jax.random.key(0), jax.numpy.ones((2, 4, 4, 8)))
        >>> y.shape
        (2, 10)

    Reference: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
    arXiv:2103.00020, section 2.4 (its "attention pooling").
    """

    features: int
    num_heads: int = 1
    head_dim: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, channels = x.shape[0], x.shape[-1]
        heads = heads_of(channels, self.num_heads, self.head_dim)
        x = x.reshape(batch, -1, channels)
        shape = (x.shape[1] + 1, channels)
        made: Any = self.get_variable("params", "positions")
        if made is not None and made.shape != shape:
            raise UsageError(
                f"the classifier has parameters for {made.shape[0] - 1} positions of {made.shape[1]} channels: "
                f"x gives {shape[0] - 1} of {shape[1]}"
            )
        positions = self.param("positions", nn.initializers.normal(channels**-0.5), shape, jnp.float32)
        mean = x.astype(jnp.float32).mean(1, keepdims=True).astype(x.dtype)
        tokens = jnp.concatenate([mean, x], axis=1) + positions[None].astype(x.dtype)
        # Scale 2 because the fan of the three maps in one is twice that of each.
        qkv = dense(3 * channels, scale=2.0, dtype=self.dtype, name="qkv")(tokens)
        qkv = qkv.reshape(batch, -1, 3, heads, channels // heads)
        h = attend(qkv[:, :1, 0], qkv[:, :, 1], qkv[:, :, 2])
        return dense(self.features, dtype=self.dtype, name="proj")(h.reshape(batch, channels))


class Classifier(Encoder):
    """Logits of the labels of noisy images, log p(label | x, t) up to a constant: what classifier guidance follows.

    Args:
        num_labels: number of logits.
        pool: "attention", "mean" or "spatial", equations (1) to (3) of this module.

    All other fields are those of a U-Net's way down: see `jaxdiff.models.UNet`. `num_classes` among them, 0 by default,
    is for labels that are given to the network, not for those it tells apart.

    Calling it takes
        x: [B, ..spatial.., C], every spatial size divisible by 2^(levels - 1); with pool "attention" always the same.
        t: float [B], in the unit of the model's time input.
        cond: what the fields ask for; None for a plain classifier.
        train: with dropout.
        rngs: {"dropout": one typed key per example, [B]}; see `UNet`.
    and returns float32 [B, num_labels].

    Raises:
        UsageError: a field out of range (when built); a size, time or key that does not fit (when traced).

    Examples:
        >>> import jax
        >>> net = Classifier(num_labels=10, channels=8, channel_mult=(1, 2), num_res_blocks=1)
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 10)

    Reference: Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233, section 4.1.
    """

    num_labels: int = 1000
    pool: str = "attention"

    def __post_init__(self) -> None:
        check_fields(self, {"num_labels": whole(1)}, {"pool": POOL})
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
        x, t, plan = self.start(x, t)
        h, _, skips, _ = self.encode(x, t, cond, plan, train, rngs)
        space = tuple(range(1, h.ndim - 1))
        if self.pool == "spatial":
            means = [skip.astype(jnp.float32).mean(space) for skip in (*skips, h)]
            h = nn.relu(dense(_HIDDEN, dtype=self.dtype, name="hidden")(jnp.concatenate(means, axis=-1)))
            return dense(self.num_labels, dtype=self.dtype, name="logits")(h).astype(jnp.float32)
        h = nn.silu(self.norm()(self.dtype, name="norm_out")(h))
        if self.pool == "mean":
            h = h.astype(jnp.float32).mean(space)
            return dense(self.num_labels, scale=0.0, dtype=self.dtype, name="logits")(h).astype(jnp.float32)
        pool = AttentionPool(self.num_labels, self.num_heads, self.head_dim, self.dtype, name="pool")
        return pool(h).astype(jnp.float32)
