"""Embeddings of time: fixed features of a scalar, then two linear maps. All of it in float32, whatever the rest is.

Sinusoidal, with h = features // 2 (freq_shift s = 1 is DDPM's: the frequencies run from 1 to exactly 1/10000; s = 0
is improved diffusion's, and the Transformer's):

    [sin(t w_0), .., sin(t w_{h-1}), cos(t w_0), .., cos(t w_{h-1})],   w_k = 10000^(-k / (h - s))      (1)

Fourier, with frequencies drawn once:

    [sin(2 pi w t), cos(2 pi w t)],   w ~ N(0, scale^2)                                                (2)
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.layers import dense

TIME_EMBEDDINGS = ("sinusoidal", "fourier", "learned")


def sinusoidal_embedding(t: Array, features: int, freq_shift: int | float = 1) -> Array:
    """Equation (1): sines, then cosines, of t at geometrically spaced frequencies; an odd width ends with a 0.

    Args:
        t: times as the network gets them (DDPM: 0 to 999), shape [B].
        features: width of the embedding, at least 4.
        freq_shift: s of equation (1).

    Returns:
        float32 [B, features].

    Raises:
        UsageError: fewer than 4 features.

    Examples:
        >>> import jax.numpy as jnp
        >>> sinusoidal_embedding(jnp.zeros(1), 4).tolist()
        [[0.0, 0.0, 1.0, 1.0]]

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, appendix B; the spacing with h - 1 is that of its code.
    """
    if features < 4:
        raise UsageError(f"features is {features}: allowed for a sinusoidal embedding is 4 or more")
    angle = angles(t, features // 2, freq_shift)
    out = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
    return jnp.pad(out, ((0, 0), (0, features % 2)))


def angles(t: Array, half: int, freq_shift: int | float) -> Array:
    """t w_k of equation (1), float32 [B, half], for times t [B]."""
    freqs = jnp.asarray(10000.0 ** (-np.arange(half) / (half - freq_shift)), jnp.float32)
    return t.astype(jnp.float32)[:, None] * freqs[None, :]


class FourierEmbedding(nn.Module):
    """Equation (2): sines and cosines at random frequencies, which are kept with the parameters but never learned.

    Args:
        features: the number of frequencies; the output is twice as wide.
        scale: standard deviation of the frequencies.

    Calling it takes t [B] and returns float32 [B, 2 features].

    Examples:
        >>> import jax
        >>> y, _ = FourierEmbedding(8).init_with_output(jax.random.key(0), jax.numpy.zeros(3))
        >>> y.shape
        (3, 16)

    Reference: Song et al., Score-Based Generative Modeling through SDEs, 2021, arXiv:2011.13456, appendix H;
    Tancik et al., Fourier Features, 2020, arXiv:2006.10739, section 5.
    """

    features: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, t: Array) -> Array:
        freqs = self.param("freqs", nn.initializers.normal(self.scale), (self.features,), jnp.float32)
        angle = 2 * math.pi * t.astype(jnp.float32)[:, None] * jax.lax.stop_gradient(freqs)[None, :]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class TimeEmbedding(nn.Module):
    """What the blocks get for time: features of t, Dense(4 channels), SiLU, Dense(4 channels).

    Args:
        channels: of the network.
        kind: "sinusoidal"; "fourier" (random frequencies); "learned" (a row of a table for each whole t).
        freq_shift: of the sinusoidal features, see `sinusoidal_embedding`.
        num_positions: rows of the table, for "learned".

    Calling it takes t [B] and perhaps `beside`, to be added to the features [B, channels] (twice the channels for
    "fourier"), and returns float32 [B, 4 channels].

    Raises:
        UsageError: an unknown `kind`.

    Examples:
        >>> import jax
        >>> y, _ = TimeEmbedding(8).init_with_output(jax.random.key(0), jax.numpy.zeros(3))
        >>> y.shape
        (3, 32)

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, appendix B.
    """

    channels: int
    kind: str = "sinusoidal"
    freq_shift: int | float = 1
    num_positions: int = 1000

    @nn.compact
    def __call__(self, t: Array, beside: Array | None = None) -> Array:
        if self.kind not in TIME_EMBEDDINGS:
            raise unknown("time_embedding", self.kind, TIME_EMBEDDINGS)
        if self.kind == "sinusoidal":
            h = sinusoidal_embedding(t, self.channels, self.freq_shift)
        elif self.kind == "fourier":
            h = FourierEmbedding(self.channels, name="fourier")(t)
        else:
            h = nn.Embed(self.num_positions, self.channels, name="table")(jnp.round(t).astype(jnp.int32))
        if beside is not None:
            h = h + beside
        h = nn.silu(dense(4 * self.channels, name="dense0")(h))
        return dense(4 * self.channels, name="dense1")(h)
