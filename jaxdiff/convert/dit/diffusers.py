"""Configuration and weights of diffusers' `DiTTransformer2DModel`.

It differs from the original DiT in three ways, which are fields of our network and part of the spec: its features of
time have frequencies 10000^(-k / 127) where the original has 10000^(-k / 128) (`freq_shift`), the layer normalisation
before a block's MLP adds `norm_eps`, 1e-5 by default, where the original has 1e-6 (`mlp_norm_epsilon`), and it
stretches the positions of its `sample_size` over other sizes (`position_reach`). What a folder says is followed, so our
output is that of diffusers. For the published facebook/DiT-XL-2-256 and -512, which were trained by the original code,
the preset "dit_xl_2" with the original file is the network as trained.

diffusers also gives every block its own embedding of time and label, copies of one that its conversion of the original
made; only those of a block reach that block, and those of the first the output. Ours are one: the copies are read if
they are all equal, and written as often; a folder in which they differ (trained further there) is refused.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.convert.diffusers.schedulers import check_variance, meaning
from jaxdiff.convert.diffusers.values import public
from jaxdiff.convert.dit.parts import network, patches, repeated, require, square
from jaxdiff.convert.json_files import tuples
from jaxdiff.convert.rules import DENSE, SAME, Rule, joined
from jaxdiff.convert.table import Row, layer
from jaxdiff.convert.text import clean
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models.dit import DiT
from jaxdiff.models.presets.spec import Spec

CLASS = "DiTTransformer2DModel"

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


def table(spec: Spec) -> list[Row]:
    """The rows of a `DiTTransformer2DModel`.

    Args:
        spec: of the network "dit", as `spec` makes it.

    Returns:
        Every parameter of ours once, every tensor of theirs once.

    Raises:
        UsageError: another network, or fields that diffusers does not have.

    Examples:
        >>> len(table(spec({"num_layers": 2}, {})))
        21

    Reference: huggingface/diffusers, models/transformers/dit_transformer_2d.py.
    """
    net = _network(spec)
    patch, _ = square(net, spec)
    return [
        *patches("pos_embed.proj", patch, spec.shape[-1], net.channels),
        *_embedding(net.depth),
        *layer("modulation", "proj_out_1", DENSE),
        *layer("out", "proj_out_2", DENSE),
        *repeated(_block(net.qkv_bias), ("blocks", "block_"), "transformer_blocks.", net.depth, net.scan),
    ]


def _embedding(depth: int) -> list[Row]:
    """Of time and label, in every block."""
    parts = [
        *layer("time/dense0", "timestep_embedder.linear_1", DENSE),
        *layer("time/dense1", "timestep_embedder.linear_2", DENSE),
        Row("label/embedding", ("class_embedder.embedding_table.weight",), SAME),
    ]
    blocks = [f"transformer_blocks.{i}.norm1.emb" for i in range(depth)]
    return [
        Row(ours, tuple(f"{block}.{theirs[0]}" for block in blocks), copies(rule, depth))
        for ours, theirs, rule in parts
    ]


def _block(bias: bool) -> list[Row]:
    kernels, biases = (tuple(f"attn1.to_{name}.{kind}" for name in "qkv") for kind in ("weight", "bias"))
    return [
        *layer("modulation", "norm1.linear", DENSE),
        Row("attention/qkv/kernel", kernels, joined(DENSE, 3)),
        *([Row("attention/qkv/bias", biases, joined(SAME, 3))] if bias else []),
        *layer("attention/proj", "attn1.to_out.0", DENSE),
        *layer("mlp/dense0", "ff.net.0.proj", DENSE),
        *layer("mlp/dense1", "ff.net.2", DENSE),
    ]


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
    made = _checked(config)
    size, given = made["sample_size"], made["in_channels"]
    out = given if made["out_channels"] is None else made["out_channels"]
    learned = out == 2 * given
    fields = {
        "out_channels": None if learned or out == given else out,
        "patch_size": made["patch_size"],
        "channels": made["num_attention_heads"] * made["attention_head_dim"],
        "depth": made["num_layers"],
        "num_heads": made["num_attention_heads"],
        "qkv_bias": made["attention_bias"],
        "num_classes": made["num_embeds_ada_norm"],
        "learned_variance": learned,
        "freq_shift": 1.0,
        "mlp_norm_epsilon": made["norm_eps"],
        "position_reach": size // made["patch_size"],
    }
    noise = {"_class_name": "DDIMScheduler", **scheduler}
    meant = meaning(noise)
    check_variance(meant, out, learned)
    if learned and meant.learned is False:
        raise _bad("out_channels", out, f"{given} where variance_type is {clean(str(noise['variance_type']))}")
    layout: dict[str, Any] = {"family": "diffusers"}
    if scheduler:
        layout["scheduler"] = tuples({"_class_name": noise["_class_name"], **public(scheduler)})
    return Spec(
        "dit", fields, (size, size, given), meant.process, meant.prediction, "none", meant.time_input,
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
        >>> config(spec({"num_layers": 2}, {}))["num_layers"]
        2

    Reference: huggingface/diffusers, models/transformers/dit_transformer_2d.py.
    """
    net = _network(spec)
    patch, size = square(net, spec)
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


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every one of `_FIELDS` with its value or default, fit by itself."""
    given = public(config)
    for name, value in given.items():
        if name in _ONLY and value != _ONLY[name]:
            raise _bad(name, value, repr(_ONLY[name]))
        if name not in (*_FIELDS, *_ONLY, *_UNUSED):
            raise unknown(f"field of {CLASS}", name, [*_FIELDS, *_ONLY, *_UNUSED])
    made = {**_FIELDS, **given}
    for name in _FIELDS:
        _check_number(name, made[name])
    return made


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


def _network(spec: Spec) -> DiT:
    net = network(spec)
    if not isinstance(net, DiT):
        raise UsageError(f"network is '{spec.network}': allowed for {CLASS} is dit")
    require(net, {"freq_shift": 1, "mlp_ratio": 4, "null_label": True}, f"diffusers' {CLASS}")
    _, size = square(net, spec)
    if net.position_reach not in (None, size):
        raise UsageError(f"position_reach is {net.position_reach}: allowed for {CLASS} is {size}, sample_size / patch")
    return net
