"""What the fields of a U-Net may be: one form for each value, and a line of text for a wrong one."""

from typing import Any

from jaxdiff.models.conditioning import LABEL_INTO, POOLED
from jaxdiff.models.embedding import TIME_EMBEDDINGS
from jaxdiff.models.fields import (
    NUMBER,
    POSITIVE,
    Rule,
    bad,
    check_fields,
    each,
    one_or_each,
    optional,
    whole,
)
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
_WAYS = Rule(
    lambda ways: isinstance(ways, tuple) and len(ways) == 2 and all(map(each(whole(0)).good, ways)),
    "two lists of levels, on the way down and on the way up",
)
_RULES = {
    "channels": whole(4), "first_channels": optional(whole(1)),
    "channel_mult": each(NUMBER), "num_res_blocks": one_or_each(whole(1)), "depth": one_or_each(whole(1)),
    "attention_resolutions": each(whole(1)), "attention_levels": optional(_WAYS),
    "num_heads": whole(1), "head_dim": optional(whole(1)), "context_dim": whole(0),
    "norm_groups": whole(1), "norm_group_size": whole(1), "norm_epsilon": POSITIVE,
    "fir": each(NUMBER), "skip_scale": NUMBER, "mid_skip_scale": optional(NUMBER),
    "freq_shift": NUMBER, "num_positions": whole(1), "augment_dim": whole(0),
    "concat": each(Rule(lambda name: isinstance(name, str), "a name")),
}  # fmt: skip


def per_level(value: Any, level: int) -> Any:
    """The value of a level, where a field has one for all or one for each."""
    return value[level] if isinstance(value, tuple) else value


def check(net: Any) -> None:
    """Bring the fields of a module into one form, and refuse what cannot work; see `jaxdiff.models.fields`.

    Args:
        net: a `jaxdiff.models.unet.Encoder`, being built.

    Raises:
        UsageError: naming a field, its value and what is allowed.
    """
    check_fields(net, _RULES, _CHOICES)
    levels = len(net.channel_mult)
    if not levels:
        raise bad("channel_mult", net.channel_mult, "one number for each level, at least one")
    if not all(_whole_multiple(net.channels * mult) for mult in net.channel_mult):
        raise bad("channel_mult", net.channel_mult, f"numbers > 0 that make whole multiples of {net.channels}")
    for name in ("num_res_blocks", "downsample", "upsample", "depth"):
        value = getattr(net, name, None)
        # The last level is not resampled, so its entry may be missing.
        least = levels - 1 if name == "downsample" else levels
        if isinstance(value, tuple) and not least <= len(value) <= levels:
            raise bad(name, value, f"one value, or one for each of the {levels} levels")
    if net.fir:
        taps(net.fir)
    if not 0 <= net.freq_shift < net.channels // 2:
        raise bad("freq_shift", net.freq_shift, f"a number in [0, {net.channels // 2})")
    if net.label_into == "features" and net.time_embedding == "learned":
        raise bad("label_into", net.label_into, "'embedding' with time_embedding='learned'")


def _whole_multiple(width: int | float) -> bool:
    return 0.5 < width < float("inf") and abs(width - round(width)) < 1e-6
