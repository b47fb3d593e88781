"""Weights of score_sde: its NCSN++ (and DDPM++, which is NCSN++ without filter and image pyramid) and its DDPM.

Their modules are one list in the order of execution, `all_modules.0`, `all_modules.1`, ..: time, the first
convolution, then every block, attention, resampling and map of the pyramids by itself. Kernels of 1x1 inside attention
(and DDPM's shortcuts) are matrices W of (I, O), as here; queries, keys and values are three of them.

Networks trained with the variance-exploding SDE differ in what they are told and in what they answer. Their images y
are in [0, 1], of which the network itself makes x = 2 y - 1, ours; so with s the noise of theirs

    sigma = 2 s                                                                                (1)
    score of y = F / s = -eps / s,    F = -eps                                                 (2)
    time = log s = log(sigma / 2)                                                              (3)

By (2) the convolutions to the image change sign (layout["negative"]), and the answer is eps. By (3) time is 4 times
what `time_input` "log_sigma" with unit 2 gives, so the frequencies are multiplied by layout["time_scale"] = 4. Both are
exact. The networks of the variance-preserving SDEs have images in [-1, 1], are told 999 t and answer eps.

A table of noise levels, `sigmas`, goes with every network, used or not: layout["sigmas"] = (least, most, how many), in
their unit. It is checked, and written back.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from jaxdiff.convert.table import CONV, CONV1, DENSE, SAME, Constant, Row, Rule, clean, joined, scaled
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models import REGISTRY
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.unet import Part
from jaxdiff.models.unet_fields import per_level

FAMILY = "score_sde"
NETWORKS = ("ncsnpp", "ddpm")
PREFIX = "module."

_MOST_LEVELS = 1_000_000
_MODULE = re.compile(r"(module\.)?all_modules\.\d+\.\w")


def prefix(names: Collection[str]) -> str:
    """What stands before every name: "module." where the network was saved as its trainer holds it, else "".

    Args:
        names: of all tensors in a file.

    Returns:
        `layout["prefix"]` for it.

    Examples:
        >>> prefix(["module.sigmas"])
        'module.'
    """
    return PREFIX if f"{PREFIX}sigmas" in names else ""


def recognises(names: Collection[str]) -> bool:
    """Whether these are the tensors of a network of this family.

    Args:
        names: of all tensors in a file.

    Returns:
        True for score_sde's NCSN++, DDPM++ and DDPM, with or without the prefix of their trainer.

    Examples:
        >>> recognises(["sigmas", "all_modules.0.W", "all_modules.1.weight"])
        True
    """
    return prefix(names) + "sigmas" in names and any(_MODULE.match(name) for name in names)


def table(spec: Spec) -> list[Row | Constant]:
    """The rows of a U-Net, in the order in which they are used.

    Args:
        spec: of network "unet", with layout["network"] "ncsnpp" or "ddpm", layout["sigmas"], and perhaps
            layout["prefix"], layout["negative"] and layout["time_scale"].

    Returns:
        One row for every parameter of ours, and the constant `sigmas`.

    Raises:
        UsageError: another network, or no noise levels.

    Examples:
        >>> fields = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
        >>> spec = Spec("unet", fields, (8, 8, 3), layout={"network": "ncsnpp", "sigmas": (0.01, 50, 1000)})
        >>> table(spec)[1].theirs
        ('all_modules.0.weight',)
    """
    if spec.network != "unet":
        raise UsageError(f"network is {spec.network!r}: allowed for weights of the family 'score_sde' is unet")
    if spec.layout.get("network") not in NETWORKS:
        raise unknown("layout['network']", spec.layout.get("network"), NETWORKS)
    net: Any = REGISTRY[spec.network](**spec.fields)
    before = spec.layout.get("prefix", "")
    sigmas = Constant(f"{before}sigmas", _sigmas(spec.layout.get("sigmas")), tolerance=1e-6)
    numbered: Iterator[list[Row]] = _modules(net, max(spec.shape[:-1]), spec.layout)
    rows = [
        row._replace(theirs=tuple(f"{before}all_modules.{i}.{name}" for name in row.theirs))
        for i, module in enumerate(numbered)
        for row in module
    ]
    return [sigmas, *rows]


def _sigmas(levels: Any) -> np.ndarray:
    """The table of noise levels from layout["sigmas"], which a file may have brought."""
    match levels:
        case (int() | float() as least, int() | float() as most, int() as many) if (
            0 < least < 1e9 and 0 < most < 1e9 and 1 <= many <= _MOST_LEVELS
        ):
            return np.exp(np.linspace(np.log(most), np.log(least), many))
    text = clean(repr(levels))
    raise UsageError(f"layout['sigmas'] is {text}: needed are the least, the most and how many, all above 0")


def _modules(net: Any, size: int, layout: dict[str, Any]) -> Iterator[list[Row]]:
    """The rows of each of their modules, with names inside it."""
    ncsnpp = layout["network"] == "ncsnpp"
    last = -1.0 if layout.get("negative") else 1.0
    plan = net.plan(size)

    def block(part: Part, channels: int, *, resamples: bool = False) -> Iterator[list[Row]]:
        shortcut = channels != part.features or (resamples and net.resample_shortcut)
        yield _block(part.name, shortcut, ncsnpp)
        if part.attention:
            yield _attention(part.attention)

    def resample(part: Part, channels: int, kind: str) -> Iterator[list[Row]]:
        if kind == "block":
            yield from block(part, channels, resamples=True)
        else:
            yield _layer(f"{part.name}/conv", "Conv_0.", CONV) if kind == "conv" else []

    if net.time_embedding == "fourier":
        yield [Row("time/fourier/freqs", ("W",), scaled(SAME, layout.get("time_scale", 1.0)))]
    yield _layer("time/dense0", "", DENSE)
    yield _layer("time/dense1", "", DENSE)
    yield _layer("conv_in", "", CONV)
    widths = [net.first_channels or net.channels]
    for part in plan.down:
        if part.kind == "block":
            yield from block(part, widths[-1])
        else:
            yield from resample(part, widths[-1], per_level(net.downsample, part.level))
            if net.progressive_input == "skip":
                yield _layer(f"down_{part.level}_pyramid", "Conv_0.", CONV1)
            elif net.progressive_input == "residual":
                yield _layer(f"down_{part.level}_pyramid/conv", "Conv2d_0.", CONV)
        widths.append(part.features)

    channels = widths[-1]
    for part in plan.mid:
        yield from block(part, channels)
    for part, after in zip(plan.up, (*plan.up[1:], None), strict=True):
        if part.kind == "block":
            yield from block(part, channels + widths.pop())
            ends = after is None or after.kind != "block"
            if ends and (part.level == 0 or net.progressive_output == "skip"):
                here = f"up_{part.level}_skip_"
                norm, conv = (here + "norm", here + "conv") if part.level else ("norm_out", "conv_out")
                yield _norm(norm, "")
                yield _layer(conv, "", scaled(CONV, last), scaled(SAME, last))
        else:
            yield from resample(part, channels, per_level(net.upsample, part.level))
        channels = part.features


def _layer(ours: str, theirs: str, kernel: Rule, bias: Rule = SAME) -> list[Row]:
    return [Row(f"{ours}/kernel", (f"{theirs}weight",), kernel), Row(f"{ours}/bias", (f"{theirs}bias",), bias)]


def _matrix(ours: str, *theirs: str) -> list[Row]:
    """Matrices of (I, O) side by side."""
    rule = joined(SAME, len(theirs))
    kernels, biases = (tuple(f"{name}.{leaf}" for name in theirs) for leaf in "Wb")
    return [Row(f"{ours}/kernel", kernels, rule), Row(f"{ours}/bias", biases, rule)]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/scale", (f"{theirs}weight",), SAME), Row(f"{ours}/bias", (f"{theirs}bias",), SAME)]


def _block(ours: str, shortcut: bool, ncsnpp: bool) -> list[Row]:
    rows = [
        *_norm(f"{ours}/norm1", "GroupNorm_0."),
        *_layer(f"{ours}/conv1", "Conv_0.", CONV),
        *_layer(f"{ours}/time", "Dense_0.", DENSE),
        *_norm(f"{ours}/norm2", "GroupNorm_1."),
        *_layer(f"{ours}/conv2", "Conv_1.", CONV),
    ]
    if shortcut:
        rows += _layer(f"{ours}/shortcut", "Conv_2.", CONV1) if ncsnpp else _matrix(f"{ours}/shortcut", "NIN_0")
    return rows


def _attention(ours: str) -> list[Row]:
    return [
        *_norm(f"{ours}/norm", "GroupNorm_0."),
        *_matrix(f"{ours}/qkv", "NIN_0", "NIN_1", "NIN_2"),
        *_matrix(f"{ours}/proj", "NIN_3"),
    ]
