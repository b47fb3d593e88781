"""The keys of a UNet2DModel's config.json: what each may be, and what stands for it where it is left out.

Reference: von Platen et al., Diffusers, 2022, https://github.com/huggingface/diffusers, class UNet2DModel.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdiff.convert.diffusers.values import bad, public
from jaxdiff.convert.json_files import tuples
from jaxdiff.errors import unknown

MODEL = "UNet2DModel"

# Left in config.json by diffusers' own averaging of parameters; they say nothing of the network.
_AVERAGING = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}


class Blocks(NamedTuple):
    """A kind of level. `resample` None: as downsample_type or upsample_type says."""

    attends: bool = False
    skip: bool = False
    resample: str | None = "conv"


DOWN = {
    "DownBlock2D": Blocks(),
    "AttnDownBlock2D": Blocks(attends=True, resample=None),
    "ResnetDownsampleBlock2D": Blocks(resample="block"),
    "SkipDownBlock2D": Blocks(skip=True, resample="block"),
    "AttnSkipDownBlock2D": Blocks(attends=True, skip=True, resample="block"),
}
UP = {
    "UpBlock2D": Blocks(),
    "AttnUpBlock2D": Blocks(attends=True, resample=None),
    "ResnetUpsampleBlock2D": Blocks(resample="block"),
    "SkipUpBlock2D": Blocks(skip=True, resample="block"),
    "AttnSkipUpBlock2D": Blocks(attends=True, skip=True, resample="block"),
}
RESAMPLE = {"conv": "conv", "resnet": "block"}
TIME = {"positional": "sinusoidal", "fourier": "fourier", "learned": "learned"}
CONDITIONING = {"default": "add", "scale_shift": "scale_shift"}


class _Key(NamedTuple):
    """A key of config.json: its default, what fits, and that in words."""

    default: Any
    fits: Callable[[Any], bool]
    allowed: str


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


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


COUNT = "a whole number, 1 or more"
_KEYS: dict[str, _Key] = {
    "sample_size": _Key(
        None, lambda v: _whole(v) or (_list(v, _whole) and len(v) == 2), "a whole number, or a height and a width"
    ),
    "in_channels": _Key(3, _whole, COUNT),
    "out_channels": _Key(3, _whole, COUNT),
    "center_input_sample": _Key(
        False,
        lambda v: v is False,
        "false: 2 x - 1 before a convolution that continues its input by zeros is not linear",
    ),
    "time_embedding_type": _choice("positional", "fourier", "learned"),
    "time_embedding_dim": _Key(None, lambda v: v is None or _whole(v), "null, or 4 times the first block_out_channels"),
    "freq_shift": _Key(0, _number, "a number"),
    "flip_sin_to_cos": _choice(True, False),
    "down_block_types": _types(*("DownBlock2D", *("AttnDownBlock2D",) * 3), kinds=DOWN),
    "mid_block_type": _choice("UNetMidBlock2D", None),
    "up_block_types": _types(*(*("AttnUpBlock2D",) * 3, "UpBlock2D"), kinds=UP),
    "block_out_channels": _Key((224, 448, 672, 896), lambda v: _list(v, _whole), "a list of whole numbers"),
    "layers_per_block": _Key(2, lambda v: _whole(v) and v <= 100, "a whole number from 1 to 100"),
    "mid_block_scale_factor": _Key(1, lambda v: _number(v) and v > 0, "a number above 0"),
    "downsample_padding": _choice(1, 0),
    "downsample_type": _choice("conv", "resnet"),
    "upsample_type": _choice("conv", "resnet"),
    "dropout": _Key(0.0, lambda v: _number(v) and 0 <= v < 1, "a rate in [0, 1)"),
    "act_fn": _choice("silu", "swish"),
    "attention_head_dim": _Key(8, lambda v: v is None or _whole(v), f"null, or {COUNT}"),
    "norm_num_groups": _Key(32, lambda v: v is None or _whole(v), f"null, or {COUNT}"),
    "attn_norm_num_groups": _Key(None, lambda v: v is None or _whole(v), f"null, or {COUNT}"),
    "norm_eps": _Key(1e-5, lambda v: _number(v) and v > 0, "a number above 0"),
    "resnet_time_scale_shift": _choice("default", "scale_shift"),
    "add_attention": _choice(True, False),
    "class_embed_type": _choice(None, "timestep", "identity"),
    "num_class_embeds": _Key(None, lambda v: v is None or _whole(v), f"null, or {COUNT}"),
    "num_train_timesteps": _Key(None, lambda v: v is None or _whole(v), f"null, or {COUNT}"),
}


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every key with its value or default, each fit by itself.

    Args:
        config: config.json as a dict.

    Returns:
        Values by key, sequences as tuples.

    Raises:
        UsageError: a key that is unknown, or has a value that no `UNet` follows.

    Examples:
        >>> checked({"sample_size": 32})["act_fn"]
        'silu'
    """
    if config.get("_class_name", MODEL) != MODEL:
        raise bad("_class_name", config["_class_name"], MODEL)
    given = public(config)
    for key in given:
        if key not in _KEYS and key not in _AVERAGING:
            raise unknown(f"key of a {MODEL}'s config", key, _KEYS)
    made = {key: tuples(given.get(key, known.default)) for key, known in _KEYS.items()}
    for key, known in _KEYS.items():
        if not known.fits(made[key]):
            raise bad(key, made[key], known.allowed)
    for key in ("down_block_types", "up_block_types"):
        made[key] = tuple(name.removeprefix("UNetRes") for name in made[key])
    return made
