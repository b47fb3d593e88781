"""Weights of the original DiT and of U-ViT.

The original DiT keeps its fixed positions among the weights: they are compared with ours, and written back. U-ViT's
positions are learned, and its table of labels, where it has a null row, counts it among the classes.
"""

from collections.abc import Collection

from jaxdiff.convert.dit.parts import network, patches, repeated, require, square
from jaxdiff.convert.rules import CONV, DENSE, SAME, reshaped
from jaxdiff.convert.table import Constant, Row, layer, norm
from jaxdiff.errors import UsageError
from jaxdiff.models.dit import DiT
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.uvit import UViT
from jaxdiff.models.vit import position_table

FAMILY = "dit"

_DIT = {"x_embedder.proj.weight", "pos_embed", "blocks.0.adaLN_modulation.1.weight", "final_layer.linear.weight"}
_UVIT = {"patch_embed.proj.weight", "pos_embed", "in_blocks.0.attn.qkv.weight", "mid_block.norm1.weight"}
_OTHERS = ("context", "caption", "clip", "text")  # what the names of U-ViT's relatives with text begin with


def recognises(names: Collection[str]) -> bool:
    """Whether these are the tensors of an original DiT or U-ViT.

    Args:
        names: of all tensors in a file.

    Returns:
        True for facebookresearch/DiT (and SiT, the same network) and for baofff/U-ViT without text.

    Examples:
        >>> recognises(["pos_embed", "x_embedder.proj.weight", "final_layer.linear.weight"])
        False
    """
    given = set(names)
    return given >= _DIT or (given >= _UVIT and not any(name.startswith(_OTHERS) for name in given))


def table(spec: Spec) -> list[Row | Constant]:
    """The rows of an original DiT or U-ViT.

    Args:
        spec: of the network "dit" or "uvit".

    Returns:
        Every parameter of ours once, every tensor of theirs once.

    Raises:
        UsageError: another network, or fields that the original code does not have.

    Examples:
        >>> from jaxdiff.models.presets.dit import PRESETS
        >>> table(PRESETS["dit_s_2"])[-1].theirs
        'pos_embed'

    Reference: facebookresearch/DiT, models.py; baofff/U-ViT, libs/uvit.py.
    """
    net = network(spec)
    return _uvit_rows(net, spec) if isinstance(net, UViT) else _dit_rows(net, spec)


def _dit_rows(net: DiT, spec: Spec) -> list[Row | Constant]:
    patch, size = square(net, spec)
    require(net, {"freq_shift": 0, "mlp_norm_epsilon": 1e-6, "qkv_bias": True}, "the original DiT")
    if net.position_reach not in (None, size):
        raise UsageError(f"position_reach is {net.position_reach}: allowed for the original DiT is None or {size}")
    block = [
        *layer("modulation", "adaLN_modulation.1", DENSE),
        *layer("attention/qkv", "attn.qkv", DENSE),
        *layer("attention/proj", "attn.proj", DENSE),
        *layer("mlp/dense0", "mlp.fc1", DENSE),
        *layer("mlp/dense1", "mlp.fc2", DENSE),
    ]
    return [
        *patches("x_embedder.proj", patch, spec.shape[-1], net.channels),
        *layer("time/dense0", "t_embedder.mlp.0", DENSE),
        *layer("time/dense1", "t_embedder.mlp.2", DENSE),
        Row("label/embedding", ("y_embedder.embedding_table.weight",), SAME),
        *layer("modulation", "final_layer.adaLN_modulation.1", DENSE),
        *layer("out", "final_layer.linear", DENSE),
        *repeated(block, ("blocks", "block_"), "blocks.", net.depth, net.scan),
        Constant("pos_embed", position_table((size, size), net.channels)[None], tolerance=1e-5),
    ]


def _uvit_rows(net: UViT, spec: Spec) -> list[Row | Constant]:
    patch, size = square(net, spec, labels=False)
    plain = [
        *norm("norm1", "norm1"),
        *layer("attention/qkv", "attn.qkv", DENSE)[: 1 + net.qkv_bias],
        *layer("attention/proj", "attn.proj", DENSE),
        *norm("norm2", "norm2"),
        *layer("mlp/dense0", "mlp.fc1", DENSE),
        *layer("mlp/dense1", "mlp.fc2", DENSE),
    ]
    skip = layer("skip", "skip_linear", DENSE) if net.long_skips else []
    length = size * size + 1 + bool(net.num_classes)
    positions = reshaped(SAME, (1, length, net.channels), (length, net.channels))
    time = [*layer("time/dense0", "time_embed.0", DENSE), *layer("time/dense1", "time_embed.2", DENSE)]
    half = net.depth // 2
    return [
        *patches("patch_embed.proj", patch, spec.shape[-1], net.channels),
        *(time if net.time_mlp else []),
        *([Row("label/embedding", ("label_emb.weight",), SAME)] if net.num_classes else []),
        Row("positions", ("pos_embed",), positions),
        *norm("norm_out", "norm"),
        *layer("out", "decoder_pred", DENSE),
        *(layer("conv_out", "final_layer", CONV) if net.conv else []),
        *repeated(plain, ("down", "down_"), "in_blocks.", half, net.scan),
        *(Row(f"mid/{ours}", tuple(f"mid_block.{name}" for name in theirs), rule) for ours, theirs, rule in plain),
        *repeated([*skip, *plain], ("up", "up_"), "out_blocks.", half, net.scan),
    ]
