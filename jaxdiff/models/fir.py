"""Changing sizes by a factor of two with a fixed filter, along every spatial axis in turn.

With taps f of even length n, normalised to sum 1, and p = (n - 2) / 2:

    halve    y[i] = sum_k f[k] x[2i + k - p]                                                      (1)
    double   y[j] = sum_i 2 f[j - 2i + p] x[i]                                                    (2)

with x = 0 outside. Taps (1, 1), the default, are the mean of two neighbours and the repetition of each value;
(1, 3, 3, 1) is StyleGAN2's smoothing, which NCSN++ took over. (2) is the transpose of (1), times 2 along each axis.

Reference: Zhang, Making Convolutional Networks Shift-Invariant Again, 2019, arXiv:1904.11486; Song et al.,
Score-Based Generative Modeling through SDEs, 2021, arXiv:2011.13456, appendix H.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import slice_in_dim

from jaxdiff.errors import UsageError


def taps(fir: Sequence[int | float]) -> np.ndarray:
    """The filter, of sum 1.

    Args:
        fir: taps of even length; () for (1, 1).

    Raises:
        UsageError: an odd length, or taps that sum to 0.
    """
    f = np.asarray(fir or (1.0, 1.0), np.float64)
    if f.size % 2 or not f.sum():
        raise UsageError(f"fir is {tuple(fir)}: allowed is an even number of taps with a sum other than 0")
    return f / f.sum()


def halve(x: Array, fir: Sequence[int | float] = ()) -> Array:
    """Equation (1).

    Args:
        x: [B, ..spatial.., C], even spatial sizes.
        fir: taps of even length; () for the mean of two neighbours.

    Returns:
        Half of every spatial size.

    Raises:
        UsageError: see `taps`.

    Examples:
        >>> halve(jnp.array([1.0, 3.0, 5.0, 7.0]).reshape(1, 4, 1)).ravel().tolist()
        [2.0, 6.0]
    """
    f = taps(fir)
    for axis in range(1, x.ndim - 1):
        x = _correlate(x, f, axis, (f.size - 2) // 2, stride=2)
    return x


def double(x: Array, fir: Sequence[int | float] = ()) -> Array:
    """Equation (2).

    Args:
        x: [B, ..spatial.., C].
        fir: taps of even length; () to repeat each value.

    Returns:
        Twice every spatial size.

    Raises:
        UsageError: see `taps`.

    Examples:
        >>> double(jnp.array([2.0, 6.0]).reshape(1, 2, 1)).ravel().tolist()
        [2.0, 2.0, 6.0, 6.0]
    """
    f = taps(fir)
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis) if f.size == 2 and f[0] == f[1] else _double(x, 2 * f, axis)
    return x


def smooth(x: Array, fir: Sequence[int | float], margin: int) -> Array:
    """The filter of (1) without the halving, on `margin` more zeros at either end: what a convolution of stride 2
    needs so that filter and convolution together see x continued by zeros.

    Args:
        x: [B, ..spatial.., C].
        fir: taps of even length.
        margin: zeros at either end of every spatial axis, beside the filter's own.

    Returns:
        Every spatial size grown by 2 margin - 1.

    Raises:
        UsageError: see `taps`.

    Examples:
        >>> smooth(jnp.array([2.0, 6.0]).reshape(1, 2, 1), (1, 1), 1).ravel().tolist()
        [1.0, 4.0, 3.0]
    """
    f = taps(fir)
    for axis in range(1, x.ndim - 1):
        x = _correlate(x, f, axis, (f.size - 2) // 2 + margin, stride=1)
    return x


def _correlate(x: Array, f: np.ndarray, axis: int, pad: int, *, stride: int) -> Array:
    size = (x.shape[axis] + 2 * pad - f.size) // stride + 1
    x = _pad(x, axis, pad, pad)
    return _weighted(f, [slice_in_dim(x, k, k + stride * (size - 1) + 1, stride, axis) for k in range(f.size)])


def _double(x: Array, f: np.ndarray, axis: int) -> Array:
    size, pad = x.shape[axis], (f.size - 2) // 2
    reach = f.size // 2
    wide = _pad(x, axis, reach, reach)
    phases = []
    for phase in (0, 1):
        meets = range((phase + pad) % 2, f.size, 2)  # y[2m + phase] meets x[m + (phase + pad - k) / 2] through tap k
        starts = [reach + (phase + pad - k) // 2 for k in meets]
        phases.append(_weighted(f[list(meets)], [slice_in_dim(wide, s, s + size, 1, axis) for s in starts]))
    return jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    return jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)])


def _weighted(f: np.ndarray, parts: Sequence[Array]) -> Array:
    total = jnp.asarray(f[0], parts[0].dtype) * parts[0]
    for weight, part in zip(f[1:], parts[1:], strict=True):
        total = total + jnp.asarray(weight, part.dtype) * part
    return total
