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

from jaxdiff.convert.rules import CONV, CONV1, CONV1_1D, DENSE, SAME, moved, order, permuted
from jaxdiff.convert.table import Row, layer, norm
from jaxdiff.convert.walk import Step, block, walk
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.attention import heads_of
from jaxdiff.models.classifier import Classifier
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.unet import Encoder, UNet

FAMILY = "openai"
ORDERS = ("legacy", "new")
NETWORKS: dict[str, type[Encoder]] = {"unet": UNet, "classifier": Classifier}

_SIGNS = {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight"}
_BLOCK = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "shortcut": "skip_connection",
}  # fmt: skip


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
    half = net.channels // 2
    sines_first = np.r_[half : 2 * half, :half, 2 * half : net.channels]
    yield from layer("time/dense0", "time_embed.0", permuted(DENSE, sines_first, axis=0))
    yield from layer("time/dense1", "time_embed.2", DENSE)
    if net.num_classes:
        yield Row("label/embedding", ("label_emb.weight",), SAME)
    yield from layer("conv_in", "input_blocks.0.0", CONV)
    for step, theirs in _named(walk(net, max(spec.shape[:-1]))):
        if step.kind == "block":
            # Their resampling blocks keep the channels, and have no map on the way past them.
            yield from block(step._replace(shortcut=step.shortcut and not step.resamples), theirs, _BLOCK)
        elif step.kind == "conv":
            yield from layer(f"{step.name}/conv", f"{theirs}.{'op' if step.way == 'down' else 'conv'}", CONV)
        elif step.kind == "image out":
            yield from norm(step.norm, "out.0")
            yield from layer(step.name, "out.2", CONV)
        if step.attention:
            heads = heads_of(step.features, net.num_heads, net.head_dim)
            group = theirs.rpartition(".")[0]
            yield from _attention(step.attention, f"{group}.1", (heads, 3, step.features // heads), legacy)
    if spec.network == "classifier":
        yield from _head(net.pool)


def _named(steps: Iterator[Step]) -> Iterator[tuple[Step, str]]:
    """Each step with the name of its module: that of a numbered group and the place in it."""
    down, up, after = 0, -1, 0
    for step in steps:
        if step.way == "down":
            down += 1
            yield step, f"input_blocks.{down}.0"
        elif step.way == "mid":  # one group: block, attention, block
            yield step, f"middle_block.{2 * step.number}"
        elif step.kind == "block" and not step.resamples:
            up, after = up + 1, 2 if step.attention else 1
            yield step, f"output_blocks.{up}.0"
        else:
            yield step, f"output_blocks.{up}.{after}"


def _head(pool: str) -> Iterator[Row]:
    """A classifier's way from features to logits."""
    if pool == "spatial":
        yield from layer("hidden", "out.0", DENSE)
        yield from layer("logits", "out.2", DENSE)
        return
    yield from norm("norm_out", "out.0")
    if pool == "mean":
        yield from layer("logits", "out.3", CONV1)
        return
    yield Row("pool/positions", ("out.2.positional_embedding",), moved("table", (1, 0), (1, 0)))
    yield from layer("pool/qkv", "out.2.qkv_proj", CONV1_1D)
    yield from layer("pool/proj", "out.2.c_proj", CONV1_1D)


def _attention(ours: str, theirs: str, shape: tuple[int, int, int], legacy: bool) -> Iterator[Row]:
    yield from norm(f"{ours}/norm", f"{theirs}.norm")
    ours_first = order(shape, (1, 0, 2))
    kernel, bias = (permuted(CONV1_1D, ours_first), permuted(SAME, ours_first)) if legacy else (CONV1_1D, SAME)
    yield from layer(f"{ours}/qkv", f"{theirs}.qkv", kernel, bias)
    yield from layer(f"{ours}/proj", f"{theirs}.proj_out", CONV1_1D)
