"""A residual network on vectors: two-dimensional toy data, tables, features of something else.

With e the embedding of time (and label), one block is

    h <- h + W2 dropout(silu((1 + scale) W1 silu(norm(h)) + shift)),   (scale, shift) = W e + b          (1)

with layer normalisation, biases and W2 = 0 at first; or, keeping magnitudes as in EDM2 (`jaxdiff.models.magnitude`),

    h <- mp_sum(h, W2 dropout(mp_silu((1 + gain W e) W1 mp_silu(normalize(h)))), 0.3),                   (2)

without biases but for a constant 1 beside the input, and gain = 0 at first. Time enters by random Fourier features,
made for times of order 1 such as log(sigma) / 4 and a t in [0, 1]; for DDPM's indices take "sinusoidal".
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.dropout import Dropout
from jaxdiff.models.embedding import sinusoidal_embedding
from jaxdiff.models.fields import POSITIVE, bad, channels_out, check_fields, label_of, times_of, whole
from jaxdiff.models.layers import dense
from jaxdiff.models.magnitude import MPDense, MPFourier, MPLabel, mp_silu, mp_sum, normalize

TIMES = ("fourier", "sinusoidal")
_RULES = {"features": whole(4), "num_blocks": whole(0), "bandwidth": POSITIVE}


class MLPBlock(nn.Module):
    """Equation (1) of this module, or (2).

    Args:
        features: width of the block.
        dropout: rate in [0, 1).
        magnitude_preserving: (2).
        dtype: compute type; the path of the embedding and the statistics stay float32.

    Calling it takes h [B, features], emb [B, E], `train` and `rngs` (see `Dropout`), and returns [B, features].

    Raises:
        UsageError: `train` with dropout but without keys.

    Examples:
        >>> import jax
        >>> args = jnp.ones((2, 8)), jnp.ones((2, 16))
        >>> y, _ = MLPBlock(8).init_with_output(jax.random.key(0), *args)
        >>> y.shape
        (2, 8)

    Reference: He, Zhang, Ren, Sun, Identity Mappings in Deep Residual Networks, 2016, arXiv:1603.05027, section 4, for
    (1); Karras et al., 2023, arXiv:2312.02696, figure 21, for (2).
    """

    features: int
    dropout: float = 0.0
    magnitude_preserving: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array, emb: Array, *, train: bool = False, rngs: Mapping[str, Any] | None = None) -> Array:
        drop = Dropout(self.dropout, name="dropout")
        if self.magnitude_preserving:
            y = MPDense(self.features, self.dtype, name="dense1")(mp_silu(normalize(h)))
            gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
            scale = 1 + MPDense(self.features, name="time")(emb, gain)
            y = drop(mp_silu(y * scale.astype(self.dtype)), train=train, rngs=rngs)
            return mp_sum(h, MPDense(self.features, self.dtype, name="dense2")(y), 0.3)
        y = nn.silu(nn.LayerNorm(use_fast_variance=False, dtype=self.dtype, name="norm")(h))
        y = dense(self.features, dtype=self.dtype, name="dense1")(y)
        scale, shift = jnp.split(dense(2 * self.features, name="time")(emb).astype(self.dtype), 2, axis=-1)
        y = drop(nn.silu((1 + scale) * y + shift), train=train, rngs=rngs)
        return h + dense(self.features, scale=0.0, dtype=self.dtype, name="dense2")(y)


class MLP(nn.Module):
    """A multi-layer perceptron with residual blocks, from noisy vectors to a prediction of the same size.

    Args:
        out_channels: of the prediction; None for those of the input.
        features: width of the blocks and of the embedding, at least 4.
        num_blocks: residual blocks, of two linear maps each.
        dropout: rate in [0, 1), used with train=True.
        time_embedding: "fourier" or "sinusoidal".
        bandwidth: standard deviation of the Fourier frequencies, in periods per unit of t.
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        magnitude_preserving: equation (2) of this module; train it with `force_normalize`.
        learned_variance: doubles the output channels: [prediction, variance].
        dtype: what to compute in. Parameters, statistics, the path of time and the output are float32.

    Calling it takes
        x: [B, C].
        t: float [B], in the unit of the model's time input.
        cond: {"label": int32 [B]} in 0..num_classes, or None: all null. Other entries are not used, nor is a label
            if num_classes is 0. A label out of range gives NaN.
        train: with dropout.
        rngs: {"dropout": one typed key per example, [B]}; call through `Network`.
    and returns float32 [B, out_channels] (twice the channels with `learned_variance`); exactly 0 at first.

    Raises:
        UsageError: a field out of range (when built); an input, time, label or key that does not fit (when traced).

    Examples:
        >>> import jax
        >>> y, _ = MLP(features=16).init_with_output(jax.random.key(0), jnp.ones((5, 2)), jnp.zeros(5))
        >>> y.shape
        (5, 2)

    Reference: the blocks' papers; vectors this small with magnitudes kept are the toy example of Karras et al., Guiding
    a Diffusion Model with a Bad Version of Itself, 2024, arXiv:2406.02507, appendix C (whose network has no residual
    blocks and answers with a log-density).
    """

    out_channels: int | None = None
    features: int = 128
    num_blocks: int = 3
    dropout: float = 0.0
    time_embedding: str = "fourier"
    bandwidth: float = 1.0
    num_classes: int = 0
    magnitude_preserving: bool = False
    learned_variance: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_fields(self, _RULES, {"time_embedding": TIMES})
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
        x = jnp.asarray(x)
        if x.ndim != 2:
            raise bad("the shape of x", x.shape, "[B, C]")
        t, out = times_of(t, x), channels_out(self, x)
        emb = self._embedding(t, cond)
        h = x.astype(self.dtype)
        if self.magnitude_preserving:
            h = jnp.concatenate([h, jnp.ones((x.shape[0], 1), self.dtype)], axis=-1)
            h = MPDense(self.features, self.dtype, name="dense_in")(h)
        else:
            h = dense(self.features, dtype=self.dtype, name="dense_in")(h)
        for i in range(self.num_blocks):
            block = MLPBlock(self.features, self.dropout, self.magnitude_preserving, self.dtype, name=f"block_{i}")
            h = block(h, emb, train=train, rngs=rngs)
        if self.magnitude_preserving:
            gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
            return MPDense(out, self.dtype, name="dense_out")(h, gain).astype(jnp.float32)
        h = nn.silu(nn.LayerNorm(use_fast_variance=False, dtype=self.dtype, name="norm_out")(h))
        return dense(out, scale=0.0, dtype=self.dtype, name="dense_out")(h).astype(jnp.float32)

    def _embedding(self, t: Array, cond: Mapping[str, Any] | None) -> Array:
        """Time and label, [B, features], float32."""
        if self.time_embedding == "fourier":
            emb = MPFourier(self.features, self.bandwidth, name="fourier")(t)
        else:
            emb = math.sqrt(2) * sinusoidal_embedding(t, self.features)  # to the magnitude of the other
        preserving = self.magnitude_preserving
        emb = (MPDense if preserving else dense)(self.features, name="time")(emb)
        if self.num_classes:
            label = label_of(cond, t.shape[0], self.num_classes)
            rows = MPLabel(self.num_classes, self.features, name="label")(label)
            emb = mp_sum(emb, rows) if preserving else emb + rows
        return mp_silu(emb) if preserving else nn.silu(emb)
