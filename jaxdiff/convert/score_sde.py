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
from itertools import count
from typing import Any

import numpy as np

from jaxdiff.convert.rules import CONV, CONV1, DENSE, SAME, joined, scaled
from jaxdiff.convert.table import Constant, Row, layer, norm
from jaxdiff.convert.text import clean
from jaxdiff.convert.walk import Step, block, walk
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models import REGISTRY
from jaxdiff.models.presets.spec import Spec

FAMILY = "score_sde"
NETWORKS = ("ncsnpp", "ddpm")
PREFIX = "module."

_MOST_LEVELS = 1_000_000
_BLOCK = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "time": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
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
    modules = (f"{before}all_modules.{i}" for i in count())
    return [sigmas, *_rows(net, max(spec.shape[:-1]), spec.layout, modules)]


def _sigmas(levels: Any) -> np.ndarray:
    """The table of noise levels from layout["sigmas"], which a file may have brought."""
    match levels:
        case (int() | float() as least, int() | float() as most, int() as many) if (
            0 < least < 1e9 and 0 < most < 1e9 and 1 <= many <= _MOST_LEVELS
        ):
            return np.exp(np.linspace(np.log(most), np.log(least), many))
    text = clean(repr(levels))
    raise UsageError(f"layout['sigmas'] is {text}: needed are the least, the most and how many, all above 0")


def _rows(net: Any, size: int, layout: dict[str, Any], modules: Iterator[str]) -> Iterator[Row]:
    """The rows of their modules, whose names come one after the other."""
    if net.time_embedding == "fourier":
        yield Row("time/fourier/freqs", (f"{next(modules)}.W",), scaled(SAME, layout.get("time_scale", 1.0)))
    yield from layer("time/dense0", next(modules), DENSE)
    yield from layer("time/dense1", next(modules), DENSE)
    yield from layer("conv_in", next(modules), CONV)
    for step in walk(net, size):
        theirs = next(modules)
        if step.kind == "block":
            yield from _block(step, theirs, layout["network"] == "ncsnpp")
        elif step.kind == "conv":
            yield from layer(f"{step.name}/conv", f"{theirs}.Conv_0", CONV)
        elif step.kind == "image in" and net.progressive_input == "skip":
            yield from layer(step.name, f"{theirs}.Conv_0", CONV1)
        elif step.kind == "image in":
            yield from layer(f"{step.name}/conv", f"{theirs}.Conv2d_0", CONV)
        elif step.kind == "image out":
            last = -1.0 if layout.get("negative") else 1.0
            yield from norm(step.norm, theirs)
            yield from layer(step.name, next(modules), scaled(CONV, last), scaled(SAME, last))
        if step.attention:
            yield from _attention(step.attention, next(modules))


def _block(step: Step, theirs: str, ncsnpp: bool) -> Iterator[Row]:
    yield from block(step, theirs, _BLOCK | ({"shortcut": "Conv_2"} if ncsnpp else {}))
    if step.shortcut and not ncsnpp:
        yield from _matrix(f"{step.name}/shortcut", f"{theirs}.NIN_0")


def _matrix(ours: str, *theirs: str) -> list[Row]:
    """Matrices of (I, O) side by side."""
    rule = joined(SAME, len(theirs))
    kernels, biases = (tuple(f"{name}.{leaf}" for name in theirs) for leaf in "Wb")
    return [Row(f"{ours}/kernel", kernels, rule), Row(f"{ours}/bias", biases, rule)]


def _attention(ours: str, theirs: str) -> Iterator[Row]:
    yield from norm(f"{ours}/norm", f"{theirs}.GroupNorm_0")
    yield from _matrix(f"{ours}/qkv", *(f"{theirs}.NIN_{i}" for i in range(3)))
    yield from _matrix(f"{ours}/proj", f"{theirs}.NIN_3")
