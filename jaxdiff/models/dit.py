"""DiT: a transformer on patches, conditioned through its layer normalisations.

With c the sum of the embeddings of time and label, and n the layer normalisation without learned scale or shift, each
of `depth` blocks is

    (b1, s1, g1, b2, s2, g2) = W silu(c) + w                                                               (1)
    h <- h + g1 * attention(n(h) (1 + s1) + b1)                                                            (2)
    h <- h + g2 * MLP(n(h) (1 + s2) + b2)                                                                  (3)

with W = 0, w = 0 at first, so that every block begins as the identity (adaLN-zero). The end is n(h) (1 + s) + b with
(b, s) of its own map of silu(c), then a linear map of each token to its patch; both are zero at first.

The blocks are one block scanned over `depth` sets of parameters: it is traced and compiled once, however deep.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.conditioning import label_rows
from jaxdiff.models.fields import Rule, channels_out, input_of, number, optional, times_of, whole
from jaxdiff.models.token_layers import FeedForward, TimeMLP, TokenAttention, rematerialised
from jaxdiff.models.vit import check, grid_of, patch_sizes, patchify, position_table, unpatchify

TIME_FEATURES = 256
_ZEROS = nn.initializers.zeros
_XAVIER = nn.initializers.xavier_uniform()
_RULES = {
    "depth": whole(1),
    "position_reach": optional(whole(1)),
    "freq_shift": Rule(lambda shift: shift in (0, 1), "0 or 1"),
    "mlp_norm_epsilon": number(lambda epsilon: 0 < epsilon < 1, "a number in (0, 1)"),
}


def _modulated(h: Array, scale: Array, shift: Array, epsilon: float, dtype: Any) -> Array:
    """n(h) (1 + scale) + shift in float32, for tokens [B, L, C] and vectors [B, C]."""
    # Flax's fast variance is E[h^2] - E[h]^2, which cancels.
    norm = nn.LayerNorm(epsilon, jnp.float32, use_bias=False, use_scale=False, use_fast_variance=False, parent=None)
    return (norm.apply({}, h) * (1 + scale[:, None]) + shift[:, None]).astype(dtype)  # type: ignore[operator]


class DiTBlock(nn.Module):
    """Equations (1) to (3) of this module.

    Args:
        num_heads: of the attention.
        mlp_ratio: hidden width of the MLP over the tokens' width.
        qkv_bias: whether q, k and v have a bias.
        mlp_norm_epsilon: added to the variance before the MLP; before the attention it is 1e-6.
        dtype: compute type; normalisation and modulation are float32.

    Calling it takes tokens [B, L, C] and silu(c) [B, C], and returns (tokens, None), as `nn.scan` wants it.

    Examples:
        >>> import jax
        >>> (y, _), _ = DiTBlock(2).init_with_output(jax.random.key(0), jnp.ones((1, 5, 8)), jnp.ones((1, 8)))
        >>> bool((y == 1).all())
        True

    Reference: Peebles, Xie, Scalable Diffusion Models with Transformers, 2022, arXiv:2212.09748, section 3.2 and
    figure 3.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    mlp_norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array, c: Array) -> tuple[Array, None]:
        vectors = nn.Dense(6 * h.shape[-1], kernel_init=_ZEROS, name="modulation")(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(vectors, 6, axis=-1)
        y = _modulated(h, scale1, shift1, 1e-6, self.dtype)
        y = TokenAttention(self.num_heads, self.qkv_bias, dtype=self.dtype, name="attention")(y)
        h = h + gate1[:, None].astype(self.dtype) * y
        y = _modulated(h, scale2, shift2, self.mlp_norm_epsilon, self.dtype)
        y = FeedForward(self.mlp_ratio, dtype=self.dtype, name="mlp")(y)
        return h + gate2[:, None].astype(self.dtype) * y, None


class DiT(nn.Module):
    """A transformer from noisy data to a prediction of the same shape, given time and label. Defaults are DiT-S/2's.

    Args:
        out_channels: of the prediction; None for those of the input.
        patch_size: one number for all spatial axes, or one for each.
        channels: width of the tokens.
        depth: number of blocks.
        num_heads: of the attention; a divisor of `channels`.
        mlp_ratio: hidden width of a block's MLP over `channels`.
        qkv_bias: whether q, k and v have a bias.
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        null_label: whether the table of labels has a row for the null label.
        learned_variance: doubles the output channels: [prediction, variance].
        freq_shift: of the features of time, equation (1) of `jaxdiff.models.token_layers`: 0, or 1 for diffusers.
        mlp_norm_epsilon: of the layer normalisation before a block's MLP; 1e-6, or 1e-5 for diffusers. All others
            have 1e-6.
        position_reach: see `position_table`; None for positions that count patches.
        scan: one block scanned over stacked parameters "blocks" [depth, ..], else "block_0", "block_1", ..
        remat: "blocks" keeps only what is between blocks for the gradient, and computes the rest again.
        dtype: what to compute in. Parameters, normalisation, the path of time and label, and the output are float32.

    Calling it takes
        x: [B, ..spatial.., C] (audio [B, L, C], images, video [B, T, H, W, C]), every size a multiple of its patch's.
        t: float [B], in the unit of the model's time input.
        cond: {"label": int32 [B]} in 0..num_classes, or None: all null. Other entries are not used, nor is a label
            if num_classes is 0. A label out of range gives NaN.
        train: nothing; there is no dropout.
        rngs: nothing.
    and returns float32 [B, ..spatial.., out_channels] (twice the channels with `learned_variance`).

    Raises:
        UsageError: a field out of range (when built); a size, time or label that does not fit (when traced).

    Examples:
        >>> import jax
        >>> net = DiT(channels=16, depth=2, num_heads=2, patch_size=4, learned_variance=True)
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 8, 8, 6)

    Reference: Peebles, Xie, Scalable Diffusion Models with Transformers, 2022, arXiv:2212.09748, section 3.2, table 1.
    """

    out_channels: int | None = None
    patch_size: int | Sequence[int] = 2
    channels: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    num_classes: int = 0
    null_label: bool = True
    learned_variance: bool = False
    freq_shift: float = 0.0
    mlp_norm_epsilon: float = 1e-6
    position_reach: int | None = None
    scan: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check(self, _RULES)
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
        x = input_of(x)
        t = times_of(t, x)
        patch = patch_sizes(self.patch_size, x.ndim - 2)
        grid = grid_of(x.shape[1:-1], patch)

        c = TimeMLP(TIME_FEATURES, self.channels, self.channels, self.freq_shift, name="time")(t)
        if self.num_classes:
            c = c + label_rows(self, x.shape[0], cond, self.channels, nn.initializers.normal(0.02))
        c = nn.silu(c)

        h = nn.Dense(self.channels, kernel_init=_XAVIER, dtype=self.dtype, name="patch")(patchify(x, patch))
        positions = position_table(grid, self.channels, self.position_reach)
        h = h + jnp.asarray(positions, self.dtype)[None]
        h = self._blocks(h, c)

        shift, scale = jnp.split(nn.Dense(2 * self.channels, kernel_init=_ZEROS, name="modulation")(c), 2, axis=-1)
        h = _modulated(h, scale, shift, 1e-6, self.dtype)
        h = nn.Dense(channels_out(self, x) * math.prod(patch), kernel_init=_ZEROS, dtype=self.dtype, name="out")(h)
        return unpatchify(h, grid, patch).astype(jnp.float32)

    def _blocks(self, h: Array, c: Array) -> Array:
        fields = (self.num_heads, self.mlp_ratio, self.qkv_bias, self.mlp_norm_epsilon, self.dtype)
        block = rematerialised(DiTBlock, self)
        if self.scan:
            axes: Any = {"params": 0}
            block = nn.scan(block, axes, split_rngs={"params": True}, in_axes=nn.broadcast, length=self.depth)
            return block(*fields, name="blocks")(h, c)[0]
        for i in range(self.depth):
            h, _ = block(*fields, name=f"block_{i}")(h, c)
        return h
