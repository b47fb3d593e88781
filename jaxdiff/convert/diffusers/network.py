"""The fields of a `UNet` that a UNet2DModel's configuration means; what they cannot say is refused.

The Skip blocks (NCSN++) do not follow norm_num_groups but have rules of their own, which for few channels are not
those of NCSN++; where ours differ the configuration is refused.
"""

import math
from collections.abc import Iterator
from typing import Any

from jaxdiff.convert.diffusers.keys import CONDITIONING, COUNT, DOWN, RESAMPLE, TIME, UP, Blocks
from jaxdiff.convert.diffusers.values import bad

_FIR = (1, 3, 3, 1)
_SKIP = {
    "norm_groups": 32, "norm_group_size": 4, "attention_last": True, "fir": _FIR, "resample_shortcut": True,
    "skip_scale": math.sqrt(0.5), "progressive_input": "skip", "progressive_output": "skip",
}  # fmt: skip


def fields(c: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `UNet`.

    Args:
        c: all keys of a configuration, as of `jaxdiff.convert.diffusers.keys.checked`.

    Returns:
        Arguments of `UNet`.

    Raises:
        UsageError: keys that do not go together, or that no `UNet` can be.

    Examples:
        >>> from jaxdiff.convert.diffusers.keys import checked
        >>> fields(checked({"sample_size": 32}))["channel_mult"]
        (1, 2, 3, 4)
    """
    down, up = _levels(c)
    widths, mid = c["block_out_channels"], c["mid_block_type"] is not None
    skip, ways = down[0].skip, tuple(tuple(i for i, blocks in enumerate(way) if blocks.attends) for way in (down, up))
    _check_channels(c, skip)
    _check_conditioning(c)
    _check_heads(c, {widths[i] for way in ways for i in way}, mid)
    _check_groups(c, skip, mid)
    return {
        "channels": widths[0],
        "channel_mult": tuple(w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths),
        "num_res_blocks": c["layers_per_block"],
        "attention_levels": ways,
        "mid": ("attention" if c["add_attention"] else "plain") if mid else "none",
        "mid_skip_scale": 1 / c["mid_block_scale_factor"],
        "dropout": c["dropout"],
        "head_dim": c["attention_head_dim"],
        "norm_epsilon": c["norm_eps"],
        "conditioning": CONDITIONING[c["resnet_time_scale_shift"]],
        "downsample": tuple(blocks.resample or RESAMPLE[c["downsample_type"]] for blocks in down),
        "upsample": tuple(blocks.resample or RESAMPLE[c["upsample_type"]] for blocks in up),
        "downsample_padding": "symmetric" if c["downsample_padding"] else "same",
        **_embedding(c),
        "learned_variance": c["out_channels"] == 2 * c["in_channels"],
        **(_SKIP if skip else {"norm_groups": c["norm_num_groups"]}),
    }


def _embedding(c: dict[str, Any]) -> dict[str, Any]:
    """What the network is told of time, label and the rest."""
    return {
        "time_embedding": TIME[c["time_embedding_type"]],
        "freq_shift": c["freq_shift"],
        "num_positions": c["num_train_timesteps"] or 1000,
        "num_classes": (c["num_class_embeds"] or 0) if c["class_embed_type"] is None else 0,
        "null_label": False,
        "aug_level": c["class_embed_type"] == "timestep",
        "pooled": "add" if c["class_embed_type"] == "identity" else "none",
    }


def _levels(c: dict[str, Any]) -> tuple[list[Blocks], list[Blocks]]:
    """The kind of every level, on the way down and on the way up, both from the first level on."""
    levels = len(c["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        if len(c[key]) != levels:
            raise bad(key, c[key], f"one for each of the {levels} block_out_channels")
    down, up = [DOWN[name] for name in c["down_block_types"]], [UP[name] for name in c["up_block_types"]][::-1]
    if any(blocks.skip != down[0].skip for blocks in (*down, *up)):
        types = [*c["down_block_types"], *c["up_block_types"]]
        raise bad("down_block_types, up_block_types", types, "Skip blocks at every level both ways, or at none")
    return down, up


def _check_channels(c: dict[str, Any], skip: bool) -> None:
    given, first = c["in_channels"], c["block_out_channels"][0]
    if skip and given != 3:
        raise bad("in_channels", given, "3 with Skip blocks")
    if c["out_channels"] not in (given, 2 * given) or (skip and c["out_channels"] != 3):
        twice = "" if skip else f", or {2 * given} for a learned variance"
        raise bad("out_channels", c["out_channels"], f"{given}, that of the input{twice}")
    if c["time_embedding_dim"] not in (None, 4 * first):
        raise bad("time_embedding_dim", c["time_embedding_dim"], f"null, or {4 * first} with these channels")
    if first < 4:
        raise bad("block_out_channels", c["block_out_channels"], "4 or more in the first")


def _check_conditioning(c: dict[str, Any]) -> None:
    time = TIME[c["time_embedding_type"]]
    if time == "learned" and c["num_train_timesteps"] is None:
        raise bad("num_train_timesteps", None, f"{COUNT}, where time_embedding_type is learned")
    if c["class_embed_type"] == "timestep" and time != "sinusoidal":
        raise bad("class_embed_type", "timestep", "null or identity where time_embedding_type is not positional")


def _check_heads(c: dict[str, Any], attended: set[int], mid: bool) -> None:
    """Refuse heads that do not divide the channels where the network attends."""
    if mid and c["add_attention"]:
        attended = attended | {c["block_out_channels"][-1]}
    for width in sorted(attended):
        if c["attention_head_dim"] is not None and width % c["attention_head_dim"]:
            allowed = f"null, or a divisor of the {width} channels where it attends"
            raise bad("attention_head_dim", c["attention_head_dim"], allowed)


def _check_groups(c: dict[str, Any], skip: bool, mid: bool) -> None:
    """Refuse where a normalisation there has another number of groups than ours would."""
    widths, groups, mid_groups = c["block_out_channels"], c["norm_num_groups"], c["attn_norm_num_groups"]
    if groups is None and not skip:
        raise bad("norm_num_groups", None, f"{COUNT}, without Skip blocks")
    if mid and c["add_attention"]:
        if mid_groups is None and c["resnet_time_scale_shift"] != "default":
            raise bad(
                "attn_norm_num_groups", None,
                "norm_num_groups (without, this model's middle attention is not normalised), or add_attention false",
            )  # fmt: skip
        if mid_groups not in (None, groups or min(widths[-1] // 4, 32)):
            raise bad("attn_norm_num_groups", mid_groups, "norm_num_groups")
    if not skip:
        if any(width % groups for width in widths):
            raise bad("norm_num_groups", groups, f"a divisor of every one of block_out_channels {list(widths)}")
        return
    for where, channels, theirs in _skip_groups(c):
        ours = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
        if theirs != ours:
            raise bad(
                "block_out_channels", list(widths),
                f"wider: {where} has {theirs} groups of its {channels} channels, NCSN++ and ours {ours}",
            )  # fmt: skip


def _skip_groups(c: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(where, channels, groups) of the normalisations in and beside Skip blocks."""
    widths, given = c["block_out_channels"], c["norm_num_groups"]
    for level, width in enumerate(widths):
        yield "a block", width, min(width // 4, 32)
        if DOWN[c["down_block_types"][level]].attends or UP[c["up_block_types"][-1 - level]].attends:
            yield "attention", width, 32
    yield "the middle", widths[-1], given or min(widths[-1] // 4, 32)
    yield "the end", widths[0], given or min(widths[0] // 4, 32)
    channels = widths[-1]
    for level in range(len(widths) - 1, -1, -1):
        kind = c["up_block_types"][-1 - level]
        for block in range(c["layers_per_block"] + 1):
            beside = widths[max(level - 1, 0)] if block == c["layers_per_block"] else widths[level]
            # AttnSkipUpBlock2D divides only the second summand: no difference where its attention agrees.
            yield f"a block of {kind}", channels + beside, min((channels + beside) // 4, 32)
            channels = widths[level]
