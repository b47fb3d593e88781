"""U-ViT: a transformer in which time, label and patches are tokens alike, with long skips as in a U-Net.

The tokens are [label, time, patch 1, .., patch L], each with a learned position added. With D = `depth` // 2 and
block(h) = h' + MLP(n(h')), h' = h + attention(n(h)), n a learned layer normalisation,

    h_i = block(h_{i-1})                              i = 1 .. D                                            (1)
    h <- block(h_D)                                                                                        (2)
    h <- block(W_i [h, h_i] + w_i)                    i = D .. 1                                            (3)

and the patches' tokens of n(h) go through a linear map to their pixels, then perhaps through a 3x3 convolution.

(1) and (3) are one block each, scanned over D sets of parameters: (1) puts the h_i on a stack that (3) takes from the
end. Both are traced and compiled once, however deep.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.conditioning import label_rows
from jaxdiff.models.fields import bad, channels_out, input_of, times_of, whole
from jaxdiff.models.layers import TORCH_INIT, conv
from jaxdiff.models.token_layers import FeedForward, TimeMLP, TokenAttention, rematerialised, time_features
from jaxdiff.models.vit import check, grid_of, patch_sizes, patchify, unpatchify

_SMALL = nn.initializers.normal(0.02)


class UViTBlock(nn.Module):
    """One block of equations (1) to (3) of this module.

    Args:
        num_heads: of the attention.
        mlp_ratio: hidden width of the MLP over the tokens' width.
        qkv_bias: whether q, k and v have a bias.
        dtype: compute type; the moments of the normalisation are float32.

    Calling it takes tokens [B, L, C] and perhaps a skip of the same shape, and returns the result twice, to carry on
    and for the stack.

    Examples:
        >>> import jax
        >>> h = jnp.ones((1, 5, 8))
        >>> (y, same), params = UViTBlock(2).init_with_output(jax.random.key(0), h, h)
        >>> y.shape, params["params"]["skip"]["kernel"].shape
        ((1, 5, 8), (16, 8))

    Reference: Bao et al., All are Worth Words, 2022, arXiv:2209.12152, section 3.1 and figure 1.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array, skip: Array | None = None) -> tuple[Array, Array]:
        def norm(h: Array, name: str) -> Array:
            return nn.LayerNorm(1e-5, self.dtype, use_fast_variance=False, name=name)(h)

        if skip is not None:
            joined = jnp.concatenate([h, skip], axis=-1)
            h = nn.Dense(h.shape[-1], kernel_init=_SMALL, dtype=self.dtype, name="skip")(joined)
        attention = TokenAttention(self.num_heads, self.qkv_bias, _SMALL, self.dtype, name="attention")
        h = h + attention(norm(h, "norm1"))
        h = h + FeedForward(self.mlp_ratio, False, _SMALL, self.dtype, name="mlp")(norm(h, "norm2"))
        return h, h


class UViT(nn.Module):
    """A transformer with long skips from noisy data to a prediction of the same shape. Defaults are U-ViT-S/2's.

    Args:
        out_channels: of the prediction; None for those of the input.
        patch_size: one number for all spatial axes, or one for each.
        channels: width of the tokens.
        depth: number of blocks beside the one in the middle; even.
        num_heads: of the attention; a divisor of `channels`.
        mlp_ratio: hidden width of a block's MLP over `channels`.
        qkv_bias: whether q, k and v have a bias.
        conv: a last convolution of kernel 3 on the pixels.
        long_skips: equation (3) with the skips; without, its blocks are like the others.
        time_mlp: two linear maps between the features of time and their token.
        num_classes: number of labels; 0 for none, and no token. The null label is `num_classes`.
        null_label: whether the table of labels has a row for the null label.
        learned_variance: doubles the output channels: [prediction, variance].
        scan: equations (1) and (3) over stacked parameters "down" and "up" [depth // 2, ..], else "down_0", .. and
            "up_0", .. The first of "up" takes the last skip.
        remat: "blocks" keeps only what is between blocks for the gradient, and computes the rest again.
        dtype: what to compute in. Parameters, moments, the features of time and the output are float32.

    Calling it takes
        x: [B, ..spatial.., C], every size a multiple of its patch's, and the sizes those of the positions' making.
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
        >>> net = UViT(channels=16, depth=2, num_heads=2, patch_size=4)
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 8, 8, 3)

    Reference: Bao et al., All are Worth Words: A ViT Backbone for Diffusion Models, 2022, arXiv:2209.12152, section 3
    and table 1.
    """

    out_channels: int | None = None
    patch_size: int | Sequence[int] = 2
    channels: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    conv: bool = True
    long_skips: bool = True
    time_mlp: bool = False
    num_classes: int = 0
    null_label: bool = True
    learned_variance: bool = False
    scan: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check(self, {"depth": whole(2)})
        if self.depth % 2:
            raise bad("depth", self.depth, "an even number, half of it on either side")
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
        spatial, width = x.ndim - 2, self.channels
        patch = patch_sizes(self.patch_size, spatial)
        grid = grid_of(x.shape[1:-1], patch)
        out = channels_out(self, x)

        extra = [label_rows(self, x.shape[0], cond, self.channels)] if self.num_classes else []
        extra.append(TimeMLP(width, 4 * width, width, name="time")(t) if self.time_mlp else time_features(t, width))
        # In the original this is a convolution of PyTorch's.
        h = nn.Dense(width, kernel_init=TORCH_INIT, dtype=self.dtype, name="patch")(patchify(x, patch))
        h = jnp.concatenate([jnp.stack(extra, axis=1).astype(self.dtype), h], axis=1)
        h = h + self._positions(h.shape[1]).astype(self.dtype)[None]
        h = self._blocks(h)

        h = nn.LayerNorm(1e-5, self.dtype, use_fast_variance=False, name="norm_out")(h)
        h = nn.Dense(out * math.prod(patch), kernel_init=_SMALL, dtype=self.dtype, name="out")(h[:, len(extra) :])
        h = unpatchify(h, grid, patch)
        if self.conv:
            h = conv(out, spatial, dtype=self.dtype, name="conv_out")(h)
        return h.astype(jnp.float32)

    def _positions(self, length: int) -> Array:
        """A learned vector for every token, [length, channels]."""
        if not self.is_initializing():
            made = jnp.shape(self.get_variable("params", "positions"))[0]
            if made != length:
                raise UsageError(f"x makes {length} tokens: allowed are the {made} that this network has positions for")
        return self.param("positions", _SMALL, (length, self.channels), jnp.float32)

    def _blocks(self, h: Array) -> Array:
        fields = (self.num_heads, self.mlp_ratio, self.qkv_bias, self.dtype)
        half = self.depth // 2
        block = rematerialised(UViTBlock, self)
        if self.scan:
            each: Any = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": half}
            h, skips = nn.scan(block, **each)(*fields, name="down")(h)
            h, _ = block(*fields, name="mid")(h)
            if not self.long_skips:
                return nn.scan(block, **each)(*fields, name="up")(h)[0]
            return nn.scan(block, **each)(*fields, name="up")(h, skips[::-1])[0]
        stack = []
        for i in range(half):
            h, _ = block(*fields, name=f"down_{i}")(h)
            stack.append(h)
        h, _ = block(*fields, name="mid")(h)
        for i in range(half):
            skip = stack.pop()
            h, _ = block(*fields, name=f"up_{i}")(h, skip if self.long_skips else None)
        return h
