"""What comes where in a U-Net: the one walk over its plan, which every converter of U-Nets follows.

A `UNet` is a convolution and the steps of `walk`, the last of which ends with its last convolution; a classifier has a
head of its own after them. A converter gives each step the name that its project has for it.
"""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from jaxdiff.convert.rules import CONV, CONV1, DENSE
from jaxdiff.convert.table import Row, layer, norm
from jaxdiff.models.unet import Part
from jaxdiff.models.unet_fields import per_level


class Step(NamedTuple):
    """A step of the way of x.

    Attributes:
        way: "down", "mid" or "up".
        kind: "block" (residual), "conv", "pool" or "repeat" (which resample), "image in" (the map from the image beside
            the way down), "image out" (the normalisation and convolution to the image, at level 0 the network's last).
        name: ours; of "image out" the convolution's.
        level: where it stands; of what resamples, the level it leaves.
        number: how many blocks of this way and level come before it.
        resamples: whether it changes the size (of the image, where it is "image in").
        shortcut: whether a block has a linear shortcut.
        features: a block's output channels.
        attention: the attention that follows a block, or "".
        norm: the normalisation of "image out".
    """

    way: str
    kind: str
    name: str
    level: int
    number: int = 0
    resamples: bool = False
    shortcut: bool = False
    features: int = 0
    attention: str = ""
    norm: str = ""


def walk(net: Any, size: int) -> Iterator[Step]:
    """The steps between the first convolution and the answer, in the order of execution.

    Args:
        net: a `jaxdiff.models.unet.Encoder`.
        size: the largest spatial axis of x.

    Returns:
        An iterator of `Step`.

    Examples:
        >>> from jaxdiff.models.unet import UNet
        >>> net = UNet(channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), mid="none")
        >>> [f"{step.name}: {step.kind}" for step in walk(net, 8)][:3]
        ['down_0_block_0: block', 'down_0_downsample: conv', 'down_1_block_0: block']
        >>> [step.name for step in walk(net, 8) if step.shortcut]
        ['down_1_block_0', 'up_1_block_0', 'up_1_block_1', 'up_0_block_0', 'up_0_block_1']
    """
    plan, number = net.plan(size), 0
    skips = [net.first_channels or net.channels]
    for part in plan.down:
        step = _step(net, "down", part, number, skips[-1])
        yield step
        number = 0 if step.resamples else number + 1
        if step.resamples and net.progressive_input != "none":
            yield Step("down", "image in", f"down_{part.level}_pyramid", part.level, resamples=True)
        skips.append(part.features)
    channels = skips[-1]
    for number, part in enumerate(plan.mid):
        yield _step(net, "mid", part, number, channels)
    number = 0
    for part, after in zip_longest(plan.up, plan.up[1:]):
        step = _step(net, "up", part, number, channels + (skips.pop() if part.kind == "block" else 0))
        yield step
        number, channels = 0 if step.resamples else number + 1, part.features
        ends = part.kind == "block" and (after is None or after.kind != "block")
        if ends and part.level == 0:
            yield Step("up", "image out", "conv_out", 0, norm="norm_out")
        elif ends and net.progressive_output == "skip":
            here = f"up_{part.level}_skip_"
            yield Step("up", "image out", f"{here}conv", part.level, norm=f"{here}norm")


def _step(net: Any, way: str, part: Part, number: int, channels: int) -> Step:
    """A part of the plan that is given so many channels."""
    resamples = part.kind != "block"
    kind = per_level(getattr(net, part.kind), part.level) if resamples else "block"
    shortcut = kind == "block" and (channels != part.features or (resamples and net.resample_shortcut))
    return Step(way, kind, part.name, part.level, number, resamples, shortcut, part.features, part.attention)


def block(step: Step, theirs: str, names: Mapping[str, str]) -> list[Row]:
    """The rows of a residual block.

    Args:
        step: of the kind "block".
        theirs: the block's name.
        names: theirs of its layers, by ours: norm1, conv1, time, norm2, conv2, shortcut. One left out has no rows.

    Returns:
        The rows, without those of the attention after it.

    Examples:
        >>> step = Step("down", "block", "down_0_block_0", 0)
        >>> block(step, "down_blocks.0.resnets.0", {"conv1": "conv1"})[0].theirs
        ('down_blocks.0.resnets.0.conv1.weight',)
    """
    rules = {"conv1": CONV, "time": DENSE, "conv2": CONV, "shortcut": CONV1}
    rows: list[Row] = []
    for ours, name in names.items():
        if ours not in rules:
            rows += norm(f"{step.name}/{ours}", f"{theirs}.{name}")
        elif ours != "shortcut" or step.shortcut:
            rows += layer(f"{step.name}/{ours}", f"{theirs}.{name}", rules[ours])
    return rows
