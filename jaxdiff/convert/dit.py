"""Weights of transformers: the original DiT and U-ViT, and DiT in diffusers.

Their blocks are numbered; ours are one block with stacked parameters, unless the network's field `scan` is off. A
convolution whose stride is its kernel is a linear map of a patch's values, which both sides have in the order [rows,
columns, channels] (`jaxdiff.models.vit`, equation 1).

The original DiT keeps its fixed positions among the weights: they are compared with ours, and written back. U-ViT's
positions are learned, and its table of labels, where it has a null row, counts it among the classes.

diffusers' DiT differs from the original in three ways, which are fields of our network and part of the spec:
its features of time have frequencies 10000^(-k / 127) where the original has 10000^(-k / 128) (`freq_shift`), the
layer normalisation before a block's MLP adds `norm_eps`, 1e-5 by default, where the original has 1e-6
(`mlp_norm_epsilon`), and it stretches the positions of its `sample_size` over other sizes (`position_reach`). What a
folder says is followed, so our output is that of diffusers. For the published facebook/DiT-XL-2-256 and -512, which
were trained by the original code, the preset "dit_xl_2" with the original file is the network as trained.

diffusers also gives every block its own embedding of time and label, copies of one that its conversion of the original
made; only those of a block reach that block, and those of the first the output. Ours are one: the copies are read if
they are all equal, and written as often; a folder in which they differ (trained further there) is refused.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxdiff.convert.diffusers_scheduler import meaning
from jaxdiff.convert.files import tuples
from jaxdiff.convert.table import CONV, DENSE, SAME, Constant, Row, Rule, clean, joined, reshaped
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.dit import DiT
from jaxdiff.models.presets.spec import Spec
from jaxdiff.models.uvit import UViT
from jaxdiff.models.vit import position_table

FAMILY = "dit"
CLASS = "DiTTransformer2DModel"
NETWORKS: dict[str, type[DiT] | type[UViT]] = {"dit": DiT, "uvit": UViT}

_DIT = {"x_embedder.proj.weight", "pos_embed", "blocks.0.adaLN_modulation.1.weight", "final_layer.linear.weight"}
_UVIT = {"patch_embed.proj.weight", "pos_embed", "in_blocks.0.attn.qkv.weight", "mid_block.norm1.weight"}
_OTHERS = ("context", "caption", "clip", "text")  # what the names of U-ViT's relatives with text begin with

# diffusers' fields: the default of each that we follow; and what no model may have otherwise. None stands for any.
_FIELDS = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
    "attention_bias": True, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000, "norm_eps": 1e-5,
}  # fmt: skip
_ONLY = {
    "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
    "cross_attention_dim": None, "num_vector_embeds": None, "double_self_attention": False,
    "only_cross_attention": False, "use_linear_projection": False, "caption_channels": None,
    "attention_type": "default", "use_additional_conditions": None, "interpolation_scale": None,
}  # fmt: skip
_MOST = 10**6
_WHOLE = {
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "sample_size",
    "patch_size", "num_embeds_ada_norm",
}  # fmt: skip
_UNUSED = ("dropout", "norm_num_groups", "upcast_attention")  # of training, of other networks, of half precision

Part = tuple[str, tuple[str, ...], Rule]  # of a block: ours, theirs without the block's prefix, rule


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


def stacked(rule: Rule, depth: int) -> Rule:
    """The same leaf of `depth` blocks as one leaf [depth, ..] of ours.

    Args:
        rule: of one block; it may take several tensors.
        depth: number of blocks; the row names the tensors of the first, then of the second, ..

    Returns:
        The rule.

    Examples:
        >>> stacked(DENSE, 2).read(*np.ones((2, 4, 3))).shape
        (2, 3, 4)
    """

    def read(*ws: np.ndarray) -> np.ndarray:
        each = len(ws) // depth
        return np.stack([rule.read(*ws[i * each : (i + 1) * each]) for i in range(depth)])

    return Rule(f"stacked {rule.name}", read, lambda p: tuple(w for block in p for w in rule.write(block)))


def copies(rule: Rule, count: int) -> Rule:
    """One leaf of ours that they keep several times: read if all are equal, written as often.

    Args:
        rule: of one copy.
        count: how many.

    Returns:
        The rule; its row names `count` tensors.

    Examples:
        >>> [w.shape for w in copies(DENSE, 2).write(np.ones((3, 4)))]
        [(4, 3), (4, 3)]
    """

    def read(*ws: np.ndarray) -> np.ndarray:
        for i, w in enumerate(ws):
            if not np.array_equal(w, ws[0]):
                raise UsageError(f"the embedding of time or label of block {i} is not that of block 0: allowed is one "
                                 "embedding for all blocks, as trained by the original DiT")  # fmt: skip
        return rule.read(ws[0])

    return Rule(f"copies of {rule.name}", read, lambda p: rule.write(p) * count)


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
    net = _network(spec)
    return _uvit_rows(net, spec) if isinstance(net, UViT) else _dit_rows(net, spec)


def _dit_rows(net: DiT, spec: Spec) -> list[Row | Constant]:
    patch, size = _square(net, spec)
    _require(net, {"freq_shift": 0, "mlp_norm_epsilon": 1e-6, "qkv_bias": True}, "the original DiT")
    if net.position_reach not in (None, size):
        raise UsageError(f"position_reach is {net.position_reach}: allowed for the original DiT is None or {size}")
    block = [
        *_linear("modulation", "adaLN_modulation.1"),
        *_linear("attention/qkv", "attn.qkv"),
        *_linear("attention/proj", "attn.proj"),
        *_linear("mlp/dense0", "mlp.fc1"),
        *_linear("mlp/dense1", "mlp.fc2"),
    ]
    ends = [
        *_patch("x_embedder.proj", patch, spec.shape[-1], net.channels),
        *_linear("time/dense0", "t_embedder.mlp.0"),
        *_linear("time/dense1", "t_embedder.mlp.2"),
        ("label/embedding", ("y_embedder.embedding_table.weight",), SAME),
        *_linear("modulation", "final_layer.adaLN_modulation.1"),
        *_linear("out", "final_layer.linear"),
    ]
    positions = Constant("pos_embed", position_table((size, size), net.channels)[None], tolerance=1e-5)
    return [*_rows(ends), *_repeated(block, ("blocks", "block_"), "blocks.", net.depth, net.scan), positions]


def _uvit_rows(net: UViT, spec: Spec) -> list[Row | Constant]:
    patch, size = _square(net, spec, labels=False)
    plain = [
        *_linear("norm1", "norm1", SAME, "scale"),
        *_linear("attention/qkv", "attn.qkv")[: 1 + net.qkv_bias],
        *_linear("attention/proj", "attn.proj"),
        *_linear("norm2", "norm2", SAME, "scale"),
        *_linear("mlp/dense0", "mlp.fc1"),
        *_linear("mlp/dense1", "mlp.fc2"),
    ]
    skip = _linear("skip", "skip_linear") if net.long_skips else []
    length = size * size + 1 + bool(net.num_classes)
    positions = reshaped(SAME, (1, length, net.channels), (length, net.channels))
    time = [*_linear("time/dense0", "time_embed.0"), *_linear("time/dense1", "time_embed.2")]
    ends: list[Part] = [
        *_patch("patch_embed.proj", patch, spec.shape[-1], net.channels),
        *(time if net.time_mlp else []),
        *([("label/embedding", ("label_emb.weight",), SAME)] if net.num_classes else []),
        ("positions", ("pos_embed",), positions),
        *_linear("norm_out", "norm", SAME, "scale"),
        *_linear("out", "decoder_pred"),
        *(_linear("conv_out", "final_layer", CONV) if net.conv else []),
    ]
    half = net.depth // 2
    return [
        *_rows(ends),
        *_repeated(plain, ("down", "down_"), "in_blocks.", half, net.scan),
        *_rows([(f"mid/{ours}", tuple(f"mid_block.{name}" for name in theirs), rule) for ours, theirs, rule in plain]),
        *_repeated([*skip, *plain], ("up", "up_"), "out_blocks.", half, net.scan),
    ]


def diffusers_table(spec: Spec) -> list[Row | Constant]:
    """The rows of diffusers' `DiTTransformer2DModel`.

    Args:
        spec: of the network "dit", as `spec` makes it.

    Returns:
        Every parameter of ours once, every tensor of theirs once.

    Raises:
        UsageError: another network, or fields that diffusers does not have.

    Examples:
        >>> len(diffusers_table(spec({"num_layers": 2}, {})))
        21

    Reference: huggingface/diffusers, models/transformers/dit_transformer_2d.py.
    """
    net = _diffusers_network(spec)
    patch, _ = _square(net, spec)
    emb = [f"transformer_blocks.{i}.norm1.emb" for i in range(net.depth)]

    def shared(ours: str, theirs: str, rule: Rule) -> Part:
        return ours, tuple(f"{prefix}.{theirs}" for prefix in emb), copies(rule, net.depth)

    def attention(kind: str, rule: Rule) -> tuple[tuple[str, ...], Rule]:
        return tuple(f"attn1.to_{name}.{kind}" for name in "qkv"), joined(rule, 3)

    block = [
        *_linear("modulation", "norm1.linear"),
        ("attention/qkv/kernel", *attention("weight", DENSE)),
        *([("attention/qkv/bias", *attention("bias", SAME))] if net.qkv_bias else []),
        *_linear("attention/proj", "attn1.to_out.0"),
        *_linear("mlp/dense0", "ff.net.0.proj"),
        *_linear("mlp/dense1", "ff.net.2"),
    ]
    ends = [
        *_patch("pos_embed.proj", patch, spec.shape[-1], net.channels),
        shared("time/dense0/kernel", "timestep_embedder.linear_1.weight", DENSE),
        shared("time/dense0/bias", "timestep_embedder.linear_1.bias", SAME),
        shared("time/dense1/kernel", "timestep_embedder.linear_2.weight", DENSE),
        shared("time/dense1/bias", "timestep_embedder.linear_2.bias", SAME),
        shared("label/embedding", "class_embedder.embedding_table.weight", SAME),
        *_linear("modulation", "proj_out_1"),
        *_linear("out", "proj_out_2"),
    ]
    return [*_rows(ends), *_repeated(block, ("blocks", "block_"), "transformer_blocks.", net.depth, net.scan)]


def spec(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Spec:
    """The model that a diffusers folder's two configurations describe.

    Args:
        config: of the transformer (config.json).
        scheduler: of the noise (scheduler_config.json); a DDIMScheduler where it does not say.

    Returns:
        The spec; its layout keeps the scheduler if one is given, so that it is written back as it was.

    Raises:
        UsageError: a field that is unknown or has a value that our network does not follow.

    Examples:
        >>> made = spec({"num_layers": 2, "out_channels": 8}, {"beta_schedule": "linear"})
        >>> made.shape, made.fields["learned_variance"]
        ((32, 32, 4), True)

    Reference: huggingface/diffusers, models/transformers/dit_transformer_2d.py, pipelines/dit.
    """
    given = _public(config)
    for name, value in given.items():
        if name in _ONLY and value != _ONLY[name]:
            raise _bad(name, value, repr(_ONLY[name]))
        if name not in (*_FIELDS, *_ONLY, *_UNUSED):
            raise unknown(f"field of {CLASS}", name, [*_FIELDS, *_ONLY, *_UNUSED])
    made = {**_FIELDS, **given}
    for name in _FIELDS:
        _check_number(name, made[name])
    channels = made["in_channels"]
    out = channels if made["out_channels"] is None else made["out_channels"]
    learned = out == 2 * channels
    fields = {
        "out_channels": None if learned or out == channels else out,
        "patch_size": made["patch_size"],
        "channels": made["num_attention_heads"] * made["attention_head_dim"],
        "depth": made["num_layers"],
        "num_heads": made["num_attention_heads"],
        "qkv_bias": made["attention_bias"],
        "num_classes": made["num_embeds_ada_norm"],
        "learned_variance": learned,
        "freq_shift": 1.0,
        "mlp_norm_epsilon": made["norm_eps"],
        "position_reach": made["sample_size"] // made["patch_size"],
    }
    noise = {"_class_name": "DDIMScheduler", **scheduler}
    meant = meaning(noise)
    layout: dict[str, Any] = {"family": "diffusers"}
    if scheduler:
        layout["scheduler"] = tuples({"_class_name": noise["_class_name"], **_public(scheduler)})
    size = made["sample_size"]
    return Spec(
        "dit", fields, (size, size, channels), meant.process, meant.prediction, "none", meant.time_input,
        layout=layout, reference=f"a {CLASS} of diffusers",
    )  # fmt: skip


def config(spec: Spec) -> dict[str, Any]:
    """The configuration of diffusers' transformer (config.json) for a spec. The inverse of `spec`.

    Args:
        spec: of the network "dit".

    Returns:
        Plain values.

    Raises:
        UsageError: fields that diffusers does not have.

    Examples:
        >>> from jaxdiff.convert import dit
        >>> dit.config(dit.spec({"num_layers": 2}, {}))["num_layers"]
        2

    Reference: huggingface/diffusers, models/transformers/dit_transformer_2d.py.
    """
    net = _diffusers_network(spec)
    patch, size = _square(net, spec)
    channels = spec.shape[-1]
    return {
        "_class_name": CLASS,
        "activation_fn": "gelu-approximate",
        "attention_bias": net.qkv_bias,
        "attention_head_dim": net.channels // net.num_heads,
        "dropout": 0.0,
        "in_channels": channels,
        "norm_elementwise_affine": False,
        "norm_eps": net.mlp_norm_epsilon,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": net.num_heads,
        "num_embeds_ada_norm": net.num_classes,
        "num_layers": net.depth,
        "out_channels": (net.out_channels or channels) * (1 + net.learned_variance),
        "patch_size": patch,
        "sample_size": size * patch,
        "upcast_attention": False,
    }


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what diffusers adds for itself."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _check_number(name: str, value: Any) -> None:
    """A value of `_FIELDS`, before anything is computed with it."""
    if name in _WHOLE:
        fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST
        if not (fits or (name == "out_channels" and value is None)):
            raise _bad(name, value, f"a whole number from 1 to {_MOST}")
    elif name == "attention_bias":
        if not isinstance(value, bool):
            raise _bad(name, value, "True or False")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise _bad(name, value, "a number above 0")


def _bad(name: str, value: Any, allowed: str) -> UsageError:
    return UsageError(f"{name} is {clean(repr(value))} in config.json: allowed is {allowed}")


def _network(spec: Spec) -> DiT | UViT:
    if spec.network not in NETWORKS:
        raise UsageError(f"network is '{spec.network}': allowed for {FAMILY} weights is {' or '.join(NETWORKS)}")
    return NETWORKS[spec.network](**spec.fields)


def _diffusers_network(spec: Spec) -> DiT:
    net = _network(spec)
    if not isinstance(net, DiT):
        raise UsageError(f"network is '{spec.network}': allowed for {CLASS} is dit")
    _require(net, {"freq_shift": 1, "mlp_ratio": 4, "null_label": True}, f"diffusers' {CLASS}")
    _, size = _square(net, spec)
    if net.position_reach not in (None, size):
        raise UsageError(f"position_reach is {net.position_reach}: allowed for {CLASS} is {size}, sample_size / patch")
    return net


def _require(net: DiT, values: Mapping[str, Any], whose: str) -> None:
    for name, value in values.items():
        if getattr(net, name) != value:
            raise UsageError(f"{name} is {getattr(net, name)}: {whose} has {value}, with the same weights another "
                             "network; change the spec's fields if that is meant")  # fmt: skip


def _square(net: DiT | UViT, spec: Spec, *, labels: bool = True) -> tuple[int, int]:
    """The patch's side and the number of patches along a side."""
    shape, patch = tuple(spec.shape), net.patch_size
    if not isinstance(patch, int) or len(shape) != 3 or shape[0] != shape[1] or shape[0] % patch:
        raise UsageError(f"shape {shape} with patch_size {patch}: allowed here is a square image of square patches")
    if labels and not net.num_classes:
        raise UsageError("num_classes is 0: allowed is 1 or more, the original has no network without labels")
    return patch, shape[0] // patch


def _linear(ours: str, theirs: str, rule: Rule = DENSE, kernel: str = "kernel") -> list[Part]:
    return [(f"{ours}/{kernel}", (f"{theirs}.weight",), rule), (f"{ours}/bias", (f"{theirs}.bias",), SAME)]


def _patch(theirs: str, patch: int, channels: int, width: int) -> list[Part]:
    rule = reshaped(CONV, (patch, patch, channels, width), (patch * patch * channels, width))
    return _linear("patch", theirs, rule)


def _rows(parts: list[Part]) -> list[Row]:
    return [Row(*part) for part in parts]


def _repeated(parts: list[Part], ours: tuple[str, str], theirs: str, depth: int, scan: bool) -> list[Row]:
    """The rows of numbered blocks; `ours` names the stack and begins the name of a block on its own."""
    rows = []
    for leaf, names, rule in parts:
        given = [tuple(f"{theirs}{i}.{name}" for name in names) for i in range(depth)]
        if scan:
            every = tuple(name for block in given for name in block)
            rows.append(Row(f"{ours[0]}/{leaf}", every, stacked(rule, depth)))
        else:
            rows += [Row(f"{ours[1]}{i}/{leaf}", block, rule) for i, block in enumerate(given)]
    return rows
