"""What enters a U-Net beside x: time, labels and vectors through one embedding, images as further channels."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.errors import UsageError
from jaxdiff.models.embedding import TimeEmbedding
from jaxdiff.models.fields import label_of
from jaxdiff.models.layers import dense

LABEL_INTO = ("embedding", "features")
POOLED = ("none", "add", "project")


def embedding(net: Any, batch: int, t: Array, cond: Mapping[str, Any] | None) -> Array:
    """The embedding that every block of `net` gets; called where `net` is being applied, it makes layers of it.

    Args:
        net: a module with the fields of `jaxdiff.models.unet.Encoder`.
        batch: B.
        t: times [B].
        cond: see `jaxdiff.models.UNet`.

    Returns:
        float32 [B, 4 channels].

    Raises:
        UsageError: an entry of `cond` that is missing or does not fit.
    """
    cond = cond or {}
    width = 4 * net.channels
    features = net.channels * (2 if net.time_embedding == "fourier" else 1)
    beside = []
    if net.num_classes and net.label_into == "features":
        beside.append(label_rows(net, batch, cond, features))
    if net.augment_dim and cond.get("augment") is not None:
        augment = _vector(cond, "augment", (batch, net.augment_dim))
        beside.append(nn.Dense(features, use_bias=False, name="augment")(augment))
    elif net.augment_dim and net.is_initializing():
        nn.Dense(features, use_bias=False, name="augment")(jnp.zeros((batch, net.augment_dim)))
    time = TimeEmbedding(net.channels, net.time_embedding, net.freq_shift, net.num_positions, name="time")
    emb = time(t, sum(beside[1:], beside[0]) if beside else None)
    if net.num_classes and net.label_into == "embedding":
        emb = emb + label_rows(net, batch, cond, width)
    if net.aug_level:
        level = _vector(cond, "aug_level", (batch,))
        emb = emb + TimeEmbedding(net.channels, "sinusoidal", net.freq_shift, name="aug_level")(level)
    if net.pooled == "add":
        emb = emb + _vector(cond, "pooled", (batch, width))
    elif net.pooled == "project":
        emb = emb + dense(width, name="pooled")(_vector(cond, "pooled", (batch, None)))
    return emb


def inputs(names: tuple[str, ...], x: Array, cond: Mapping[str, Any] | None) -> Array:
    """x with images of `cond` as further channels.

    Args:
        names: of the entries, in order. "low_res" is resized to x bilinearly; "self_cond" may be missing (zeros), any
            other may not.
        x: [B, ..spatial.., C].
        cond: with the entries, [B, ..spatial.., C'].

    Returns:
        [B, ..spatial.., C + the channels of the entries].

    Raises:
        UsageError: an entry that is missing or of another size.

    Examples:
        >>> x = jnp.ones((1, 8, 8, 3))
        >>> inputs(("low_res",), x, {"low_res": jnp.ones((1, 4, 4, 2))}).shape
        (1, 8, 8, 5)
    """
    parts = [x]
    for name in names:
        given = (cond or {}).get(name)
        if given is None:
            if name != "self_cond":
                raise UsageError(f"cond[{name!r}] is missing: this network needs it beside x")
            given = jnp.zeros_like(x)
        image = jnp.asarray(given)
        if image.ndim != x.ndim or image.shape[0] != x.shape[0]:
            raise UsageError(f"cond[{name!r}] has shape {image.shape}: allowed is one image per example of x {x.shape}")
        size = (*x.shape[:-1], image.shape[-1])
        if name == "low_res" and image.shape != size:
            image = jax.image.resize(image, size, "linear", antialias=False)
        if image.shape != size:
            raise UsageError(f"cond[{name!r}] has shape {image.shape}: allowed is {size[:-1]} with any channels")
        parts.append(image.astype(x.dtype))
    return jnp.concatenate(parts, axis=-1) if names else x


def label_rows(net: Any, batch: int, cond: Mapping[str, Any] | None, features: int, init: Any = None) -> Array:
    """The rows of the labels in the table "label"; called where `net` is being applied, it makes the table.

    Args:
        net: a module with `num_classes` and `null_label`.
        batch: B.
        cond: {"label": int32 [B]}; where there is no label, all are null.
        features: width of the table.
        init: of the table; None for the standard normal.

    Returns:
        float32 [B, features]. A label out of range gives NaN.

    Raises:
        UsageError: a label that does not fit, or none where the table has no null row.
    """
    rows = net.num_classes + bool(net.null_label)
    table = nn.Embed(rows, features, embedding_init=init or nn.initializers.normal(1.0), name="label")
    missing = (cond or {}).get("label") is None
    if missing and not net.null_label and not net.is_initializing():
        raise UsageError("cond['label'] is missing: this network has no null label")
    label = label_of(cond, batch, rows - 1)
    if missing:
        return table(label)
    known = (label >= 0) & (label < rows)
    return jnp.where(known[:, None], table(jnp.clip(label, 0, rows - 1)), jnp.nan)


def _vector(cond: Mapping[str, Any], name: str, shape: tuple[int | None, ...]) -> Array:
    given = cond.get(name)
    text = str(shape).replace("None", "C")
    if given is None:
        raise UsageError(f"cond[{name!r}] is missing: this network needs one of shape {text}")
    value = jnp.asarray(given, jnp.float32)
    if value.ndim != len(shape) or any(s not in (None, v) for s, v in zip(shape, value.shape, strict=True)):
        raise UsageError(f"cond[{name!r}] has shape {value.shape}: allowed is {text}")
    return value
