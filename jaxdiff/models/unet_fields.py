"""What the fields of a U-Net may be: one form for each value, and a line of text for a wrong one."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.conditioning import LABEL_INTO, POOLED
from jaxdiff.models.embedding import TIME_EMBEDDINGS
from jaxdiff.models.fir import taps
from jaxdiff.models.layers import CONDITIONING
from jaxdiff.models.resample import DOWNSAMPLE, PADDING, UPSAMPLE

ATTENTION = ("self", "transformer")
MID = ("attention", "plain", "none")
PROGRESSIVE_INPUT = ("none", "skip", "residual")
PROGRESSIVE_OUTPUT = ("none", "skip")
REMAT = ("none", "convs", "blocks")

_CHOICES = {
    "mid": MID, "attention": ATTENTION, "conditioning": CONDITIONING, "downsample": DOWNSAMPLE, "upsample": UPSAMPLE,
    "downsample_padding": PADDING, "progressive_input": PROGRESSIVE_INPUT, "progressive_output": PROGRESSIVE_OUTPUT,
    "time_embedding": TIME_EMBEDDINGS, "label_into": LABEL_INTO, "pooled": POOLED, "remat": REMAT,
}  # fmt: skip
_LEAST = {"channels": 4, "num_res_blocks": 1, "num_heads": 1, "depth": 1, "norm_groups": 1, "norm_group_size": 1,
          "num_positions": 1, "num_classes": 0, "augment_dim": 0, "context_dim": 0}  # fmt: skip
_PER_LEVEL = ("num_res_blocks", "downsample", "upsample", "depth")
_NUMBERS = ("dropout", "norm_epsilon", "skip_scale", "mid_skip_scale", "freq_shift")
_SWITCHES = ("null_label", "aug_level", "flash", "resample_shortcut", "attention_last", "learned_variance")
_SEQUENCES = ("channel_mult", "attention_resolutions", "fir", "concat")


def bad(name: str, value: object, allowed: str) -> UsageError:
    """The error for a value that is not allowed."""
    return UsageError(f"{name} is {value}: allowed is {allowed}")


def per_level(value: Any, level: int) -> Any:
    """The value of a level, where a field has one for all or one for each."""
    return value[level] if isinstance(value, tuple) else value


def check(net: Any) -> None:
    """Bring the fields of a module into one form, so that a list from a config file or "bfloat16" hashes and compares
    like the rest, and refuse what cannot work.

    Args:
        net: a `jaxdiff.models.unet.Encoder`, being built.

    Raises:
        UsageError: naming a field, its value and what is allowed.
    """
    for name in (*_SEQUENCES, *_PER_LEVEL):
        value = getattr(net, name, None)
        if isinstance(value, Sequence) and not isinstance(value, str):
            object.__setattr__(net, name, tuple(value))
        elif name in _SEQUENCES:
            raise bad(name, repr(value), "a list")
    if net.attention_levels is not None:
        ways = net.attention_levels
        lists = isinstance(ways, Sequence) and all(isinstance(way, Sequence) for way in ways)
        if not lists or len(ways) != 2 or not all(_whole(level, 0) for way in ways for level in way):
            raise bad("attention_levels", ways, "two lists of levels, on the way down and on the way up")
        object.__setattr__(net, "attention_levels", tuple(tuple(way) for way in ways))
    try:
        if net.dtype is None:  # which NumPy takes for float64
            raise TypeError
        object.__setattr__(net, "dtype", jnp.dtype(net.dtype))
    except TypeError:
        raise bad("dtype", net.dtype, "a floating-point type") from None
    if not jnp.issubdtype(net.dtype, jnp.floating):
        raise bad("dtype", net.dtype, "a floating-point type")
    for name in _NUMBERS:
        value = getattr(net, name)
        if not _number(value) and not (name == "mid_skip_scale" and value is None):
            raise bad(name, repr(value), "a number")
    for name in _SWITCHES:
        if not isinstance(getattr(net, name, False), bool):
            raise bad(name, repr(getattr(net, name)), "True or False")
    _check_widths(net)
    if net.fir:
        taps(net.fir)
    if not 0 <= net.freq_shift < net.channels // 2:
        raise bad("freq_shift", net.freq_shift, f"a number in [0, {net.channels // 2})")
    if not net.norm_epsilon > 0:
        raise bad("norm_epsilon", net.norm_epsilon, "a number > 0")
    for name, least in _LEAST.items():
        for value in _each(net, name):
            if not _whole(value, least):
                raise bad(name, value, f"a whole number, {least} or more")
    for name, allowed in _CHOICES.items():
        for value in _each(net, name):
            if value not in allowed:
                raise unknown(name, value, allowed)
    for name in ("out_channels", "head_dim", "first_channels"):
        value = getattr(net, name, None)
        if value is not None and not _whole(value, 1):
            raise bad(name, value, "None or a whole number, 1 or more")
    if not all(_whole(v, 1) for v in net.attention_resolutions):
        raise bad("attention_resolutions", net.attention_resolutions, "whole numbers, each 1 or more")
    if not 0 <= net.dropout < 1:
        raise bad("dropout", net.dropout, "a rate in [0, 1)")
    if net.label_into == "features" and net.time_embedding == "learned":
        raise bad("label_into", "'features'", "'embedding' with time_embedding='learned'")


def _check_widths(net: Any) -> None:
    levels = len(net.channel_mult)
    if not levels:
        raise bad("channel_mult", net.channel_mult, "one number for each level, at least one")
    for name in _PER_LEVEL:
        value = getattr(net, name, None)
        # The last level is not resampled, so its entry may be missing.
        least = levels - 1 if name == "downsample" else levels
        if isinstance(value, tuple) and not least <= len(value) <= levels:
            raise bad(name, value, f"one value, or one for each of the {levels} levels")
    if not _whole(net.channels, 4):
        raise bad("channels", net.channels, "a whole number, 4 or more")
    for mult in net.channel_mult:
        if not _number(mult) or not _near(net.channels * mult):
            raise bad("channel_mult", net.channel_mult, f"numbers > 0 that make whole multiples of {net.channels}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(width: int | float) -> bool:
    return width > 0.5 and abs(width - round(width)) < 1e-6


def _each(net: Any, name: str) -> tuple[Any, ...]:
    value = getattr(net, name, None)
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
