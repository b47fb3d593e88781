r"""Layers that keep magnitudes: an input of unit variance gives an output of unit variance, at init and for ever after.

Nothing here has a bias or learned statistics. A weight vector w (one per output) is stored raw and used as

    w_used = gain normalize(w) / sqrt(fan_in),    normalize(w) = w / (rms(w) + 1e-4),             (1)

so |w_used| = gain whatever the optimiser did to |w|; the gradient is then orthogonal to w, and |w| only grows. That
growth would slow the learning of long runs in a way no schedule asked for, so training also puts w <- normalize(w)
after every step (`force_normalize`), which leaves (1), hence the network's function, as it is. The other parts divide
by what they do to the variance of independent inputs of unit variance:

    mp_silu(x)      = silu(x) / 0.596                      E[silu(x)^2] = 0.596^2 for x ~ N(0, 1)   (2)
    mp_sum(a, b, t) = ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)                                     (3)
    mp_cat(a, b, t) = sqrt((N_a + N_b) / ((1 - t)^2 + t^2)) [(1 - t) a / sqrt(N_a), t b / sqrt(N_b)] (4)
    fourier(t)_i    = sqrt(2) cos(f_i t + p_i)             f_i / 2 pi ~ N(0, bandwidth^2),
                                                           p_i / 2 pi ~ U(0, 1)                     (5)

Reference: Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the Training Dynamics of Diffusion
Models, 2023, arXiv:2312.02696, section 2 and appendix B; (1) is its equations 47 and 66, (2) 81, (3) 88, (4) 103,
(5) 75.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-4
_LEAST = 1e-30
_SILU_RMS = 0.596


def normalize(x: Array, axes: int | tuple[int, ...] = -1) -> Array:
    """x / (rms(x) + 1e-4), the root mean square taken over some axes, in float32: unit magnitude along them.

    Args:
        x: any shape.
        axes: over which the mean is taken; the last (a "pixel norm") by default.

    Returns:
        The shape and dtype of x; zeros stay zeros, and have gradient zero through the norm.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(jnp.mean(normalize(jnp.array([3.0, 4.0])) ** 2).round(3))
        1.0
    """
    wide = x.astype(jnp.float32)
    # The least value keeps the root's derivative finite at zero.
    rms = jnp.sqrt(jnp.maximum(jnp.mean(wide * wide, axes, keepdims=True), _LEAST))
    return (wide / (rms + EPSILON)).astype(x.dtype)


def force_normalize(params: Any) -> Any:
    """Every kernel at unit magnitude, equation (1)'s w <- normalize(w); apply it at init and after each optimiser step.

    The function the network computes stays the same (but for the 1e-4 in the norm, nothing from the second time on),
    and Adam's steps keep their relative size. Averages of the parameters need no such treatment.

    Args:
        params: the tree of a network whose kernels are all of this module, such as `EDM2UNet`.

    Returns:
        The tree with every leaf named "kernel" [.., out] normalised over all axes but the last.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = force_normalize({"conv": {"kernel": jnp.full((4, 1), 7.0)}, "gain": jnp.zeros(())})
        >>> round(float(params["conv"]["kernel"].max()), 3)
        1.0

    Reference: Karras et al., 2023, arXiv:2312.02696, section 2.3 and equation 66.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        return normalize(jnp.asarray(leaf), tuple(range(leaf.ndim - 1))) if _last(path) == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _last(path: tuple[Any, ...]) -> str:
    return str(getattr(path[-1], "key", getattr(path[-1], "name", ""))) if path else ""


def mp_silu(x: Array) -> Array:
    """Equation (2).

    Args:
        x: any shape.

    Returns:
        The shape and dtype of x.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(mp_silu(jnp.zeros(())))
        0.0
    """
    return nn.silu(x) / _SILU_RMS


def mp_sum(a: Array, b: Array, t: float = 0.5) -> Array:
    """Equation (3).

    Args:
        a: any shape.
        b: the shape of a.
        t: the part of b, in [0, 1].

    Returns:
        The shape of a.

    Examples:
        >>> import jax.numpy as jnp
        >>> mp_sum(jnp.ones(1), jnp.zeros(1), 1.0).tolist()
        [0.0]
    """
    norm = math.hypot(1 - t, t)
    return a * ((1 - t) / norm) + b * (t / norm)


def mp_cat(a: Array, b: Array, t: float = 0.5) -> Array:
    """Equation (4): joined along the last axis so that a and b contribute as 1 - t to t, however wide they are.

    Args:
        a: [.., N_a].
        b: [.., N_b].
        t: the part of b, in [0, 1].

    Returns:
        [.., N_a + N_b].

    Examples:
        >>> import jax.numpy as jnp
        >>> mp_cat(jnp.ones((1, 2)), jnp.ones((1, 2))).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    wide_a, wide_b = a.shape[-1], b.shape[-1]
    norm = math.sqrt(wide_a + wide_b) / math.hypot(1 - t, t)
    return jnp.concatenate([a * (norm * (1 - t) / wide_a**0.5), b * (norm * t / wide_b**0.5)], axis=-1)


class MPDense(nn.Module):
    """A linear map of the last axis with the weights of equation (1), no bias; it is also every 1x1 convolution.

    Args:
        features: output channels.
        dtype: compute type; weights are normalised in float32.

    Calling it takes x [.., C] and the `gain` of (1), a number or a scalar array, and returns [.., features].

    Examples:
        >>> import jax
        >>> y, _ = MPDense(4).init_with_output(jax.random.key(0), jax.numpy.ones((2, 8, 3)))
        >>> y.shape
        (2, 8, 4)

    Reference: Karras et al., 2023, arXiv:2312.02696, equation 47.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        kernel = _weights(self, (x.shape[-1], self.features), gain)
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))


class MPConv(nn.Module):
    """A convolution of kernel 3 along every spatial axis with the weights of equation (1), zero padding, no bias.

    Args:
        features: output channels.
        dtype: compute type; weights are normalised in float32.

    Calling it takes x [B, ..spatial.., C] and the `gain` of (1), and returns [B, ..spatial.., features].

    Examples:
        >>> import jax
        >>> y, _ = MPConv(4).init_with_output(jax.random.key(0), jax.numpy.ones((2, 8, 8, 3)))
        >>> y.shape
        (2, 8, 8, 4)

    Reference: Karras et al., 2023, arXiv:2312.02696, equation 47.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        spatial = x.ndim - 2
        kernel = _weights(self, ((3,) * spatial) + (x.shape[-1], self.features), gain)
        last, axes = x.ndim - 1, tuple(range(1, x.ndim - 1))
        numbers = jax.lax.ConvDimensionNumbers((0, last, *axes), (last, last - 1, *range(spatial)), (0, last, *axes))
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (1,) * spatial, "SAME", dimension_numbers=numbers
        )


def _weights(module: nn.Module, shape: tuple[int, ...], gain: Array | float) -> Array:
    """Equation (1), float32."""
    raw = module.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
    return normalize(raw, tuple(range(len(shape) - 1))) * (gain / math.sqrt(math.prod(shape[:-1])))


class MPFourier(nn.Module):
    """Equation (5): cosines at random frequencies and phases, which are kept with the parameters but never learned.

    Args:
        features: width of the output.
        bandwidth: standard deviation of the frequencies, in periods per unit of t.

    Calling it takes t [B] and returns float32 [B, features].

    Examples:
        >>> import jax
        >>> y, _ = MPFourier(8).init_with_output(jax.random.key(0), jax.numpy.zeros(3))
        >>> y.shape
        (3, 8)

    Reference: Karras et al., 2023, arXiv:2312.02696, equation 75.
    """

    features: int
    bandwidth: float = 1.0

    @nn.compact
    def __call__(self, t: Array) -> Array:
        normal = nn.initializers.normal(2 * math.pi * self.bandwidth)
        freqs = self.param("freqs", normal, (self.features,), jnp.float32)
        phases = self.param("phases", nn.initializers.uniform(2 * math.pi), (self.features,), jnp.float32)
        freqs, phases = jax.lax.stop_gradient((freqs, phases))
        return math.sqrt(2) * jnp.cos(t.astype(jnp.float32)[:, None] * freqs[None, :] + phases[None, :])


class MPLabel(nn.Module):
    """The map of equation (1) on sqrt(num_classes) times the label as a unit vector; the null label is the zero vector.

    Args:
        num_classes: number of labels; the null label is `num_classes`.
        features: width of the output.

    Calling it takes labels, int [B] in 0..num_classes, and returns float32 [B, features]; NaN for a label out of range.

    Examples:
        >>> import jax
        >>> y, _ = MPLabel(5, 8).init_with_output(jax.random.key(0), jax.numpy.array([0, 5]))
        >>> y.any(axis=1).tolist()
        [True, False]

    Reference: Karras et al., 2023, arXiv:2312.02696, appendix B.2 and figure 21.
    """

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label: Array) -> Array:
        # The gain undoes the 1 / sqrt(fan_in), so that a row of the normalised kernel is what a label selects.
        kernel = _weights(self, (self.num_classes, self.features), math.sqrt(self.num_classes))
        out_of_range = (label < 0) | (label > self.num_classes)  # `take` would count from the end
        rows = jnp.take(jnp.pad(kernel, ((0, 1), (0, 0))), label, axis=0)
        return jnp.where(out_of_range[:, None], jnp.nan, rows)
