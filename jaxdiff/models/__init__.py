"""Networks, in Linen, and the blocks they are made of.

A network is anything that `Model.apply` can call; these are what the library brings along. Register another by adding
its class to `REGISTRY`.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from jaxdiff.errors import unknown
from jaxdiff.models.attention import SelfAttention
from jaxdiff.models.classifier import AttentionPool, Classifier
from jaxdiff.models.dit import DiT
from jaxdiff.models.dropout import Dropout
from jaxdiff.models.edm2 import EDM2UNet
from jaxdiff.models.embedding import FourierEmbedding, TimeEmbedding, sinusoidal_embedding
from jaxdiff.models.layers import GroupNorm, Norm, ResBlock, conv, ddpm_init, dense
from jaxdiff.models.mlp import MLP
from jaxdiff.models.network import Network
from jaxdiff.models.refinenet import RefineNet
from jaxdiff.models.resample import Downsample, SmoothDownsample, Upsample
from jaxdiff.models.transformer import SpatialTransformer
from jaxdiff.models.unet import UNet
from jaxdiff.models.uvit import UViT

REGISTRY: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "classifier": Classifier,
    "dit": DiT,
    "uvit": UViT,
    "edm2": EDM2UNet,
    "refinenet": RefineNet,
    "mlp": MLP,
}


def make(name: str, **fields: Any) -> Network:
    """The network registered under a name.

    Args:
        name: a key of `REGISTRY`.
        fields: of its module.

    Returns:
        The network, ready for `init`.

    Raises:
        UsageError: an unknown name or field, with the nearest one that exists; what the module itself refuses.

    Examples:
        >>> make("unet", channels=64).module.channels
        64
    """
    if name not in REGISTRY:
        raise unknown("model", name, REGISTRY)
    module = REGISTRY[name]
    allowed = [f.name for f in dataclasses.fields(module) if f.init and f.name not in ("parent", "name")]
    for field in fields:
        if field not in allowed:
            raise unknown(f"field of model '{name}'", field, allowed)
    return Network(module(**fields))


__all__ = [
    "MLP", "REGISTRY", "AttentionPool", "Classifier", "DiT", "Downsample", "Dropout", "EDM2UNet", "FourierEmbedding",
    "GroupNorm", "Network", "Norm", "RefineNet", "ResBlock", "SelfAttention", "SmoothDownsample", "SpatialTransformer",
    "TimeEmbedding", "UNet", "UViT", "Upsample", "conv", "ddpm_init", "dense", "make", "sinusoidal_embedding",
]  # fmt: skip
