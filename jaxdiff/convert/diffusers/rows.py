"""The names of a UNet2DModel's weights."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.convert.diffusers.configuration import config
from jaxdiff.convert.diffusers.keys import checked
from jaxdiff.convert.rules import CONV, CONV1, DENSE, SAME, joined, permuted, scaled
from jaxdiff.convert.table import Row, layer, norm
from jaxdiff.convert.walk import Step, block, walk
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.unet import UNet

_SIGNS = {"conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.norm1.weight", "conv_out.weight"}
_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BLOCK = {
    "norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip


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
        *path, last, kind = ["", *name.split(".")] if "." in name else ["", "", name]
        old = last in _OLDER and "attentions" in path
        return ".".join([*path[1:], _OLDER[last], kind]) if old else name

    made = {today(name): tensor for name, tensor in tensors.items()}
    return made if len(made) == len(tensors) else dict(tensors)


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
    flip = checked(config(spec))["flip_sin_to_cos"]
    net = UNet(**spec.fields)
    return [*_ends(net, flip), *_network(net, max(spec.shape[:-1]))]


def _ends(net: Any, flip: bool) -> Iterator[Row]:
    """From time, label and the rest to the embedding."""
    half = net.channels // 2
    halves = permuted(DENSE, np.r_[half : 2 * half, :half, 2 * half : net.channels], axis=0) if flip else DENSE
    yield from layer("time/dense0", "time_embedding.linear_1", halves if net.time_embedding == "sinusoidal" else DENSE)
    yield from layer("time/dense1", "time_embedding.linear_2", DENSE)
    if net.time_embedding == "fourier":
        yield Row("time/fourier/freqs", ("time_proj.weight",), scaled(SAME, 4.0))
    if net.time_embedding == "learned":
        yield Row("time/table/embedding", ("time_proj.weight",), SAME)
    if net.num_classes:
        yield Row("label/embedding", ("class_embedding.weight",), SAME)
    if net.aug_level:
        yield from layer("aug_level/dense0", "class_embedding.linear_1", halves)
        yield from layer("aug_level/dense1", "class_embedding.linear_2", DENSE)


def _network(net: Any, size: int) -> Iterator[Row]:
    """The way of x."""
    last, pyramid = len(net.channel_mult) - 1, net.progressive_input == "skip"
    yield from layer("conv_in", "conv_in", CONV)
    for step in walk(net, size):
        here = _level(step, last)
        if step.kind == "image in":
            yield from layer(step.name, f"{here}.skip_conv", CONV1)
        elif step.kind == "image out":
            yield from _image_out(net, step, here)
        elif step.kind == "conv":
            yield from layer(f"{step.name}/conv", f"{here}.{step.way}samplers.0.conv", CONV)
        elif step.resamples:
            yield from block(step, f"{here}.{f'resnet_{step.way}' if pyramid else f'{step.way}samplers.0'}", _BLOCK)
        else:
            yield from block(step, f"{here}.resnets.{step.number}", _BLOCK)
        if step.attention:
            alone = step.way == "up" and net.attention_last
            yield from _attention(step.attention, f"{here}.attentions.{0 if alone else step.number}")


def _level(step: Step, last: int) -> str:
    if step.way == "mid":
        return "mid_block"
    return f"down_blocks.{step.level}" if step.way == "down" else f"up_blocks.{last - step.level}"


def _image_out(net: Any, step: Step, here: str) -> Iterator[Row]:
    # (2) of `jaxdiff.convert.diffusers`
    fourier = net.time_embedding == "fourier"
    kernel, bias = (scaled(CONV, -1.0), scaled(SAME, -1.0)) if fourier else (CONV, SAME)
    both = (f"{here}.skip_norm", f"{here}.skip_conv") if step.level else ("conv_norm_out", "conv_out")
    yield from norm(step.norm, both[0])
    yield from layer(step.name, both[1], kernel, bias)


def _attention(ours: str, theirs: str) -> Iterator[Row]:
    yield from norm(f"{ours}/norm", f"{theirs}.group_norm")
    maps = [f"{theirs}.{name}" for name in ("to_q", "to_k", "to_v")]
    yield Row(f"{ours}/qkv/kernel", tuple(f"{name}.weight" for name in maps), joined(DENSE, 3))
    yield Row(f"{ours}/qkv/bias", tuple(f"{name}.bias" for name in maps), joined(SAME, 3))
    yield from layer(f"{ours}/proj", f"{theirs}.to_out.0", DENSE)
