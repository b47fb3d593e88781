"""The config.json of a `UNet`: what the fields say of the network's function, said in diffusers' keys."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.convert.diffusers.keys import CONDITIONING, DOWN, MODEL, TIME, UP, checked
from jaxdiff.convert.diffusers.network import fields
from jaxdiff.convert.diffusers.values import bad, lists
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.unet import UNet
from jaxdiff.models.unet_fields import per_level


def config(spec: Spec) -> dict[str, Any]:
    """The config.json of a network: the one it was read from while the fields still say the same, else one made of
    the fields.

    Args:
        spec: of network "unet", for images.

    Returns:
        A dict for `json.dumps`, without "_class_name".

    Raises:
        UsageError: a field that no UNet2DModel has.

    Examples:
        >>> made = config(Spec("unet", {"channels": 64, "channel_mult": (1, 2), "norm_groups": 32}, (32, 32, 3)))
        >>> made["block_out_channels"], made["down_block_types"]
        ([64, 128], ['DownBlock2D', 'AttnDownBlock2D'])
    """
    if spec.network != "unet" or len(spec.shape) != 3:
        raise bad("network, shape", f"{spec.network!r}, {spec.shape}", f"'unet' for images (H, W, C) as {MODEL}")
    net = UNet(**spec.fields)
    if net.time_embedding == "fourier" and (spec.prediction, spec.time_input.get("name")) != ("eps", "log_sigma"):
        both = f"{spec.prediction!r}, {spec.time_input}"
        raise bad("prediction, time_input", both, "'eps', {'name': 'log_sigma'} with time_embedding='fourier'")
    want = _said(net, spec.shape)
    kept = spec.layout.get("config")
    if isinstance(kept, Mapping):
        read = checked(kept)
        if _said(UNet(**fields(read)), shape(read)) == want:
            return lists(kept)
    made = _made(net, spec.shape)
    got = _said(UNet(**fields(checked(made))), spec.shape)
    for name, value in want.items():
        if value != got[name]:
            raise bad(name, value, f"{lists(got[name])} for a {MODEL}, as the other fields are")
    return lists(made)


def shape(c: dict[str, Any]) -> tuple[int, ...]:
    """The shape of an example, (H, W, C), from all keys of a configuration.

    Examples:
        >>> shape({"sample_size": 32, "in_channels": 3})
        (32, 32, 3)
    """
    size = c["sample_size"]
    return (*(size if isinstance(size, tuple) else (size, size)), c["in_channels"])


def _said(net: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    """All that a UNet's fields say of its function for examples of one shape, one form for each thing said."""
    levels, blocks, ends = _said_of_levels(net, max(shape[:-1])), _said_of_blocks(net), _said_of_ends(net, shape)
    said = {"shape": shape, **levels, **blocks, **ends}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in said.items()}


def _ways(net: UNet, size: int) -> tuple[tuple[int, ...], ...]:
    """The levels that attend, on the way down and on the way up."""
    levels = range(len(net.channel_mult))
    return tuple(tuple(level for level in levels if net.attends(size, level, way)) for way in (0, 1))


def _said_of_levels(net: UNet, size: int) -> dict[str, Any]:
    levels, ways = range(len(net.channel_mult)), _ways(net, size)
    attended = sorted(
        {net.width(level) for way in ways for level in way}
        | ({net.width(levels[-1])} if net.mid == "attention" else set())
    )
    return {
        "channels": tuple(net.width(level) for level in levels),
        "first_channels": net.first_channels or net.channels,
        "num_res_blocks": tuple(per_level(net.num_res_blocks, level) for level in levels),
        "attention_levels": ways,
        "attention, attention_last": (net.attention, bool(net.attention_last and ways[1])) if attended else (),
        "num_heads, head_dim": tuple(net.num_heads if net.head_dim is None else w // net.head_dim for w in attended),
        "context_dim": net.context_dim,
    }


def _said_of_blocks(net: UNet) -> dict[str, Any]:
    levels = range(len(net.channel_mult))
    down = tuple(per_level(net.downsample, level) for level in levels[:-1])
    up = tuple(per_level(net.upsample, level) for level in levels[1:])
    pyramids = (net.progressive_input, net.progressive_output) if len(levels) > 1 else ("none", "none")
    filters = {*down, *up, *pyramids} - {"conv", "none"}
    return {
        "mid": net.mid,
        "dropout": net.dropout,
        "norm_groups": net.norm_groups,
        "norm_epsilon": net.norm_epsilon,
        "norm_group_size": net.norm_group_size,
        "conditioning": net.conditioning,
        "downsample": down,
        "upsample": up,
        "downsample_padding": net.downsample_padding if "conv" in down else None,
        "progressive_input, progressive_output": pyramids,
        "fir": tuple(net.fir) if filters else (),
        "resample_shortcut": net.resample_shortcut and "block" in (*down, *up),
        "skip_scale": net.skip_scale,
        "mid_skip_scale": None if net.mid == "none" else net.mid_skip_scale or net.skip_scale,
    }


def _said_of_ends(net: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    rows = net.num_classes + bool(net.null_label) if net.num_classes else 0
    return {
        "time_embedding": net.time_embedding,
        "freq_shift": net.freq_shift if net.time_embedding == "sinusoidal" or net.aug_level else None,
        "num_positions": net.num_positions if net.time_embedding == "learned" else None,
        "rows of the table of labels": rows,
        "label_into": net.label_into if rows else None,
        "augment_dim": net.augment_dim,
        "aug_level": net.aug_level,
        "pooled": net.pooled,
        "concat": net.concat,
        "out_channels": net.out_channels or shape[-1],
        "learned_variance": net.learned_variance,
        "channels of the features of time": net.channels,
    }


def _made(net: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    """A configuration made of the fields, as near as it can come."""
    ways, last, skip = _ways(net, max(shape[:-1])), len(net.channel_mult) - 1, net.progressive_output == "skip"
    attended = sorted({net.width(i) for way in ways for i in way} | {net.width(last)})
    scale = net.skip_scale if net.mid_skip_scale is None else net.mid_skip_scale
    types, resnet = _block_types(net, ways, skip)
    return {
        "sample_size": shape[0] if shape[0] == shape[1] else tuple(shape[:2]),
        "in_channels": shape[2],
        "out_channels": (net.out_channels or shape[2]) * (2 if net.learned_variance else 1),
        "time_embedding_type": {ours: theirs for theirs, ours in TIME.items()}[net.time_embedding],
        "freq_shift": net.freq_shift,
        "flip_sin_to_cos": False,
        "down_block_types": types[0],
        "mid_block_type": None if net.mid == "none" else "UNetMidBlock2D",
        "up_block_types": types[1][::-1],
        "block_out_channels": tuple(net.width(level) for level in range(last + 1)),
        "layers_per_block": per_level(net.num_res_blocks, 0),
        "mid_block_scale_factor": 1 / scale,
        "downsample_padding": 0 if net.downsample_padding == "same" else 1,
        "downsample_type": "resnet" if resnet[0] else "conv",
        "upsample_type": "resnet" if resnet[1] else "conv",
        "dropout": net.dropout,
        "attention_head_dim": net.head_dim if net.head_dim or net.num_heads == 1 else attended[-1] // net.num_heads,
        "norm_num_groups": None if skip else net.norm_groups,
        "attn_norm_num_groups": None if net.conditioning == "add" or skip else net.norm_groups,
        "norm_eps": net.norm_epsilon,
        "resnet_time_scale_shift": {ours: theirs for theirs, ours in CONDITIONING.items()}[net.conditioning],
        "add_attention": net.mid != "plain",
        "class_embed_type": "timestep" if net.aug_level else "identity" if net.pooled == "add" else None,
        "num_class_embeds": net.num_classes + bool(net.null_label) if net.num_classes else None,
        "num_train_timesteps": net.num_positions if net.time_embedding == "learned" else None,
    }


def _block_types(net: UNet, ways: tuple[tuple[int, ...], ...], skip: bool) -> tuple[list[tuple[str, ...]], list[bool]]:
    """The names of the levels both ways, from the first level on, and whether "resnet" is how those that attend
    resample."""
    levels = range(len(net.channel_mult))
    blocks = [[per_level(kind, i) == "block" for i in levels] for kind in (net.downsample, net.upsample)]
    # The last level is not resampled on the way down, nor the first on the way up.
    blocks[0][-1] = blocks[1][0] = False
    types, resnet = [], []
    for way, kinds in enumerate((DOWN, UP)):
        both = [(i in ways[way], blocks[way][i]) for i in levels]
        names = {(k.attends, k.skip, k.resample == "block"): name for name, k in kinds.items()}
        types.append(tuple(names[a, skip, skip or (b and not a)] for a, b in both))
        resnet.append(any(a and b for a, b in both) and not skip)
    return types, resnet
