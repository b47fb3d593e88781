"""What the files of DiT and U-ViT have in common, whoever wrote them.

Their blocks are numbered; ours are one block with stacked parameters, unless the network's field `scan` is off. A
convolution whose stride is its kernel is a linear map of a patch's values, which both sides have in the order [rows,
columns, channels] (`jaxdiff.models.vit`, equation 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff.convert.rules import CONV, reshaped, stacked
from jaxdiff.convert.table import Row, layer
from jaxdiff.errors import UsageError
from jaxdiff.models.dit import DiT
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.uvit import UViT

NETWORKS: dict[str, type[DiT] | type[UViT]] = {"dit": DiT, "uvit": UViT}


def network(spec: Spec) -> DiT | UViT:
    """The module of a spec; refused if it is not a transformer of this family."""
    if spec.network not in NETWORKS:
        raise UsageError(f"network is '{spec.network}': allowed for dit weights is {' or '.join(NETWORKS)}")
    return NETWORKS[spec.network](**spec.fields)


def require(net: DiT, values: Mapping[str, Any], whose: str) -> None:
    """Refuse fields with which the same weights would be another network."""
    for name, value in values.items():
        if getattr(net, name) != value:
            raise UsageError(f"{name} is {getattr(net, name)}: {whose} has {value}, with the same weights another "
                             "network; change the spec's fields if that is meant")  # fmt: skip


def square(net: DiT | UViT, spec: Spec, *, labels: bool = True) -> tuple[int, int]:
    """The patch's side and the number of patches along a side; refused if they are not square, or without labels."""
    shape, patch = tuple(spec.shape), net.patch_size
    if not isinstance(patch, int) or len(shape) != 3 or shape[0] != shape[1] or shape[0] % patch:
        raise UsageError(f"shape {shape} with patch_size {patch}: allowed here is a square image of square patches")
    if labels and not net.num_classes:
        raise UsageError("num_classes is 0: allowed is 1 or more, the original has no network without labels")
    return patch, shape[0] // patch


def patches(theirs: str, patch: int, channels: int, width: int) -> list[Row]:
    """The rows of the map of a patch's values."""
    rule = reshaped(CONV, (patch, patch, channels, width), (patch * patch * channels, width))
    return layer("patch", theirs, rule)


def repeated(block: Sequence[Row], ours: tuple[str, str], theirs: str, depth: int, scan: bool) -> list[Row]:
    """The rows of numbered blocks.

    Args:
        block: of one, without what stands before every name.
        ours: the name of the stack, and what the name of a block on its own begins with.
        theirs: what stands before a block's number.
        depth: how many.
        scan: whether ours are stacked.

    Returns:
        The rows of all.

    Examples:
        >>> [row.theirs for row in repeated(layer("out", "fc", CONV)[1:], ("blocks", "block_"), "blocks.", 2, True)]
        [('blocks.0.fc.bias', 'blocks.1.fc.bias')]
    """
    rows = []
    for leaf, names, rule in block:
        given = [tuple(f"{theirs}{i}.{name}" for name in names) for i in range(depth)]
        if scan:
            every = tuple(name for block_names in given for name in block_names)
            rows.append(Row(f"{ours[0]}/{leaf}", every, stacked(rule, depth)))
        else:
            rows += [Row(f"{ours[1]}{i}/{leaf}", block_names, rule) for i, block_names in enumerate(given)]
    return rows
