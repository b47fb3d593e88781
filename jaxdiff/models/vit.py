"""What transformers on patches share: cutting into tokens, positions, features of time, attention, the MLP.

An array x [B, n_1, .., n_d, C] cut into patches of p_a along axis a is a sequence of L = prod g_a tokens, where
g_a = n_a / p_a, the last axis running fastest; a token has its patch's values in the order [p_1, .., p_d, C]:

    token[l(i), (r, c)] = x[i_a p_a + r_a, c]          l(i) = (.. (i_1 g_2 + i_2) g_3 + ..) + i_d          (1)

so a linear map of a token is a convolution whose stride is its kernel. (1) holds for any number d of spatial axes.

Fixed positions give each axis K = C // (2 d) frequencies, the last axis first:

    e(l(i)) = [s(i_d), .., s(i_1), 0 ..]     s(i) = [sin(i w_0), .., sin(i w_{K-1}), cos(i w_0), .., cos(i w_{K-1})]
    w_k = 10000^(-k / K)                                                                                   (2)

Features of time, with h = F // 2 and s = `freq_shift` (0 in the papers' code, 1 in diffusers):

    [cos(t v_0), .., cos(t v_{h-1}), sin(t v_0), .., sin(t v_{h-1})]     v_k = 10000^(-k / (h - s))       (3)
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.errors import UsageError, unknown

REMAT = ("none", "blocks")


def patch_sizes(patch_size: int | Sequence[int], spatial: int) -> tuple[int, ...]:
    """The patch's size along every axis.

    Args:
        patch_size: one for all axes, or one for each.
        spatial: the number of spatial axes.

    Returns:
        `spatial` whole numbers.

    Raises:
        UsageError: another number of sizes than axes.

    Examples:
        >>> patch_sizes(2, 3), patch_sizes((1, 2), 2)
        ((2, 2, 2), (1, 2))
    """
    sizes = (patch_size,) * spatial if isinstance(patch_size, int) else tuple(patch_size)
    if len(sizes) != spatial:
        raise UsageError(f"patch_size is {sizes}: allowed is one number, or one for each of the {spatial} spatial axes")
    return sizes


def patchify(x: Array, patch_size: int | Sequence[int]) -> Array:
    """Equation (1): an array as a sequence of patches.

    Args:
        x: [B, ..spatial.., C], every spatial size divisible by the patch's.
        patch_size: one for all axes, or one for each.

    Returns:
        [B, L, prod(patch) C].

    Raises:
        UsageError: a size that the patch does not divide.

    Examples:
        >>> patchify(jnp.ones((2, 8, 4, 3)), 2).shape
        (2, 8, 12)

    Reference: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021, arXiv:2010.11929, section 3.1.
    """
    spatial = x.ndim - 2
    sizes = patch_sizes(patch_size, spatial)
    grid = grid_of(x.shape[1:-1], sizes)
    split = [n for pair in zip(grid, sizes, strict=True) for n in pair]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    x = x.transpose(0, *range(1, 2 * spatial, 2), *range(2, 2 * spatial + 1, 2), 2 * spatial + 1)
    return x.reshape(x.shape[0], math.prod(grid), -1)


def unpatchify(tokens: Array, grid: Sequence[int], patch_size: int | Sequence[int]) -> Array:
    """The inverse of `patchify`.

    Args:
        tokens: [B, L, prod(patch) C].
        grid: patches along every axis; their product is L.
        patch_size: one for all axes, or one for each.

    Returns:
        [B, ..spatial.., C].

    Examples:
        >>> x = jnp.arange(96.0).reshape(1, 8, 4, 3)
        >>> bool((unpatchify(patchify(x, 2), (4, 2), 2) == x).all())
        True

    Reference: Peebles, Xie, 2022, arXiv:2212.09748, section 3.2, "Transformer decoder".
    """
    spatial = len(grid)
    sizes = patch_sizes(patch_size, spatial)
    x = tokens.reshape(tokens.shape[0], *grid, *sizes, -1)
    x = x.transpose(0, *(axis for a in range(spatial) for axis in (1 + a, 1 + spatial + a)), 1 + 2 * spatial)
    return x.reshape(x.shape[0], *(g * p for g, p in zip(grid, sizes, strict=True)), x.shape[-1])


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Patches along every axis.

    Args:
        size: of the spatial axes.
        patch: of a patch, as many.

    Returns:
        As many whole numbers.

    Raises:
        UsageError: a size that the patch does not divide.

    Examples:
        >>> grid_of((8, 6), (2, 3))
        (4, 2)
    """
    if any(n % p or n < p for n, p in zip(size, patch, strict=True)):
        raise UsageError(f"x has spatial size {tuple(size)}: allowed are multiples of the patch's {tuple(patch)}")
    return tuple(n // p for n, p in zip(size, patch, strict=True))


def position_table(grid: Sequence[int], channels: int, reach: int | None = None) -> np.ndarray:
    """Equation (2): a fixed vector for every token.

    Args:
        grid: patches along every axis.
        channels: C; what no axis gets an equal share of stays 0.
        reach: where given, positions run over 0..reach along every axis, however many patches it has: those of a
            network trained on `reach` patches, stretched over another size.

    Returns:
        float32 [L, C], computed in float64.

    Examples:
        >>> position_table((1, 2), 4).round(2).tolist()
        [[0.0, 1.0, 0.0, 1.0], [0.8399999737739563, 0.5400000214576721, 0.0, 1.0]]

    Reference: Peebles, Xie, 2022, arXiv:2212.09748, section 3.2, "Patchify"; the order of the axes is that of its code.
    """
    share = channels // (2 * len(grid))
    freqs = 10000.0 ** (-np.arange(share) / max(share, 1))
    steps = [np.arange(n) * (1.0 if reach is None else reach / n) for n in grid]
    parts = []
    for index in reversed(np.meshgrid(*steps, indexing="ij")):
        angle = index.reshape(-1, 1) * freqs
        parts += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((0, 0), (0, channels - table.shape[1]))).astype(np.float32)


def time_features(t: Array, features: int, freq_shift: float = 0.0) -> Array:
    """Equation (3): cosines, then sines; an odd width ends with a 0.

    Args:
        t: times as the network gets them, shape [B].
        features: width, at least 4.
        freq_shift: s of equation (3), less than features // 2.

    Returns:
        float32 [B, features].

    Examples:
        >>> time_features(jnp.zeros(1), 5).tolist()
        [[1.0, 1.0, 0.0, 0.0, 0.0]]

    Reference: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, section 3.5; Peebles, Xie, 2022,
    arXiv:2212.09748, section 3.2.
    """
    half = features // 2
    freqs = jnp.asarray(10000.0 ** (-np.arange(half) / (half - freq_shift)), jnp.float32)
    angle = t.astype(jnp.float32)[:, None] * freqs[None, :]
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
    """Features of time, equation (3) of this module, through Dense, SiLU, Dense, all in float32.

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


def check_fields(net: Any, least: Mapping[str, int]) -> None:
    """Bring the fields of a network being built into one form, and refuse what cannot work.

    Args:
        net: a module with `channels`, `num_heads`, `mlp_ratio`, `patch_size`, `out_channels`, `remat`, `dtype`.
        least: further fields that are whole numbers, with the least allowed.

    Raises:
        UsageError: naming a field, its value and what is allowed.
    """
    try:
        object.__setattr__(net, "dtype", jnp.dtype(net.dtype))
    except TypeError:
        raise _bad("dtype", net.dtype, "a floating-point type") from None
    if not jnp.issubdtype(net.dtype, jnp.floating):
        raise _bad("dtype", net.dtype, "a floating-point type")
    if isinstance(net.patch_size, Sequence) and not isinstance(net.patch_size, str):
        object.__setattr__(net, "patch_size", tuple(net.patch_size))
    sizes = net.patch_size if isinstance(net.patch_size, tuple) else (net.patch_size,)
    if not sizes or not all(_whole(p, 1) for p in sizes):
        raise _bad("patch_size", net.patch_size, "a whole number, 1 or more, or one for each spatial axis")
    for name, smallest in {"channels": 4, "num_heads": 1, "num_classes": 0, **least}.items():
        if not _whole(getattr(net, name), smallest):
            raise _bad(name, getattr(net, name), f"a whole number, {smallest} or more")
    if net.channels % net.num_heads:
        raise _bad("num_heads", net.num_heads, f"a divisor of the {net.channels} channels")
    if net.out_channels is not None and not _whole(net.out_channels, 1):
        raise _bad("out_channels", net.out_channels, "None or a whole number, 1 or more")
    ratio = net.mlp_ratio
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio * net.channels < math.inf:
        raise _bad("mlp_ratio", ratio, f"a number, 1 / {net.channels} or more")
    for field in dataclasses.fields(net):
        if field.type in (bool, "bool") and not isinstance(getattr(net, field.name), bool):
            raise _bad(field.name, getattr(net, field.name), "True or False")
    if net.remat not in REMAT:
        raise unknown("remat", net.remat, REMAT)


def check_inputs(x: Array, t: Array) -> None:
    """Refuse what is not an array with spatial axes and its times.

    Args:
        x: should be [B, ..spatial.., C].
        t: should be [B].

    Raises:
        UsageError: naming the one that is not.
    """
    if x.ndim < 3:
        raise _bad("the shape of x", x.shape, "[B, ..spatial.., C] with one spatial axis or more")
    if t.shape != x.shape[:1]:
        raise _bad("the shape of t", t.shape, f"one time per example, {x.shape[:1]}")


def _bad(name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{name} is {value}: allowed is {allowed}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
