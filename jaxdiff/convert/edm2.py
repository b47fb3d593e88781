"""Weights of EDM2 (github.com/NVlabs/edm2), as state dicts; its published pickles are code, and are refused.

Blocks are named there by the size of their maps, "64x64_block0", in an encoder and a decoder; here by level. The output
channels of the joined map to queries, keys and values are (H, d, 3) there, for H heads of d channels, and (3, H, d)
here. Kernels are raw in both, so a round trip is exact.

`Spec.layout["prefix"]` says which module the state dict is of: "unet." for the whole of it (the published networks),
which also holds the 128 features of the uncertainty by which training weighs the loss. The denoiser has no use for
them: any values are read, and ones are written. "" is for the U-Net alone.
"""

from collections.abc import Collection, Iterator

import numpy as np

from jaxdiff.convert.rules import CONV, CONV1, DENSE, SAME, order, permuted
from jaxdiff.convert.table import Constant, Row
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.edm2 import EDM2UNet, Part
from jaxdiff.models.presets.spec import Spec

FAMILY = "edm2"
PREFIXES = ("", "unet.")

_SIGNS = {"emb_fourier.freqs", "emb_noise.weight", "out_gain", "out_conv.weight"}
_UNCERTAINTY = {"logvar_fourier.freqs": (128,), "logvar_fourier.phases": (128,), "logvar_linear.weight": (1, 128)}


def prefix(names: Collection[str]) -> str:
    """Which module a file is of.

    Args:
        names: of all tensors in a file.

    Returns:
        `layout["prefix"]` for it: "unet." for the whole, "" for the U-Net alone.

    Examples:
        >>> prefix(["unet.out_gain"])
        'unet.'
    """
    return "unet." if "unet.out_gain" in names else ""


def recognises(names: Collection[str]) -> bool:
    """Whether these are the tensors of a network of this family.

    Args:
        names: of all tensors in a file.

    Returns:
        True for EDM2's, with or without the preconditioning around it.

    Examples:
        >>> recognises(["emb_fourier.freqs", "emb_noise.weight", "out_gain", "out_conv.weight"])
        True
    """
    return any({before + name for name in _SIGNS} <= set(names) for before in PREFIXES)


def table(spec: Spec) -> list[Row | Constant]:
    """The rows of an EDM2 network, in the order in which they are used.

    Args:
        spec: of network "edm2", with layout["prefix"] "" or "unet.".

    Returns:
        One row for every parameter of ours, and the uncertainty's tensors where there are any.

    Raises:
        UsageError: another network, or an unknown prefix.

    Examples:
        >>> table(Spec("edm2", {"channels": 64, "channel_mult": (1,)}, (8, 8, 3)))[0].theirs
        ('emb_fourier.freqs',)
    """
    if spec.network != "edm2":
        raise UsageError(f"network is {spec.network!r}: allowed for weights of the family 'edm2' is edm2")
    before = spec.layout.get("prefix", "")
    if before not in PREFIXES:
        raise unknown("layout['prefix']", before, PREFIXES)
    rows = [Row(ours, (before + theirs,), rule) for ours, theirs, rule in _rows(EDM2UNet(**spec.fields), spec)]
    if not before:
        return [*rows]
    return [*rows, *(Constant(k, np.ones(v, np.float32), tolerance=np.inf) for k, v in _UNCERTAINTY.items())]


def _rows(net: EDM2UNet, spec: Spec) -> Iterator[tuple]:
    height, width = spec.shape[:-1]

    def at(level: int) -> str:
        if height != width:
            raise UsageError(f"shape is {spec.shape}: allowed for weights of the family 'edm2' is a square image")
        return f"{height >> level}x{height >> level}"

    yield "fourier/freqs", "emb_fourier.freqs", SAME
    yield "fourier/phases", "emb_fourier.phases", SAME
    yield "time/kernel", "emb_noise.weight", DENSE
    if net.num_classes:
        yield "label/kernel", "emb_label.weight", DENSE
    yield "conv_in/kernel", f"enc.{at(0)}_conv.weight", CONV
    channels, skips = net.channels, [net.channels]
    for part in net.plan(height):
        if part.skip:
            channels += skips.pop()
        theirs = f"{'enc' if part.encoder else 'dec'}.{at(part.level)}_{_kind(part)}"
        yield f"{part.name}/gain", f"{theirs}.emb_gain", SAME
        yield f"{part.name}/conv1/kernel", f"{theirs}.conv_res0.weight", CONV
        yield f"{part.name}/time/kernel", f"{theirs}.emb_linear.weight", DENSE
        yield f"{part.name}/conv2/kernel", f"{theirs}.conv_res1.weight", CONV
        if channels != part.features:
            yield f"{part.name}/shortcut/kernel", f"{theirs}.conv_skip.weight", CONV1
        if part.attention:
            heads_first = order((part.features // net.head_dim, net.head_dim, 3), (2, 0, 1))
            yield f"{part.name}/attn/qkv/kernel", f"{theirs}.attn_qkv.weight", permuted(CONV1, heads_first)
            yield f"{part.name}/attn/proj/kernel", f"{theirs}.attn_proj.weight", CONV1
        channels = part.features
        if part.encoder:
            skips.append(channels)
    yield "conv_out/kernel", "out_conv.weight", CONV
    yield "gain", "out_gain", SAME


def _kind(part: Part) -> str:
    """The last word of a block's name there."""
    if part.name.startswith("mid"):
        return f"in{part.name[-1]}"
    return part.resample if part.resample != "keep" else f"block{part.name.rsplit('_', 1)[1]}"
