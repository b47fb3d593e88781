"""The walk over a U-Net against the network itself: what it calls, in which order, and what it holds."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxdiff.convert.walk import walk
from jaxdiff.models.classifier import Classifier
from jaxdiff.models.unet import UNet

SMALL = {"channels": 8, "num_res_blocks": 1, "norm_groups": 4, "attention_resolutions": (4,)}
PYRAMID = {"fir": (1, 3, 3, 1), "downsample": "block", "upsample": "block"}
NETS = {
    "one level": UNet(**SMALL, channel_mult=(1,)),
    "convolutions": UNet(**SMALL, channel_mult=(1, 2, 2)),
    "no middle": UNet(**SMALL, channel_mult=(1, 2), mid="none"),
    "plain middle": UNet(**SMALL, channel_mult=(2, 1), mid="plain", first_channels=16),
    "blocks by level": UNet(**SMALL | {"num_res_blocks": (1, 2)}, channel_mult=(1, 2)),
    "fixed": UNet(**SMALL, channel_mult=(1, 1, 2), downsample="pool", upsample=("repeat", "repeat", "conv")),
    "resampling blocks": UNet(**SMALL, channel_mult=(1, 2, 2), downsample="block", upsample=("conv", "block", "block")),
    "skips": UNet(**SMALL, **PYRAMID, channel_mult=(1, 2), progressive_input="skip", progressive_output="skip",
                  resample_shortcut=True, attention_last=True),
    "residual": UNet(**SMALL, **PYRAMID, channel_mult=(1, 2, 2), progressive_input="residual"),
    "levels": UNet(**SMALL | {"attention_levels": ((0,), (1,))}, channel_mult=(1, 2)),
    "classifier": Classifier(**SMALL, channel_mult=(1, 2), num_labels=3),
}  # fmt: skip


def called(net):
    """The names of the modules of the first rank in the order of their calls, and the parameters."""
    names = []

    def record(call, args, kwargs, context):
        if context.method_name == "__call__" and len(context.module.path) == 1:
            names.append(context.module.path[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))["params"]
    return names, params


def names_of(step):
    return [name for name in (step.norm, step.name, step.attention) if name]


@pytest.mark.parametrize("name", NETS)
def test_steps_are_what_the_network_calls(name):
    net = NETS[name]
    order, params = called(net)
    steps = list(walk(net, 8))
    want = [given for given in order[order.index("conv_in") + 1 :] if given.split("_")[0] in ("down", "mid", "up")
            or given in ("norm_out", "conv_out")]  # fmt: skip
    got = [given for step in steps for given in names_of(step)]
    assert got == (want if name != "classifier" else [given for given in want if given != "norm_out"])
    for step in steps:
        held = set(params.get(step.name, {}))
        assert (step.kind == "block") == ("conv1" in held)
        assert step.shortcut == ("shortcut" in held)
        assert (step.kind == "conv") == (held == {"conv"} and step.kind != "image in")
        assert (step.kind in ("pool", "repeat")) == (not held)
        if step.kind == "block":
            assert step.features == params[step.name]["conv2"]["kernel"].shape[-1]


@pytest.mark.parametrize("name", NETS)
def test_blocks_are_counted_level_by_level(name):
    blocks = [step for step in walk(NETS[name], 8) if step.kind == "block" and not step.resamples]
    for (way, level), group in itertools.groupby(blocks, lambda step: (step.way, step.level)):
        begin = "mid_block" if way == "mid" else f"{way}_{level}_block"
        for number, step in enumerate(group):
            assert (step.name, step.number) == (f"{begin}_{number}", number)
