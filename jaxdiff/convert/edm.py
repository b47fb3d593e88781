"""Weights of EDM: SongUNet (DDPM++ and NCSN++ as EDM trained them) and DhariwalUNet (ADM).

A block of theirs is a block of ours with the attention that follows it; names hold the size of the feature map. What
differs beside names and axes:

The output channels of the joined map to queries, keys and values are, for H heads of d channels, (H, d, 3); ours are
(3, H, d).

SongUNet takes a label as a vector y, one of n unit vectors or zero, and adds sqrt(n) W y + b to the features of time.
That is a table with the null label as its last row,

    row_k = sqrt(n) W_k + b,     row_n = b                                                     (1)

which is undone only to rounding: W_k = (row_k - row_n) / sqrt(n). DhariwalUNet adds W y after the maps of time, so
its null row is zero; a network with null_label=False has none.

The features of time are [sin, cos] in SongUNet as here, [cos, sin] in DhariwalUNet, whose first linear map's input
channels, and the augmentation's output channels, trade halves.

Networks of EDM's variance-exploding formulation answer -eps, x0 = x + sigma F. With layout["negative"] the
convolutions to the image change sign, and the answer is eps. They see log(sigma / 2) for time and ours log(sigma / 2)
/ 4 (`time_input` "log_sigma" with unit 2), so the frequencies of time are multiplied by layout["time_scale"] = 4. Both
are exact.

Every layer that resamples keeps its filter f as a constant f f^T / sum(f)^2: checked, and written back.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxdiff.convert.rules import CONV, CONV1, DENSE, SAME, Rule, order, permuted, scaled
from jaxdiff.convert.table import Constant, Row, layer, norm
from jaxdiff.convert.walk import Step, block, walk
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models import REGISTRY
from jaxdiff.models.attention import heads_of
from jaxdiff.models.fir import taps
from jaxdiff.models.presets.spec import Spec

FAMILY = "edm"
NETWORKS = ("song", "dhariwal")
PREFIX = "model."

_SIGNS = {"map_layer0.weight", "map_layer0.bias", "map_layer1.weight"}
_BLOCK = {"norm1": "norm0", "conv1": "conv0", "time": "affine", "norm2": "norm1", "conv2": "conv1", "shortcut": "skip"}


def prefix(names: Collection[str]) -> str:
    """What stands before every name: "model." in a preconditioned network, "" in a bare one.

    Args:
        names: of all tensors in a file.

    Returns:
        `layout["prefix"]` for it.

    Examples:
        >>> prefix(["model.map_layer0.weight"])
        'model.'
    """
    return PREFIX if any(name.startswith(f"{PREFIX}map_layer0.") for name in names) else ""


def recognises(names: Collection[str]) -> bool:
    """Whether these are the tensors of a network of this family.

    Args:
        names: of all tensors in a file.

    Returns:
        True for EDM's networks, with or without the prefix of their preconditioner.

    Examples:
        >>> recognises(["map_layer0.weight", "map_layer0.bias", "map_layer1.weight"])
        True
    """
    before = prefix(names)
    return {before + sign for sign in _SIGNS} <= set(names)


def table(spec: Spec) -> list[Row | Constant]:
    """The rows of a U-Net, in the order in which they are used.

    Args:
        spec: of network "unet", with layout["network"] "song" or "dhariwal", and perhaps layout["prefix"] ("model."
            unless given), layout["negative"] and layout["time_scale"].

    Returns:
        One row for every parameter of ours, one constant for every filter of theirs.

    Raises:
        UsageError: a network or fields that theirs cannot have.

    Examples:
        >>> fields = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
        >>> spec = Spec("unet", fields, (8, 8, 3), layout={"network": "song"})
        >>> table(spec)[0].theirs
        ('model.map_layer0.weight',)
    """
    if spec.network != "unet":
        raise UsageError(f"network is {spec.network!r}: allowed for weights of the family 'edm' is unet")
    if spec.layout.get("network") not in NETWORKS:
        raise unknown("layout['network']", spec.layout.get("network"), NETWORKS)
    net: Any = REGISTRY[spec.network](**spec.fields)
    before = spec.layout.get("prefix", PREFIX)
    rows = (*_mapping(net, spec.layout), *_network(net, max(spec.shape[:-1]), spec.layout))
    return [_prefixed(row, before) for row in rows]


def _prefixed(row: Row | Constant, before: str) -> Row | Constant:
    if isinstance(row, Constant):
        return replace(row, theirs=before + row.theirs)
    return row._replace(theirs=tuple(before + name for name in row.theirs))


def _mapping(net: Any, layout: dict[str, Any]) -> Iterator[Row]:
    """From time, label and augmentation to the embedding."""
    song = layout["network"] == "song"
    half = net.channels // 2
    halves = np.r_[half : 2 * half, :half]
    yield from layer("time/dense0", "map_layer0", DENSE if song else permuted(DENSE, halves, axis=0))
    yield from layer("time/dense1", "map_layer1", DENSE)
    if net.time_embedding == "fourier":
        yield Row("time/fourier/freqs", ("map_noise.freqs",), scaled(SAME, layout.get("time_scale", 1.0)))
    if net.augment_dim:
        yield Row("augment/kernel", ("map_augment.weight",), DENSE if song else permuted(DENSE, halves))
    if not net.num_classes:
        return
    if song != (net.label_into == "features") or (song and not net.null_label):
        raise UsageError(
            f"label_into is {net.label_into!r}, null_label {net.null_label}: allowed for {layout['network']!r} is "
            + ("'features' with True" if song else "'embedding'")
        )
    if song:
        yield Row("label/embedding", ("map_label.weight", "map_label.bias"), _song_labels(net.num_classes))
    else:
        yield Row("label/embedding", ("map_label.weight",), _null_row(DENSE) if net.null_label else DENSE)


def _network(net: Any, size: int, layout: dict[str, Any]) -> Iterator[Row | Constant]:
    """The way of x."""
    yield from layer("conv_in", f"enc.{size}x{size}_conv", CONV)
    for step in walk(net, size):
        # What resamples stands at the size that it makes.
        level = step.level + (step.resamples if step.way == "down" else -step.resamples)
        here = f"{'enc' if step.way == 'down' else 'dec'}.{size >> level}x{size >> level}_"
        if step.kind == "image in":
            yield from _image_in(net, step.name, here)
        elif step.kind == "image out":
            yield from _image_out(net, step, here, layout)
        else:
            name = step.way if step.resamples else f"{'in' if step.way == 'mid' else 'block'}{step.number}"
            yield from _block(net, step, here + name)


def _block(net: Any, step: Step, theirs: str) -> Iterator[Row | Constant]:
    yield from block(step, theirs, _BLOCK)
    if step.resamples:
        yield _filter(f"{theirs}.conv0", net.fir)
        yield _filter(f"{theirs}.skip", net.fir)
    if step.attention:
        heads = heads_of(step.features, net.num_heads, net.head_dim)
        ours_first = order((heads, step.features // heads, 3), (2, 0, 1))
        yield from norm(f"{step.attention}/norm", f"{theirs}.norm2")
        qkv = permuted(CONV1, ours_first), permuted(SAME, ours_first)
        yield from layer(f"{step.attention}/qkv", f"{theirs}.qkv", *qkv)
        yield from layer(f"{step.attention}/proj", f"{theirs}.proj", CONV1)


def _image_in(net: Any, ours: str, here: str) -> Iterator[Row | Constant]:
    if net.progressive_input == "skip":
        yield _filter(here + "aux_down", net.fir)
        yield from layer(ours, here + "aux_skip", CONV1)
    else:
        yield from layer(f"{ours}/conv", here + "aux_residual", CONV)
        yield _filter(here + "aux_residual", net.fir)


def _image_out(net: Any, step: Step, here: str, layout: dict[str, Any]) -> Iterator[Row | Constant]:
    song = layout["network"] == "song"
    last = -1.0 if layout.get("negative") else 1.0
    yield from norm(step.norm, f"{here}aux_norm" if song else "out_norm")
    yield from layer(step.name, f"{here}aux_conv" if song else "out_conv", scaled(CONV, last), scaled(SAME, last))
    if song and net.progressive_output == "skip" and step.level < len(net.channel_mult) - 1:
        yield _filter(here + "aux_up", net.fir)


def _filter(theirs: str, fir: Sequence[float]) -> Constant:
    f = taps(fir)
    return Constant(f"{theirs}.resample_filter", np.outer(f, f).astype(np.float32)[None, None], tolerance=1e-6)


def _song_labels(labels: int) -> Rule:
    """Equation (1)."""
    root = np.sqrt(labels)

    def read(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        rows = root * weight.T.astype(np.float64) + bias
        return np.concatenate([rows, bias[None]])

    def write(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return (rows[:-1].astype(np.float64) - rows[-1:]).T / root, rows[-1]

    return Rule("labels", read, write)


def _null_row(rule: Rule) -> Rule:
    """A table of theirs with a row of zeros after it."""

    def write(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        if rows[-1].any():
            raise UsageError("label/embedding has a null row other than 0: theirs has none, so it cannot be written")
        return rule.write(rows[:-1])

    return Rule("null row", lambda w: np.pad(rule.read(w), ((0, 1), (0, 0))), write)
