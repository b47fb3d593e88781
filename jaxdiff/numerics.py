"""Small numerical tools shared by every part.

Formulas that make grids run twice: in float64 NumPy, where grids are computed, and in JAX, where models train.
`namespace` picks which. Everything that can be infinite at t = 0 or t = 1 stays finite in its use by writing
differences of log-SNR through `expm1` and quotients through `safe_divide`.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.types import Array


def namespace(*values: Any) -> ModuleType:
    """NumPy where every value is NumPy or a plain number in float64, else JAX."""
    return np if all(isinstance(v, float | np.floating | np.ndarray) for v in values) else jnp


def as_float(value: Any) -> Any:
    """`value` as a floating-point array; float64 NumPy stays what it is, anything else becomes a JAX array."""
    if isinstance(value, np.ndarray | np.floating) and value.dtype == np.float64:
        return value
    array = jnp.asarray(value)
    weak = array.weak_type or not jnp.issubdtype(array.dtype, jnp.floating)
    # A weak type would let a level of higher precision be rounded to the data's.
    return jnp.asarray(array, jnp.result_type(float) if weak else array.dtype)


def sigmoid(value: Any) -> Any:
    """1 / (1 + exp(-value)), exact to rounding at both ends, derivatives too."""
    if namespace(value) is jnp:
        return _sigmoid(value)
    small = np.exp(-np.abs(value))
    return np.where(value >= 0, 1 / (1 + small), small / (1 + small))


@jax.custom_jvp
def _sigmoid(value: Array) -> Array:
    return jax.nn.sigmoid(value)


@_sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # JAX's own rule forms 1 - sigmoid, which near the data has no digit left.
    value = _sigmoid(primals[0])
    return value, tangents[0] * value * _sigmoid(-primals[0])


def softplus(value: Any) -> Any:
    """log(1 + exp(value)) without overflow."""
    return namespace(value).logaddexp(value, 0.0)


def expand(coef: Any, x: Array) -> Array:
    """A scalar or per-example coefficient, shaped to multiply `x`.

    Args:
        coef: shape [] or [B].
        x: shape [B, ...].

    Returns:
        `coef` with trailing axes of length 1 up to the rank of `x`; scalars as they are.

    Raises:
        UsageError: if `coef` has more than one axis, or another batch size.
    """
    coef = jnp.asarray(coef)
    if coef.ndim == 0:
        return coef
    if coef.ndim > 1 or x.ndim == 0 or coef.shape[0] not in (1, x.shape[0]):
        raise UsageError(f"a level must be a scalar or one per example [{x.shape[:1]}], got shape {coef.shape}")
    return coef.reshape(coef.shape + (1,) * (x.ndim - 1))


def safe_divide(num: Any, den: Any) -> Array:
    """num / den, and 0 where den is 0; derivatives stay finite there."""
    zero = den == 0
    return jnp.where(zero, 0.0, num / jnp.where(zero, 1.0, den))


def safe_sqrt(value: Any) -> Array:
    """The root, 0 where `value` is not positive; derivatives stay finite there."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)


def batch_keys(key: Array, batch: int) -> Array:
    """One key per example: example i of a batch gets the same key whatever the size of the batch.

    Args:
        key: one key, or one per example; typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
        batch: number of examples B.

    Returns:
        Typed keys of shape [B].

    Raises:
        UsageError: if a batch of keys has another length.
    """
    if not hasattr(key, "dtype"):
        raise UsageError(f"key must be a key of jax.random, got {key!r}: jax.random.key({key!r}) makes one of a number")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise UsageError(f"key must be one key or one per example [{batch}], got {key.shape}")
    return key


def normal_like(key: Array, x: Float[Array, " b *d"]) -> Float[Array, " b *d"]:
    """Standard normal noise of the shape of `x`, each example from its own key.

    Args:
        key: one key, or one per example [B].
        x: shape [B, ...]; its dtype is kept.
    """
    keys = batch_keys(key, x.shape[0])
    # bfloat16 draws would have eight bits, so no tails, and be another noise for the same key.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], dtype))(keys).astype(x.dtype)


def mean_per_example(x: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """Mean over every axis but the first: [B, ...] -> [B]."""
    return x.reshape(x.shape[0], -1).mean(axis=1)
