"""Weights of OpenAI's improved-diffusion and guided-diffusion: U-Nets, upsamplers, classifiers of noisy images.

Their modules are numbered in the order of execution: every block, downsampling and upsampling of ours, with the
attention that follows it, is a numbered group of theirs, except that an upsampling ends the group of the block before
it. Three things differ beside names and axes.

The features of time are [cos, sin] there and [sin, cos] here, so the first linear map's input channels trade halves.

The output channels of the joined map to queries, keys and values are, for H heads of d channels,

    new:     (3, H, d)                                                                         (1)
    legacy:  (H, 3, d)                                                                         (2)

of which (1) is ours. Files do not say which: improved-diffusion has (2), and so has guided-diffusion unless it was
run with use_new_attention_order (of the published models the ImageNet-64 one alone). `Spec.layout["attention_order"]`
is "new" or "legacy".

The table of labels has no null row, and neither has a network of ours with null_label=False.
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from jaxdiff.convert.table import CONV, CONV1, CONV1_1D, DENSE, SAME, Row, Rule, moved, order, permuted
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.attention import heads_of
from jaxdiff.models.classifier import Classifier
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.unet import Encoder, Part, UNet
from jaxdiff.models.unet_fields import per_level

FAMILY = "openai"
ORDERS = ("legacy", "new")
NETWORKS: dict[str, type[Encoder]] = {"unet": UNet, "classifier": Classifier}

_SIGNS = {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight"}


def recognises(names: Collection[str]) -> bool:
    """Whether these are the tensors of a network of this family.

    Args:
        names: of all tensors in a file.

    Returns:
        True for improved-diffusion and guided-diffusion; False for what grew out of them (latent diffusion, GLIDE).

    Examples:
        >>> recognises(["time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight"])
        True
    """
    return set(names) >= _SIGNS and not any("encoder_kv" in name for name in names)


def table(spec: Spec) -> list[Row]:
    """The rows of a U-Net or classifier, in the order in which they are used.

    Args:
        spec: of network "unet" or "classifier", with layout["attention_order"] "legacy" or "new".

    Returns:
        One row for every parameter of ours.

    Raises:
        UsageError: another network or kind of middle, or an unknown attention order.

    Examples:
        >>> fields = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
        >>> spec = Spec("unet", fields, (8, 8, 3), layout={"attention_order": "new"})
        >>> table(spec)[0].theirs
        ('time_embed.0.weight',)
    """
    if spec.network not in NETWORKS:
        raise unknown("network for weights of the family 'openai'", spec.network, NETWORKS)
    if spec.layout.get("attention_order") not in ORDERS:
        raise unknown("layout['attention_order']", spec.layout.get("attention_order"), ORDERS)
    net = NETWORKS[spec.network](**spec.fields)
    if net.mid != "attention":
        raise UsageError(f"mid is {net.mid!r}: allowed for weights of the family 'openai' is 'attention'")
    return list(_rows(net, spec))


def _rows(net: Any, spec: Spec) -> Iterator[Row]:
    legacy = spec.layout["attention_order"] == "legacy"
    plan = net.plan(max(spec.shape[:-1]))

    def group(part: Part, channels: int, theirs: str) -> Iterator[Row]:
        """A part, given so many channels, and the attention after it."""
        kind = per_level(getattr(net, part.kind), part.level) if part.kind != "block" else "block"
        if kind == "block":
            yield from _block(part.name, f"{theirs}.0", shortcut=channels != part.features)
        elif kind == "conv":
            yield from _layer(f"{part.name}/conv", f"{theirs}.0.op", CONV)
        if part.attention:
            heads = heads_of(part.features, net.num_heads, net.head_dim)
            yield from _attention(part.attention, f"{theirs}.1", (heads, 3, part.features // heads), legacy)

    half = net.channels // 2
    sines_first = np.r_[half : 2 * half, :half, 2 * half : net.channels]
    yield from _layer("time/dense0", "time_embed.0", permuted(DENSE, sines_first, axis=0))
    yield from _layer("time/dense1", "time_embed.2", DENSE)
    if net.num_classes:
        yield Row("label/embedding", ("label_emb.weight",), SAME)

    yield from _layer("conv_in", "input_blocks.0.0", CONV)
    widths = [net.first_channels or net.channels]
    for number, part in enumerate(plan.down, 1):
        yield from group(part, widths[-1], f"input_blocks.{number}")
        widths.append(part.features)

    # The middle is one group of theirs: block, attention, block.
    first, second = plan.mid
    yield from group(first, widths[-1], "middle_block")
    yield from _block(second.name, "middle_block.2", shortcut=False)

    channels, number = second.features, -1
    for part in plan.up:
        if part.kind == "block":
            number, last = number + 1, part
            yield from group(part, channels + widths.pop(), f"output_blocks.{number}")
        else:
            theirs = f"output_blocks.{number}.{2 if last.attention else 1}"
            kind = per_level(net.upsample, part.level)
            if kind == "block":
                yield from _block(part.name, theirs, shortcut=channels != part.features)
            elif kind == "conv":
                yield from _layer(f"{part.name}/conv", f"{theirs}.conv", CONV)
        channels = part.features

    if spec.network == "unet":
        yield from _norm("norm_out", "out.0")
        yield from _layer("conv_out", "out.2", CONV)
    else:
        yield from _head(net.pool)


def _head(pool: str) -> Iterator[Row]:
    """A classifier's way from features to logits."""
    if pool == "spatial":
        yield from _layer("hidden", "out.0", DENSE)
        yield from _layer("logits", "out.2", DENSE)
        return
    yield from _norm("norm_out", "out.0")
    if pool == "mean":
        yield from _layer("logits", "out.3", CONV1)
        return
    yield Row("pool/positions", ("out.2.positional_embedding",), moved("table", (1, 0), (1, 0)))
    yield from _layer("pool/qkv", "out.2.qkv_proj", CONV1_1D)
    yield from _layer("pool/proj", "out.2.c_proj", CONV1_1D)


def _layer(ours: str, theirs: str, kernel: Rule, bias: Rule = SAME) -> Iterator[Row]:
    yield Row(f"{ours}/kernel", (f"{theirs}.weight",), kernel)
    yield Row(f"{ours}/bias", (f"{theirs}.bias",), bias)


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield Row(f"{ours}/scale", (f"{theirs}.weight",), SAME)
    yield Row(f"{ours}/bias", (f"{theirs}.bias",), SAME)


def _block(ours: str, theirs: str, *, shortcut: bool) -> Iterator[Row]:
    yield from _norm(f"{ours}/norm1", f"{theirs}.in_layers.0")
    yield from _layer(f"{ours}/conv1", f"{theirs}.in_layers.2", CONV)
    yield from _layer(f"{ours}/time", f"{theirs}.emb_layers.1", DENSE)
    yield from _norm(f"{ours}/norm2", f"{theirs}.out_layers.0")
    yield from _layer(f"{ours}/conv2", f"{theirs}.out_layers.3", CONV)
    if shortcut:
        yield from _layer(f"{ours}/shortcut", f"{theirs}.skip_connection", CONV1)


def _attention(ours: str, theirs: str, shape: tuple[int, int, int], legacy: bool) -> Iterator[Row]:
    yield from _norm(f"{ours}/norm", f"{theirs}.norm")
    if legacy:
        ours_first = order(shape, (1, 0, 2))
        yield from _layer(
            f"{ours}/qkv", f"{theirs}.qkv", permuted(CONV1_1D, ours_first), permuted(SAME, ours_first)
        )  # fmt: skip
    else:
        yield from _layer(f"{ours}/qkv", f"{theirs}.qkv", CONV1_1D)
    yield from _layer(f"{ours}/proj", f"{theirs}.proj_out", CONV1_1D)
