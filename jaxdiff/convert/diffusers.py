"""diffusers' UNet2DModel: configuration and weights, both ways.

What its config.json says becomes the fields of a `UNet`; what it can say that a `UNet` cannot is refused. Of the
weights these are more than renamed.

Queries, keys and values are three maps there, one here. The features of time are [sin, cos] here; with
flip_sin_to_cos they are [cos, sin] there, so the input channels of the first map trade halves.

With time_embedding_type "fourier" the network n sees sin and cos of 2 pi w ln(sigma), and the model answers

    s(x, sigma) = n(x, ln sigma) / sigma,                                                     (1)

which its scheduler takes for the score, -eps / sigma. Hence

    eps = -n(x, ln sigma),                                                                    (2)

and n is the sum of the last convolution and of those of the pyramid: with their signs changed ours predicts eps. The
time input "log_sigma" is ln(sigma) / 4, and so the frequencies are 4 w. Both are exact in floating point.

The Skip blocks (NCSN++) do not follow norm_num_groups but have rules of their own, which for few channels are not
those of NCSN++; where ours differ the configuration is refused.

Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, appendix B; Song et al., 2021, arXiv:2011.13456, appendix H.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import processes
from jaxdiff.convert import diffusers_scheduler
from jaxdiff.convert.files import tuples
from jaxdiff.convert.table import CONV, CONV1, DENSE, SAME, Row, Rule, joined, permuted, scaled
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.unet import UNet
from jaxdiff.models.unet_fields import per_level

FAMILY = "diffusers"
MODEL = "UNet2DModel"

_FIR = (1, 3, 3, 1)
_SIGNS = {"conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.norm1.weight", "conv_out.weight"}
_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Left in config.json by diffusers' own averaging of parameters; they say nothing of the network.
_AVERAGING = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}


class _Blocks(NamedTuple):
    """A kind of level. `resample` None: as downsample_type or upsample_type says."""

    attends: bool = False
    skip: bool = False
    resample: str | None = "conv"


_DOWN = {
    "DownBlock2D": _Blocks(),
    "AttnDownBlock2D": _Blocks(attends=True, resample=None),
    "ResnetDownsampleBlock2D": _Blocks(resample="block"),
    "SkipDownBlock2D": _Blocks(skip=True, resample="block"),
    "AttnSkipDownBlock2D": _Blocks(attends=True, skip=True, resample="block"),
}
_UP = {
    "UpBlock2D": _Blocks(),
    "AttnUpBlock2D": _Blocks(attends=True, resample=None),
    "ResnetUpsampleBlock2D": _Blocks(resample="block"),
    "SkipUpBlock2D": _Blocks(skip=True, resample="block"),
    "AttnSkipUpBlock2D": _Blocks(attends=True, skip=True, resample="block"),
}
_RESAMPLE = {"conv": "conv", "resnet": "block"}
_TIME = {"positional": "sinusoidal", "fourier": "fourier", "learned": "learned"}
_CONDITIONING = {"default": "add", "scale_shift": "scale_shift"}


class _Key(NamedTuple):
    """A key of config.json: its default, what fits, and that in words."""

    default: Any
    fits: Callable[[Any], bool]
    allowed: str


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(fits, value))


def _choice(default: Any, *others: Any) -> _Key:
    words = ["null" if value is None else str(value) for value in (default, *others)]
    return _Key(default, lambda value: any(value is v or value == v for v in (default, *others)), ", ".join(words))


def _types(*default: str, kinds: Mapping[str, Any]) -> _Key:
    return _Key(
        default,
        lambda value: _list(value, lambda v: isinstance(v, str) and v.removeprefix("UNetRes") in kinds),
        f"a list of {', '.join(kinds)}",
    )


_COUNT = "a whole number, 1 or more"
_KEYS: dict[str, _Key] = {
    "sample_size": _Key(
        None, lambda v: _whole(v) or (_list(v, _whole) and len(v) == 2), "a whole number, or a height and a width"
    ),
    "in_channels": _Key(3, _whole, _COUNT),
    "out_channels": _Key(3, _whole, _COUNT),
    "center_input_sample": _Key(
        False,
        lambda v: v is False,
        "false: 2 x - 1 before a convolution that continues its input by zeros is not linear",
    ),
    "time_embedding_type": _choice("positional", "fourier", "learned"),
    "time_embedding_dim": _Key(None, lambda v: v is None or _whole(v), "null, or 4 times the first block_out_channels"),
    "freq_shift": _Key(0, _number, "a number"),
    "flip_sin_to_cos": _choice(True, False),
    "down_block_types": _types(*("DownBlock2D", *("AttnDownBlock2D",) * 3), kinds=_DOWN),
    "mid_block_type": _choice("UNetMidBlock2D", None),
    "up_block_types": _types(*(*("AttnUpBlock2D",) * 3, "UpBlock2D"), kinds=_UP),
    "block_out_channels": _Key((224, 448, 672, 896), lambda v: _list(v, _whole), "a list of whole numbers"),
    "layers_per_block": _Key(2, lambda v: _whole(v) and v <= 100, "a whole number from 1 to 100"),
    "mid_block_scale_factor": _Key(1, lambda v: _number(v) and v > 0, "a number above 0"),
    "downsample_padding": _choice(1, 0),
    "downsample_type": _choice("conv", "resnet"),
    "upsample_type": _choice("conv", "resnet"),
    "dropout": _Key(0.0, lambda v: _number(v) and 0 <= v < 1, "a rate in [0, 1)"),
    "act_fn": _choice("silu", "swish"),
    "attention_head_dim": _Key(8, lambda v: v is None or _whole(v), f"null, or {_COUNT}"),
    "norm_num_groups": _Key(32, lambda v: v is None or _whole(v), f"null, or {_COUNT}"),
    "attn_norm_num_groups": _Key(None, lambda v: v is None or _whole(v), f"null, or {_COUNT}"),
    "norm_eps": _Key(1e-5, lambda v: _number(v) and v > 0, "a number above 0"),
    "resnet_time_scale_shift": _choice("default", "scale_shift"),
    "add_attention": _choice(True, False),
    "class_embed_type": _choice(None, "timestep", "identity"),
    "num_class_embeds": _Key(None, lambda v: v is None or _whole(v), f"null, or {_COUNT}"),
    "num_train_timesteps": _Key(None, lambda v: v is None or _whole(v), f"null, or {_COUNT}"),
}


def recognises(names: Collection[str]) -> bool:
    """Whether these are the tensors of a UNet2DModel.

    Args:
        names: of all tensors in a file.

    Returns:
        False for diffusers' other networks (of Stable Diffusion and the rest).

    Examples:
        >>> names = ["conv_in.weight", "time_embedding.linear_1.weight", "conv_out.weight"]
        >>> recognises([*names, "down_blocks.0.resnets.0.norm1.weight"])
        True
    """
    others = ("transformer_blocks", "add_embedding", "encoder_hid_proj", "controlnet", "temp_conv", "motion_modules")
    return set(names) >= _SIGNS and not any(other in name for name in names for other in others)


def renamed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors under the names that diffusers has today. Before 0.15 the maps of attention were query, key, value and
    proj_attn; most published DDPM weights are that old.

    Args:
        tensors: by name, old or new.

    Returns:
        The same tensors; what is not of attention under its own name.

    Examples:
        >>> list(renamed({"mid_block.attentions.0.proj_attn.bias": 0}))
        ['mid_block.attentions.0.to_out.0.bias']
    """

    def today(name: str) -> str:
        *path, layer, kind = ["", *name.split(".")] if "." in name else ["", "", name]
        old = layer in _OLDER and "attentions" in path
        return ".".join([*path[1:], _OLDER[layer], kind]) if old else name

    made = {today(name): tensor for name, tensor in tensors.items()}
    return made if len(made) == len(tensors) else dict(tensors)


def spec(config: Mapping[str, Any], scheduler: Mapping[str, Any] | None = None) -> Spec:
    """What a UNet2DModel and its scheduler say, as a `Spec`.

    Args:
        config: the network's config.json as a dict; keys it lacks have diffusers' defaults.
        scheduler: scheduler_config.json as a dict. None for the defaults of DDPMScheduler, or, where
            time_embedding_type is "fourier", of ScoreSdeVeScheduler, whose data lie in [0, 1].

    Returns:
        The spec; its layout keeps both, so that `config` and `scheduler` give back what was read.

    Raises:
        UsageError: a key, value or combination that has no counterpart here.

    Examples:
        >>> made = spec({"sample_size": 32, "block_out_channels": [64, 128, 192, 192], "dropout": 0.1})
        >>> made.shape, made.fields["channel_mult"], made.process["name"]
        ((32, 32, 3), (1, 2, 3, 3), 'ddpm_linear')

    Reference: von Platen et al., Diffusers, 2022, https://github.com/huggingface/diffusers, class UNet2DModel.
    """
    checked = _checked(config)
    fields = _fields(checked)
    fourier = checked["time_embedding_type"] == "fourier"
    given = _usual(checked) if scheduler is None else scheduler
    meant = diffusers_scheduler.meaning(given)
    kind, name = checked["time_embedding_type"], given.get("_class_name")
    if fourier != (name == diffusers_scheduler.VE):
        allowed = diffusers_scheduler.VE if fourier else "one that tells the network a row or a time"
        raise _bad("scheduler", name, f"{allowed} where time_embedding_type is {kind}")
    if kind == "learned" and not (meant.steps and meant.steps <= checked["num_train_timesteps"]):
        raise _bad("num_train_timesteps", checked["num_train_timesteps"], f"the number of steps of {name} or more")
    learned = fields["learned_variance"]
    if scheduler is not None and meant.learned and not learned:
        raise _bad("out_channels", checked["out_channels"], "twice in_channels where variance_type is learned_range")
    size = checked["sample_size"]
    shape = (*(size if isinstance(size, tuple) else (size, size)), checked["in_channels"])
    layout: dict[str, Any] = {"family": FAMILY, "config": tuples(_public(config))}
    if scheduler is not None:
        layout["scheduler"] = tuples({"_class_name": name, **_public(scheduler)})
    return Spec(
        "unet", fields, shape, meant.process, meant.prediction, "none", meant.time_input, layout=layout,
        reference="a UNet2DModel of diffusers",
    )  # fmt: skip


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
    return _lists(_config(spec))


def scheduler(spec: Spec) -> dict[str, Any]:
    """The scheduler_config.json of a model: the one it was read from while the spec still says the same, else
    DDPMScheduler's, ScoreSdeVeScheduler's or FlowMatchEulerDiscreteScheduler's.

    Args:
        spec: of any model.

    Returns:
        A dict for `json.dumps`.

    Raises:
        UsageError: a process, prediction or time that no scheduler has.

    Examples:
        >>> scheduler(Spec("unet", {}, (32, 32, 3), prediction="v"))["prediction_type"]
        'v_prediction'
    """
    kept = spec.layout.get("scheduler")
    if isinstance(kept, Mapping):
        meant = diffusers_scheduler.meaning(kept)
        same = processes.make(**meant.process) == processes.make(**spec.process)
        if same and (meant.prediction, meant.time_input) == (spec.prediction, spec.time_input):
            return _lists(kept)
    return diffusers_scheduler.derived(spec)


def table(spec: Spec) -> list[Row]:
    """The rows of a UNet2DModel's weights, in the order in which they are used.

    Args:
        spec: of network "unet", for images.

    Returns:
        One row for every parameter of ours.

    Raises:
        UsageError: a field that no UNet2DModel has.

    Examples:
        >>> fields = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
        >>> table(Spec("unet", fields, (8, 8, 3)))[0]._replace(rule=None)
        Row(ours='time/dense0/kernel', theirs=('time_embedding.linear_1.weight',), rule=None)
    """
    flip = _checked(_config(spec))["flip_sin_to_cos"]
    return list(_rows(UNet(**spec.fields), max(spec.shape[:-1]), flip))


def _rows(net: Any, size: int, flip: bool) -> Iterator[Row]:
    plan, last, pyramid = net.plan(size), len(net.channel_mult) - 1, net.progressive_input == "skip"
    fourier = net.time_embedding == "fourier"
    kernel, bias = (scaled(CONV, -1.0), scaled(SAME, -1.0)) if fourier else (CONV, SAME)  # (2)
    half = net.channels // 2
    halves = permuted(DENSE, np.r_[half : 2 * half, :half, 2 * half : net.channels], axis=0) if flip else DENSE

    yield from _layer("time/dense0", "time_embedding.linear_1", halves if net.time_embedding == "sinusoidal" else DENSE)
    yield from _layer("time/dense1", "time_embedding.linear_2", DENSE)
    if fourier:
        yield Row("time/fourier/freqs", ("time_proj.weight",), scaled(SAME, 4.0))
    if net.time_embedding == "learned":
        yield Row("time/table/embedding", ("time_proj.weight",), SAME)
    if net.num_classes:
        yield Row("label/embedding", ("class_embedding.weight",), SAME)
    if net.aug_level:
        yield from _layer("aug_level/dense0", "class_embedding.linear_1", halves)
        yield from _layer("aug_level/dense1", "class_embedding.linear_2", DENSE)

    yield from _layer("conv_in", "conv_in", CONV)
    widths, number = [net.channels], 0
    for part in plan.down:
        theirs = f"down_blocks.{part.level}"
        if part.kind == "block":
            yield from _block(part.name, f"{theirs}.resnets.{number}", shortcut=widths[-1] != part.features)
            if part.attention:
                yield from _attention(part.attention, f"{theirs}.attentions.{number}")
            number += 1
        elif per_level(net.downsample, part.level) == "conv":
            yield from _layer(f"{part.name}/conv", f"{theirs}.downsamplers.0.conv", CONV)
        else:
            end = "resnet_down" if pyramid else "downsamplers.0"
            yield from _block(part.name, f"{theirs}.{end}", shortcut=net.resample_shortcut)
        if part.kind == "downsample":
            number = 0
            if pyramid:
                yield from _layer(f"down_{part.level}_pyramid", f"{theirs}.skip_conv", CONV1)
        widths.append(part.features)

    for number, part in enumerate(plan.mid):
        yield from _block(part.name, f"mid_block.resnets.{number}", shortcut=False)
        if part.attention:
            yield from _attention(part.attention, "mid_block.attentions.0")

    channels, number = widths[-1], 0
    for part in plan.up:
        theirs = f"up_blocks.{last - part.level}"
        if part.kind == "block":
            given = channels + widths.pop()
            yield from _block(part.name, f"{theirs}.resnets.{number}", shortcut=given != part.features)
            if part.attention:
                yield from _attention(part.attention, f"{theirs}.attentions.{0 if net.attention_last else number}")
            number += 1
        else:
            number = 0
            if pyramid:
                yield from _norm(f"up_{part.level}_skip_norm", f"{theirs}.skip_norm")
                yield from _layer(f"up_{part.level}_skip_conv", f"{theirs}.skip_conv", kernel, bias)
            if per_level(net.upsample, part.level) == "conv":
                yield from _layer(f"{part.name}/conv", f"{theirs}.upsamplers.0.conv", CONV)
            else:
                end = "resnet_up" if pyramid else "upsamplers.0"
                yield from _block(part.name, f"{theirs}.{end}", shortcut=net.resample_shortcut)
        channels = part.features

    yield from _norm("norm_out", "conv_norm_out")
    yield from _layer("conv_out", "conv_out", kernel, bias)


def _layer(ours: str, theirs: str, kernel: Rule, bias: Rule = SAME) -> Iterator[Row]:
    yield Row(f"{ours}/kernel", (f"{theirs}.weight",), kernel)
    yield Row(f"{ours}/bias", (f"{theirs}.bias",), bias)


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield Row(f"{ours}/scale", (f"{theirs}.weight",), SAME)
    yield Row(f"{ours}/bias", (f"{theirs}.bias",), SAME)


def _block(ours: str, theirs: str, *, shortcut: bool) -> Iterator[Row]:
    yield from _norm(f"{ours}/norm1", f"{theirs}.norm1")
    yield from _layer(f"{ours}/conv1", f"{theirs}.conv1", CONV)
    yield from _layer(f"{ours}/time", f"{theirs}.time_emb_proj", DENSE)
    yield from _norm(f"{ours}/norm2", f"{theirs}.norm2")
    yield from _layer(f"{ours}/conv2", f"{theirs}.conv2", CONV)
    if shortcut:
        yield from _layer(f"{ours}/shortcut", f"{theirs}.conv_shortcut", CONV1)


def _attention(ours: str, theirs: str) -> Iterator[Row]:
    yield from _norm(f"{ours}/norm", f"{theirs}.group_norm")
    maps = [f"{theirs}.{name}" for name in ("to_q", "to_k", "to_v")]
    yield Row(f"{ours}/qkv/kernel", tuple(f"{name}.weight" for name in maps), joined(DENSE, 3))
    yield Row(f"{ours}/qkv/bias", tuple(f"{name}.bias" for name in maps), joined(SAME, 3))
    yield from _layer(f"{ours}/proj", f"{theirs}.to_out.0", DENSE)


def _usual(c: dict[str, Any]) -> dict[str, Any]:
    """A scheduler for a network that comes without one."""
    if c["time_embedding_type"] == "fourier":
        return {"_class_name": diffusers_scheduler.VE}
    return {"_class_name": "DDPMScheduler", "num_train_timesteps": c["num_train_timesteps"] or 1000}


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every key with its value or default, each fit by itself, sequences as tuples."""
    if config.get("_class_name", MODEL) != MODEL:
        raise _bad("_class_name", config["_class_name"], MODEL)
    public = _public(config)
    for key in public:
        if key not in _KEYS and key not in _AVERAGING:
            raise unknown(f"key of a {MODEL}'s config", key, _KEYS)
    made = {key: tuples(public.get(key, known.default)) for key, known in _KEYS.items()}
    for key, known in _KEYS.items():
        if not known.fits(made[key]):
            raise _bad(key, made[key], known.allowed)
    for key in ("down_block_types", "up_block_types"):
        made[key] = tuple(name.removeprefix("UNetRes") for name in made[key])
    return made


def _fields(c: dict[str, Any]) -> dict[str, Any]:
    """The fields of a UNet, from all keys of a configuration."""
    widths, levels = c["block_out_channels"], len(c["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        if len(c[key]) != levels:
            raise _bad(key, c[key], f"one for each of the {levels} block_out_channels")
    down, up = [_DOWN[name] for name in c["down_block_types"]], [_UP[name] for name in c["up_block_types"]][::-1]
    skip = down[0].skip
    if any(blocks.skip != skip for blocks in (*down, *up)):
        types = [*c["down_block_types"], *c["up_block_types"]]
        raise _bad("down_block_types, up_block_types", types, "Skip blocks at every level both ways, or at none")
    if skip and c["in_channels"] != 3:
        raise _bad("in_channels", c["in_channels"], "3 with Skip blocks")
    if c["out_channels"] not in (c["in_channels"], 2 * c["in_channels"]) or (skip and c["out_channels"] != 3):
        twice = "" if skip else f", or {2 * c['in_channels']} for a learned variance"
        raise _bad("out_channels", c["out_channels"], f"{c['in_channels']}, that of the input{twice}")
    if c["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise _bad("time_embedding_dim", c["time_embedding_dim"], f"null, or {4 * widths[0]} with these channels")
    if widths[0] < 4:
        raise _bad("block_out_channels", widths, "4 or more in the first")
    time, mid = _TIME[c["time_embedding_type"]], c["mid_block_type"] is not None
    if time == "learned" and c["num_train_timesteps"] is None:
        raise _bad("num_train_timesteps", None, f"{_COUNT}, where time_embedding_type is learned")
    if c["class_embed_type"] == "timestep" and time != "sinusoidal":
        raise _bad("class_embed_type", "timestep", "null or identity where time_embedding_type is not positional")
    attention_levels = tuple(tuple(i for i, blocks in enumerate(way) if blocks.attends) for way in (down, up))
    attended = {widths[i] for way in attention_levels for i in way} | (
        {widths[-1]} if mid and c["add_attention"] else set()
    )
    head_dim = c["attention_head_dim"]
    for width in sorted(attended):
        if head_dim is not None and width % head_dim:
            raise _bad("attention_head_dim", head_dim, f"null, or a divisor of the {width} channels where it attends")
    _check_groups(c, skip, mid)
    labelled = c["class_embed_type"] is None and c["num_class_embeds"]
    kinds = [[blocks.resample or _RESAMPLE[c[key]] for blocks in way]
             for way, key in ((down, "downsample_type"), (up, "upsample_type"))]  # fmt: skip
    fields = {
        "channels": widths[0],
        "channel_mult": tuple(w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths),
        "num_res_blocks": c["layers_per_block"],
        "attention_levels": attention_levels,
        "mid": ("attention" if c["add_attention"] else "plain") if mid else "none",
        "mid_skip_scale": 1 / c["mid_block_scale_factor"],
        "dropout": c["dropout"],
        "head_dim": head_dim,
        "norm_epsilon": c["norm_eps"],
        "conditioning": _CONDITIONING[c["resnet_time_scale_shift"]],
        "downsample": tuple(kinds[0]),
        "upsample": tuple(kinds[1]),
        "downsample_padding": "symmetric" if c["downsample_padding"] else "same",
        "time_embedding": time,
        "freq_shift": c["freq_shift"],
        "num_positions": c["num_train_timesteps"] or 1000,
        "num_classes": labelled or 0,
        "null_label": False,
        "aug_level": c["class_embed_type"] == "timestep",
        "pooled": "add" if c["class_embed_type"] == "identity" else "none",
        "learned_variance": c["out_channels"] == 2 * c["in_channels"],
    }
    if skip:
        return fields | {
            "norm_groups": 32, "norm_group_size": 4, "attention_last": True, "fir": _FIR, "resample_shortcut": True,
            "skip_scale": math.sqrt(0.5), "progressive_input": "skip", "progressive_output": "skip",
        }  # fmt: skip
    return fields | {"norm_groups": c["norm_num_groups"]}


def _check_groups(c: dict[str, Any], skip: bool, mid: bool) -> None:
    """Refuse where a normalisation there has another number of groups than ours would."""
    widths, groups, mid_groups = c["block_out_channels"], c["norm_num_groups"], c["attn_norm_num_groups"]
    if groups is None and not skip:
        raise _bad("norm_num_groups", None, f"{_COUNT}, without Skip blocks")
    if mid and c["add_attention"]:
        if mid_groups is None and c["resnet_time_scale_shift"] != "default":
            raise _bad(
                "attn_norm_num_groups", None,
                "norm_num_groups (without, this model's middle attention is not normalised), or add_attention false",
            )  # fmt: skip
        if mid_groups not in (None, groups or min(widths[-1] // 4, 32)):
            raise _bad("attn_norm_num_groups", mid_groups, "norm_num_groups")
    if not skip:
        if any(width % groups for width in widths):
            raise _bad("norm_num_groups", groups, f"a divisor of every one of block_out_channels {list(widths)}")
        return
    for where, channels, theirs in _skip_groups(c):
        ours = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
        if theirs != ours:
            raise _bad(
                "block_out_channels", list(widths),
                f"wider: {where} has {theirs} groups of its {channels} channels, NCSN++ and ours {ours}",
            )  # fmt: skip


def _skip_groups(c: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(where, channels, groups) of the normalisations in and beside Skip blocks."""
    widths, given = c["block_out_channels"], c["norm_num_groups"]
    for level, width in enumerate(widths):
        yield "a block", width, min(width // 4, 32)
        if _DOWN[c["down_block_types"][level]].attends or _UP[c["up_block_types"][-1 - level]].attends:
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


def _config(spec: Spec) -> dict[str, Any]:
    """`config`, with tuples."""
    if spec.network != "unet" or len(spec.shape) != 3:
        raise _bad("network, shape", f"{spec.network!r}, {spec.shape}", f"'unet' for images (H, W, C) as {MODEL}")
    net = UNet(**spec.fields)
    if net.time_embedding == "fourier" and (spec.prediction, spec.time_input.get("name")) != ("eps", "log_sigma"):
        both = f"{spec.prediction!r}, {spec.time_input}"
        raise _bad("prediction, time_input", both, "'eps', {'name': 'log_sigma'} with time_embedding='fourier'")
    want = _said(net, spec.shape)
    kept = spec.layout.get("config")
    if isinstance(kept, Mapping):
        checked = _checked(kept)
        if _said(UNet(**_fields(checked)), _shape(checked)) == want:
            return dict(kept)
    made = _made(net, spec.shape)
    got = _said(UNet(**_fields(_checked(made))), spec.shape)
    for name, value in want.items():
        if value != got[name]:
            raise _bad(name, value, f"{_lists(got[name])} for a {MODEL}, as the other fields are")
    return made


def _shape(c: dict[str, Any]) -> tuple[int, ...]:
    size = c["sample_size"]
    return (*(size if isinstance(size, tuple) else (size, size)), c["in_channels"])


def _said(net: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    """All that a UNet's fields say of its function for examples of one shape, one form for each thing said."""
    levels, size = range(len(net.channel_mult)), max(shape[:-1])
    ways = tuple(tuple(level for level in levels if net.attends(size, level, way)) for way in (0, 1))
    attended = sorted(
        {net.width(level) for way in ways for level in way}
        | ({net.width(levels[-1])} if net.mid == "attention" else set())
    )
    down = tuple(per_level(net.downsample, level) for level in levels[:-1])
    up = tuple(per_level(net.upsample, level) for level in levels[1:])
    pyramids = (net.progressive_input, net.progressive_output) if len(levels) > 1 else ("none", "none")
    filters = {*down, *up, *pyramids} - {"conv", "none"}
    rows = net.num_classes + bool(net.null_label) if net.num_classes else 0
    of_attention = (net.attention, bool(net.attention_last and ways[1])) if attended else ()
    said = {
        "shape": shape,
        "channels": tuple(net.width(level) for level in levels),
        "first_channels": net.first_channels or net.channels,
        "num_res_blocks": tuple(per_level(net.num_res_blocks, level) for level in levels),
        "attention_levels": ways,
        "attention, attention_last": of_attention,
        "num_heads, head_dim": tuple(net.num_heads if net.head_dim is None else w // net.head_dim for w in attended),
        "context_dim": net.context_dim,
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
    }
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in said.items()}


def _made(net: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    """A configuration made of the fields, as near as it can come."""
    levels, size = range(len(net.channel_mult)), max(shape[:-1])
    skip, attends = net.progressive_output == "skip", [[net.attends(size, i, way) for i in levels] for way in (0, 1)]
    blocks = [[per_level(kind, i) == "block" for i in levels] for kind in (net.downsample, net.upsample)]
    # The last level is not resampled on the way down, nor the first on the way up.
    blocks[0][-1] = blocks[1][0] = False
    types, resnet = [], []
    for way, kinds in enumerate((_DOWN, _UP)):
        both = list(zip(attends[way], blocks[way], strict=True))
        names = {(k.attends, k.skip, k.resample == "block"): name for name, k in kinds.items()}
        types.append([names[a, skip, skip or (b and not a)] for a, b in both])
        resnet.append(any(a and b for a, b in both) and not skip)
    rows = net.num_classes + bool(net.null_label) if net.num_classes else None
    group, scale = net.norm_groups, net.skip_scale if net.mid_skip_scale is None else net.mid_skip_scale
    attended = sorted({net.width(i) for way in attends for i in levels if way[i]} | {net.width(levels[-1])})
    head_dim = net.head_dim if net.head_dim is not None or net.num_heads == 1 else attended[-1] // net.num_heads
    return {
        "sample_size": shape[0] if shape[0] == shape[1] else tuple(shape[:2]),
        "in_channels": shape[2],
        "out_channels": (net.out_channels or shape[2]) * (2 if net.learned_variance else 1),
        "time_embedding_type": {ours: theirs for theirs, ours in _TIME.items()}[net.time_embedding],
        "freq_shift": net.freq_shift,
        "flip_sin_to_cos": False,
        "down_block_types": tuple(types[0]),
        "mid_block_type": None if net.mid == "none" else "UNetMidBlock2D",
        "up_block_types": tuple(types[1][::-1]),
        "block_out_channels": tuple(net.width(level) for level in levels),
        "layers_per_block": per_level(net.num_res_blocks, 0),
        "mid_block_scale_factor": 1 / scale,
        "downsample_padding": 0 if net.downsample_padding == "same" else 1,
        "downsample_type": "resnet" if resnet[0] else "conv",
        "upsample_type": "resnet" if resnet[1] else "conv",
        "dropout": net.dropout,
        "attention_head_dim": head_dim,
        "norm_num_groups": None if skip else group,
        "attn_norm_num_groups": None if net.conditioning == "add" or skip else group,
        "norm_eps": net.norm_epsilon,
        "resnet_time_scale_shift": {ours: theirs for theirs, ours in _CONDITIONING.items()}[net.conditioning],
        "add_attention": net.mid != "plain",
        "class_embed_type": "timestep" if net.aug_level else "identity" if net.pooled == "add" else None,
        "num_class_embeds": rows,
        "num_train_timesteps": net.num_positions if net.time_embedding == "learned" else None,
    }


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what save_config adds for itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(map(_lists, value))
    return {key: _lists(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _bad(key: str, value: object, allowed: str) -> UsageError:
    shown = "null" if value is None else str(_lists(value))
    return UsageError(f"{key} is {shown[:200]}: allowed is {allowed}".replace("\n", " "))
