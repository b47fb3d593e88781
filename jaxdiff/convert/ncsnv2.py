"""The names of NCSNv2's own weights (`state_dict` of ermongroup/ncsnv2, without "module.").

The sign of the last convolution turns, and the table of noise levels holds half of ours: see
`jaxdiff.models.presets.ncsnv2`.
"""

from collections.abc import Collection

import numpy as np

from jaxdiff.convert.rules import CONV, CONV1, SAME, scaled
from jaxdiff.convert.table import Constant, Row, layer
from jaxdiff.convert.text import clean
from jaxdiff.errors import UsageError
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.refinenet import RefineNet

FAMILY = "ncsnv2"
_DATA_SCALE = 2.0  # their images lie in [0, 1], ours in [-1, 1]


def recognises(names: Collection[str]) -> bool:
    """Whether these are names of an NCSNv2 network.

    Args:
        names: of tensors.

    Returns:
        True for any of the original's three networks.

    Examples:
        >>> recognises(["begin_conv.weight", "refine1.crp.convs.0.weight", "normalizer.alpha"])
        True
    """
    return {"begin_conv.weight", "refine1.crp.convs.0.weight", "normalizer.alpha"} <= set(names)


def _numbers(stages: int) -> tuple[list[str], list[str]]:
    """Their numbers of the stages and of the refinements, by our stage; the sixth stage came later, as number 31."""
    down = [str(i + 1) for i in range(min(stages, 5))]
    up = list(down)
    if stages == 6:
        down.insert(3, "31")
        up.insert(2, "31")
    return down, up[::-1]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/{name}", (f"{theirs}.{name}",), SAME) for name in ("alpha", "gamma", "beta")]


def _units(ours: str, theirs: str, num: int) -> list[Row]:
    return [
        Row(f"{ours}/conv_{unit}_{i}/kernel", (f"{theirs}.{unit + 1}_{i + 1}_conv.weight",), CONV)
        for unit in range(num)
        for i in range(2)
    ]


def _stages(net: RefineNet, numbers: list[str]) -> list[Row]:
    rows, width = [], net.channels
    for s, (stage, number) in enumerate(zip(net.plan(), numbers, strict=True)):
        for i in range(net.num_res_blocks):
            ours, theirs = f"stage_{s}_block_{i}", f"res{number}.{i}"
            first = s > 0 and i == 0
            inner = ".conv" if first and stage.halves else ""  # inside their convolution with mean pooling
            rows += _norm(f"{ours}/norm1", f"{theirs}.normalize1") + _norm(f"{ours}/norm2", f"{theirs}.normalize2")
            rows += layer(f"{ours}/conv1", f"{theirs}.conv1", CONV)
            rows += layer(f"{ours}/conv2", f"{theirs}.conv2{inner}", CONV)
            if first or width != stage.features:
                dilated = first and not stage.halves
                rows += layer(f"{ours}/shortcut", f"{theirs}.shortcut{inner}", CONV if dilated else CONV1)
            width = stage.features
    return rows


def table(spec: Spec) -> list[Row | Constant]:
    """The correspondence for a network of 4, 5 or 6 stages, which are the original's three.

    Args:
        spec: of network "refinenet" with process "ncsn".

    Returns:
        The rows, and the noise levels as a constant.

    Raises:
        UsageError: another network, another process, or another number of stages.

    Examples:
        >>> from jaxdiff.models.presets.ncsnv2 import PRESETS
        >>> table(PRESETS["ncsnv2_cifar10"])[0].theirs
        ('begin_conv.weight',)
    """
    if spec.network != "refinenet":
        raise UsageError(f"network is {spec.network!r}: allowed for weights of the family 'ncsnv2' is refinenet")
    if spec.process.get("name") != "ncsn" or spec.process.get("sigmas") is None:
        name = clean(repr(spec.process.get("name")))
        raise UsageError(f"process is {name}: allowed for weights of the family 'ncsnv2' is ncsn with its sigmas")
    net = RefineNet(**spec.fields)
    stages = net.plan()
    if not 4 <= len(stages) <= 6:
        count = len(stages)
        raise UsageError(f"channel_mult has {count} entries: allowed for weights of the family 'ncsnv2' are 4 to 6")
    down, up = _numbers(len(stages))
    rows: list[Row | Constant] = [*layer("conv_in", "begin_conv", CONV), *_stages(net, down)]
    for s, number in enumerate(up):
        ours, theirs, inputs = f"refine_{s}", f"refine{number}", 1 if s == len(stages) - 1 else 2
        for i in range(inputs):
            rows += _units(f"{ours}/adapt_{i}", f"{theirs}.adapt_convs.{i}", 2)
            if inputs > 1:
                rows += layer(f"{ours}/fuse_{i}", f"{theirs}.msf.convs.{i}", CONV)
            rows.append(Row(f"{ours}/pool_{i}/kernel", (f"{theirs}.crp.convs.{i}.weight",), CONV))
        if inputs == 1:
            rows.append(Row(f"{ours}/pool_1/kernel", (f"{theirs}.crp.convs.1.weight",), CONV))
        rows += _units(f"{ours}/output", f"{theirs}.output_convs", 1 if s else 3)
    rows += _norm("norm_out", "normalizer")
    rows += layer("conv_out", "end_conv", scaled(CONV, -1.0), scaled(SAME, -1.0))
    sigmas = np.asarray(spec.process["sigmas"], np.float64)[::-1] / _DATA_SCALE
    rows.append(Constant("sigmas", sigmas.astype(np.float32), optional=True))
    return rows
