"""What transformers on patches share: cutting into tokens, positions, the checks of their fields.

An array x [B, n_1, .., n_d, C] cut into patches of p_a along axis a is a sequence of L = prod g_a tokens, where
g_a = n_a / p_a, the last axis running fastest; a token has its patch's values in the order [p_1, .., p_d, C]:

    token[l(i), (r, c)] = x[i_a p_a + r_a, c]          l(i) = (.. (i_1 g_2 + i_2) g_3 + ..) + i_d          (1)

so a linear map of a token is a convolution whose stride is its kernel. (1) holds for any number d of spatial axes.

Fixed positions give each axis K = C // (2 d) frequencies, the last axis first:

    e(l(i)) = [s(i_d), .., s(i_1), 0 ..]     s(i) = [sin(i w_0), .., sin(i w_{K-1}), cos(i w_0), .., cos(i w_{K-1})]
    w_k = 10000^(-k / K)                                                                                   (2)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.fields import NUMBER, REMAT, Rule, bad, check_fields, one_or_each, whole

_RULES = {"patch_size": one_or_each(whole(1)), "channels": whole(4), "num_heads": whole(1), "mlp_ratio": NUMBER}


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
        raise bad("patch_size", sizes, f"one number, or one for each of the {spatial} spatial axes")
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
        >>> import jax.numpy as jnp
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
        >>> import jax.numpy as jnp
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


def check(net: Any, rules: Mapping[str, Rule]) -> None:
    """Bring the fields of a network being built into one form, and refuse what cannot work.

    Args:
        net: a module with `channels`, `num_heads`, `mlp_ratio`, `patch_size`, `remat`, `dtype`.
        rules: for its other fields.

    Raises:
        UsageError: naming a field, its value and what is allowed.
    """
    check_fields(net, {**_RULES, **rules}, {"remat": REMAT})
    if net.channels % net.num_heads:
        raise bad("num_heads", net.num_heads, f"a divisor of the {net.channels} channels")
    if not 1 <= net.mlp_ratio * net.channels < math.inf:
        raise bad("mlp_ratio", net.mlp_ratio, f"a number, 1 / {net.channels} or more")
